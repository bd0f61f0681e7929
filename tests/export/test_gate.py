"""What passes the gates, what is put back into float, what ships, and what is refused."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeseg.benchmarks.measure import latency
from edgeseg.benchmarks.measure.latency import LatencyRun
from edgeseg.cli.jobs.parts import samples_for
from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.export import target as target_module
from edgeseg.export import verdict as verdict_module
from edgeseg.export.audit import least_share
from edgeseg.export.calibration import Calibration, CalibrationSet, calibrate
from edgeseg.export.forms import Conversion, Form, make_forms
from edgeseg.export.parity import (
    CheckFrame,
    check_hop,
    exact_run,
    reference_of,
    require_accuracy,
    require_parity,
)
from edgeseg.export.pipeline import (
    Frames,
    Limits,
    export_bundle,
    load_trained,
    read_calibration_frames,
)
from edgeseg.export.plan import AUTO, MIN_SHARE, make_plan
from edgeseg.export.qdq import qdq_from_onnx, quantisable_convolutions
from edgeseg.export.ranges import METHODS, measure_ranges
from edgeseg.export.sensitivity import rank_convolutions
from edgeseg.export.target import find_target
from edgeseg.export.to_half import half_from_onnx, nodes_beyond_half
from edgeseg.export.verdict import measure_verdicts, render_verdicts
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.image import input_from_frame, read_image
from edgeseg.tests.support.fabricated_hop import hop

pytestmark = pytest.mark.numbers

SIZE = 16
CONTRACT = InputContract(SIZE, SIZE, mean=0.5, std=0.25)
FOUR = ("a", "b", "skip", "c")  # the convolutions of `toy_model` that may run in INT8


def toy_model():
    """a feeds b and skip, their sum feeds c, then the head; a lesion is where the image is bright.

    `image` is read by a alone and `skip_out` written by skip alone, so that the range of either
    damages one convolution.
    """
    node = helper.make_node

    def conv(name, source, out):
        return node("Conv", [source, f"{name}.w", f"{name}.b"], [out], name, pads=[1, 1, 1, 1])

    nodes = [
        conv("a", "image", "conv_a"),
        node("Relu", ["conv_a"], ["relu_a"], "relu_a"),
        conv("b", "relu_a", "conv_b"),
        node("Relu", ["conv_b"], ["relu_b"], "relu_b"),
        conv("skip", "relu_a", "skip_out"),
        node("Add", ["relu_b", "skip_out"], ["sum"], "add"),
        conv("c", "sum", "conv_c"),
        node("Relu", ["conv_c"], ["relu_c"], "relu_c"),
        conv("head", "relu_c", "logits"),
    ]
    draw = np.random.default_rng(0)
    tensors = []
    for name, out, into, gain in (
        *(("a", 4, 1, 1.0), ("b", 4, 4, 0.05), ("skip", 4, 4, 0.5), ("c", 4, 4, 0.5)),
        ("head", 1, 4, 1.0),
    ):
        weight = np.zeros((out, into, 3, 3), np.float32)
        weight[:, :, 1, 1] = gain * draw.uniform(0.5, 1, (out, into))
        bias = np.full(out, -3.0 if name == "head" else 0.0, np.float32)
        tensors += [
            numpy_helper.from_array(weight, f"{name}.w"),
            numpy_helper.from_array(bias, f"{name}.b"),
        ]
    return finished(nodes, tensors, [1, 1, SIZE, SIZE])


def finished(nodes, tensors, shape):
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()


@dataclass(frozen=True)
class Toy:
    """`toy_model` as what is exported."""

    name: str = "toy"
    contract: InputContract = CONTRACT
    sha256: str = "1" * 64
    provenance: MappingProxyType = field(default_factory=lambda: MappingProxyType({"by": "hand"}))
    quantised = None

    def to_onnx(self):
        return toy_model()

    def run(self, image):
        return exact_run(toy_model(), 1)(image)


def toy_checks(count=8):
    """Bright squares of 6 x 6 pixels on dark ground."""
    draw = np.random.default_rng(0)
    checks = []
    for index in range(count):
        frame = draw.integers(0, 60, (SIZE, SIZE))
        truth = np.zeros((SIZE, SIZE), bool)
        top, left = draw.integers(0, SIZE - 6, 2)
        truth[top : top + 6, left : left + 6] = True
        frame[truth] = draw.integers(200, 256, 36)
        checks.append(CheckFrame(frame.astype(np.uint8), truth, f"group {index}"))
    return tuple(checks)


@pytest.fixture(scope="module")
def toy_record():
    checks = toy_checks()
    images = CalibrationSet(tuple(each.frame for each in checks), ("2" * 64,), {"source": "toy"})
    return calibrate(Toy().sha256, CONTRACT, toy_model(), images)


def poisoned(record, *tensors):
    """The record with ranges that are 1000 times too large, so that INT8 rounds all to zero."""
    amax = {
        method: {name: 1000 * v if name in tensors else v for name, v in ranges.items()}
        for method, ranges in record.amax.items()
    }
    return replace(record, amax=amax)


@pytest.fixture
def export_toy(tmp_path, toy_record):
    """Export the toy with a record whose named ranges are poisoned."""

    def export(*tensors, target="arm-cpu", precision="int8", limits=None, **options):
        file = tmp_path / "ranges.json"
        file.write_text(poisoned(toy_record, *tensors).to_json(), encoding="utf-8")
        checks = toy_checks()
        frames = Frames(file, checks, "toys", tuple(each.frame for each in checks[:2]))
        plan = make_plan(find_target(target), precision, **options)
        return export_bundle(
            Toy(), plan, tmp_path / "out", frames, split=None, limits=limits or Limits()
        )

    return export


# --- what the gate of accuracy judges ------------------------------------------------------------


def test_upper_end_of_the_interval_is_judged_and_not_the_mean():
    require_accuracy(hop(dice_drop=0.001, dice_drop_low=-0.1, dice_drop_high=0.005), 0.005)
    with pytest.raises(Refused) as caught:
        require_accuracy(hop(dice_drop=-0.01, dice_drop_low=-0.1, dice_drop_high=0.0051), 0.005)
    assert caught.value.code == "E-ACCURACY"


def test_drop_without_an_interval_is_not_shown_to_be_small():
    nan = float("nan")
    with pytest.raises(Refused) as caught:
        require_accuracy(hop(dice_drop=0.0, dice_drop_low=nan, dice_drop_high=nan), 1.0)
    assert caught.value.code == "E-ACCURACY"


def test_network_compared_with_itself_loses_nothing_and_one_group_shows_nothing():
    reference = reference_of(Toy().run, CONTRACT, toy_checks())
    same = check_hop("same", Toy().run, reference)
    assert (same.max_abs, same.flipped_share, same.mask_dice) == (0.0, 0.0, 1.0)
    assert (same.dice_drop, same.dice_drop_low, same.dice_drop_high) == (0.0, 0.0, 0.0)
    require_accuracy(same, 0.0)
    one = tuple(replace(each, group="all alike") for each in toy_checks())
    alone = check_hop("same", Toy().run, reference_of(Toy().run, CONTRACT, one))
    assert alone.dice_drop == 0.0
    with pytest.raises(Refused):
        require_accuracy(alone, 1.0)


# --- which convolution costs ---------------------------------------------------------------------


@pytest.mark.parametrize(("tensor", "damaged"), [("image", "a"), ("skip_out", "skip")])
def test_damaged_convolution_ranks_first(toy_record, tensor, damaged):
    reference = reference_of(Toy().run, CONTRACT, toy_checks())
    ranges = poisoned(toy_record, tensor).amax["mse"]
    ranking = rank_convolutions(toy_model(), ranges, reference)
    assert (
        {each.name for each in ranking} == set(FOUR) == set(quantisable_convolutions(toy_model()))
    )
    first, *others = ranking
    assert first.name == damaged
    assert all(each.rms < first.rms / 10 for each in others)
    assert [each.rms for each in ranking] == sorted((e.rms for e in ranking), reverse=True)


def test_sound_ranges_leave_no_convolution_that_costs(toy_record):
    reference = reference_of(Toy().run, CONTRACT, toy_checks())
    for each in rank_convolutions(toy_model(), toy_record.amax["mse"], reference):
        assert 0.0 < each.rms < 0.1  # of a logit


# --- INT8 that loses too much gets its costliest convolutions back in float -----------------------


def test_sound_network_keeps_nothing_in_float(export_toy):
    exported = export_toy()
    assert exported.kept_float == ()
    assert exported.precision == "int8"


@pytest.mark.parametrize("target", ["arm-cpu", "jetson"])
@pytest.mark.parametrize(("tensor", "damaged"), [("image", "a"), ("skip_out", "skip")])
def test_damaged_convolution_goes_back_to_float_and_then_all_pass(
    export_toy, toy_record, target, tensor, damaged
):
    plain = qdq_from_onnx(toy_model(), poisoned(toy_record, tensor).amax["entropy"])
    reference = reference_of(Toy().run, CONTRACT, toy_checks())
    with pytest.raises(Refused) as caught:
        require_parity(check_hop("plain", exact_run(plain, 1), reference), "int8")
    assert caught.value.code == "E-PARITY"

    exported = export_toy(tensor, target=target)
    assert exported.kept_float == (damaged,)
    assert exported.hops[-1].flipped_share < 0.01
    manifest = open_bundle(exported.path).manifest
    assert manifest.evidence["kept_float"] == [damaged]
    file = "model.onnx" if target == "arm-cpu" else "qdq-fp16.onnx"
    graph = onnx.load_model(exported.path / file).graph
    weights = {each.name for each in graph.initializer}
    in_float = {n.name for n in graph.node if n.op_type == "Conv" and n.input[1] in weights}
    assert in_float == {damaged, "head"}


def test_two_damaged_convolutions_both_go_back_to_float(export_toy):
    assert set(export_toy("image", "skip_out").kept_float) == {"a", "skip"}


def test_no_more_than_half_of_the_convolutions_go_back_to_float(export_toy, tmp_path):
    # relu_a damages a, b and skip alike, and three of four are too many.
    with pytest.raises(Refused) as caught:
        export_toy("image", "relu_a", "skip_out", "sum")
    assert caught.value.code == "E-PARITY"
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.json"]


def test_cache_cannot_leave_a_layer_in_float_and_is_refused(export_toy, tmp_path):
    assert export_toy("image", target="orin-nano-8@jp6.2").kept_float == ("a",)
    with pytest.raises(InputError, match="E-OUT-EXISTS"):
        export_toy("image", target="orin-nano-8@jp6.2")
    (tmp_path / "out").rename(tmp_path / "explicit")
    with pytest.raises(Refused) as caught:
        export_toy("image", target="orin-nano-8@jp6.2", cache=True)
    assert caught.value.code == "E-PARITY"
    assert not (tmp_path / "out").exists()


def test_trained_run_puts_back_the_convolution_whose_range_is_absurd(run, phantoms, tmp_path):
    source = checkpoint_of(run)
    trained = load_trained(source.path)
    images = [sample.image for sample in samples_for(source, [phantoms], "train")]
    master = trained.to_onnx()
    frames = read_calibration_frames(images, 6, read_image)
    record = calibrate(trained.sha256, trained.contract, master, frames)
    file = tmp_path / "ranges.json"
    file.write_text(poisoned(record, "image").to_json(), encoding="utf-8")
    checks = tuple(
        CheckFrame(each.read_image(), each.read_mask(), each.group)
        for each in samples_for(source, [phantoms], "val")
    )
    exported = export_bundle(
        trained,
        make_plan(find_target("arm-cpu"), "int8"),
        tmp_path / "out",
        Frames(file, checks),
        split=source.split_file(),
        limits=Limits(max_drop=1.0, max_hd95_rise_px=99.0),
    )
    graph = onnx.load_model_from_string(master).graph
    (first,) = [node.name for node in graph.node if "image" in node.input]
    assert exported.kept_float == (first,)


@pytest.mark.parametrize("precision", ["int8", AUTO])
def test_limits_that_nothing_can_pass_leave_no_folder(export_toy, tmp_path, precision):
    with pytest.raises(Refused) as caught:
        export_toy(precision=precision, limits=Limits(max_drop=-2.0))
    assert caught.value.code == "E-ACCURACY"
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.json"]


def test_auto_leaves_int8_out_where_it_fails_and_says_why(export_toy):
    exported = export_toy("image", "relu_a", "skip_out", "sum", precision=AUTO)
    assert exported.precision == "fp32"
    assert exported.refused.keys() == {"fp16", "bf16", "int8"}
    assert exported.refused["int8"].startswith("E-PARITY: onnxruntime int8 changes")
    assert exported.refused["fp16"].startswith("E-TARGET-PRECISION")
    assert open_bundle(exported.path).manifest.evidence["refused"] == dict(exported.refused)


def test_what_was_kept_in_float_is_no_fault_of_the_achieved_precision():
    # Multiply-accumulates a pixel, / 9: a and head 4 each, b, skip and c 16 each, 56 in all.
    assert least_share(toy_model(), "int8", ()) == MIN_SHARE["int8"]
    assert least_share(toy_model(), "int8", ("skip",)) == pytest.approx(0.9 - 16 / 56)
    assert least_share(toy_model(), "int8", ("skip", "a")) == pytest.approx(0.9 - 20 / 56)


# --- which precision ships -----------------------------------------------------------------------


def form(precision, seconds=0.0, engine="fake"):
    def run(image):
        time.sleep(seconds)
        return np.zeros((1, 1, SIZE, SIZE), np.float32)

    return Form(engine, precision, {}, run, 0, ())


def verdicts_of(forms):
    hops = [hop(name=each.name) for each in forms]
    frames = [each.frame for each in toy_checks(2)]
    return measure_verdicts(forms, hops, CONTRACT, frames)


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(verdict_module, "_ROUNDS", 16)
    monkeypatch.setattr(latency, "SETTLE_S", 0.0)
    monkeypatch.setattr(verdict_module, "_WARMUP_CAP_S", 0.0)


@pytest.fixture
def timings(monkeypatch):
    """Let each precision have taken these milliseconds."""

    def take(**times_ms):
        def measured(sessions, frames, *, rounds, warmup_cap_s, progress):
            return {
                name: LatencyRun(*(tuple(times),) * 4, 1.0, 100, True, (1,) * len(times))
                for name, times in zip(sessions, times_ms.values(), strict=True)
            }

        monkeypatch.setattr(verdict_module, "measure_interleaved", measured)
        # fp32_slow is FP32 in the engine called slow
        parts = [name.partition("_") for name in times_ms]
        return verdicts_of([form(name, engine=engine or "fake") for name, _, engine in parts])

    return take


@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize(("int8_s", "ships"), [(0.001, "int8"), (0.016, "fp32")])
def test_slower_precision_does_not_ship(int8_s, ships):
    verdicts = verdicts_of([form("fp32", 0.004), form("int8", int8_s)])
    assert [each.precision for each in verdicts] == ["fp32", "int8"]
    assert [each.precision for each in verdicts if each.shipped] == [ships]
    assert verdicts[0].ratio == 1.0
    assert (verdicts[1].ratio < 1) == (ships == "int8")


def shipped(verdicts):
    (name,) = {each.precision for each in verdicts if each.shipped}
    return name


def test_wider_precision_ships_unless_a_narrower_one_takes_less_than_95_percent(timings):
    assert shipped(timings(fp32=[10.0] * 40, int8=[9.6] * 40)) == "fp32"
    assert shipped(timings(fp32=[10.0] * 40, int8=[9.4] * 40)) == "int8"


def test_faster_median_alone_is_not_enough_where_its_interval_reaches_the_limit(timings):
    verdicts = timings(fp32=[10.0] * 40, int8=[5.0] * 24 + [11.0] * 16)
    assert verdicts[1].ratio == 0.5
    assert verdicts[1].ratio_high > 1
    assert shipped(verdicts) == "fp32"


def test_fastest_of_those_that_earn_it_ships(timings):
    assert shipped(timings(fp32=[10.0] * 40, fp16=[7.0] * 40, int8=[5.0] * 40)) == "int8"
    assert shipped(timings(fp32=[10.0] * 40, fp16=[5.0] * 40, int8=[7.0] * 40)) == "fp16"


def test_int8_must_beat_the_quickest_wider_precision_and_not_fp32_alone(timings):
    fp32 = [10.0] * 40
    assert shipped(timings(fp32=fp32, bf16=[5.0] * 40, int8=[4.0] * 40)) == "int8"
    assert shipped(timings(fp32=fp32, bf16=[5.0] * 40, int8=[4.8] * 40)) == "bf16"
    # BF16 has not earned its place, but INT8 has to beat it nonetheless.
    assert shipped(timings(fp32=fp32, bf16=[9.6] * 40, int8=[9.3] * 40)) == "fp32"


def test_int8_that_is_quicker_than_fp32_only_is_told_beside_the_quickest(timings):
    verdicts = timings(fp32=[10.0] * 40, bf16=[5.0] * 40, int8=[4.8] * 40)
    lines = render_verdicts(verdicts, {}).splitlines()
    assert "2.00× as fast as FP32 (2.00 to 2.00)" in lines[1]
    assert lines[1].endswith(": shipped")
    assert lines[2].endswith(": not shipped, 0.96 of BF16's time")


def test_fp32_alone_ships(timings):
    assert shipped(timings(fp32=[10.0] * 40)) == "fp32"


def test_int8_must_beat_fp32_in_the_engine_that_runs_fp32_fastest(timings):
    times = {"fp32_slow": [20.0] * 40, "fp32_quick": [10.0] * 40}
    assert shipped(timings(**times, int8_slow=[11.0] * 40)) == "fp32"
    assert shipped(timings(**times, int8_slow=[11.0] * 40, int8_quick=[5.0] * 40)) == "int8"


def test_verdicts_are_told_as_times_of_fp32_with_what_was_left_out(timings):
    verdicts = timings(fp32=[10.0] * 40, int8=[5.0] * 40)
    lines = render_verdicts(verdicts, {"fp16": "E-PARITY: too far off"}).splitlines()
    assert lines[0].startswith("FP32 in fake: 10.00 ms a frame, what the others are compared with")
    assert lines[1].startswith(
        "INT8 in fake: 5.00 ms a frame, 2.00× as fast as FP32 (2.00 to 2.00)"
    )
    assert lines[1].endswith(": shipped")
    assert lines[2] == "FP16: left out: E-PARITY: too far off"
    assert verdicts[1].to_dict()["ratio"] == 0.5


# --- FP16 ----------------------------------------------------------------------------------------


def chain(*weights):
    """1x1 convolutions c0, c1, ... with one weight each."""
    nodes, tensors, last = [], [], "image"
    for index, weight in enumerate(weights):
        out = "logits" if index == len(weights) - 1 else f"out{index}"
        value = np.full((1, 1, 1, 1), weight, np.float32)
        tensors.append(numpy_helper.from_array(value, f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [out], f"c{index}"))
        last = out
    return finished(nodes, tensors, [1, 1, 1, 2])


def in_half(model, image):
    """Run FP16 as it is written, which ONNX Runtime on a CPU does not: it computes in FP32."""
    with np.errstate(over="ignore", invalid="ignore"):
        evaluator = ReferenceEvaluator(onnx.load_model_from_string(model))
        return evaluator.run(None, {"image": image})[0]


ONES = np.asarray([1, -1], np.float32).reshape(1, 1, 1, 2)
OVERFLOWS = (512, 512, 1 / 64, 1 / 64)  # 1, 512, 262144, 4096, 64


def test_nodes_that_write_or_read_what_half_cannot_hold_are_found():
    largest = measure_ranges(chain(*OVERFLOWS), [ONES]).largest
    assert nodes_beyond_half(chain(*OVERFLOWS), largest) == ("c1", "c2")


def test_a_quarter_of_the_largest_half_is_left_as_room():
    model = chain(1, 1)
    assert nodes_beyond_half(model, {"image": 0.0, "out0": 65504 / 4, "logits": 0.0}) == ()
    assert nodes_beyond_half(model, {"out0": 65504 / 4 + 1}) == ("c0", "c1")
    assert nodes_beyond_half(model, {"image": 1e6}) == ("c0",)


def test_node_that_is_kept_has_its_weight_in_fp32():
    graph = onnx.load_model_from_string(half_from_onnx(chain(2, 3, 4), keep=["c1"])).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    assert types == {"w0": half, "w1": full, "w2": half}
    assert in_half(half_from_onnx(chain(2, 3, 4), keep=["c1"]), ONES).ravel().tolist() == [24, -24]


def test_chain_overflows_in_half():
    assert exact_run(chain(*OVERFLOWS), 1)(ONES).ravel().tolist() == [64, -64]
    assert not np.isfinite(in_half(half_from_onnx(chain(*OVERFLOWS)), ONES)).any()


def test_chain_with_its_overflowing_nodes_kept_does_not():
    model = chain(*OVERFLOWS)
    keep = nodes_beyond_half(model, measure_ranges(model, [ONES]).largest)
    assert in_half(half_from_onnx(model, keep=keep), ONES).ravel().tolist() == [64, -64]


def test_half_graph_with_a_kept_convolution_can_be_quantised(toy_record):
    half = half_from_onnx(toy_model(), keep=["b"])
    ours = exact_run(qdq_from_onnx(half, toy_record.amax["mse"]), 1)
    image = input_from_frame(toy_checks(1)[0].frame, CONTRACT)
    assert np.allclose(ours(image), Toy().run(image), atol=0.5)


def overflowing_recipe(target, tmp_path):
    model = chain(*OVERFLOWS)
    ranges = measure_ranges(model, [ONES])
    amax = {method: ranges.amax(method) for method in METHODS}
    record = Calibration("0" * 64, CONTRACT, ("1" * 64,), {}, amax, ranges.largest)
    return Conversion(make_plan(find_target(target)), model, record, "min-max", tmp_path)


def test_values_beyond_half_are_refused_where_the_types_of_the_onnx_do_not_bind(tmp_path):
    for precision in ("fp16", "int8"):
        with pytest.raises(Refused) as caught:
            make_forms(overflowing_recipe("xavier-nx@jp5.1", tmp_path), precision)
        assert caught.value.code == "E-PRECISION-RANGE"
    (kept,) = make_forms(overflowing_recipe("orin-nano-8@jp6.2", tmp_path), "fp16")
    assert kept.kept_float == ("c1", "c2")


def test_what_is_beyond_half_is_found_once_for_all_forms_of_a_network(tmp_path, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return nodes_beyond_half(*arguments)

    monkeypatch.setattr("edgeseg.export.forms.nodes_beyond_half", counted)
    conversion = overflowing_recipe("orin-nano-8@jp6.2", tmp_path)
    for _ in range(2):
        make_forms(conversion, "fp16")
    assert len(calls) == 1


def test_kit_that_asks_for_too_little_int8_is_refused_before_it_travels(tmp_path):
    # All four convolutions have one output channel, so none is quantised.
    with pytest.raises(Refused) as caught:
        make_forms(overflowing_recipe("orin-nano-8@jp6.2", tmp_path), "int8")
    assert caught.value.code == "E-PRECISION-FALLBACK"


def test_files_for_a_cpu_of_another_architecture_are_proved_in_float(tmp_path, monkeypatch):
    monkeypatch.setattr(target_module.platform, "machine", lambda: "aarch64")
    forms = make_forms(overflowing_recipe("x86-cpu", tmp_path), "fp32")
    assert [form.name for form in forms] == ["openvino fp32", "onnxruntime fp32"]
    for form in forms:
        assert form.achieved == ()
        assert form.run(ONES).ravel().tolist() == [64, -64]
