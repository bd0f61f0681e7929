"""Benchmark records of numbers that fit in the head; nothing in them was measured."""

from __future__ import annotations

from edgeseg.benchmarks.measure.accuracy import ImageScore, paired_difference, summarise
from edgeseg.benchmarks.measure.complexity import LayerCost
from edgeseg.benchmarks.measure.conditions import CHANGES, Change, Conditions, CpuTicks, Gpu
from edgeseg.benchmarks.measure.energy import Energy
from edgeseg.benchmarks.measure.environment import Environment
from edgeseg.benchmarks.measure.latency import LatencyRun, median_ratio
from edgeseg.benchmarks.measure.layers import LayerReport
from edgeseg.benchmarks.measure.modes import OfflineRun, PacedRun, SoakRun, SoakWindow
from edgeseg.benchmarks.measure.prediction import Prediction
from edgeseg.benchmarks.measure.process import ProcessFacts
from edgeseg.benchmarks.measure.profile import LayerTime, LayerTimes
from edgeseg.benchmarks.measure.roofline import Peaks, attained
from edgeseg.benchmarks.measure.yardstick import Block, Pass, Yardstick
from edgeseg.benchmarks.record import (
    SCHEMA,
    BenchmarkRecord,
    Comparison,
    Note,
    Proof,
    ProofStep,
    Row,
    Settings,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.metrics import PixelCounts

ENVIRONMENT = Environment(
    started_utc="2026-11-22T09:30:00+00:00",
    cpu="AMD EPYC",
    cores=2,
    isa=("avx2", "avx512_vnni"),
    memory_mib=15872,
    system="Debian GNU/Linux 12 (bookworm), kernel 6.1.0, x86_64",
    governor=None,
    frequency_mhz=2596.0,
    load_average=0.3,
    python="3.11.7",
    packages={"edgeseg": "0.1.0", "numpy": "2.4.6", "openvino": None},
    command=("edgeseg", "benchmark", "student-int8", "--data", "busi"),
)
NOTHING_TOLD = Conditions(
    core_mhz=(),
    min_mhz=None,
    max_mhz=None,
    governors=(),
    boost=None,
    temperatures_c={},
    throttle_events=None,
    load_average=None,
    cpu_ticks=None,
    quota_cores=None,
    quota_stops=None,
    memory_available_mib=None,
    power_mode=None,
    jetson_gpu_mhz={},
    fan_pwm=None,
    gpus=(),
)


def conditions(*, mhz=2596.0, ticks=0):
    """A moment of a machine that tells everything."""
    return Conditions(
        core_mhz=(mhz, mhz - 100),
        min_mhz=800.0,
        max_mhz=3200.0,
        governors=("performance",),
        boost=False,
        temperatures_c={"x86_pkg_temp": 51.0},
        throttle_events=0,
        load_average=0.25,
        cpu_ticks=CpuTicks(total=ticks, busy=ticks * 6 // 10, stolen=ticks // 10, own=ticks // 2),
        quota_cores=2.0,
        quota_stops=3,
        memory_available_mib=9000,
        power_mode="MAXN",
        jetson_gpu_mhz={},
        fan_pwm=80,
        gpus=(
            Gpu(0, "RTX A2000", 1300.0, 6000.0, 45.0, 70.0, False, ("software power cap",), True),
        ),
    )


def score(name, label, dice, lesion_px=1000):
    """An image of 10000 px whose mask is as large as its lesion, so that recall is the Dice."""
    tp = round(dice * lesion_px)
    wrong = lesion_px - tp
    return ImageScore(
        name=name,
        label=label,
        group=name,
        lesion_px=lesion_px,
        predicted_px=lesion_px,
        counts=PixelCounts(tp, wrong, wrong, 10000 - tp - 2 * wrong),
        dice=tp / lesion_px,
        iou=tp / (tp + 2 * wrong),
        recall=tp / lesion_px,
        precision=tp / lesion_px,
        accuracy=1 - 2 * wrong / 10000,
        hd95_px=20.0 * (1 - dice),
    )


def make_row(name, *, kind="torch", precision="fp32", e2e_ms=(10.0,) * 40, dice=(0.8, 0.9), **more):
    """A row of nothing but what every row has; blocks of one call."""
    scores = tuple(
        score(f"image {i}", ("benign", "malignant")[i % 2], value, 500 + 20 * i)
        for i, value in enumerate(dice)
    )
    fields = {
        "name": name,
        "kind": kind,
        "precision": precision,
        "artifact_sha256": "ab" * 32,
        "contract": InputContract(),
        "engine_facts": {"version": "1.0", "threads": "2"},
        "file_bytes": 1 << 20,
        "parameters": 2_180_000,
        "macs": 2_500_000_000,
        "weights_bytes": 8 << 20,
        "process": ProcessFacts(peak_rss_mib=300.0, start_ms=900.0, first_mask_ms=1000.0),
        "latency": LatencyRun(
            *(tuple(share * t for t in e2e_ms) for share in (1, 0.1, 0.8, 0.1)),
            *(30.0, 100, True, (1,) * len(e2e_ms)),
        ),
        **dict.fromkeys(("offline", "paced", "soak", "energy", "layers", "proof")),
        "accuracy": summarise(scores),
        "scores": scores,
        "calibration_error": 0.0125,
    }
    return Row(**{**fields, **more})


def untrained(name, **more):
    """A row whose masks mean nothing."""
    return make_row(name, accuracy=None, scores=(), calibration_error=float("nan"), **more)


def make_record(*rows, notes=(), changes=(), **more):
    """A record of these rows."""
    first = rows[0]
    fields = {
        "schema": SCHEMA,
        "environment": ENVIRONMENT,
        "before": NOTHING_TOLD,
        "after": NOTHING_TOLD,
        "changes": tuple(changes),
        "settings": Settings(modes=(), rounds=len(first.latency.e2e_ms)),
        "frames": 2,
        "images": len(first.scores),
        "part": "test",
        "split_sha256": "ab" * 32,
        "peaks": (),
        "no_energy": "no counter: RAPL is there, but only root may read its energy_uj",
        "rows": rows,
        "comparisons": tuple(
            Comparison(
                name=row.name,
                reference=first.name,
                latency=median_ratio(row.latency, first.latency),
                dice=paired_difference(row.scores, first.scores)
                if row.accuracy and first.accuracy
                else None,
            )
            for row in rows[1:]
        ),
        "notes": tuple(notes),
    }
    return BenchmarkRecord(**{**fields, **more})


def change(code, *, invalidates=True, **facts):
    """A change of the conditions in its own words."""
    return Change(code, CHANGES[code].format(**facts), invalidates)


PEAKS = Peaks(
    engine="openvino",
    version="2026.3",
    threads=2,
    fp32_gflops=200.0,
    int8_gops=700.0,
    executed={"fp32": "f32 2", "int8": "u8 2"},
    bandwidth_gb_s=20.0,
    steady=True,
)


def layer_report(count=3):
    """Layers in INT8 of 7 MMAC, 10 kB and 0.2, 0.4, 0.6 … ms, one in float that only moves."""

    def cost(name, op="Conv", macs=7_000_000, precision="int8"):
        image = (1, 8, 32, 32)
        return LayerCost(
            *(name, op, (name,), (image,), (image,), (3, 3) if macs else ()),
            *(precision, macs, 600, 2_000, 4_000, 4_000),
        )

    convolutions = tuple(cost(f"conv{i}") for i in range(count))
    costs = (*convolutions, cost("pool", "MaxPool", 0, "fp32"), cost("fused", "Add", 0))
    times = LayerTimes(
        engine="openvino",
        threads=2,
        calls_a_sample=10,
        layers=(
            *(LayerTime(c.name, "u8", (0.2 * i, 0.2 * i)) for i, c in enumerate(convolutions, 1)),
            LayerTime("pool", "f32", (0.1, 0.1)),
        ),
        other_ms=(0.05, 0.05),
        other_operators=("Reorder",),
        profiled_ms=(2.2, 2.2),
        plain_ms=(2.0, 2.0),
    )
    layer_ms = {layer.name: layer.median_ms for layer in times.layers}
    return LayerReport(
        costs=costs,
        times=times,
        attained=attained(costs, PEAKS, whole_ms=2.0, layer_ms=layer_ms),
        predictions=(
            Prediction("orin-nano-8gb", "int8", 0.51, 0.98, "memory"),
            Prediction("agx-orin-64gb", "int8", 0.2, 0.41, "launch"),
        ),
    )


YARDSTICK = Yardstick("openvino", "1.0", "int8", "2", "ab" * 32)


def make_passes(ratio=1.5, *, count=10, step=0.01, machine=1.0, waiting=0):
    """Passes of a row that takes so many times its yardstick's 2 ms.

    Every other pass is a step above, the others one below; six pairs of blocks of two calls each,
    and in the first `waiting` passes all calls of one pair waited for a core.
    """

    def block(ms, waited_ms=0.0):
        return Block((machine * ms,) * 2, (waited_ms,) * 2)

    def one(index):
        row_ms = 2 * ratio * (1 + (step if index % 2 else -step))
        waited = (block(9.0, 5.0),) * (index < waiting)
        return Pass(
            (*waited, *(block(row_ms),) * (6 - len(waited))),
            (*waited, *(block(2.0),) * (6 - len(waited))),
        )

    return tuple(map(one, range(count)))


def soak(windows=20, *, told=True):
    """Half-minute windows: 0.01 ms slower each, the memory constant."""
    return SoakRun(
        tuple(
            SoakWindow(
                end_s=30.0 * (i + 1),
                calls=15_000,
                p50_ms=2.0 + 0.01 * i,
                p99_ms=3.0,
                max_ms=5.0,
                rss_mib=250.0 if told else None,
                sampled={"package °C": 50.0 + i, "mean MHz": 2600.0 - i} if told else {},
            )
            for i in range(windows)
        )
    )


def full_row(name, **more):
    """A row with everything that can be measured."""
    return make_row(
        name,
        **{
            "kind": "openvino",
            "precision": "int8",
            "e2e_ms": tuple(2.0 + 0.001 * i for i in range(400)),
            "dice": (0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
            "process": ProcessFacts(300.0, 900.0, 1000.0, pss_mib=270.0),
            "offline": OfflineRun(2, 3.0, (800.0, 820.0) * 5, 4, "1", 10.0, 12.0),
            "paced": PacedRun(30.0, 10, (0, 1, 2, 4, 5, 6, 7, 8, 9), (3.0,) * 8 + (40.0,), 0.2),
            "soak": soak(),
            "energy": Energy(
                *("RAPL", ("package-0", "dram"), 19.5, 30.0, 12.0, 0.4, 30.0, 42.0, 15_000),
                *(84.0, 60.0, {"package-0": 55.0, "dram": 5.0}),
            ),
            "layers": layer_report(),
            "yardstick": YARDSTICK,
            "passes": make_passes(waiting=3),
            "proof": Proof(
                part="validation part",
                frames=78,
                trained_dice=0.812,
                max_drop=0.005,
                steps=(
                    ProofStep("onnx-fp32", 0.00002, 0.0, 1.0, 0.0, 0.0, 0.0),
                    ProofStep("openvino-int8", 0.8, 0.0012, 0.991, 0.001, -0.0004, 0.0024),
                ),
                achieved={"openvino-int8": {"int8": 0.983, "fp32": 0.017}},
                kept_float=("head.conv",),
            ),
            **more,
        },
    )


def full_record():
    """Two trained rows and one that is not, with everything measured and every kind of warning."""
    rows = (
        full_row(
            "torch FP32",
            kind="torch",
            precision="fp32",
            e2e_ms=(10.0,) * 400,
            artifact_sha256="cd" * 32,
        ),
        full_row("OpenVINO INT8"),
        untrained("UNeXt", kind="torch-compile", e2e_ms=(1.0,) * 400),
    )
    return make_record(
        *rows,
        notes=[
            Note("load", "The load average was 3.0."),
            Note("not-steady", "UNeXt: not steady."),
        ],
        changes=[
            change("others", invalidates=False, percent="7.0 %"),
            change("cpu-clock", before=2596, after=2100),
        ],
        before=conditions(),
        after=conditions(mhz=2100.0, ticks=1000),
        settings=Settings(modes=("offline", "paced", "soak"), rounds=400, layers=True, passes=10),
        peaks=(PEAKS,),
        no_energy=None,
    )


def bare_record():
    """One row and nothing that need not be there."""
    return make_record(untrained("alone"))
