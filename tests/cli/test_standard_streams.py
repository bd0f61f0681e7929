"""Commands whose standard streams are closed, full, unread or cannot show every character."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = (sys.executable, "-m", "edgeseg")
FULL = Path("/dev/full")


def shell(redirections: str, *words: object, **variables: str) -> subprocess.CompletedProcess:
    """Run a command of edgeseg under redirections of sh; what they leave is captured."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *RUN, *map(str, words)],
        capture_output=True,
        env={**os.environ, **variables},
    )


CLOSED = ["2>&-", ">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("redirections", CLOSED)
def test_command_works_where_standard_streams_are_closed(redirections, tmp_path):
    done = shell(redirections, "data", "phantoms", tmp_path / "made", "--count", 3)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "made").rglob("*.png"))) >= 3
    assert (b"phantoms in" in done.stdout) == (">&-" not in redirections.split())


@pytest.mark.parametrize("redirections", CLOSED)
def test_refusal_keeps_its_exit_code_where_standard_streams_are_closed(redirections, tmp_path):
    assert shell(redirections, "predict", tmp_path / "none", tmp_path).returncode == 2
    assert shell(redirections, "nope").returncode == 2


def test_closed_stream_is_not_the_next_file_that_is_opened():
    code = "import os; from edgeseg.cli.stdio import mend_streams; mend_streams()\n"
    code += "assert os.open('/', os.O_RDONLY) > 2\n"
    code += "os.write(2, b'a library'); print('a result')\n"
    code += "assert os.system('echo a child >&2') == 0\n"
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(words).returncode == 0


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437", "koi8-r", "gbk", "ascii"])
@pytest.mark.parametrize("command", ["targets", "models"])
def test_characters_that_standard_output_lacks_are_replaced(encoding, command):
    there = shell("", command, PYTHONIOENCODING="utf-8").stdout.decode("utf-8")
    assert not there.isascii()
    done = shell("", command, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    if encoding != "ascii":  # which click takes for UTF-8
        assert done.stdout == there.encode(encoding, "replace")


def test_name_that_is_not_utf_8_does_not_fail_a_command_that_is_done(tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    done = shell("", "data", "phantoms", out, "--count", 3, "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path(out).is_dir()


@pytest.mark.parametrize("progress", ["&1", "/dev/null"])
def test_result_is_made_though_nobody_reads_of_it(progress, tmp_path):
    code = f'("$@" 2>{progress}; echo $? >code) | true; cat code'
    words = ("sh", "-c", code, "sh", *RUN, "data", "phantoms", "made", "--count", "3")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True)
    assert (done.stdout, done.stderr) == (b"0\n", b"")
    assert (tmp_path / "made").is_dir()


def test_pipe_that_does_not_block_gets_everything():
    code = "from edgeseg.cli.stdio import mend_streams; mend_streams(); print('x' * 1_000_000)"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with subprocess.Popen([sys.executable, "-c", code], stdout=writing) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            told = stream.read()
    assert process.returncode == 0
    assert told == b"x" * 1_000_000 + b"\n"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full; run where Linux gives it")
@pytest.mark.parametrize("words", [("--help",), ("targets", "--help"), ("targets",)])
def test_standard_output_without_room_is_one_line(words):
    done = shell(f">{FULL}", *words)
    assert done.returncode == 5
    assert done.stderr.startswith(b"edgeseg: E-OUT-WRITE: ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full; run where Linux gives it")
def test_progress_without_room_stops_nothing(tmp_path):
    done = shell(f"2>{FULL}", "data", "phantoms", tmp_path / "made", "--count", 3)
    assert done.returncode == 0
