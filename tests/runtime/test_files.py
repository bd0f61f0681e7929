"""Whole-or-nothing writes: errors, signals, full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg.runtime.errors import InputError, OutputError
from edgeseg.runtime.files import (
    atomic_folder,
    atomic_path,
    require_writable,
    sha256_of_file,
    write_bytes,
    write_together,
)

WAITS_HALF_WAY = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from edgeseg.runtime.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("half way", flush=True)
    time.sleep(60)
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def stopped_half_way(target, number, code=WAITS_HALF_WAY):
    """Return the exit status of a process stopped by a signal while it fills `target`."""
    command = [sys.executable, "-c", code, str(target)]

    def heed_hangups():  # the tests may run under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_hangups
    ) as process:
        assert process.stdout.readline() == "half way\n"
        process.send_signal(number)
        return process.wait(timeout=10)


def test_hash_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    write_bytes(tmp_path / "new" / "file", b"old")
    write_bytes(tmp_path / "new" / "file", "naïve")
    assert (tmp_path / "new" / "file").read_bytes() == "naïve".encode()
    assert names_in(tmp_path / "new") == ["file"]


def test_file_has_the_usual_permissions(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def fail_after_writing(path):
    path.write_text("half")
    raise ZeroDivisionError


def test_file_keeps_its_old_content_when_writing_fails(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        fail_after_writing(temporary)
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["file"]


def test_file_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_bytes(tmp_path / "file" / "below", b"")
    assert caught.value.code == "E-OUT-WRITE"


def test_folder_in_the_place_of_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OutputError) as caught:
        write_bytes(tmp_path / "file", b"")
    assert caught.value.code == "E-OUT-WRITE"
    assert names_in(tmp_path) == ["file"]


def test_files_are_written_together(tmp_path):
    (tmp_path / "a").write_text("old")
    write_together({tmp_path / "a": "new", tmp_path / "b": b"new"})
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "new"]
    assert names_in(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("names", ["abc", "acb", "cab"])
def test_none_of_several_files_is_replaced_where_one_is_a_folder(names, tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "c").mkdir()
    with pytest.raises(OutputError, match="/c: Is a directory"):
        write_together({tmp_path / name: "new" for name in names})
    assert (tmp_path / "a").read_text() == "old"
    assert names_in(tmp_path) == ["a", "c"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("busy", "abcd")
def test_files_are_as_before_where_one_of_several_cannot_be_replaced(
    busy, links, tmp_path, monkeypatch
):
    replace = Path.replace

    def refuse_the_busy(path, target):
        if target.name == busy:
            raise OSError(errno.EBUSY, "busy")
        return replace(path, target)

    def refuse(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    for name in "bd":
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(Path, "replace", refuse_the_busy)
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OutputError, match=f"/{busy}: busy"):
        write_together({tmp_path / name: "new" for name in "abcd"})
    assert names_in(tmp_path) == ["b", "d"]
    assert [(tmp_path / name).read_text() for name in "bd"] == ["old", "old"]


def test_none_of_several_files_is_replaced_where_the_disk_is_too_small_for_the_last(full_disk):
    contents = {full_disk / name: bytes(30 * 1024) for name in "abc"}
    (full_disk / "a").write_text("old")
    with pytest.raises(OutputError):
        write_together(contents)
    assert names_in(full_disk) == ["a"]
    assert (full_disk / "a").read_text() == "old"


def test_asking_whether_a_file_can_be_written_makes_nothing(tmp_path):
    require_writable(tmp_path / "new" / "folder" / "file")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("length", [246, 300])
def test_name_that_is_too_long_to_be_written_is_not_writable(length, tmp_path):
    for write in (require_writable, lambda target: write_bytes(target, b"")):
        with pytest.raises(OutputError, match="File name too long"):
            write(tmp_path / ("n" * length))
    require_writable(tmp_path / ("n" * 245))
    write_bytes(tmp_path / ("n" * 245), b"")


@pytest.mark.parametrize("folder", ["/", "."])
def test_folder_is_not_writable_as_a_file(folder):
    with pytest.raises(OutputError, match="Is a directory"):
        require_writable(Path(folder))


def test_disk_without_the_room_asked_for_is_not_writable(full_disk):
    require_writable(full_disk / "file", 1024)
    with pytest.raises(OutputError, match="No space left on device; free space"):
        require_writable(full_disk / "new" / "file", 1 << 20)
    assert names_in(full_disk) == []


def test_folder_appears_whole_under_its_name_only_at_the_end(tmp_path):
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "out").exists()
    assert names_in(tmp_path) == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "content"


def test_folder_has_the_usual_permissions(tmp_path):
    with atomic_folder(tmp_path / "ours"):
        pass
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_exception_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as folder:
        fail_after_writing(folder / "half")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_output_is_refused_and_untouched(kind, tmp_path):
    target = tmp_path / "out"
    target.mkdir() if kind == "folder" else target.write_text("mine")
    with pytest.raises(InputError) as caught, atomic_folder(target):
        pytest.fail("the body must not run")
    assert caught.value.code == "E-OUT-EXISTS"
    assert target.is_dir() if kind == "folder" else target.read_text() == "mine"


@pytest.mark.parametrize(
    "make",
    [
        lambda target: write_bytes(target / "theirs", b""),
        lambda target: write_bytes(target, b""),
        lambda target: target.symlink_to("nowhere"),
    ],
    ids=["folder", "file", "link"],
)
def test_output_that_appears_meanwhile_is_not_overwritten(make, tmp_path):
    target = tmp_path / "out"
    with pytest.raises(InputError) as caught, atomic_folder(target):
        make(target)
    assert caught.value.code == "E-OUT-EXISTS"
    assert names_in(tmp_path) == ["out"]
    assert not target.is_dir() or names_in(target) == ["theirs"]


def test_link_that_leads_nowhere_is_an_output_that_exists(tmp_path):
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(InputError, match="E-OUT-EXISTS"), atomic_folder(tmp_path / "out"):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_that_ends_a_process_leaves_no_folder(number, tmp_path):
    assert stopped_half_way(tmp_path / "out", number) == 128 + number
    assert names_in(tmp_path) == []


WAITS_IN_A_FILE = WAITS_HALF_WAY.replace("atomic_folder", "atomic_path").replace(
    '(folder / "half")', "folder"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_that_ends_a_process_leaves_no_file(number, tmp_path):
    assert stopped_half_way(tmp_path / "out", number, WAITS_IN_A_FILE) == 128 + number
    assert names_in(tmp_path) == []


def test_second_signal_does_not_stop_the_removal_of_the_first(tmp_path):
    slow = "import os, shutil, signal\nremove = shutil.rmtree\n"
    slow += "def slowly(*words, **named):\n"
    slow += "    for each in (signal.SIGHUP, signal.SIGTERM): os.kill(os.getpid(), each)\n"
    slow += "    remove(*words, **named)\n"
    slow += "shutil.rmtree = slowly\n" + WAITS_HALF_WAY
    assert stopped_half_way(tmp_path / "out", signal.SIGHUP, slow) == 128 + signal.SIGHUP
    assert names_in(tmp_path) == []


def test_ignored_hangup_and_a_handler_of_the_caller_stay(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    caught = []
    usual = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        with atomic_folder(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, usual)
    assert caught == [signal.SIGTERM]
    assert names_in(tmp_path) == ["out"]


def test_ctrl_c_leaves_no_folder(tmp_path):
    assert stopped_half_way(tmp_path / "out", signal.SIGINT) == -signal.SIGINT
    assert names_in(tmp_path) == []


def test_left_overs_of_a_kill_go_with_the_next_call(tmp_path):
    target = tmp_path / "out"
    assert stopped_half_way(target, signal.SIGKILL) == -signal.SIGKILL
    (left_over,) = names_in(tmp_path)  # never under the name itself
    assert left_over.startswith(".out.partial-")
    with atomic_folder(target):
        assert left_over not in names_in(tmp_path)
    assert names_in(tmp_path) == ["out"]


def test_left_overs_go_with_the_next_call_for_another_name(tmp_path):
    assert stopped_half_way(tmp_path / "out [1]", signal.SIGKILL) == -signal.SIGKILL
    with atomic_folder(tmp_path / "other"):
        pass
    assert names_in(tmp_path) == ["other"]


def partial_like(name, **changed):
    """Return the name of another process's partial folder: that of our own, with fields changed."""
    stem, pid, host, started, rest = re.fullmatch(
        r"(.+partial)-(\d+)-(\w+)-(\d+)-(\w+)", name
    ).groups()
    fields = {"pid": pid, "host": host, "started": started, **changed}
    return "-".join((stem, fields["pid"], fields["host"], fields["started"], rest[::-1]))


@pytest.mark.parametrize(
    ("changed", "stays"),
    [
        ({}, True),
        ({"started": "0"}, True),  # of a machine that tells no start
        ({"started": "1"}, False),  # the PID is another process's by now
        ({"pid": "4194305"}, False),  # above what Linux gives
        ({"pid": "99999999999999999999"}, False),
        ({"pid": "4194305", "host": "0" * 8}, True),  # another machine's, on a shared disk
    ],
)
def test_partial_folder_goes_where_its_process_is_known_to_be_gone(changed, stays, tmp_path):
    with atomic_folder(tmp_path / "first") as folder:
        other = tmp_path / partial_like(folder.name, **changed)
        other.mkdir()
        with atomic_folder(tmp_path / "second"):
            pass
        assert folder.is_dir()
    assert other.is_dir() == stays


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        (".out.partial-4194305-abcd1234", False),  # as edgeseg 0.1.0 named them
        pytest.param(f".out.partial-{os.getpid()}-abcd1234", True, id="of this process"),
        (".out.partial-notes", False),
        (".theirs.partial-4194305-abcd1234", True),
        ("out.partial-4194305-00000000-1-abcd1234", True),
    ],
)
def test_folder_that_only_looks_like_a_left_over_stays(name, stays, tmp_path):
    (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / name).is_dir() == stays


def test_half_written_folder_of_a_living_process_is_left_alone(tmp_path):
    command = [sys.executable, "-c", WAITS_HALF_WAY, str(tmp_path / "out")]

    def heed_hangups():  # the tests may run under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_hangups
    ) as process:
        assert process.stdout.readline() == "half way\n"
        (theirs,) = names_in(tmp_path)
        with atomic_folder(tmp_path / "out"):
            left = names_in(tmp_path)
        process.kill()
    assert theirs in left


def test_sigterm_is_handled_as_before_after_the_folder_is_written(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with atomic_folder(tmp_path / "out"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_file_keeps_its_old_content_when_the_disk_is_full(full_disk):
    target = full_disk / "file"
    write_bytes(target, b"old")
    with pytest.raises(OutputError) as caught:
        write_bytes(target, bytes(100_000))
    assert caught.value.code == "E-OUT-WRITE"
    assert target.read_bytes() == b"old"
    assert names_in(full_disk) == ["file"]


def test_full_disk_leaves_no_folder(full_disk):
    with pytest.raises(OutputError) as caught, atomic_folder(full_disk / "out") as folder:
        (folder / "file").write_bytes(bytes(100_000))
    assert caught.value.code == "E-OUT-WRITE"
    assert names_in(full_disk) == []


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write anywhere; run the tests as another user"
)
def test_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError) as caught, atomic_folder(tmp_path / "out"):
        pytest.fail("the body must not run")
    assert caught.value.code == "E-OUT-WRITE"
