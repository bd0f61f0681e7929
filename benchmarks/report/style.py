"""The page's style sheet."""

from __future__ import annotations

# Okabe and Ito's colours for the families of engines and the parts of a call, darkened or
# lightened until text-sized marks have a contrast of 4.5 to their background.
STYLE = """
:root{color-scheme:light dark;--page:#fff;--box:#f5f6f8;--ink:#1b1f24;--quiet:#545d68;
--line:#d5dae0;--grid:#e7eaee;--warn:#fff4db;--warn-line:#a86500;--bad:#fde8e6;--bad-line:#b3261e;
--torch:#5c6773;--onnxruntime:#0069a6;--openvino:#bd4b00;--tensorrt:#007557;--other:#9a3f7c;
--pre:#8a5a00;--transfer:#007557;--engine:#0069a6;--post:#9a3f7c}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--box:#1d2226;--ink:#e9ecef;--quiet:#a9b2bb;
--line:#3a424a;--grid:#2a3036;--warn:#33290f;--warn-line:#d99a2b;--bad:#3c1a18;--bad-line:#f2877e;
--torch:#a7b1bc;--onnxruntime:#5db4ee;--openvino:#f28b45;--tensorrt:#3fc49b;--other:#df8fc2;
--pre:#e0a83c;--transfer:#3fc49b;--engine:#5db4ee;--post:#df8fc2}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main,header,footer{max-width:1160px;margin:0 auto;padding:0 20px}
header{padding-top:32px}
.kind{margin:0;color:var(--quiet);font-size:.875rem;letter-spacing:.02em}
h1{margin:.25em 0 .4em;font-size:clamp(1.3rem,1rem + 1.6vw,1.9rem);line-height:1.28;
font-weight:650;text-wrap:balance;overflow-wrap:anywhere}
h2{margin:2.4em 0 .5em;font-size:1.2rem}
nav ul{display:flex;flex-wrap:wrap;gap:2px 18px;margin:14px 0 0;padding:0;list-style:none;
font-size:.875rem}
nav a{display:inline-block;padding:3px 0;color:var(--ink)}
h3{margin:1.4em 0 .5em;font-size:1rem}
figure h3{margin-top:0;overflow-wrap:anywhere}
p,figcaption{max-width:75ch;overflow-wrap:anywhere}
.note{margin:12px 0;padding:10px 14px;background:var(--warn);border-left:4px solid var(--warn-line)}
.note.bad{background:var(--bad);border-color:var(--bad-line)}
.note ul{margin:.25em 0 0;padding-left:1.2em}
.note li{overflow-wrap:anywhere}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px;
background:linear-gradient(var(--page),var(--page)) right/24px 100% no-repeat local,
linear-gradient(to left,var(--line),transparent) right/16px 100% no-repeat}
a:focus-visible,.scroll:focus-visible,summary:focus-visible,textarea:focus-visible{
outline:3px solid var(--onnxruntime)}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 9px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border-top:0;background:var(--box);vertical-align:bottom;font-weight:600;
white-space:normal}
th small,td small{display:block;font-weight:400;color:var(--quiet);font-size:.93em}
th:first-child{text-align:left;position:sticky;left:0;background:var(--page);font-weight:600;
max-width:20rem;overflow-wrap:anywhere;white-space:normal;min-width:12.5rem}
thead th:first-child{background:var(--box)}
table.words td{text-align:left;white-space:normal;vertical-align:top;min-width:6rem;
overflow-wrap:break-word}
table.words td.long{min-width:17rem;overflow-wrap:anywhere}
table.words thead th{text-align:left}
table.words tbody th{vertical-align:top}
details{margin:1em 0}
summary{cursor:pointer;font-weight:600;padding:4px 0;overflow-wrap:anywhere}
details .scroll{margin-top:6px}
.plots{display:grid;gap:20px;margin-top:20px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
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
.roof{stroke:var(--ink);stroke-width:1.5;fill:none}
.percentile{stroke:var(--ink);stroke-width:2.5;fill:none}
.interval{stroke-width:1.5;fill:none}
.dots{stroke-width:2.8;stroke-linecap:round;stroke-opacity:.8;fill:none}
.dots.passes{stroke-width:6}
.torch{--mark:var(--torch)}.onnxruntime{--mark:var(--onnxruntime)}.openvino{--mark:var(--openvino)}
.tensorrt{--mark:var(--tensorrt)}.other{--mark:var(--other)}
.pre{--mark:var(--pre)}.transfer{--mark:var(--transfer)}.engine{--mark:var(--engine)}
.post{--mark:var(--post)}
.mark,.bar,.dot{fill:var(--mark)}
.mark{stroke:var(--box);stroke-width:1.5}
.dot{fill-opacity:.55;stroke:var(--mark);stroke-width:1.5}
.dot.hollow{fill-opacity:.08}
.line{stroke:var(--mark);stroke-width:2;stroke-linejoin:round;fill:none}
.interval,.dots{stroke:var(--mark)}
.key{white-space:nowrap;margin-left:.6em}
.swatch{display:inline-block;width:.75em;height:.75em;margin-right:.3em;border-radius:2px;
background:var(--mark)}
.range{white-space:nowrap}
code{white-space:nowrap;font:.95em ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
dl{display:grid;grid-template-columns:minmax(8rem,13rem) 1fr;gap:6px 20px;margin:0}
dt{font-weight:600}
dd{margin:0;max-width:75ch;overflow-wrap:anywhere}
textarea{display:block;width:100%;padding:12px 14px;border:0;border-radius:6px;resize:none;
background:var(--box);color:var(--ink);overflow-wrap:anywhere;field-sizing:content;
font:.875rem/1.55 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
footer{margin-top:48px;padding-top:16px;padding-bottom:40px;border-top:1px solid var(--line);
color:var(--quiet);font-size:.875rem}
@media (max-width:560px){main,header,footer{padding-left:14px;padding-right:14px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:10px}figure{padding:10px}
th:first-child{max-width:9rem;min-width:8rem}}
@media print{:root{color-scheme:light;--page:#fff;--box:#fff;--ink:#000;--quiet:#444;--line:#bbb;
--grid:#ddd;--warn:#fff;--warn-line:#a86500;--bad:#fff;--bad-line:#b3261e;
--torch:#5c6773;--onnxruntime:#0069a6;--openvino:#bd4b00;--tensorrt:#007557;--other:#9a3f7c;
--pre:#8a5a00;--transfer:#007557;--engine:#0069a6;--post:#9a3f7c}
nav{display:none}html{font-size:9.5pt}body{font-size:1rem}main,header,footer{max-width:none;padding:0}
.scroll{overflow:visible;border:0;background:none}table{font-size:7pt}
th,td{padding:2px 4px;white-space:normal}
th:first-child{position:static;min-width:6em}table.words td,table.words td.long{min-width:5em}
td small{white-space:nowrap}details::details-content{content-visibility:visible;height:auto}
figure{border:1px solid var(--line)}.plots{grid-template-columns:1fr 1fr;gap:10px}
h2,h3,summary{break-after:avoid}tr,dt,dd{break-inside:avoid}*{print-color-adjust:exact}}
"""
