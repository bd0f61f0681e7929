"""Devices that are updated, for tests/export/test_device_updates.py and tests/measure/updates.py.

`Fleet` is a device on which the scripts of a recipe run alone. `Device` is a copy-on-write view of
this machine, with processes and mounts of its own, in which RAUC, SWUpdate and Mender themselves
run: every file has its place there, and nothing is written here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from edgeseg.export.device import recipes
from edgeseg.runtime.bundle import seal_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.tests.support.device_standin import bundle_fields

BOARD, L4T = "orin-nano-8", "36.4.3"
TEGRA_RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n"
_BOOT_S = 600.0  # under qemu


def write_bundle(folder: Path, content: str = "good") -> Path:
    """Write a bundle whose one model file says what the played self-test makes of it."""
    folder.mkdir()
    (folder / "model.onnx").write_text(content)
    contract = InputContract(height=64, width=64)
    seal_bundle(folder, bundle_fields("jetson", "fp16", contract, {"onnxruntime": ("model.onnx",)}))
    return folder


def write_recipe(bundle: Path, updater: str, out: Path, **changes: str) -> Path:
    settings = {"board": BOARD, "l4t": L4T, "version": "1.0", "selftest": "edgeseg selftest"}
    recipe = recipes.recipe_of(bundle, **{**settings, **changes})
    recipes.write_recipe(recipe, updater, out)
    return out


def certificate(folder: Path) -> dict[str, str]:
    """Make a key and a certificate of its own; return what `make.sh` takes them from."""
    folder.mkdir(exist_ok=True)
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/O=test/CN=test"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return {"KEY": str(key), "CERT": str(cert)}


def pack(out: Path, keys: dict[str, str]) -> Path:
    """Run the recipe's `make.sh`; return the folder."""
    done = subprocess.run(
        ["sh", str(out / "make.sh")],
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


class Fleet:
    """One played device: its root, and a self-test that fails on a bundle that says so."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "data"
        self.root.mkdir(parents=True)
        self.log = folder / "log"
        self.said = ""
        test = folder / "selftest"
        test.write_text(
            '#!/bin/sh\necho "test $(cat "$1/model.onnx")" >>"$LOG"\n'
            'test "$(cat "$1/model.onnx")" != bad\n'
        )
        test.chmod(0o755)
        restart = folder / "restart"
        restart.write_text(
            '#!/bin/sh\necho "open $(cat "$EDGESEG_ROOT/current/bundle/model.onnx")" >>"$LOG"\n'
        )
        restart.chmod(0o755)
        release = folder / "nv_tegra_release"
        release.write_text(TEGRA_RELEASE)
        (folder / "bin").mkdir()  # writing out this machine's disks would take most of the time
        (folder / "bin" / "sync").symlink_to("/bin/true")
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "EDGESEG_CONF": str(folder / "none"),
            "EDGESEG_ROOT": str(self.root),
            "EDGESEG_SELFTEST": str(test),
            "EDGESEG_RESTART": str(restart),
            "EDGESEG_RELEASE_FILE": str(release),
        }

    def sh(self, script: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a script in a process group of its own, so that `cut` can end all of it."""
        done = subprocess.run(
            ["sh", str(script), *arguments],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        self.said = done.stderr
        return done

    def current(self) -> str | None:
        link = self.root / "current"
        return (link / "bundle" / "model.onnx").read_text() if link.exists() else None

    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.root / "releases").iterdir())

    def history(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


# A power cut: the handler and all that it runs are gone at once.
CUT = 'kill -9 -"$(cut -d " " -f 6 /proc/self/stat)" $PPID'


def write_command(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def handler_of(fleet: Fleet, folder: Path, content: str) -> tuple[Path, Callable[..., int]]:
    """Return a recipe for RAUC, and a call of its handler, which returns its exit code."""
    bundle = write_bundle(folder / f"bundle-{content}", content)
    out = write_recipe(bundle, "rauc", folder / f"out-{content}")
    place = {"RAUC_BUNDLE_MOUNT_POINT": str(out / "content")}
    return out, lambda **more: fleet.sh(out / "content" / "handler.sh", **place, **more).returncode


def write_steps(folder: Path, action: str, fleet: Fleet) -> str:
    """Write the commands that the scripts change the disk with; return a PATH on which they are.

    action: what is done before each; $step is its number, counted in the file $STEPS.
    """
    folder.mkdir()
    path = fleet.environment["PATH"]
    for name in ("cp", "ln", "mkdir", "mv", "rm", "sync"):
        write_command(
            folder / name,
            f'step=$(($(cat "$STEPS") + 1))\necho "$step" >"$STEPS"\n'
            f'{action}\nexec {shutil.which(name, path=path)} "$@"',
        )
    return f"{folder}:{path}"


# --- a disk that loses power ----------------------------------------------------------------------


_COMMIT_S = 1  # after which ext4 writes out its journal


def cannot_mount() -> str:
    """Say why no disk can be played here, "" where it can."""
    for tool, package in {"mkfs.ext4": "e2fsprogs", "mount": "mount"}.items():
        if shutil.which(tool) is None:
            return f"no {tool}; .ci/packages installs {package} where Debian has it, as root"
    if os.getuid() != 0 or not Path("/dev/loop-control").exists():
        return "not root, or no loop devices here"
    return ""


def walk_disk(folder: Path) -> Iterator[tuple[str, str]]:
    """Update on a file system of its own, keep what had reached its disk before each step, and boot
    from every such disk; yield each with what went wrong, "" if nothing.

    What the kernel had not written out by then is lost, as in a power cut. Mounts: the caller is in
    a mount namespace that it can leave to the kernel. folder: existing and empty.
    """
    for before, wanted in (("good", "new"), ("rotten", "good")):
        place = folder / before
        fleet = Fleet(place)
        fleet.environment["PATH"] = os.environ["PATH"]  # with the real sync
        disk, steps = place / "disk", place / "steps"
        with disk.open("wb") as stream:
            stream.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
        with _mounted(disk, fleet.root):
            out, handle = handler_of(fleet, place, "good")
            assert handle() == 0, fleet.said
            if before == "rotten":
                (fleet.root / "current" / "bundle" / "model.onnx").write_text(before)
            else:
                out, handle = handler_of(fleet, place, wanted)
            subprocess.run(["sync"], check=True)
            steps.write_text("0")
            opened = write_command(place / "opened", f"cat {steps} >{place}/opened-at")
            # By then the names are written out by themselves, what is in the files is not.
            action = f'sleep {_COMMIT_S + 0.3}\n/bin/cp {disk} "{disk}-$step"'
            path = write_steps(place / "bin-steps", action, fleet)
            assert handle(PATH=path, STEPS=str(steps), EDGESEG_RESTART=opened) == 0, fleet.said
        last = int(steps.read_text())
        opened_at = int((place / "opened-at").read_text())
        for step in range(1, last + 1):
            with _mounted(Path(f"{disk}-{step}"), fleet.root):
                booted = (before, wanted) if step > opened_at else (before,)
                found = _boot_from(fleet, out, handle, (before, wanted), booted)
            yield f"{before} to {wanted}, cut before step {step} of {last}", found


def _boot_from(
    fleet: Fleet,
    out: Path,
    handle: Callable[..., int],
    either: tuple[str, str],
    booted: tuple[str, ...],
) -> str:
    """Say what goes wrong in a boot, "" if nothing.

    either: what `current` may lead to before it; booted: after it.
    """
    if fleet.current() not in either:
        return f"current is {fleet.current()}"
    if fleet.sh(out / "device" / "edgeseg-recover.sh").returncode:
        return fleet.said
    current = fleet.current()
    if current not in booted or (fleet.root / "pending").exists():
        return f"after the boot current is {current}"
    sums = ["sha256sum", "--quiet", "-c", "SHA256SUMS"]
    place = fleet.root / "current" / "bundle"
    if current != "rotten" and subprocess.run(sums, cwd=place, check=False).returncode:
        return "the release in use is damaged"
    if handle() or fleet.current() != either[1]:
        return f"the same update again: current is {fleet.current()}, {fleet.said}"
    return ""


@contextlib.contextmanager
def _mounted(disk: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", f"loop,commit={_COMMIT_S}", str(disk), str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


# --- the updaters themselves ----------------------------------------------------------------------

_ENTER = """
set -e
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mount --bind "$1/media" media
exec chroot . /bin/sh -c "$2"
"""
_PLAYED_SELFTEST = """#!/bin/sh
echo "test $(cut -d ' ' -f 1 "$1/model.onnx")" >>/data/history
/usr/lib/edgeseg/played-cut selftest
! grep -q '^bad ' "$1/model.onnx"
"""
_PLAYED_RESTART = """#!/bin/sh
echo "open $(cut -d ' ' -f 1 /data/edgeseg/current/bundle/model.onnx)" >>/data/history
/usr/lib/edgeseg/played-cut restart
! grep -q '^deaf ' /data/edgeseg/current/bundle/model.onnx
"""
# Waits for the end where the power is to be cut at this moment.
_PLAYED_CUT = """#!/bin/sh
[ "$(cat /data/cut 2>/dev/null)" = "$1" ] || exit 0
touch /data/reached
exec sleep 600
"""
RECOVER = "/usr/lib/edgeseg/edgeseg-recover.sh || exit 90\n"


class Said(NamedTuple):
    """How a boot ended."""

    code: int | None  # None where the power was cut
    text: str  # all that was said, and the logs


class Device:
    """A view of this machine for the updaters; what they write stays from boot to boot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("upper/media", "work", "root", "media"):
            (folder / name).mkdir(parents=True)
        self.write("/etc/nv_tegra_release", TEGRA_RELEASE)
        self.write(
            "/etc/edgeseg/update.conf",
            "EDGESEG_SELFTEST=/usr/lib/edgeseg/played-selftest\n"
            "EDGESEG_RESTART=/usr/lib/edgeseg/played-restart\n",
        )
        for name, text in {
            "selftest": _PLAYED_SELFTEST,
            "restart": _PLAYED_RESTART,
            "cut": _PLAYED_CUT,
        }.items():
            self.write(f"/usr/lib/edgeseg/played-{name}", text, 0o755)

    def path(self, name: str) -> Path:
        """Return where a file that was written to the device lies here."""
        return self.folder / "upper" / name.lstrip("/")

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def install(self, source: Path, name: str) -> None:
        self.write(name, source.read_text(), source.stat().st_mode & 0o777)

    def insert(self, image: Path) -> str:
        """Put a file on the stick that the device has; return its path there."""
        shutil.copy(image, self.folder / "media")
        return f"/media/{image.name}"

    def damage(self, image: str) -> str:
        """Change a bit in the middle of a file on the stick."""
        file = self.folder / image.lstrip("/")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        return image

    def current(self) -> str | None:
        link = self.path("/data/edgeseg/current")
        return (link / "bundle" / "model.onnx").read_text().split()[0] if link.exists() else None

    def history(self) -> list[str]:
        file = self.path("/data/history")
        return file.read_text().splitlines() if file.exists() else []

    def boot(self, script: str, *, cut: str = "") -> Said:
        """Run a script as the first process; where it ends, so does all that it started.

        cut: moment at which the power fails, "selftest" or "restart".
        """
        for name in ("reached", "cut", "service.log"):
            self.path(f"/data/{name}").unlink(missing_ok=True)
        self.write("/data/cut", cut)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER]
        said = self.folder / "said"
        alive, held = os.pipe()  # held by every process of the device, until the last has ended
        with said.open("w") as stream:
            process = subprocess.Popen(
                [*command, "device", str(self.folder), script],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=(held,),
            )
        os.close(held)
        try:
            end = time.monotonic() + _BOOT_S
            reached = self.path("/data/reached")
            while process.poll() is None and not reached.exists() and time.monotonic() < end:
                time.sleep(0.02)
        finally:
            was_cut = process.poll() is None
            process.kill()  # and the kernel ends the first process, and with it all others
            process.wait()
            os.read(alive, 1)
            os.close(alive)
        text = said.read_text(errors="replace")
        log = self.path("/data/service.log")
        text += log.read_text(errors="replace") if log.exists() else ""
        assert was_cut == bool(cut), f"the moment to cut never came, or never ended: {text}"
        return Said(None if was_cut else process.returncode, text)


class Updater(Protocol):
    """One of RAUC, SWUpdate and Mender, as the makers of them mean it to be used."""

    name: str
    tools: dict[str, str]  # program -> Debian package

    @property
    def refusals(self) -> dict[str, str]:
        """What it says to "board", "l4t", "key" and "damage"."""

    def version(self) -> str:
        """Return what the tool calls itself, and how it runs here."""

    def set_up(self, device: Device, recipe: Path, keys: dict[str, str]) -> None:
        """Put what the device needs in place; keys: whose updates it takes."""

    def image(self, recipe: Path, keys: dict[str, str]) -> Path:
        """Pack and sign."""

    def script(self, image: str) -> str:
        """Return the lines of sh that install an image and end as the updater ends."""


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().splitlines()[0]


class Rauc:
    """`rauc install` on a system bus of its own, which starts the service."""

    name = "rauc"
    tools: ClassVar = {
        "rauc": "rauc",
        "mksquashfs": "squashfs-tools",
        "dbus-daemon": "dbus-daemon",
        "openssl": "openssl",
    }
    _BUS = """<busconfig>
<listen>unix:path=/run/bus</listen>
<auth>EXTERNAL</auth>
<servicedir>/etc/edgeseg-bus</servicedir>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_type="signal"/><allow send_requested_reply="true" send_type="method_return"/>
<allow send_requested_reply="true" send_type="error"/><allow receive_type="method_call"/>
<allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
</policy>
</busconfig>
"""

    @property
    def _verity(self) -> bool:
        devices = Path("/proc/misc")
        return (
            devices.exists() and "device-mapper" in devices.read_text() and _kernel_has("dm_verity")
        )

    @property
    def refusals(self) -> dict[str, str]:
        return {
            "board": "Compatible mismatch",
            "l4t": "Compatible mismatch",
            "key": "signature verification failed",
            # In format plain the signature is of the whole file, in verity of the tree's root.
            "damage": "dm-verity status" if self._verity else "signature verification failed",
        }

    def version(self) -> str:
        form = "format verity" if self._verity else "format plain: no dm-verity in this kernel"
        return f"{_first_line('rauc', '--version')}, {form}"

    def set_up(self, device: Device, recipe: Path, keys: dict[str, str]) -> None:
        device.write("/etc/rauc/keyring.pem", Path(keys["CERT"]).read_text())
        text = (recipe / "device" / "system.conf").read_text()
        device.write("/etc/rauc/system.conf", self._of_format(text))
        device.write("/etc/edgeseg-bus.conf", self._BUS)
        drop_in = (recipe / "device" / "rauc.service.d" / "edgeseg.conf").read_text()
        command = drop_in.strip().rpartition("ExecStart=")[2]
        device.write(
            "/etc/edgeseg-bus/de.pengutronix.rauc.service",
            f"[D-BUS Service]\nName=de.pengutronix.rauc\nExec={command}\n",
        )

    def image(self, recipe: Path, keys: dict[str, str]) -> Path:
        manifest = recipe / "content" / "manifest.raucm"
        manifest.write_text(self._of_format(manifest.read_text()))
        (image,) = pack(recipe, keys).glob("*.raucb")
        return image

    def script(self, image: str) -> str:
        return (
            "export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/bus\n"
            "dbus-daemon --config-file=/etc/edgeseg-bus.conf --nofork --nopidfile "
            ">/data/service.log 2>&1 &\n"
            "until [ -S /run/bus ]; do sleep 0.02; done\n"
            f"rauc install {image}\n"
        )

    def _of_format(self, text: str) -> str:
        return text if self._verity else text.replace("verity", "plain")


class Swupdate:
    """SWUpdate as a service, and its client."""

    name = "swupdate"
    tools: ClassVar = {"swupdate": "swupdate", "cpio": "cpio", "openssl": "openssl"}
    refusals: ClassVar = {
        "board": "HW compatibility not found",
        "l4t": "SW not compatible with hardware",
        "key": "Authentication of all signatures failed",
        "damage": "HASH mismatch",
    }

    def version(self) -> str:
        command = ("dpkg-query", "--show", "--showformat=${Version}", "swupdate")
        return f"SWUpdate {_first_line(*command)}"  # it does not know its own

    def set_up(self, device: Device, recipe: Path, keys: dict[str, str]) -> None:
        device.write("/etc/swupdate/cert.pem", Path(keys["CERT"]).read_text())
        device.install(recipe / "device" / "hwrevision", "/etc/hwrevision")

    def image(self, recipe: Path, keys: dict[str, str]) -> Path:
        (image,) = pack(recipe, keys).glob("*.swu")
        return image

    def script(self, image: str) -> str:
        return (
            "export TMPDIR=/run\n"
            "swupdate -v -k /etc/swupdate/cert.pem >/data/service.log 2>&1 &\n"
            "until [ -S /run/sockinstctrl ]; do sleep 0.02; done\n"
            f"swupdate-client {image} >/dev/null\n"  # its exit code is right by chance only
            "until grep -q 'Main thread sleep again' /data/service.log; do sleep 0.02; done\n"
            "grep -q 'SWUPDATE successful' /data/service.log\n"
        )


class Mender:
    """The client by itself, without a server."""

    name = "mender"
    tools: ClassVar = {
        "mender": "mender-client",
        "mender-artifact": "mender-artifact",
        "openssl": "openssl",
    }
    refusals: ClassVar = {
        "board": "not compatible with device",
        "l4t": "not compatible with device",
        "key": "invalid signature",
        "damage": "invalid checksum",
    }

    def version(self) -> str:
        return " ".join(_first_line("mender", "--version").split())

    def set_up(self, device: Device, recipe: Path, keys: dict[str, str]) -> None:
        public = subprocess.run(
            ["openssl", "x509", "-in", keys["CERT"], "-pubkey", "-noout"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        device.write("/etc/mender/maker.pem", public)
        device.write("/etc/mender/mender.conf", '{"ArtifactVerifyKey": "/etc/mender/maker.pem"}\n')
        device.write("/etc/mender/artifact_info", "artifact_name=as-made\n")
        device.install(recipe / "device" / "device_type", "/var/lib/mender/device_type")
        module = "/usr/share/mender/modules/v3/edgeseg-bundle"
        device.install(recipe / "device" / "edgeseg-bundle", module)

    def image(self, recipe: Path, keys: dict[str, str]) -> Path:
        key = recipe / "pkcs1.pem"  # mender-artifact 3.9 reads no PKCS #8, which openssl 3 writes
        subprocess.run(
            ["openssl", "rsa", "-traditional", "-in", keys["KEY"], "-out", str(key)],
            check=True,
            capture_output=True,
        )
        (image,) = pack(recipe, {"KEY": str(key)}).glob("*.mender")
        return image

    def script(self, image: str) -> str:
        return f"mender install {image} && mender commit\n"


UPDATERS: dict[str, Updater] = {each.name: each for each in (Rauc(), Swupdate(), Mender())}


def missing(updater: Updater) -> str:
    """Say what keeps an updater from running here, "" where nothing does."""
    for tool, package in updater.tools.items():
        if shutil.which(tool) is None:
            return f"no {tool}; .ci/packages installs {package} where Debian has it, as root"
    if os.getuid() != 0:
        return f"{updater.name} installs as root only; run the tests as root"
    if shutil.which("unshare") is None or not Path("/dev/loop-control").exists():
        return (
            "no unshare or no loop devices; needs util-linux and a machine that lends its devices"
        )
    if updater.name == "rauc" and not _kernel_has("squashfs"):
        return "no squashfs in this kernel; needs one with CONFIG_SQUASHFS"
    return ""


def _kernel_has(module: str) -> bool:
    """Whether the kernel has a module, or would load it when it needs it."""
    systems = Path("/proc/filesystems")
    if systems.exists() and module in systems.read_text().split():
        return True
    if Path("/sys/module", module).exists():
        return True
    command = ["modprobe", "--dry-run", "--quiet", module]
    return shutil.which("modprobe") is not None and not subprocess.call(command)


def cannot_enter(folder: Path) -> str:
    """Say why this machine lets us have no `Device` in a folder, "" where it does."""
    said = Device(folder).boot("exit 0")
    return "" if said.code == 0 else f"no view of this machine: {' '.join(said.text.split())}"


def walk(updater: Updater, folder: Path) -> Iterator[tuple[str, str]]:
    """Go through what can happen to an update; yield each case with what went wrong, "" if nothing.

    folder: existing and empty.
    """
    maker, other = certificate(folder / "maker"), certificate(folder / "other")
    device = Device(folder / "device")
    count = iter(range(1000))

    def ship(content: str, keys: dict[str, str] = maker, **changes: str) -> str:
        number = next(count)
        # RAUC refuses a bundle that squashfs makes smaller than a page.
        bundle = write_bundle(folder / f"bundle-{number}", f"{content} {os.urandom(1 << 13).hex()}")
        changes = {"version": f"1.{number}", **changes}
        recipe = write_recipe(bundle, updater.name, folder / f"recipe-{number}", **changes)
        if number == 0:
            updater.set_up(device, recipe, keys)
            device.install(
                recipe / "device" / "edgeseg-recover.sh", "/usr/lib/edgeseg/edgeseg-recover.sh"
            )
        return device.insert(updater.image(recipe, keys))

    def install(image: str, cut: str = "") -> Said:
        return device.boot(RECOVER + updater.script(image), cut=cut)

    def judge(said: Said, installed: bool, current: str | None, text: str = "") -> str:
        found = device.current()
        # Mender calls for a roll-back or a clean-up after a cut only with the next installation.
        names = ("pending", "part", "current.new", "incoming", *["before-mender"] * installed)
        left = [name for name in names if os.path.lexists(device.path(f"/data/edgeseg/{name}"))]
        good = (said.code == 0) == installed and found == current and text in said.text
        if good and not left:
            return ""
        last = " | ".join(said.text.strip().splitlines())
        return f"exit {said.code}, current is {found}, left over {left}, said: {last}"

    yield (
        "a first bundle that fails its self-test",
        judge(install(ship("bad")), False, None, "E-UPDATE-SELFTEST"),
    )
    yield "a good bundle", judge(install(ship("one")), True, "one")
    yield (
        "a bundle that fails its self-test",
        judge(install(ship("bad")), False, "one", "E-UPDATE-SELFTEST"),
    )
    yield (
        "an application that does not open it",
        judge(install(ship("deaf")), False, "one", "E-UPDATE-RESTART"),
    )
    opened = [line for line in device.history() if line.startswith("open")]
    wanted = ["open one", "open deaf", "open one"]
    yield "what was opened meanwhile", "" if opened == wanted else str(opened)
    two = ship("two")
    for moment, then in (("restart", "two"), ("selftest", "one")):
        install(two, cut=moment)
        found = device.current()
        yield f"the power is cut in the {moment}", "" if found == then else f"current is {found}"
        said = device.boot(RECOVER)
        found = device.current()
        good = said.code == 0 and found == "one"
        yield f"at boot after the {moment}", "" if good else f"current is {found}: {said.text}"
    for kind, case, image in (
        ("board", "a bundle for another board", ship("new", board="orin-nx-16")),
        ("l4t", "a bundle for another L4T", ship("new", l4t="35.6.0")),
        ("key", "a bundle of another maker's key", ship("new", other)),
        ("damage", "a damaged file", device.damage(ship("new"))),
    ):
        yield case, judge(install(image), False, "one", updater.refusals[kind])
    device.write("/etc/nv_tegra_release", TEGRA_RELEASE.replace("4.3", "4.4"))
    yield (
        "a device with another L4T than it tells its updater",
        judge(install(ship("new")), False, "one", "E-UPDATE-L4T"),
    )
    device.write("/etc/nv_tegra_release", TEGRA_RELEASE)
    yield "the same bundle again", judge(install(two), True, "two")
    device.path("/data/edgeseg/current/bundle/model.onnx").write_text("rotten ")
    yield "a release that was damaged in its place", judge(install(two), True, "two")
    if isinstance(updater, Mender):
        yield from _walk_commit(updater, device, ship, judge)


def _walk_commit(
    updater: Updater, device: Device, ship: Callable[[str], str], judge: Callable[..., str]
) -> Iterator[tuple[str, str]]:
    """Go through what Mender alone has: a commit that comes later, or does not."""
    three = ship("three")
    said = device.boot(f"{RECOVER}mender install {three} && mender rollback\n")
    yield "a roll-back in place of a commit", judge(said, True, "two")
    installed = device.boot(f"{RECOVER}mender install {three}\n")
    good = installed.code == 0 and device.current() == "three"
    yield "an installation that waits for its commit", "" if good else str(installed)
    said = device.boot(f"{RECOVER}mender rollback\n")
    yield "its roll-back after a boot", judge(said, True, "two")
    device.boot(f"{RECOVER}mender install {three}\n")
    (device.path("/data/edgeseg/current") / "bundle" / "model.onnx").write_text("bad now")
    said = device.boot(f"{RECOVER}mender commit\n")
    yield "a commit whose self-test fails", judge(said, False, "two", "E-UPDATE-SELFTEST")
    said = device.boot(
        f"{RECOVER}mender install {three} && mender commit && mender show-provides\n"
    )
    yield "the same bundle, committed", judge(said, True, "three", "edgeseg.bundle_sha256=")
