"""Cine loops against a frame clock: sources, the bounded queue, outputs and the live page.

`sources` opens what frames come from, `pipeline` sends them through a session, `outputs` writes
what was answered and `server` shows it. pydicom and OpenCV are imported in `dicom` and `video`
alone, when a file of theirs is opened.
"""
