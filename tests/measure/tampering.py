"""Change one byte of a bundle at a time and see that it is refused before anything is loaded.

    python -m edgeseg.tests.measure.tampering BUNDLE [--positions 10000] [--command es_open_tool]

The positions are spread over every file by its size, at least 16 in each; a copy of the bundle is
changed. A command gets the path of the bundle and must end with another code than 0. Manifests are
fuzzed by `EDGESEG_FUZZ=100000 pytest tests/runtime/test_hostile_files.py -k manifest`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.errors import EdgesegError

_LEAST = 16  # changes of each file, or every byte of a smaller one


def positions_of(folder: Path, count: int, seed: int = 0) -> list[tuple[Path, int]]:
    """Choose file and byte of at least `count` changes, fewer where the bundle is smaller."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    chosen = []
    for path in files:
        size = path.stat().st_size
        wanted = min(size, max(_LEAST, -(-count * size // total)))
        chosen += [(path, position) for position in sorted(rng.sample(range(size), wanted))]
    return chosen


def code_of(bundle: Path, command: str | None) -> str:
    """Return how a bundle is refused, "" where it is taken."""
    if command:
        done = subprocess.run([command, str(bundle)], capture_output=True, timeout=60)
        return f"exit code {done.returncode}" if done.returncode else ""
    try:
        open_bundle(bundle)
    except EdgesegError as error:
        return error.code
    return ""


def tamper(bundle: Path, count: int, command: str | None = None) -> Counter[str]:
    """Change byte after byte in a copy; return how often each refusal was met."""
    found: Counter[str] = Counter()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(bundle, Path(scratch) / "bundle"))
        if code_of(copy, command):
            raise SystemExit(f"{bundle} is refused as it is")
        for path, position in positions_of(copy, count):
            with path.open("r+b") as file:
                file.seek(position)
                byte = file.read(1)[0]
                for value in (byte ^ (1 << rng.randrange(8)), byte):
                    file.seek(position)
                    file.write(bytes([value]))
                    file.flush()
                    if value != byte:
                        found[code_of(copy, command)] += 1
        if code_of(copy, command):
            raise SystemExit("the copy was not restored")
    return found


def main() -> None:
    """Print what was met; end with 1 where a change was taken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--positions", type=int, default=10_000)
    parser.add_argument("--command")
    options = parser.parse_args()
    found = tamper(options.bundle, options.positions, options.command)
    print(f"{sum(found.values())} changes, {found['']} taken; {dict(found)}")
    raise SystemExit(1 if found[""] else 0)


if __name__ == "__main__":
    main()
