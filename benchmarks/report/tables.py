"""The tables of the report, the same in each of its forms; all numbers come from the record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..formatting import (
    MISSING,
    fixed,
    percent,
    signed,
    signed_significant,
    significant,
    threads_text,
)
from ..measure.complexity import LayerCost
from ..measure.conditions import Conditions, CpuTicks, Gpu
from ..measure.latency import percentile
from ..measure.layers import LayerReport
from ..measure.modes import MODES, OfflineRun, PacedRun, Slope, SoakRun
from ..measure.prediction import Prediction
from ..record import BenchmarkRecord, Proof, ProofStep, Row
from ..yardstick_passes import MIN_PASSES, PassSummary, summarise_passes
from . import metrics
from .document import Head, Table, heads
from .wording import TOO_FEW, fps_text, median_text, mode_name, percentile_text, with_interval

TOP_LAYERS = 12  # have a line of their own, the others are summed
_LONG = 12  # lines of predictions, above which they are folded
_NOT_TOLD = "not told"  # of a condition that the system does not tell
_NOT_TOLD_HERE = "Not told by this system"


def _table_of(title: str, table: metrics.Table, record: BenchmarkRecord) -> Table:
    columns = metrics.columns_of(table, record.rows)
    return Table(
        title,
        tuple((column.title, column.unit) for column in columns),
        tuple(
            tuple(column.cell(row, record.comparison_of(row)) for column in columns)
            for row in record.rows
        ),
    )


def results_table(record: BenchmarkRecord) -> Table:
    """Return what matters most, a line for each row."""
    return _table_of("Results", "results", record)


def latency_table(record: BenchmarkRecord) -> Table:
    """Return percentiles with their bounds and the parts of a call; copies where one tells them."""
    return _table_of("Latency in detail", "latency", record)


# --- passes --------------------------------------------------------------------------------------


def passes_table(record: BenchmarkRecord) -> Table | None:
    """Return how each row compares with runs of other times; None where none has passes."""
    lines = tuple(
        (row.name, *_passes_cells(row, summarise_passes(row)))
        for row in record.rows
        if record.settings.passes
    )
    header = heads(
        "Candidate",
        "Smallest slow-down it shows",
        "Passes that count",
        "Spread between passes",
        "Calls set aside",
        ("Time over yardstick's", "99 %"),
        ("Yardstick's time", "ms"),
        "Yardstick",
    )
    return Table("Against a yardstick", header, lines) if lines else None


def _passes_cells(row: Row, found: PassSummary) -> tuple[str, ...]:
    yardstick = row.yardstick
    if yardstick is None:
        return (*[MISSING] * 6, "none for this engine")
    low, high = found.interval
    told = found.count >= MIN_PASSES
    return (
        percent(found.smallest - 1) if told else f"none ({MIN_PASSES} passes needed)",
        f"{found.count} of {found.measured}",
        percent(found.spread),
        set_aside_text(found),
        significant(found.ratio) + (f" ({significant(low)}–{significant(high)})" if told else ""),
        significant(found.yardstick_ms),
        f"{yardstick.engine} {yardstick.precision} ({threads_text(yardstick.threads)})",
    )


def set_aside_text(found: PassSummary) -> str:
    """Return how many calls waited for a core, of how many."""
    share = f" ({percent(found.set_aside / found.calls)})" if found.calls else ""
    return f"{found.set_aside} of {found.calls}{share}"


# --- modes ---------------------------------------------------------------------------------------


def modes_table(record: BenchmarkRecord) -> Table:
    """Return how each mode sends frames, beside MLPerf's name, and what was asked of it here."""
    settings = record.settings
    asked = {
        "single": f"{settings.rounds} calls",
        "paced": f"{settings.paced_s:g} s at {settings.hz:g} Hz",
        "offline": f"{settings.offline_s:g} s, streams × batch: "
        f"{settings.streams} × {settings.batch}",
        "soak": f"{settings.soak_s / 60:.3g} min",
    }
    measured = {"single", *settings.modes}
    return Table(
        "Modes",
        heads("Mode", "In MLPerf", "Here", "A frame is sent", "Difference from MLPerf"),
        tuple(
            (
                name,
                mode.mlperf or "no such",
                asked[name] if name in measured else "not measured",
                mode.sends,
                mode.difference,
            )
            for name, mode in MODES.items()
        ),
        words=True,
    )


def offline_table(record: BenchmarkRecord) -> Table | None:
    """Return the throughput; None where no row has it."""
    lines = tuple((row.name, *_offline_cells(row.offline)) for row in record.rows if row.offline)
    header = heads(
        "Candidate",
        "Streams × batch",
        "Threads of a stream",
        ("Time", "s"),
        ("Frames/s", "95 %"),
        ("A call p50", "ms"),
        ("A call p99", "ms"),
    )
    return Table(f"Mode {mode_name('offline')}", header, lines) if lines else None


def _offline_cells(run: OfflineRun) -> tuple[str, ...]:
    p50, p99 = run.call_p50_ms, run.call_p99_ms
    return (
        f"{run.streams} × {run.batch}",
        run.threads_each or "not told",
        f"{run.seconds:g}",
        fps_text(run),
        MISSING if p50 is None else significant(p50),
        TOO_FEW if p99 is None else significant(p99),
    )


def paced_table(record: BenchmarkRecord) -> Table | None:
    """Return what became of a clock's frames; None where no row has it."""
    lines = tuple((row.name, *_paced_cells(row.paced)) for row in record.rows if row.paced)
    header = heads(
        "Candidate",
        ("Clock", "Hz"),
        "Due",
        "Answered",
        "Dropped",
        "Missed",
        ("p50", "ms from the tick"),
        ("p99", "ms from the tick"),
        ("Jitter p50", "ms"),
        ("Jitter p99", "ms"),
        ("Clock late", "ms, at most"),
    )
    return Table(f"Mode {mode_name('paced')}", header, lines) if lines else None


def _paced_cells(run: PacedRun) -> tuple[str, ...]:
    jitter_ms = [round(abs(value), 3) for value in run.jitter_ms]  # to the µs: it is a difference
    return (
        f"{run.hz:g}",
        *(str(count) for count in (run.due, run.done, run.dropped, run.missed)),
        median_text(run.latency_ms),
        percentile_text(run.latency_ms, 0.99),
        median_text(jitter_ms),
        percentile_text(jitter_ms, 0.99),
        significant(run.late_ms),
    )


def soak_table(record: BenchmarkRecord) -> Table | None:
    """Return drift and growth over minutes; None where no row has it."""
    lines = tuple((row.name, *_soak_cells(row.soak)) for row in record.rows if row.soak)
    header = heads(
        "Candidate",
        ("Time", "min"),
        "Frames",
        ("Drift", "ms/min, 95 %"),
        ("First window p50", "ms"),
        ("Last window p50", "ms"),
        ("Longest", "ms"),
        ("Memory", "MiB/min, 95 %"),
        ("Mean clock", "MHz, first to last"),
        ("Hottest", "°C"),
    )
    return Table(f"Mode {mode_name('soak')}", header, lines) if lines else None


def _soak_cells(run: SoakRun) -> tuple[str, ...]:
    windows = run.windows
    clocks = [w.sampled["mean MHz"] for w in windows if "mean MHz" in w.sampled]
    sensors = [v for w in windows for name, v in w.sampled.items() if name.endswith("°C")]
    memory = run.memory_mib
    return (
        f"{windows[-1].end_s / 60:.3g}",
        str(sum(window.calls for window in windows)),
        slope_text(run.latency_ms, "drifts", "no drift found"),
        significant(windows[0].p50_ms),
        significant(windows[-1].p50_ms),
        significant(max(window.max_ms for window in windows)),
        MISSING if memory is None else slope_text(memory, "changes", "no growth found"),
        f"{clocks[0]:.0f} to {clocks[-1]:.0f}" if clocks else "not told",
        f"{max(sensors):.0f}" if sensors else "not told",
    )


def slope_text(slope: Slope, found: str, not_found: str) -> str:
    """Return a slope with its interval, and in words whether there is one."""
    value = signed_significant(slope.per_minute)
    if math.isnan(slope.low):
        return f"{value} ({TOO_FEW})"
    interval = f"{signed_significant(slope.low)} to {signed_significant(slope.high)}"
    return f"{found if slope.drifts else not_found}: {value} ({interval})"


# --- layers --------------------------------------------------------------------------------------


def peaks_table(record: BenchmarkRecord) -> Table:
    """Return what each engine and the memory reach on this machine, and how it was measured."""
    return Table(
        "Peaks of this machine, measured",
        heads(
            "Engine",
            "Threads",
            ("FP32", "GFLOP/s"),
            ("INT8", "GOP/s"),
            ("Bandwidth", "GB/s"),
            "Steady",
            "Kernels read",
            "How",
        ),
        tuple(
            (
                peaks.engine,
                str(peaks.threads),
                significant(peaks.fp32_gflops),
                "did not run in INT8" if peaks.int8_gops is None else significant(peaks.int8_gops),
                significant(peaks.bandwidth_gb_s),
                "yes" if peaks.steady else "no: too low",
                "; ".join(f"{asked}: {ran}" for asked, ran in peaks.executed.items()),
                peaks.how,
            )
            for peaks in record.peaks
        ),
        words=True,
    )


def attained_table(record: BenchmarkRecord) -> Table:
    """Return which share of the peaks whole networks reach."""
    return Table(
        "Whole networks against the peaks",
        heads(
            "Candidate",
            "Threads",
            ("One call", "ms, median"),
            "Share of compute peak",
            "Share of roofline",
            "Profiler adds",
            ("Outside layers", "ms, median"),
        ),
        tuple(
            (
                row.name,
                str(row.layers.times.threads),
                significant(row.layers.attained.measured_ms),
                percent(row.layers.attained.compute_share),
                percent(row.layers.attained.share),
                percent(row.layers.times.overhead),
                median_text(row.layers.times.other_ms),
            )
            for row in record.rows
            if row.layers
        ),
    )


def layers_table(row: Row, report: LayerReport) -> Table:
    """Return the layers that take most time, the others summed, and what is no layer."""
    costs = {cost.name: cost for cost in report.costs}
    against = {layer.name: layer for layer in report.attained.layers}
    whole_ms = report.attained.measured_ms
    timed = sorted(report.times.layers, key=lambda layer: -layer.median_ms)
    lines = []
    for rank, layer in enumerate(timed[:TOP_LAYERS], 1):
        cost, bound = costs[layer.name], against[layer.name]
        lines.append(
            (
                f"{rank} · {layer.name}",
                cost.op,
                cost.precision,
                *_cost_cells([cost]),
                significant(layer.median_ms),
                percent(layer.median_ms / whole_ms),
                MISSING if bound.share is None else percent(bound.share),
                bound.bound,
            )
        )
    top = {layer.name for layer in timed[:TOP_LAYERS]}
    if rest := [cost for cost in report.costs if cost.name not in top]:
        inside = len(costs) - len(timed)
        rest_ms = sum(layer.median_ms for layer in timed[TOP_LAYERS:])
        lines.append(
            (
                f"{len(rest)} others"
                + (f", {inside} of them run inside another" if inside else ""),
                "",
                "",
                *_cost_cells(rest),
                significant(rest_ms),
                percent(rest_ms / whole_ms),
                "",
                "",
            )
        )
    if report.times.other_ms:
        other_ms = percentile(report.times.other_ms, 0.5)
        operators = ", ".join(report.times.other_operators) or "none"
        lines.append(
            (
                f"no layer's: {operators}",
                "",
                "",
                "",
                "",
                significant(other_ms),
                percent(other_ms / whole_ms),
                "",
                "",
            )
        )
    return Table(
        f"Layers of {row.name} that take most time",
        heads(
            "Layer",
            "Operator",
            "Precision",
            ("MACs", "M"),
            ("Bytes", "KiB"),
            ("Time", "ms, median"),
            "Of one call",
            "Share of roofline",
            "Bound by",
        ),
        tuple(lines),
        folded=True,
    )


def _cost_cells(costs: Sequence[LayerCost]) -> tuple[str, str]:
    macs = sum(cost.macs for cost in costs)
    return significant(macs / 1e6), significant(sum(cost.total_bytes for cost in costs) / 1024)


def predictions_table(record: BenchmarkRecord) -> Table | None:
    """Return what is predicted for devices, a line for each; None without predictions."""
    rows = [row for row in record.rows if row.layers and row.layers.predictions]
    by_row = [{each.device: each for each in row.layers.predictions} for row in rows if row.layers]
    devices = list(dict.fromkeys(device for found in by_row for device in found))
    if not devices:
        return None
    return Table(
        "Predicted, not measured: one call of the network alone",
        (("Device", ""), *((row.name, "predicted ms") for row in rows)),
        tuple(
            (device, *(_prediction_text(found.get(device)) for found in by_row))
            for device in devices
        ),
        folded=len(devices) > _LONG,
    )


def _prediction_text(prediction: Prediction | None) -> str:
    if prediction is None:
        return MISSING
    low, high = significant(prediction.low_ms, 2), significant(prediction.high_ms, 2)
    return f"{low}–{high} ({prediction.precision}, {prediction.bound})"


# --- memory and energy ---------------------------------------------------------------------------


def memory_table(record: BenchmarkRecord) -> Table:
    """Return the network's size, what a process of its own pays, and what its files take."""
    return _table_of("Size, memory and start of a fresh process", "memory", record)


def energy_table(record: BenchmarkRecord) -> Table | None:
    """Return the energy of a frame; None where nothing counted it."""
    lines = tuple(
        (
            row.name,
            signed_significant(row.energy.net_mj_per_frame, 3).removeprefix("+"),
            significant(row.energy.gross_mj_per_frame),
            f"{significant(row.energy.idle_w)} (drift {signed_significant(row.energy.idle_drift_w)}"
            f", {row.energy.idle_s:.0f} s)",
            f"{significant(row.energy.load_w)} ({row.energy.load_s:.0f} s)",
            str(row.energy.frames),
            f"{row.energy.counter}: {', '.join(row.energy.total_rails)}",
            significant(row.energy.sample_hz),
        )
        for row in record.rows
        if row.energy
    )
    header = heads(
        "Candidate",
        ("Net", "mJ a frame"),
        ("Gross", "mJ a frame"),
        ("At rest", "W"),
        ("Under load", "W"),
        "Frames",
        "Rails",
        ("Readings", "Hz"),
    )
    return Table("Energy", header, lines) if lines else None


def rails_table(record: BenchmarkRecord) -> Table | None:
    """Return the energy of a frame by rail; None where no row has more than one."""
    lines = tuple(
        (
            row.name,
            name,
            signed_significant(net_mj, 3).removeprefix("+"),
            "yes" if name in row.energy.total_rails else "no: part of another rail",
        )
        for row in record.rows
        if row.energy and len(row.energy.rails_net_mj_per_frame) > 1
        for name, net_mj in row.energy.rails_net_mj_per_frame.items()
    )
    header = heads("Candidate", "Rail", ("Net", "mJ a frame"), "In the total")
    return Table("Energy by rail", header, lines) if lines else None


# --- parity and gate -----------------------------------------------------------------------------


def parity_table(record: BenchmarkRecord) -> Table | None:
    """Return each file of each export against its trained network; None without an export."""
    lines = tuple(
        (f"{name}: {step.name}", *_step_cells(step, proof.max_drop))
        for name, proof in _proofs(record)
        for step in proof.steps
    )
    header = heads(
        "Export: file",
        ("Logits differ", "at most"),
        "Pixels flipped",
        ("Masks agree", "Dice"),
        ("Loss of Dice", "95 %"),
        ("Gate", "at most"),
        "Result",
    )
    return Table("Files of the exports", header, lines) if lines else None


def _proofs(record: BenchmarkRecord) -> list[tuple[str, Proof]]:
    """Return the proof of each export once, with the name of its rows or what they begin with."""
    names: dict[str, list[str]] = {}
    proofs: dict[str, Proof] = {}
    for row in record.rows:
        if row.proof:
            names.setdefault(row.artifact_sha256, []).append(row.name)
            proofs[row.artifact_sha256] = row.proof
    return [(_common_name(names[sha256]), proof) for sha256, proof in proofs.items()]


def _common_name(names: Sequence[str]) -> str:
    """Return the bundle of rows that are named ``bundle · engine``, else all names."""
    bundles = {name.rpartition(" · ")[0] for name in names}
    bundle = bundles.pop()
    return bundle if len(names) > 1 and bundle and not bundles else ", ".join(names)


def _step_cells(step: ProofStep, max_drop: float) -> tuple[str, ...]:
    return (
        significant(step.max_abs),
        percent(step.flipped_share, 2),
        fixed(step.mask_dice, 4),
        f"{signed(step.dice_drop, 4)} ({signed(step.dice_drop_low, 4)} to "
        f"{signed(step.dice_drop_high, 4)})",
        fixed(max_drop, 4),
        "passed" if step.dice_drop_high <= max_drop else "failed",  # NaN fails
    )


def proofs_table(record: BenchmarkRecord) -> Table | None:
    """Return on what each export was checked and what it runs in; None without an export."""
    lines = tuple((name, *_proof_cells(proof)) for name, proof in _proofs(record))
    header = heads(
        "Export",
        "Check frames",
        ("Trained network", "Dice"),
        ("Achieved precision", "share of the MACs"),
        "Kept in float",
    )
    return Table("What the exports were checked on", header, lines, words=True) if lines else None


def _proof_cells(proof: Proof) -> tuple[str, ...]:
    achieved = "; ".join(
        f"{form}: " + ", ".join(f"{kind} {percent(share)}" for kind, share in shares.items())
        for form, shares in proof.achieved.items()
    )
    return (
        f"{proof.frames} of {proof.part}",
        fixed(proof.trained_dice),
        achieved or "not told",
        ", ".join(proof.kept_float) or "none",
    )


# --- accuracy ------------------------------------------------------------------------------------


def metrics_table(record: BenchmarkRecord) -> Table:
    """Return the metrics over images with a lesion, then those over all images."""
    return _table_of("All metrics", "accuracy", record)


def groups_table(record: BenchmarkRecord) -> Table | None:
    """Return Dice of every trained row in every group of images; None where none is trained."""
    scored = [(row.name, row.accuracy) for row in record.rows if row.accuracy]
    if not scored:
        return None
    header = heads(
        "Candidate", *((group.name, f"n={group.images}") for group in scored[0][1].groups)
    )
    lines = tuple(
        (name, *(with_interval(group.per_image["dice"]) for group in accuracy.groups))
        for name, accuracy in scored
    )
    return Table("Dice by class and lesion size", header, lines)


def groups_caption(record: BenchmarkRecord) -> str:
    """Say what small and large mean; empty where no row is trained."""
    accuracy = next((row.accuracy for row in record.rows if row.accuracy), None)
    if accuracy is None:
        return ""
    return (
        "Mean Dice per image with its 95 % interval. Sizes are the terciles of lesion area: small "
        f"up to {percent(accuracy.small_up_to_share)} of the image, large above "
        f"{percent(accuracy.large_above_share)}."
    )


# --- conditions ----------------------------------------------------------------------------------


def environment_terms(record: BenchmarkRecord) -> dict[str, str]:
    """Return what the numbers depend on and does not move, by name."""
    place = record.environment
    packages = [f"{name} {version}" for name, version in place.packages.items() if version]
    where = ", ".join(map(str, place.affinity))
    return {
        "Measured": f"{place.started_utc}, {record.rounds} rounds over {record.frames} frames, "
        f"{record.images} images scored ({selection(record)})",
        "CPU": f"{place.cpu}, {place.cores} logical cores usable"
        + (f" (number {where})" if where else ""),
        "Instructions": ", ".join(place.isa) or "none of interest",
        "Memory": f"{place.memory_mib} MiB" if place.memory_mib else "not readable",
        "NVIDIA GPUs": f"{', '.join(place.gpus)}, driver {place.gpu_driver}"
        if place.gpus
        else "none",
        "System": place.system + (f", in {place.container}" if place.container else ""),
        "Software": f"Python {place.python}, {', '.join(packages)}"
        + (f", commit {place.commit[:12]}" if place.commit else ""),
        "CPU time meanwhile": _cpu_time(record.before.cpu_ticks, record.after.cpu_ticks),
    }


def selection(record: BenchmarkRecord) -> str:
    """Return which images were scored."""
    if record.part == "unseen":
        return "what no network here was trained on"
    if record.split_sha256 is None:
        return "all of the data set"
    return f"{record.part} part of split {record.split_sha256[:12]}"


def _cpu_time(before: CpuTicks | None, after: CpuTicks | None) -> str:
    if before is None or after is None or after.total <= before.total:
        return "not told"
    total = after.total - before.total
    own, busy = after.own - before.own, after.busy - before.busy
    return (
        f"this process {percent(own / total)}, others {percent(max(0, busy - own) / total)}, "
        f"taken by the host {percent((after.stolen - before.stolen) / total)}"
    )


def conditions_table(record: BenchmarkRecord) -> Table:
    """Return clocks, temperatures and the like before and after the measurement."""
    return told_conditions((record.before, record.after), heads("Condition", "Before", "After"))


def told_conditions(moments: Sequence[Conditions], header: tuple[Head, ...]) -> Table:
    """Return the conditions of some moments, a column each; what none tells shares a line."""
    cells = [_condition_cells(moment) for moment in moments]
    told = [name for name in cells[0] if any(each[name] != _NOT_TOLD for each in cells)]
    lines = [(name, *(each[name] for each in cells)) for name in told]
    if untold := [name.partition(",")[0] for name in cells[0] if name not in told]:
        lines.append((_NOT_TOLD_HERE, ", ".join(untold), *[MISSING] * (len(cells) - 1)))
    return Table("Before and after", header, tuple(lines), words=True)


def _condition_cells(now: Conditions) -> dict[str, str]:
    def told(value: object, form: str = "") -> str:
        return _NOT_TOLD if value is None else format(value, form)

    return {
        "Core clocks, MHz": _spread(now.core_mhz),
        "Range of the governor, MHz": f"{told(now.min_mhz, '.0f')} to {told(now.max_mhz, '.0f')}"
        if (now.min_mhz, now.max_mhz) != (None, None)
        else _NOT_TOLD,
        "Governor": ", ".join(now.governors) or _NOT_TOLD,
        "Boost": _NOT_TOLD if now.boost is None else "on" if now.boost else "off",
        "Temperatures, °C": _by_name(now.temperatures_c),
        "Throttled for temperature, times": told(now.throttle_events),
        "Load average": told(now.load_average, ".2f"),
        "CPU quota, cores": "none" if now.quota_cores is None else f"{now.quota_cores:g}",
        "Stopped by the quota, times": told(now.quota_stops),
        "Memory available, MiB": told(now.memory_available_mib),
        "Power mode": told(now.power_mode),
        "Fan, of 255": told(now.fan_pwm),
        "GPU clocks, MHz": _by_name(now.jetson_gpu_mhz)
        if now.jetson_gpu_mhz or not now.gpus
        else "; ".join(map(_gpu_text, now.gpus)),
    }


def _spread(values: Sequence[float]) -> str:
    if not values:
        return _NOT_TOLD
    if min(values) == max(values):
        return f"{values[0]:.0f}"
    mean = sum(values) / len(values)
    return f"{min(values):.0f} to {max(values):.0f}, mean {mean:.0f}"


def _by_name(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in values.items()) or _NOT_TOLD


def _gpu_text(gpu: Gpu) -> str:
    facts = [
        f"{name} {value:.0f} {unit}"
        for name, value, unit in (
            ("clock", gpu.clock_mhz, "MHz"),
            ("memory", gpu.memory_clock_mhz, "MHz"),
            ("at", gpu.temperature_c, "°C"),
            ("limit", gpu.power_limit_w, "W"),
        )
        if value is not None
    ]
    facts += ["at rest"] if gpu.is_idle else []
    facts += [f"slowed by {reason}" for reason in gpu.throttled_by]
    return f"{gpu.index}: {', '.join(facts) or 'not told'}"


def artifacts_table(record: BenchmarkRecord) -> Table:
    """Return which artifact ran how; .json and .csv have the whole hashes."""
    return Table(
        "Artifacts",
        heads("Candidate", "Engine", "Precision", "Engine facts", "SHA-256, start"),
        tuple(
            (
                row.name,
                row.kind,
                row.precision,
                ", ".join(f"{key}: {value}" for key, value in row.engine_facts.items()),
                row.artifact_sha256[:16],
            )
            for row in record.rows
        ),
        words=True,
    )
