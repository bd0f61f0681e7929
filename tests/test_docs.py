"""README and docs: links lead somewhere, pages are found, commands exist, the tutorial runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgeseg.cli.main import cli
from edgeseg.tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
# A changelog names what was, and what its lines say is not repaired afterwards.
SAID_OF_THE_PAST = "changelog.md"
TUTORIAL = DOCS / "tutorials" / "phantoms.md"
SMALLER = {
    "--count 160": "--count 40",
    "--size 96": "--size 64",
    "--student edge-16": "--student attunet-8",
    "--teacher edge-32": "--teacher attunet-8 --batch 4 --learning-rate 0.01",
    "--general-epochs 10": "--general-epochs 1",
    "--teacher-epochs 8": "--teacher-epochs 1",
    "--student-epochs 16": "--student-epochs 8",
}


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
    text = TUTORIAL.read_text(encoding="utf-8")
    for large, small in SMALLER.items():
        assert text.count(large) == 1, large  # else the tutorial would run in full
        text = text.replace(large, small)
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
