"""README and docs: links lead somewhere, pages are found, commands exist, tutorials run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import onnx
import pytest

from edgeseg.cli.main import cli
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.tests.conftest import ROOT

pytestmark = pytest.mark.long

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
# A changelog names what was, and what its lines say is not repaired afterwards.
SAID_OF_THE_PAST = "changelog.md"
TUTORIAL = DOCS / "tutorials" / "phantoms.md"
NOTEBOOK = DOCS / "tutorials" / "phantoms-notebook.ipynb"
SMALLER = {
    "--count 160": "--count 40",
    "--size 96": "--size 64",
    "--student edge-16": "--student attunet-8",
    "--teacher edge-32": "--teacher attunet-8 --batch 4 --learning-rate 0.01",
    "--general-epochs 10": "--general-epochs 1",
    "--teacher-epochs 8": "--teacher-epochs 1",
    "--student-epochs 16": "--student-epochs 2",
}
SMALLER_NOTEBOOK = {"student_epochs=8": "student_epochs=2", "rounds=40": "rounds=4"}


def smaller(text, changes):
    """A tutorial's text with changes that each apply once, else it would run in full."""
    for told, ours in changes.items():
        assert text.count(told) == 1, told
        text = text.replace(told, ours)
    return text


def texts():
    """Name -> text of the README and of every page."""
    pages = {"README.md": ROOT / "README.md", **PAGES}
    return {name: path.read_text(encoding="utf-8") for name, path in pages.items()}


def prose(text):
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", INDENTED.sub("\n", FENCED.sub("", text)))


def commands(text):
    """Every command line `edgeseg …` of the code on a page, without comments."""
    blocks = [body for _, body in FENCED.findall(text)]
    blocks += INDENTED.findall(FENCED.sub("", text))
    lines = [
        line.strip()
        for block in blocks
        for line in block.replace("\\\n", " ").split("\n")
        if line.strip().startswith("edgeseg ")
    ]
    spans = re.findall(r"`(edgeseg [^`]+)`", FENCED.sub("", text))
    return [shlex.split(" ".join(line.split()), comments=True) for line in [*lines, *spans]]


def wrong_in(words):
    """What a command line names that does not exist, or None."""
    command = cli
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    options = {"-h", "--help", *(("--version",) if command is cli else ())}
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            options |= {*parameter.opts, *parameter.secondary_opts}
    for word in rest:
        option = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][a-z0-9-]*", option) and option not in options:
            return f"no option {option}"
    return None


def anchors(text):
    """Anchors of a page's headings, as the site makes them."""
    found = set()
    for title in re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", title).strip().lower()
        found.add(re.sub(r"[\s-]+", "-", words))
    return found


def test_every_relative_link_of_readme_and_docs_leads_to_a_file_and_a_heading():
    lost = []
    for name, text in texts().items():
        # Through a link (docs/changelog.md) the site sees the page in docs/, so it is judged there.
        folder = ROOT if name == "README.md" else (DOCS / name).parent
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            page = folder / path if path else folder / Path(name).name
            if not page.is_file() or (
                anchor and anchor not in anchors(page.read_text(encoding="utf-8"))
            ):
                lost.append(f"{name}: {target}")
    assert lost == []
    assert len(re.findall(r"\]\(docs/", texts()["README.md"])) > 20


def test_readme_has_at_most_8_kb():
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024


def test_every_page_is_once_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)) == sorted(PAGES)


def test_the_readme_leads_to_every_page_but_those_generated_from_code():
    linked = set(re.findall(r"\]\(docs/([^)#]+)\)", texts()["README.md"]))
    own = {name for name, path in PAGES.items() if not path.is_symlink()}
    assert {name for name in own - linked if not name.startswith("reference/")} == set()


def test_every_command_line_of_the_docs_names_a_command_and_options_that_exist():
    told = [
        (name, words)
        for name, text in texts().items()
        if name != SAID_OF_THE_PAST
        for words in commands(text)
    ]
    assert len(told) > 100
    wrong = [(name, shlex.join(words), wrong_in(words)) for name, words in told if wrong_in(words)]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("edgeseg exprot run", "no command exprot"),
        ("edgeseg device look orin", "no command look"),
        ("edgeseg export run --traget jetson", "no option --traget"),
        ("edgeseg benchmark --compare old.json new.json", "no option --compare"),
        ("edgeseg data split DATA --folds=5", None),
        ("edgeseg export --frame 800x600 … -- -1", None),
    ],
)
def test_a_command_line_that_is_wrong_is_told(line, fault):
    text = f"# Page\n\nText.\n\n    {line}  # why\n\nMore, and `edgeseg models`.\n"
    first, second = commands(text)
    assert wrong_in(first) == fault
    assert second == ["edgeseg", "models"]


@pytest.mark.timeout(900)  # ten processes, three of which import torch
def test_commands_of_the_first_tutorial_run_one_after_the_other(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = []
    text = smaller(TUTORIAL.read_text(encoding="utf-8"), SMALLER)
    for language, block in FENCED.findall(text):
        programs = [["-c", block]] if language == "python" else []
        if language == "sh":
            programs = [["-m", *shlex.split(line)] for line in block.splitlines()]
        assert programs, language
        for program in programs:
            run = subprocess.run(
                [sys.executable, *program],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, f"{program}\n{run.stdout}\n{run.stderr}"
            done.append(run.stdout)
    assert "px of lesion" in done[-1]
    assert any((tmp_path / "masks").glob("*.png"))
    assert len(done) == 10


# No figure is quoted, so none waits for a machine that is steady.
HASTE = (
    "from edgeseg.benchmarks import run; from edgeseg.benchmarks.measure import latency; "
    "latency.WARMUP_CAP_S = 0.3; run.BURST_S = 0.05"
)
HASTY = f"{HASTE}; from edgeseg.__main__ import main; main()"


@pytest.fixture
def of_docs(tmp_path, monkeypatch):
    """A folder to work in, and environment and `edgeseg` of the commands that run there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("edgeseg", f"-c '{HASTY}' "), ("python3", "")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks_of(page, changes):
    """Language and text of a page's blocks of code, with changes that each apply once."""
    text = (DOCS / "tutorials" / page).read_text(encoding="utf-8")
    return FENCED.findall(smaller(text, changes))


def shell(block):
    """Run a block as a reader would paste it, and return what it prints; fails as it does."""
    run = subprocess.run(
        ["sh", "-e", "-c", block], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, f"{block}\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.mark.timeout(900)
def test_commands_of_the_second_tutorial_run_one_after_the_other(of_docs, run, phantoms):
    loaded = load_checkpoint(run / "student.safetensors")
    model = onnx.load_model_from_string(onnx_from_network(loaded.network, loaded.contract))
    del model.metadata_props[:]  # nothing of ours: the contract is in input.json
    onnx.save(model, of_docs / "their.onnx")
    (of_docs / "DATA").symlink_to(phantoms)
    toy = "--max-drop 1 --max-hd95-rise 100"  # eight epochs on toys pass no gate
    blocks = blocks_of(
        "your-onnx.md",
        {
            '{"height": 128, "width": 128, "mean": 0.5, "std": 0.25, "threshold": 0.5}': json.dumps(
                loaded.contract.to_dict()
            ),
            "--precision int8 --calib DATA --out int8": (
                f"--precision int8 --calib DATA {toy} --out int8"
            ),
            "--rounds 60": "--rounds 4 --seconds 1 --passes 0",
        },
    )
    (contract,) = (block for language, block in blocks if language == "json")
    (of_docs / "input.json").write_text(contract, encoding="utf-8")
    told = [shell(block) for language, block in blocks if language == "sh"]
    assert {language for language, _ in blocks} == {"json", "sh"}
    assert len(told) == 3
    assert (of_docs / "int8" / "manifest.json").is_file()
    rows = json.loads((of_docs / "report.json").read_text(encoding="utf-8"))["rows"]
    assert {row["precision"] for row in rows} == {"fp32", "int8"}


@pytest.mark.timeout(900)
def test_commands_of_the_third_tutorial_end_in_a_program_that_refuses_a_changed_byte(
    of_docs, run, phantoms
):
    missing = [name for name in ("cmake", "cc", "pkg-config") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; .ci/packages installs what is missing, as root")
    openvino = pytest.importorskip("openvino", reason="no openvino; make install brings it")
    if not (Path(openvino.__path__[0]) / "include" / "openvino" / "c" / "openvino.h").is_file():
        pytest.skip("this openvino has no C header; the wheel of PyPI has it")
    blocks = blocks_of(
        "c-program.md",
        {
            "edgeseg export --target": f"edgeseg export {run} --calib {phantoms} --target",
            "cmake -S runtime/c": f"cmake -S {ROOT / 'runtime' / 'c'}",
        },
    )
    (program,) = (block for language, block in blocks if language == "c")
    (of_docs / "main.c").write_text(program, encoding="utf-8")
    shell("\n".join(block for language, block in blocks if language == "sh"))
    assert {language for language, _ in blocks} == {"c", "sh"}
    packed = of_docs / "student.edgeseg"
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    last = [block for language, block in blocks if language == "sh"][-1].splitlines()[-1]
    openvino_root = f"OV={openvino.__path__[0]}\n"
    refused = subprocess.run(
        ["sh", "-c", openvino_root + last], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert re.match(r"E-[A-Z]+", refused.stderr)


def sources_of(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_committed_with_small_outputs_and_no_path_of_a_machine():
    content = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(content)
    assert len(content) < 200_000
    pictures = [
        output
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
    assert not re.search(r"/(home|work|root|tmp)/", content)
    assert not any(output["output_type"] == "error" for output in pictures)


@pytest.mark.timeout(600)
def test_the_notebook_of_the_first_tutorial_runs_from_top_to_bottom(of_docs):
    """In a process of its own: a kernel's client warns of what is not ours."""
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"no {name}; make install brings it")
    code = (
        "import sys, nbformat, nbclient\n"
        "book = nbformat.read('smaller.ipynb', 4)\n"
        "book.cells.insert(0, nbformat.v4.new_code_cell(sys.argv[1]))\n"
        "nbclient.NotebookClient(book, timeout=300, kernel_name='python3').execute()\n"
        "del book.cells[0]\n"
        "nbformat.write(book, 'done.ipynb')\n"
    )
    text = smaller(NOTEBOOK.read_text(encoding="utf-8"), SMALLER_NOTEBOOK)
    (of_docs / "smaller.ipynb").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", code, HASTE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = json.loads((of_docs / "done.ipynb").read_text(encoding="utf-8"))
    assert sources_of(notebook) == sources_of(json.loads(text))
    kinds = [
        kind
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        for kind in output.get("data", {})
    ]
    assert kinds.count("image/png") >= 2
