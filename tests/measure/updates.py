"""Install, refuse, take back and cut updates with RAUC, SWUpdate and Mender themselves.

    sudo python tests/measure/updates.py [disk] [rauc] [swupdate] [mender] [--kernel linux-*.deb]

Prints a line for each case and ends with 1 where one went wrong. Each updater runs in a
copy-on-write view of this machine with processes and mounts of its own, at the places that a device
has for it (/data, /etc/rauc, a system bus); a power cut ends all its processes at once. What is
played: self-test, application and /etc/nv_tegra_release; see `walk` in updates_standin.py.

``disk``: the scripts alone, on an ext4 that is cut before each of their steps: what the kernel had
not written out by then is lost; see `walk_disk`.

``--kernel``: a Debian package of another kernel, for what this one lacks: the device mapper
of RAUC's format verity. The same then happens under qemu, on a view of this machine, and takes some
minutes. Needs qemu-system-x86 and busybox-static.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edgeseg.tests.support.updates_standin import (
    UPDATERS,
    cannot_enter,
    cannot_mount,
    missing,
    walk,
    walk_disk,
)

_MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "overlay", "loop", "squashfs", "dm_mod", "dm_verity"),
    *("sha256_generic", "virtio_rng"),
)
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /machine /memory /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module || echo "no module $module"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,ro machine /machine || poweroff -f
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/machine,upperdir=/memory/upper,workdir=/memory/work machine /root
for place in proc sys dev; do mount --move /$place /root/$place; done
mkdir -p /root/scratch
mount -t tmpfs scratch /root/scratch
ip link set lo up
chroot /root /usr/bin/env TMPDIR=/scratch PATH={path} PYTHONPATH={pythonpath} {command}
echo "{ended}$?"
poweroff -f
"""
_MOUNTS_ARE_OURS = "EDGESEG_MOUNTS_ARE_OURS"
_ENDED = "exit code in the virtual machine: "


def walk_all(names: Iterable[str]) -> int:
    """Walk through the cases of each updater that is here; return the exit code.

    It is 1 where one went wrong, and where none could be run.
    """
    wrong = ran = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="edgeseg-") as scratch:
            if name == "disk":
                why = cannot_mount()
            else:
                why = missing(UPDATERS[name]) or cannot_enter(Path(scratch) / "tried")
            if why:
                print(f"{name}: not run, {why}")
                continue
            version, cases = _cases_of(name)
            print(f"{name}: {version}; Linux {os.uname().release}")
            (Path(scratch) / "walk").mkdir()
            started = time.monotonic()
            for case, found in cases(Path(scratch) / "walk"):
                ended = time.monotonic()
                print(
                    f"  {case:55} {ended - started:5.1f} s  {found or 'as it should'}", flush=True
                )
                started = ended
                ran += 1
                wrong += bool(found)
    print(f"{ran} cases, {wrong} wrong")
    return 1 if wrong or not ran else 0


def _cases_of(name: str) -> tuple[str, Callable[[Path], Iterator[tuple[str, str]]]]:
    """Return the version of an updater that is here, and what walks through its cases."""
    if name == "disk":
        return "ext4", walk_disk
    return UPDATERS[name].version(), functools.partial(walk, UPDATERS[name])


def walk_under_qemu(package: Path, names: Iterable[str]) -> int:
    """Do the same on the kernel of a Debian package; return 0 where nothing went wrong."""
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as scratch:
        unpacked, initrd = Path(scratch) / "package", Path(scratch) / "initrd"
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
        (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
        _write_initrd(initrd, unpacked, names)
        shared = "path=/,mount_tag=machine,security_model=none,readonly=on,multidevs=remap"
        process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "2G", "-smp", "1"),
                *("-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-net", "none"),
                *("-virtfs", f"local,{shared}", "-kernel", str(kernel), "-initrd", str(initrd)),
                *("-append", "console=ttyS0 loglevel=5 panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        code = 1
        for line in process.stdout or ():
            if _ENDED in line:
                code = int(line.partition(_ENDED)[2])
            else:
                print(line, end="", flush=True)
        process.wait()
    return code


def _write_initrd(initrd: Path, unpacked: Path, names: Iterable[str]) -> None:
    """Write what the kernel starts with: busybox, the modules, and how to get to this machine."""
    root = initrd.parent / "root"
    for name in ("bin", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    modules = _in_order(unpacked / "lib" / "modules", _MODULES)
    for module in modules:
        shutil.copy(module, root / "modules")
    init = _INIT.format(
        modules=" ".join(module.name for module in modules),
        path=os.environ["PATH"],
        pythonpath=Path(__file__).resolve().parents[3],
        command=shlex.join([sys.executable, str(Path(__file__).resolve()), *names]),
        ended=_ENDED,
    )
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    archive = f"find . | cpio -o -H newc --quiet >{initrd}"
    subprocess.run(["sh", "-c", archive], cwd=root, check=True)


def _in_order(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of kernel modules, each after those that it needs; none of one built in."""
    files = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in files and name not in ordered:
            needs = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
            for each in needs[1].decode().split(",") if needs else ():
                add(each.replace("-", "_"))
            ordered[name] = files[name]

    for name in names:
        add(name)
    return list(ordered.values())


def main() -> None:
    """Walk here or under qemu."""
    parser = argparse.ArgumentParser()
    known = ["disk", *UPDATERS]
    parser.add_argument("updaters", nargs="*", metavar="|".join(known))
    parser.add_argument("--kernel", type=Path)
    options = parser.parse_args()
    names = options.updaters or known
    for name in names:
        if name not in known:
            parser.error(f"no {name!r}; choose of {', '.join(known)}")
    if os.getuid() == 0 and _MOUNTS_ARE_OURS not in os.environ:
        os.environ[_MOUNTS_ARE_OURS] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    if options.kernel:
        raise SystemExit(walk_under_qemu(options.kernel, names))
    raise SystemExit(walk_all(names))


if __name__ == "__main__":
    main()
