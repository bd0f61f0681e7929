"""INT8 by every calibration method on several numbers of frames: Dice, HD95, time and memory.

python tests/measure/calibration.py RUN DATA [FRAMES...]

RUN is a training run, DATA its data set. Prints a Markdown table: what the INT8 form loses against
the trained network on the val part, in the first engine of x86-cpu.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from edgeseg.cli.jobs.calibrating import CalibrationRequest, frames_for_export
from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.export.calibration import Calibration
from edgeseg.export.forms import Conversion, make_forms
from edgeseg.export.parity import check_hop, reference_of
from edgeseg.export.pipeline import load_trained
from edgeseg.export.plan import make_plan
from edgeseg.export.ranges import METHODS, measure_ranges
from edgeseg.export.target import find_target
from edgeseg.runtime.image import input_from_frame


def main(run: Path, data: Path, counts: list[int]) -> None:
    source = checkpoint_of(run)
    trained = load_trained(source.path)
    contract = trained.contract
    master = trained.to_onnx()
    plan = make_plan(find_target("x86-cpu"), "int8")
    print(
        "| frames | seconds, all methods | peak RSS, MiB | method | Dice drop (95 %) "
        "| HD95 rise, px (95 %) |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    reference = None
    for count in counts:
        frames, _ = frames_for_export(source, CalibrationRequest([data], images=count))
        reference = reference or reference_of(trained.run, contract, frames.checks)
        start = time.perf_counter()
        ranges = measure_ranges(
            master, (input_from_frame(frame, contract) for frame in frames.calibration.frames)
        )
        amax = {method: ranges.amax(method) for method in METHODS}
        seconds = time.perf_counter() - start
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        record = Calibration(trained.sha256, contract, (), {}, amax, ranges.largest)
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                form = make_forms(Conversion(plan, master, record, method, Path(folder)), "int8")[0]
            hop = check_hop(form.name, form.run, reference)
            print(
                f"| {ranges.frames} | {seconds:.1f} | {peak_mib:.0f} | {method} "
                f"| {hop.dice_drop:+.4f} ({hop.dice_drop_low:+.4f} to {hop.dice_drop_high:+.4f}) "
                f"| {hop.hd95_rise_px:+.2f} ({hop.hd95_rise_low_px:+.2f} to "
                f"{hop.hd95_rise_high_px:+.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(
        Path(sys.argv[1]), Path(sys.argv[2]), [int(each) for each in sys.argv[3:]] or [32, 128, 300]
    )
