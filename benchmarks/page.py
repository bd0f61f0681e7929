"""The report as one HTML file: no script, no network, readable on paper, phones and in the dark."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape

from .charts import accuracy_against_latency, bars, latency_strips
from .record import BenchmarkRecord
from .wording import (
    CLEARANCE,
    COLUMNS,
    DEFINITIONS,
    artifacts_table,
    conditions,
    groups_caption,
    groups_table,
    headline,
    metrics_table,
    mib,
)

# Okabe and Ito's blue and vermilion beside grey, darkened or lightened until text-sized marks
# have a contrast of 4.5 to their background.
_STYLE = """
:root{color-scheme:light dark;--page:#fff;--box:#f5f6f8;--ink:#1b1f24;--quiet:#545d68;
--line:#d5dae0;--grid:#e7eaee;--warn:#fff4db;--warn-line:#a86500;
--torch:#5c6773;--onnxruntime:#0069a6;--openvino:#bd4b00}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--box:#1d2226;--ink:#e9ecef;--quiet:#a9b2bb;
--line:#3a424a;--grid:#2a3036;--warn:#33290f;--warn-line:#d99a2b;
--torch:#a7b1bc;--onnxruntime:#5db4ee;--openvino:#f28b45}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main,header,footer{max-width:1160px;margin:0 auto;padding:0 20px}
header{padding-top:32px}
.kind{margin:0;color:var(--quiet);font-size:.875rem;letter-spacing:.02em}
h1{margin:.25em 0 .4em;font-size:clamp(1.3rem,1rem + 1.6vw,1.9rem);line-height:1.28;
font-weight:650;text-wrap:balance;overflow-wrap:anywhere}
h2{margin:2.4em 0 .5em;font-size:1.2rem}
h3{margin:1.4em 0 .5em;font-size:1rem}
figure h3{margin-top:0}
p,figcaption{max-width:75ch}
.note{margin:12px 0;padding:10px 14px;background:var(--warn);border-left:4px solid var(--warn-line)}
.note ul{margin:.25em 0 0;padding-left:1.2em}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
.scroll:focus-visible{outline:3px solid var(--onnxruntime)}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 9px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border-top:0;background:var(--box);vertical-align:bottom;font-weight:600}
thead small{display:block;font-weight:400;color:var(--quiet)}
th:first-child{text-align:left;position:sticky;left:0;background:var(--page);font-weight:600;
max-width:20rem;overflow-wrap:anywhere;white-space:normal;min-width:12.5rem}
thead th:first-child{background:var(--box)}
table.words td{text-align:left;white-space:normal}
table.words td:nth-child(4){min-width:17rem}
table.words thead th{text-align:left}
code,pre{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
.plots{display:grid;gap:20px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
figure{margin:0;padding:14px;background:var(--box);border-radius:6px;break-inside:avoid}
figcaption,.quiet{color:var(--quiet);font-size:.875rem}
figcaption{margin-top:8px}
svg{display:block;width:100%;height:auto;max-width:500px;overflow:visible;
font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
.grid{stroke:var(--grid);fill:none}
figure .grid{stroke:var(--line);stroke-opacity:.6}
.base{stroke:var(--quiet);fill:none}
.tick,.axis,.value{fill:var(--quiet)}
.label{fill:var(--ink)}
.halo{paint-order:stroke;stroke:var(--box);stroke-width:4px;stroke-linejoin:round}
.leader{stroke:var(--quiet);fill:none}
.front{stroke:var(--quiet);fill:none;stroke-dasharray:5 4}
.percentile{stroke:var(--ink);stroke-width:2.5;fill:none}
.interval{stroke-width:1.5;stroke-opacity:.7;fill:none}
.dots{stroke-width:3.5;stroke-linecap:round;stroke-opacity:.4;fill:none}
.torch{--mark:var(--torch)}.onnxruntime{--mark:var(--onnxruntime)}.openvino{--mark:var(--openvino)}
.mark,.bar{fill:var(--mark)}
.mark{stroke:var(--box);stroke-width:1.5}
.interval,.dots{stroke:var(--mark)}
.swatch{display:inline-block;width:.75em;height:.75em;margin:0 .3em 0 .6em;border-radius:2px;
background:var(--mark)}
dl{display:grid;grid-template-columns:minmax(8rem,13rem) 1fr;gap:6px 20px;margin:0}
dt{font-weight:600}
dd{margin:0;max-width:75ch;overflow-wrap:anywhere}
pre{margin:0;padding:12px 14px;background:var(--box);border-radius:6px;white-space:pre-wrap;
overflow-wrap:anywhere;font-size:.875rem}
footer{margin-top:48px;padding-top:16px;padding-bottom:40px;border-top:1px solid var(--line);
color:var(--quiet);font-size:.875rem}
@media (max-width:560px){main,header,footer{padding-left:14px;padding-right:14px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:10px}figure{padding:10px}
th:first-child{max-width:9rem;min-width:8rem}}
@media print{:root{color-scheme:light;--page:#fff;--box:#fff;--ink:#000;--quiet:#444;--line:#bbb;
--grid:#ddd;--warn:#fff;--torch:#5c6773;--onnxruntime:#0069a6;--openvino:#bd4b00}
body{font-size:10pt}main,header,footer{max-width:none;padding:0}
.scroll{overflow:visible;border:0}table{font-size:6.5pt}th,td{padding:2px 4px;white-space:normal}
th:first-child{position:static;min-width:0}table.words td:nth-child(4){min-width:0}
figure{border:1px solid var(--line)}.plots{grid-template-columns:1fr 1fr;gap:10px}
h2{break-after:avoid}tr,dt,dd{break-inside:avoid}*{print-color-adjust:exact}}
"""


def to_html(record: BenchmarkRecord) -> str:
    """Return the report as one self-contained page; all text from the record is escaped."""
    sections = [
        _section("Results", _main_table(record)),
        _section("Plots", _plots(record)),
        _section(
            "Accuracy by class and lesion size",
            f"<p>{escape(groups_caption(record))}</p>"
            + _table(*groups_table(record), label="Dice by class and lesion size"),
        ),
        _section(
            "All metrics",
            "<p>Means per image over images with a lesion, then pixel-pooled values, then the "
            "share of images without a lesion in which anything was predicted.</p>"
            + _table(*metrics_table(record), label="All metrics"),
        ),
        _section("Conditions", _terms(conditions(record)) + _artifacts(record)),
        _section("Definitions", _terms(DEFINITIONS)),
        _section(
            "Reproduce",
            f"<pre><code>{escape(shlex.join(record.environment.command))}</code></pre>"
            '<p class="quiet">Folders are left out of the command. The .json beside this page '
            "keeps every sample.</p>",
        ),
    ]
    date = escape(record.environment.started_utc[:10])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>edgeseg benchmark</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header>\n<p class="kind">edgeseg benchmark, {date}'
        f"</p>\n<h1>{_unbroken(headline(record))}</h1>\n{_notes(record)}</header>\n"
        f"<main>\n{''.join(sections)}</main>\n"
        f"<footer><p>{escape(CLEARANCE)}</p></footer>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    key = title.lower().replace(" ", "-")
    heading = f'<h2 id="{key}">{title}</h2>'
    return f'<section aria-labelledby="{key}">\n{heading}\n{content}\n</section>\n'


def _unbroken(text: str) -> str:
    """Escape a text and keep its percent signs beside their numbers."""
    return escape(text).replace(" %", "&nbsp;%")


def _notes(record: BenchmarkRecord) -> str:
    if not record.notes:
        return ""
    items = "".join(f"<li>{escape(note.text)}</li>" for note in record.notes)
    return (
        '<div class="note" role="note"><strong>Before you use these numbers</strong>'
        f"<ul>{items}</ul></div>\n"
    )


def _main_table(record: BenchmarkRecord) -> str:
    header = [
        escape(column.title) + (f"<small>{escape(column.unit)}</small>" if column.unit else "")
        for column in COLUMNS
    ]
    rows = [[escape(column.cell(record, row)) for column in COLUMNS] for row in record.rows]
    return _table_of_html(header, rows, label="Results")


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, style: str = ""
) -> str:
    return _table_of_html(
        [escape(cell) for cell in header],
        [[escape(cell) for cell in row] for row in rows],
        label=label,
        style=style,
    )


def _table_of_html(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, style: str = ""
) -> str:
    """Return a table that scrolls in its own box; the box takes focus so that keys scroll it."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _plots(record: BenchmarkRecord) -> str:
    rows = record.rows
    memory = bars(rows, [row.process.peak_rss_mib for row in rows], "Peak memory", "MiB", "memory")
    size = bars(rows, [mib(row.file_bytes) for row in rows], "Model file", "MiB", "size")
    kinds = sorted({row.kind for row in rows})
    colours = "".join(f'<span class="swatch {kind}"></span>{kind}' for kind in kinds)
    figures = [
        (
            "Accuracy against latency",
            accuracy_against_latency(rows) or "<p>No image with a lesion was scored.</p>",
            "Up and left is better. Dashed: the Pareto front; nothing measured is both faster and "
            "more accurate. Circle FP32, square FP16, diamond INT8.",
        ),
        (
            "Distribution of latency",
            latency_strips(rows),
            "One dot per timed frame. Lines: p50 (long), p90 and p99 (shorter, where n allows).",
        ),
        ("Peak memory, MiB", memory, "A fresh process opens the model, predicts 21 frames."),
        ("Model file, MiB", size, "The files an engine loads, as they lie on disk."),
    ]
    return (
        f'<p class="quiet">Colour is the engine:{colours}</p><div class="plots">'
        + "".join(
            f"<figure><h3>{title}</h3>{plot}<figcaption>{caption}</figcaption></figure>"
            for title, plot, caption in figures
        )
        + "</div>"
    )


def _terms(terms: Mapping[str, str]) -> str:
    pairs = (f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
    return f"<dl>{''.join(pairs)}</dl>"


def _artifacts(record: BenchmarkRecord) -> str:
    header, rows = artifacts_table(record)
    return "<h3>Artifacts</h3>" + _table(header, rows, label="Artifacts", style="words")
