"""Read mutated DICOM files, each in full, and count what came of them; see docs/live.md.

    python tests/measure/fuzz_dicom.py 100000

Ends with an error at the first file that gives anything but frames or an EdgesegError of one line,
that takes over 20 s, or that lets the process grow by more than a gibibyte.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from edgeseg.tests.support.dicom_files import FUZZED, mutated, read_all, shipped

_MAX_S = 20
_MAX_GROWTH_KIB = 1 << 20


def peak_kib() -> int:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(count: int, seed: int) -> None:
    """Mutate and read `count` files."""
    chance = random.Random(seed)
    contents = [shipped(name).read_bytes()[:30_000] for name in FUZZED]
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.dcm"
        path.write_bytes(contents[0])
        read_all(path)
        before_kib = peak_kib()
        for number in range(count):
            path.write_bytes(mutated(chance.choice(contents), chance))
            started = time.perf_counter()
            try:
                outcomes[read_all(path)] += 1
            except BaseException:
                Path("mutated.dcm").write_bytes(path.read_bytes())
                print(f"file {number} of seed {seed}, kept as mutated.dcm")
                raise
            slowest_s = max(slowest_s, time.perf_counter() - started)
            assert slowest_s < _MAX_S, number
            assert peak_kib() - before_kib < _MAX_GROWTH_KIB, number
    grown_mib = (peak_kib() - before_kib) / 1024
    print(f"{count} files, seed {seed}: {dict(outcomes.most_common())}")
    print(f"slowest {slowest_s:.2f} s; largest growth of the process {grown_mib:.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
