"""What is written of a record: CSV, Markdown, HTML, the terminal, a comparison, a model card.

All numbers come from the record and none is measured here. `outline` says what a report holds and
in which order, `tables` and `charts` make its parts, `wording` its sentences; `page` and `markdown`
write the same `document` in their own form.
"""
