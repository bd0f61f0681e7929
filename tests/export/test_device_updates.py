"""Recipes for updaters: read back as the updaters read them, and their scripts run under sh."""

from __future__ import annotations

import configparser
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.export.device import recipes
from edgeseg.runtime.bundle import open_bundle, seal_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EdgesegError
from edgeseg.tests.measure import updates as measure_updates
from edgeseg.tests.support import updates_standin
from edgeseg.tests.support.device_standin import (
    bundle_fields,
    write_kit_bundle,
    write_onnx_bundle,
    write_played_packages,
)
from edgeseg.tests.support.updates_standin import (
    BOARD,
    CUT,
    L4T,
    Fleet,
    certificate,
    handler_of,
    pack,
    write_bundle,
    write_command,
    write_recipe,
    write_steps,
)

pytestmark = pytest.mark.long

COMPATIBLE = "orin-nano-8-l4t-36.4.3"


def files_below(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


# --- what the updaters read -----------------------------------------------------------------------


def test_the_manifest_for_rauc_names_board_l4t_and_the_handler(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    out = write_recipe(bundle, "rauc", tmp_path / "out")
    manifest = configparser.ConfigParser()
    manifest.read(out / "content" / "manifest.raucm")
    assert manifest["update"]["compatible"] == COMPATIBLE
    assert manifest["update"]["version"] == "1.0"
    assert manifest["bundle"]["format"] == "verity"
    handler = out / "content" / manifest["handler"]["filename"]
    assert os.access(handler, os.X_OK)
    system = configparser.ConfigParser()
    system.read(out / "device" / "system.conf")
    assert system["system"]["compatible"] == COMPATIBLE
    assert files_below(out / "content" / "bundle") == files_below(bundle)


def read_libconfig(text):
    """Read the part of libconfig's grammar that sw-description uses."""
    tokens = re.findall(r'"[^"]*"|[\w.*-]+|[={}()\[\],:;]', text)

    def settings(end):
        found = {}
        while tokens and tokens[0] != end:
            name, sign = tokens.pop(0), tokens.pop(0)
            assert sign in "=:", (name, sign)
            assert re.fullmatch(r"[A-Za-z*][-A-Za-z0-9_*]*", name), name
            found[name] = value()
            if tokens and tokens[0] in ";,":
                tokens.pop(0)
        if end:
            assert tokens.pop(0) == end
        return found

    def value():
        token = tokens.pop(0)
        if token == "{":
            return settings("}")
        if token in "([":
            rows, end = [], {"(": ")", "[": "]"}[token]
            while tokens[0] != end:
                rows.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return rows
        assert token.startswith('"'), token
        return token[1:-1]

    return settings("")


def test_the_description_for_swupdate_names_board_l4t_and_hashes(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    out = write_recipe(bundle, "swupdate", tmp_path / "out")
    software = read_libconfig((out / "sw-description").read_text())["software"]
    assert software["version"] == "1.0"
    assert (out / "device" / "hwrevision").read_text().split() == [BOARD, L4T]
    board = software[BOARD]
    assert board["hardware-compatibility"] == [L4T]
    (archive,), (script,) = board["files"], board["scripts"]
    assert (archive["type"], script["type"]) == ("archive", "shellscript")
    for row in (archive, script):
        sums = subprocess.run(
            ["sha256sum", str(out / row["filename"])], check=True, capture_output=True, text=True
        )
        assert sums.stdout.split()[0] == row["sha256"]
    assert archive["path"] in (out / "switch.sh").read_text()


def test_the_archive_is_the_bundle_and_the_same_bytes_each_time(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    first = write_recipe(bundle, "mender", tmp_path / "first") / "bundle.tar"
    os.utime(bundle / "model.onnx", (0, 0))
    second = write_recipe(bundle, "swupdate", tmp_path / "second") / "bundle.tar"
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert files_below(tmp_path / "unpacked" / "bundle") == files_below(bundle)


def test_the_command_for_mender_names_the_device_type_and_the_module(tmp_path):
    out = write_recipe(write_bundle(tmp_path / "bundle"), "mender", tmp_path / "out")
    command = (out / "make.sh").read_text()
    assert "--type edgeseg-bundle" in command
    assert f"--device-type {COMPATIBLE} " in command
    assert (out / "device" / "device_type").read_text() == f"device_type={COMPATIBLE}\n"
    assert os.access(out / "device" / "edgeseg-bundle", os.X_OK)


@pytest.mark.parametrize(
    "change",
    [
        {"board": 'x"; y = "'},
        {"board": "8-orin"},
        {"l4t": "36"},
        {"l4t": "36.4.3\ncompatible=other"},
        {"version": "1.0]"},
        {"selftest": "edgeseg; reboot"},
        {"selftest": 'edgeseg "$(reboot)"'},
    ],
)
def test_a_text_that_a_format_could_misread_is_refused(tmp_path, change):
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(EdgesegError, match="E-RECIPE-FIELD"):
        write_recipe(bundle, "rauc", tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_gets_no_recipe(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "model.onnx").write_text("changed")
    arguments = ["device", "recipe", str(bundle), "--for", "rauc", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*arguments, "--board", BOARD, "--l4t", L4T])
    assert done.exit_code == 3
    assert "E-BUNDLE-HASH" in done.output
    assert not (tmp_path / "out").exists()


# --- the scripts, on a played device --------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path / "device")


class Shipped:
    """Ships bundles with one updater, as it calls the scripts of a recipe."""

    def __init__(self, updater, fleet, folder):
        self.updater, self.fleet, self.folder = updater, fleet, folder

    def ship(self, content):
        """Ship a bundle; return whether the updater would call the update done."""
        self.folder.mkdir(exist_ok=True)
        count = len(list(self.folder.iterdir()))
        bundle = write_bundle(self.folder / f"bundle-{count}", content)
        out = write_recipe(bundle, self.updater, self.folder / f"out-{count}")
        return getattr(self, self.updater)(out)

    def rauc(self, out):
        place = {"RAUC_BUNDLE_MOUNT_POINT": str(out / "content")}
        return self.fleet.sh(out / "content" / "handler.sh", **place).returncode == 0

    def swupdate(self, out):
        incoming = self.folder / "incoming"
        script = out / "switch.sh"
        script.write_text(script.read_text().replace(recipes.INCOMING, str(incoming)))
        if self.fleet.sh(script, "preinst").returncode:
            return False
        with tarfile.open(out / "bundle.tar") as archive:
            archive.extractall(incoming, filter="data")
        done = self.fleet.sh(script, "postinst").returncode == 0
        if not done:
            said = self.fleet.said
            assert self.fleet.sh(script, "postfailure").returncode == 0
            self.fleet.said = said
        assert not incoming.exists()
        return done

    def mender(self, out, commit=True):
        tree = out / "tree"
        for name in ("files", "tmp", "header"):
            (tree / name).mkdir(parents=True)
        shutil.copy(out / "bundle.tar", tree / "files")
        depends = f'"artifact_depends":{{"device_type":["{COMPATIBLE}"]}}'
        header = f'{{"payloads":[{{"type":"edgeseg-bundle"}}],"artifact_provides":{{}},{depends}}}'
        (tree / "header" / "header-info").write_text(header)
        module = out / "device" / "edgeseg-bundle"

        def state(name):
            return self.fleet.sh(module, name, str(tree))

        assert state("SupportsRollback").stdout == "Yes\n"
        assert state("NeedsArtifactReboot").stdout == "No\n"
        done = state("ArtifactInstall").returncode == 0
        said = self.fleet.said
        if done:
            done = state("ArtifactCommit").returncode == 0 and commit
        if not done:
            assert state("ArtifactRollback").returncode == 0
            assert state("ArtifactFailure").returncode == 0
        assert state("Cleanup").returncode == 0
        self.fleet.said = said
        return done


@pytest.fixture(params=sorted(recipes.UPDATERS))
def shipped(request, fleet, tmp_path):
    return Shipped(request.param, fleet, tmp_path / "shipped")


def test_a_bundle_that_passes_its_self_test_becomes_the_current_one(shipped, fleet):
    assert shipped.ship("one")
    assert fleet.current() == "one"
    assert shipped.ship("two")
    assert fleet.current() == "two"
    assert (fleet.root / "previous" / "bundle" / "model.onnx").read_text() == "one"
    assert shipped.ship("three")
    assert len(list((fleet.root / "releases").iterdir())) == 2  # "one" was pruned
    assert not (fleet.root / "pending").exists()


def test_a_bundle_that_fails_its_self_test_is_taken_back(shipped, fleet):
    assert shipped.ship("good")
    assert not shipped.ship("bad")
    assert "E-UPDATE-SELFTEST" in fleet.said
    assert fleet.current() == "good"
    assert "test bad" in fleet.history()
    opened = [line for line in fleet.history() if line.startswith("open")]
    assert opened == ["open good"]  # nothing was switched: no restart
    assert not (fleet.root / "pending").exists()
    open_bundle((fleet.root / "current" / "bundle").resolve())


def test_a_first_bundle_that_fails_leaves_no_current_one(shipped, fleet):
    assert not shipped.ship("bad")
    assert fleet.current() is None
    assert not (fleet.root / "current").is_symlink()


def test_an_update_for_another_l4t_is_refused_before_anything_is_written(shipped, fleet):
    assert shipped.ship("good")
    release = Path(fleet.environment["EDGESEG_RELEASE_FILE"])
    release.write_text("# R35 (release), REVISION: 6.0, GCID: 1, BOARD: generic\n")
    assert not shipped.ship("new")
    assert "E-UPDATE-L4T: made for L4T 36.4.3, here is 35.6.0" in fleet.said
    assert fleet.current() == "good"
    assert len(fleet.releases()) == 1


def test_a_bundle_that_was_damaged_on_its_way_is_refused(fleet, tmp_path):
    assert Shipped("rauc", fleet, tmp_path / "shipped").ship("good")
    out = write_recipe(write_bundle(tmp_path / "bundle", "new"), "rauc", tmp_path / "out")
    (out / "content" / "bundle" / "model.onnx").write_text("forged")
    place = {"RAUC_BUNDLE_MOUNT_POINT": str(out / "content")}
    assert fleet.sh(out / "content" / "handler.sh", **place).returncode == 1
    assert "E-UPDATE-HASH" in fleet.said
    assert fleet.current() == "good"


def test_the_module_for_mender_takes_what_is_made_for_the_l4t_that_the_device_has_now(
    fleet, tmp_path
):
    """It is installed once; the device's system is updated meanwhile."""
    out = write_recipe(write_bundle(tmp_path / "bundle"), "mender", tmp_path / "out", l4t="35.6.0")
    assert Shipped("mender", fleet, tmp_path).mender(out), fleet.said


def test_a_commit_that_mender_refuses_goes_back(fleet, tmp_path):
    shipped = Shipped("mender", fleet, tmp_path / "shipped")
    assert shipped.ship("one")
    out = write_recipe(write_bundle(tmp_path / "bundle", "two"), "mender", tmp_path / "out")
    assert not shipped.mender(out, commit=False)
    assert fleet.current() == "one"
    opened = [line for line in fleet.history() if line.startswith("open")]
    assert opened == ["open one", "open two", "open one"]


def test_going_back_leaves_the_previous_release_as_it_was(fleet, tmp_path):
    shipped = Shipped("mender", fleet, tmp_path / "shipped")
    assert shipped.ship("one")
    assert shipped.ship("two")
    out = write_recipe(write_bundle(tmp_path / "bundle", "three"), "mender", tmp_path / "out")
    assert not shipped.mender(out, commit=False)
    assert fleet.current() == "two"
    assert (fleet.root / "previous" / "bundle" / "model.onnx").read_text() == "one"
    assert len(fleet.releases()) == 2


def test_a_cut_after_the_previous_release_was_noted_takes_that_back_as_well(fleet, tmp_path):
    for content in ("one", "two"):
        assert handler_of(fleet, tmp_path, content)[1]() == 0
    out, handle = handler_of(fleet, tmp_path, "three")
    (tmp_path / "bin").mkdir()
    remove = shutil.which("rm")
    write_command(
        tmp_path / "bin" / "rm", f'case "$*" in */pending) {CUT} ;; esac\nexec {remove} "$@"'
    )
    assert handle(PATH=f"{tmp_path / 'bin'}:{fleet.environment['PATH']}") == -9
    assert (fleet.root / "previous" / "bundle" / "model.onnx").read_text() == "two"
    assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 0
    assert fleet.current() == "two"
    assert (fleet.root / "previous" / "bundle" / "model.onnx").read_text() == "one"


def test_an_update_that_is_refused_does_not_go_back_to_what_an_earlier_one_noted(fleet, tmp_path):
    shipped = Shipped("mender", fleet, tmp_path / "shipped")
    assert shipped.ship("one")
    one = (fleet.root / "current").readlink()
    assert shipped.ship("two")
    (fleet.root / "before-mender").write_text(f"{one}\n")  # its clean-up never came
    release = Path(fleet.environment["EDGESEG_RELEASE_FILE"])
    release.write_text("# R35 (release), REVISION: 6.0, GCID: 1, BOARD: generic\n")
    assert not shipped.ship("new")
    assert "E-UPDATE-L4T" in fleet.said
    assert fleet.current() == "two"


def test_what_mender_could_go_back_to_is_forgotten_on_the_disk_before_it_is_removed(
    fleet, tmp_path
):
    assert Shipped("mender", fleet, tmp_path / "shipped").ship("one")
    (fleet.root / "before-mender").write_text("none\n")
    gone = fleet.root / "releases" / "gone"
    gone.mkdir()
    (tmp_path / "bin").mkdir()
    write_command(
        tmp_path / "bin" / "sync",
        f"[ ! -e {fleet.root}/before-mender ] && [ -e {gone} ] && touch {tmp_path}/written",
    )
    module = tmp_path / "shipped" / "out-0" / "device" / "edgeseg-bundle"
    path = f"{tmp_path / 'bin'}:{fleet.environment['PATH']}"
    assert fleet.sh(module, "Cleanup", str(tmp_path), PATH=path).returncode == 0
    assert (tmp_path / "written").exists()
    assert not gone.exists()


@pytest.mark.parametrize("link", ["current", "previous"])
def test_a_link_that_was_made_by_hand_with_a_whole_path_keeps_its_release(fleet, tmp_path, link):
    for content in ("one", "two"):
        assert handler_of(fleet, tmp_path, content)[1]() == 0
    release = (fleet.root / link).resolve()
    (fleet.root / link).unlink()
    (fleet.root / link).symlink_to(release)
    assert handler_of(fleet, tmp_path, "bad")[1]() == 1
    assert fleet.current() == "two"
    assert (fleet.root / "previous" / "bundle" / "model.onnx").read_text() == "one"
    assert handler_of(fleet, tmp_path, "deaf")[1](
        EDGESEG_RESTART=write_command(
            tmp_path / "deaf", '! grep -q deaf "$EDGESEG_ROOT/current/bundle/model.onnx"'
        )
    )
    assert "E-UPDATE-ROLLBACK" not in fleet.said
    assert fleet.current() == "two"


def test_a_switch_that_a_power_cut_interrupted_is_taken_back_at_boot(shipped, fleet, tmp_path):
    assert shipped.ship("good")
    good = (fleet.root / "current").readlink()
    out, handle = handler_of(fleet, tmp_path, "new")
    assert handle(EDGESEG_RESTART=write_command(tmp_path / "cut", CUT)) == -9
    assert fleet.current() == "new"
    opened = fleet.history().count("open good")
    assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 0
    assert (fleet.root / "current").readlink() == good
    assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 0  # again: nothing to do
    assert fleet.current() == "good"
    # The application is ordered after this unit; to restart it from here would wait for ever.
    assert fleet.history().count("open good") == opened


def test_a_first_switch_that_a_power_cut_interrupted_leaves_no_current_one(fleet, tmp_path):
    out, handle = handler_of(fleet, tmp_path, "new")
    assert handle(EDGESEG_RESTART=write_command(tmp_path / "cut", CUT)) == -9
    assert (fleet.root / "pending").read_text() == "none\nnone\n"
    assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 0
    assert not (fleet.root / "current").is_symlink()


def test_a_switch_that_was_killed_is_taken_back_by_the_next_update(fleet, tmp_path):
    assert handler_of(fleet, tmp_path, "good")[1]() == 0
    killed = handler_of(fleet, tmp_path, "killed")[1]
    assert killed(EDGESEG_RESTART=write_command(tmp_path / "cut", CUT)) == -9
    assert handler_of(fleet, tmp_path, "deaf")[1](
        EDGESEG_RESTART=write_command(
            tmp_path / "deaf", '! grep -q deaf "$EDGESEG_ROOT/current/bundle/model.onnx"'
        )
    )
    assert fleet.current() == "good"  # and not the one that nobody has seen open
    assert len(fleet.releases()) == 1


def test_current_is_the_old_release_until_the_new_one_has_passed(fleet, tmp_path):
    assert handler_of(fleet, tmp_path, "good")[1]() == 0
    handle = handler_of(fleet, tmp_path, "new")[1]
    assert handle(EDGESEG_SELFTEST=write_command(tmp_path / "cut", CUT)) == -9
    assert fleet.current() == "good"
    assert not (fleet.root / "pending").exists()


def cut_at_each_step(fleet, tmp_path, run):
    """Run a script on the same device again and again, cut before each of its steps."""
    steps = tmp_path / "count"
    path = write_steps(tmp_path / "steps", f'[ "$step" != "$CUT_AT" ] || {CUT}', fleet)
    shutil.copytree(fleet.root, tmp_path / "as-it-was", symlinks=True)
    for step in range(1, 100):
        shutil.rmtree(fleet.root)
        shutil.copytree(tmp_path / "as-it-was", fleet.root, symlinks=True)
        steps.write_text("0")
        code = run(PATH=path, STEPS=str(steps), CUT_AT=str(step))
        if code != -9:
            assert code == 0, fleet.said
            assert step > 3
            return
        yield step


@pytest.mark.parametrize("before", ["good", "rotten"])
def test_there_is_a_release_to_open_wherever_an_update_is_cut(fleet, tmp_path, before):
    """Of the bundle before, or of the same one in place of a release that was damaged."""
    out, handle = handler_of(fleet, tmp_path, "good")
    assert handle() == 0
    wanted = "good"
    if before == "rotten":
        (fleet.root / "current" / "bundle" / "model.onnx").write_text(before)
    else:
        wanted = "new"
        out, handle = handler_of(fleet, tmp_path, wanted)
    for step in cut_at_each_step(fleet, tmp_path, handle):
        assert fleet.current() in (before, wanted), step
        assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 0, step
        assert fleet.current() in (before, wanted), step
        assert not (fleet.root / "pending").exists(), step
        assert handle() == 0, (step, fleet.said)
        assert fleet.current() == wanted, step
        assert len(fleet.releases()) == (1 if before == "rotten" else 2), step
        left = {"current", "previous", "releases", "lock", "restart.log"}
        assert {path.name for path in fleet.root.iterdir()} <= left, step


def test_a_recovery_that_is_cut_is_done_at_the_next_boot(fleet, tmp_path):
    assert handler_of(fleet, tmp_path, "good")[1]() == 0
    out, handle = handler_of(fleet, tmp_path, "new")
    assert handle(EDGESEG_RESTART=write_command(tmp_path / "cut", CUT)) == -9
    recover = out / "device" / "edgeseg-recover.sh"
    for step in cut_at_each_step(
        fleet, tmp_path, lambda **more: fleet.sh(recover, **more).returncode
    ):
        assert fleet.current() in ("good", "new"), step
        assert fleet.sh(recover).returncode == 0, step
        assert fleet.current() == "good", step


def test_an_update_beside_another_is_refused(fleet, tmp_path):
    out, handle = handler_of(fleet, tmp_path, "good")
    assert handle() == 0
    with (fleet.root / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert handle() == 1
        assert "E-UPDATE-BUSY" in fleet.said
        assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 1
    assert handle() == 0


def test_an_application_that_an_update_starts_keeps_neither_it_nor_the_next_one(fleet, tmp_path):
    handle = handler_of(fleet, tmp_path, "good")[1]
    daemon = write_command(
        tmp_path / "daemon", f"echo starting\nsleep 240 &\necho $! >>{tmp_path}/pids"
    )
    started = time.monotonic()
    assert handle(EDGESEG_RESTART=daemon) == 0
    assert "starting" in fleet.said
    assert handle(EDGESEG_RESTART=daemon) == 0, fleet.said
    assert time.monotonic() - started < 120
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def test_what_an_earlier_restart_started_does_not_write_to_the_log_of_the_next(fleet, tmp_path):
    handle = handler_of(fleet, tmp_path, "good")[1]
    waits = "while [ ! -e {} ] && [ $((count += 1)) -lt 500 ]; do sleep 0.02; done"
    go, gone = tmp_path / "go", tmp_path / "gone"
    daemon = write_command(
        tmp_path / "daemon",
        f"count=0\necho first\n({waits.format(go)}; echo late; touch {gone}) &",
    )
    assert handle(EDGESEG_RESTART=daemon) == 0
    assert "first" in fleet.said
    second = write_command(
        tmp_path / "second", f"count=0\ntouch {go}\n{waits.format(gone)}\necho second"
    )
    assert handle(EDGESEG_RESTART=second) == 0
    assert gone.exists()
    assert (fleet.root / "restart.log").read_bytes() == b"second\n"


def test_an_updater_gets_the_end_of_what_a_restart_says(fleet, tmp_path):
    handle = handler_of(fleet, tmp_path, "good")[1]
    talk = write_command(tmp_path / "talk", "head -c 20000 /dev/zero | tr '\\0' x\necho end")
    assert handle(EDGESEG_RESTART=talk) == 0
    assert fleet.said.endswith("xend\n")
    assert len(fleet.said) < 5000


def test_a_device_that_does_not_say_what_to_restart_is_refused(shipped, fleet):
    del fleet.environment["EDGESEG_RESTART"]
    assert not shipped.ship("good")
    assert "E-UPDATE-CONF" in fleet.said
    assert fleet.current() is None


def test_a_full_disk_is_said_and_nothing_is_left_on_it(shipped, fleet, tmp_path):
    assert shipped.ship("good")
    (tmp_path / "full").mkdir()
    write_command(tmp_path / "full" / "cp", 'mkdir -p "$3"\necho half >"$3/model.onnx"\nexit 1')
    fleet.environment["PATH"] = f"{tmp_path / 'full'}:{os.environ['PATH']}"
    assert not shipped.ship("new")
    assert "E-UPDATE-WRITE" in fleet.said
    assert fleet.current() == "good"
    assert not (fleet.root / "part").exists()
    assert len(fleet.releases()) == 1


def test_an_update_that_fails_leaves_no_release_behind(shipped, fleet):
    assert shipped.ship("good")
    (good,) = fleet.releases()
    assert not shipped.ship("bad")
    assert fleet.releases() == [good]


def test_an_application_whose_restart_never_ends_gets_the_old_bundle_back(fleet, tmp_path):
    assert handler_of(fleet, tmp_path, "good")[1]() == 0
    hang = write_command(
        tmp_path / "hang",
        'grep -q good "$EDGESEG_ROOT/current/bundle/model.onnx" || exec sleep 60',
    )
    handle = handler_of(fleet, tmp_path, "new")[1]
    assert handle(EDGESEG_RESTART=hang, EDGESEG_RESTART_S="0.2") == 1
    assert "E-UPDATE-RESTART" in fleet.said
    assert fleet.current() == "good"


def test_a_self_test_that_never_ends_has_failed(fleet, tmp_path):
    assert handler_of(fleet, tmp_path, "good")[1]() == 0
    hang = write_command(tmp_path / "hang", "exec sleep 60")
    handle = handler_of(fleet, tmp_path, "new")[1]
    assert handle(EDGESEG_SELFTEST=hang, EDGESEG_SELFTEST_S="0.2") == 1
    assert "E-UPDATE-SELFTEST" in fleet.said
    assert fleet.current() == "good"


def test_an_empty_mark_takes_the_good_bundle_from_nobody(fleet, tmp_path):
    assert Shipped("mender", fleet, tmp_path / "shipped").ship("good")
    out = handler_of(fleet, tmp_path, "new")[0]
    (fleet.root / "pending").touch()
    assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 0
    assert fleet.current() == "good"
    assert not (fleet.root / "pending").exists()
    (fleet.root / "before-mender").touch()
    module = tmp_path / "shipped" / "out-0" / "device" / "edgeseg-bundle"
    assert fleet.sh(module, "ArtifactRollback", str(tmp_path)).returncode == 0
    assert fleet.current() == "good"


def test_an_application_that_does_not_open_the_new_bundle_gets_the_old_one_back(shipped, fleet):
    assert shipped.ship("good")
    restart = Path(fleet.environment["EDGESEG_RESTART"])
    restart.write_text(
        restart.read_text() + '! grep -q deaf "$EDGESEG_ROOT/current/bundle/model.onnx"\n'
    )
    assert not shipped.ship("deaf")
    assert "E-UPDATE-RESTART" in fleet.said
    assert fleet.current() == "good"
    assert fleet.history()[-2:] == ["open deaf", "open good"]
    assert not (fleet.root / "pending").exists()


def test_a_roll_back_that_cannot_be_done_is_said(fleet, tmp_path):
    out, handle = handler_of(fleet, tmp_path, "good")
    assert handle() == 0
    (fleet.root / "pending").write_text("releases/gone\n")
    assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 1
    assert "E-UPDATE-ROLLBACK" in fleet.said
    assert f"; ln -sfn releases/NAME {fleet.root}/current, with" in fleet.said
    assert fleet.current() == "good"
    new = handler_of(fleet, tmp_path, "new")[1]
    assert new(EDGESEG_RESTART="false") == 1
    assert "E-UPDATE-ROLLBACK" in fleet.said
    assert "E-UPDATE-RESTART" in fleet.said
    assert handler_of(fleet, tmp_path, "newer")[1]() == 0  # a good update mends it
    assert not (fleet.root / "pending").exists()


def test_what_could_not_be_taken_back_stays_for_the_next_boot(fleet, tmp_path):
    assert handler_of(fleet, tmp_path, "good")[1]() == 0
    out, handle = handler_of(fleet, tmp_path, "new")
    (tmp_path / "once").mkdir()
    write_command(
        tmp_path / "once" / "ln",
        f"[ ! -e {tmp_path}/linked ] || exit 1\ntouch {tmp_path}/linked\n"
        f'exec {shutil.which("ln")} "$@"',
    )
    path = f"{tmp_path / 'once'}:{fleet.environment['PATH']}"
    assert handle(PATH=path, EDGESEG_RESTART="false") == 1
    assert "E-UPDATE-ROLLBACK" in fleet.said
    assert fleet.current() == "new"
    assert fleet.sh(out / "device" / "edgeseg-recover.sh").returncode == 0, fleet.said
    assert fleet.current() == "good"


def test_a_release_that_was_damaged_on_the_device_is_put_in_place_anew(fleet, tmp_path):
    handle = handler_of(fleet, tmp_path, "good")[1]
    assert handle() == 0
    (release,) = fleet.releases()
    for name in (f"{release}.1", release, f"{release}.1"):
        (fleet.root / "current" / "bundle" / "model.onnx").write_text("rotten")
        assert handle() == 0
        assert fleet.current() == "good"
        assert fleet.releases() == [name]  # the damaged one was in use until then
    assert not (fleet.root / "previous").is_symlink()  # and is none to go back to


def test_a_release_that_got_a_file_more_is_put_in_place_anew(fleet, tmp_path):
    bundle = tmp_path / "bundle"
    write_bundle(bundle)
    (bundle / "SHA256SUMS").unlink()
    (bundle / "manifest.json").unlink()
    (bundle / "folder").mkdir()
    (bundle / "folder" / "name").write_text("")
    seal_bundle(
        bundle,
        bundle_fields(
            "jetson", "fp16", InputContract(height=64, width=64), {"onnxruntime": ("model.onnx",)}
        ),
    )
    (bundle / "model.sig").write_text("no file of SHA256SUMS")
    out = write_recipe(bundle, "rauc", tmp_path / "out")
    place = {"RAUC_BUNDLE_MOUNT_POINT": str(out / "content")}
    handler = out / "content" / "handler.sh"
    for _ in range(2):
        assert fleet.sh(handler, **place).returncode == 0, fleet.said
    (release,) = fleet.releases()
    assert "." not in release  # whole: used again
    (fleet.root / "current" / "bundle" / "folder" / "a file").touch()
    assert fleet.sh(handler, **place).returncode == 0, fleet.said
    assert fleet.releases() == [f"{release}.1"]
    (fleet.root / "current" / "bundle" / "link").symlink_to("model.onnx")
    assert fleet.sh(handler, **place).returncode == 0, fleet.said
    assert fleet.releases() == [release]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda sums: sums.write_text("")])
def test_a_bundle_without_sums_is_refused(fleet, tmp_path, spoil):
    out = write_recipe(write_bundle(tmp_path / "bundle"), "mender", tmp_path / "out")
    unpacked = tmp_path / "unpacked"
    with tarfile.open(out / "bundle.tar") as archive:
        archive.extractall(unpacked, filter="data")
    spoil(unpacked / "bundle" / "SHA256SUMS")
    (out / "bundle.tar").unlink()
    with tarfile.open(out / "bundle.tar", "w") as archive:
        archive.add(unpacked / "bundle", "bundle")
    assert not Shipped("mender", fleet, tmp_path).mender(out)
    assert "E-UPDATE-HASH" in fleet.said
    assert fleet.current() is None
    assert not fleet.releases()


def test_the_health_check_can_be_edgeseg_selftest(fleet, tmp_path):
    place = str(Path(recipes.__file__).parents[3])
    health = tmp_path / "health"
    health.write_text(
        f'#!/bin/sh\nPYTHONPATH={place} exec {sys.executable} -m edgeseg selftest "$@"\n'
    )
    health.chmod(0o755)
    fleet.environment |= {"EDGESEG_SELFTEST": str(health), "EDGESEG_RESTART": "true"}
    for name, wrong, code in (("good", False, 0), ("bad", True, 1)):
        bundle = write_onnx_bundle(tmp_path / name, wrong=wrong)
        out = write_recipe(bundle, "rauc", tmp_path / f"out-{name}")
        place = {"RAUC_BUNDLE_MOUNT_POINT": str(out / "content")}
        assert fleet.sh(out / "content" / "handler.sh", **place).returncode == code, fleet.said
    assert "E-SELFTEST" in fleet.said
    found = open_bundle((fleet.root / "current" / "bundle").resolve())
    assert found.sha256 == open_bundle(tmp_path / "good").sha256


def test_a_kit_is_built_and_replayed_on_the_device_before_the_switch(fleet, tmp_path):
    (tmp_path / "site" / "cuda" / "bindings").mkdir(parents=True)
    write_played_packages(tmp_path / "site", "10.3")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "python3"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shim.chmod(0o755)
    fleet.environment |= {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "site"),
        "EDGESEG_SELFTEST": "true",
        "EDGESEG_RESTART": "true",
    }
    for version, code in (("10.3", 0), ("10.13", 1)):
        kit = write_kit_bundle(tmp_path / f"kit-{version}", version)
        out = write_recipe(kit, "rauc", tmp_path / f"out-{version}")
        place = {"RAUC_BUNDLE_MOUNT_POINT": str(out / "content")}
        assert fleet.sh(out / "content" / "handler.sh", **place).returncode == code, fleet.said
    assert "E-KIT-TENSORRT" in fleet.said
    assert "E-UPDATE-BUILD" in fleet.said
    release = (fleet.root / "current").resolve()
    assert (release / "bundle-fp16.plan").read_bytes() == b"plan" * 50000
    assert release.name == open_bundle(tmp_path / "kit-10.3").sha256

    def builds():
        return len((tmp_path / "site" / "builds").read_text())

    built, handler = builds(), tmp_path / "out-10.3" / "content" / "handler.sh"
    place = {"RAUC_BUNDLE_MOUNT_POINT": str(handler.parent)}
    assert fleet.sh(handler, **place).returncode == 0, fleet.said
    assert builds() == built  # it fits
    (release / "bundle-fp16.plan").write_bytes(b"rotten")
    assert fleet.sh(handler, **place).returncode == 0, fleet.said
    assert builds() == built + 1
    plan = fleet.root / "current" / "bundle-fp16.plan"
    assert plan.read_bytes() == b"plan" * 50000


# --- the updaters' own tools, where they are ------------------------------------------------------


@pytest.mark.parametrize("updater", sorted(recipes.UPDATERS))
def test_a_key_is_named_from_where_the_recipe_is_packed(updater, tmp_path):
    write_recipe(write_bundle(tmp_path / "bundle"), updater, tmp_path / "out")
    (tmp_path / "tools").mkdir()
    for tool in ("rauc", "openssl", "cpio", "mender-artifact"):
        write_command(tmp_path / "tools" / tool, f'echo "$@" >>{tmp_path}/called')
    path = f"{tmp_path / 'tools'}:{os.environ['PATH']}"
    (tmp_path / "a key.pem").touch()
    for key, wanted in (("a key.pem", f"{tmp_path.resolve()}/a key.pem"), ("pkcs11:a", "pkcs11:a")):
        environment = {**os.environ, "PATH": path, "KEY": key, "CERT": key}
        subprocess.run(["sh", "out/make.sh"], cwd=tmp_path, env=environment, check=True)
        called = (tmp_path / "called").read_text()
        assert re.search(f"[ =]{re.escape(wanted)}( |$)", called, re.MULTILINE), called


def test_a_measurement_of_which_nothing_can_run_has_failed(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert measure_updates.walk_all(recipes.UPDATERS) == 1
    said = capsys.readouterr().out
    assert said.count("not run, no ") == len(recipes.UPDATERS)
    assert "0 cases, 0 wrong" in said


def require_tools(*tools):
    for tool, package in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}; .ci/packages installs {package} where Debian has it, as root")


def test_rauc_reads_the_bundle_that_it_makes_of_the_recipe(tmp_path):
    require_tools(("rauc", "rauc"), ("mksquashfs", "squashfs-tools"), ("openssl", "openssl"))
    # RAUC refuses one that squashfs makes smaller than a page.
    bundle = write_bundle(tmp_path / "bundle", os.urandom(1 << 14).hex())
    environment = certificate(tmp_path)
    out = pack(write_recipe(bundle, "rauc", tmp_path / "out"), environment)
    shown = subprocess.run(
        [
            *("rauc", "info", "--keyring", environment["CERT"], "--output-format=shell"),
            str(out / "edgeseg-1.0.raucb"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert COMPATIBLE in shown.stdout
    assert open_bundle(bundle).sha256 in shown.stdout


def swupdate(image, hardware, environment, *options):
    """Run SWUpdate on an image; return whether its installer reports success, and all it says.

    Neither exit code nor last line tell: version 2022.12 of Debian takes the state before the
    installer began for the result where that is slow to begin, and leaves. Then it is run again.
    """
    command = ["swupdate", "-v", "-H", hardware, "-k", environment["CERT"], "-i", str(image)]
    for _ in range(20):
        done = subprocess.run(
            [*command, *options],
            env={**os.environ, **environment, "TMPDIR": str(image.parent)},  # its sockets, scripts
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        succeeded, failed = "SWUPDATE successful !" in said, "[ERROR]" in said
        if succeeded or failed:
            assert succeeded != failed, said
            return succeeded, said
    raise AssertionError(f"no verdict in 20 runs: {said}")


def test_swupdate_takes_the_image_on_its_board_and_l4t_only(tmp_path):
    require_tools(("swupdate", "swupdate"), ("cpio", "cpio"), ("openssl", "openssl"))
    bundle = write_bundle(tmp_path / "bundle")
    environment = certificate(tmp_path)  # Debian's swupdate takes nothing that is not signed
    out = pack(write_recipe(bundle, "swupdate", tmp_path / "out"), environment)

    image = out / "edgeseg-1.0.swu"
    succeeded, said = swupdate(image, f"{BOARD}:{L4T}", environment, "-c")
    assert succeeded, said
    for hardware in (f"{BOARD}:35.6.0", f"orin-nx-16:{L4T}"):
        succeeded, said = swupdate(image, hardware, environment, "-c")
        assert not succeeded
        assert re.search("HW compatib|not compatible", said, re.IGNORECASE), said


def test_mender_artifact_reads_the_artifact_that_it_makes_of_the_recipe(tmp_path):
    require_tools(("mender-artifact", "mender-artifact"))
    bundle = write_bundle(tmp_path / "bundle")
    out = pack(write_recipe(bundle, "mender", tmp_path / "out"), {})
    shown = subprocess.run(
        ["mender-artifact", "read", str(out / "edgeseg-1.0.mender")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert COMPATIBLE in shown
    assert "edgeseg-bundle" in shown
    assert open_bundle(bundle).sha256 in shown


@pytest.mark.parametrize("name", sorted(recipes.UPDATERS))
def test_the_updater_itself_installs_and_takes_back(name, tmp_path):
    updater = updates_standin.UPDATERS[name]
    why = updates_standin.missing(updater) or updates_standin.cannot_enter(tmp_path / "tried")
    if why:
        pytest.skip(why)
    (tmp_path / "walk").mkdir()
    # The rest takes longer: tests/measure/updates.py
    found = dict(itertools.islice(updates_standin.walk(updater, tmp_path / "walk"), 7))
    assert "at boot after the restart" in found
    assert {case: wrong for case, wrong in found.items() if wrong} == {}
