"""Batches and whole frames: each frame of a batch as alone, each frame graph as the session."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from edgeseg.cli.main import cli
from edgeseg.export.audit import achieved_in_rtx
from edgeseg.export.batch import AXIS, require_rows, with_dynamic_batch
from edgeseg.export.forms import Form
from edgeseg.export.frame_gate import MAX_FLIPPED, prove_frame_graphs, run_frames
from edgeseg.export.frame_graph import AROUND, frame_graph_from_onnx
from edgeseg.export.golden import MAX_FLIPPED as GOLDEN_MAX_FLIPPED
from edgeseg.export.golden import whole_frames
from edgeseg.export.parity import CheckFrame, answer_of, exact_run
from edgeseg.export.pipeline import Limits, export_bundle, load_trained
from edgeseg.export.plan import MAX_BATCH, make_plan, render_plan
from edgeseg.export.qdq import qdq_from_onnx
from edgeseg.export.ranges import measure_ranges
from edgeseg.export.target import find_target
from edgeseg.export.to_half import half_from_onnx
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.export.to_openvino import openvino_from_onnx
from edgeseg.export.to_rtx import plan_from_onnx
from edgeseg.kd.data.phantom import draw_phantom
from edgeseg.kd.models import build_model
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.engines import open_engine
from edgeseg.runtime.errors import EngineError, InputError, Refused
from edgeseg.runtime.image import input_from_frame, mask_from_logits, resize_grey, resize_mask
from edgeseg.runtime.session import Session, open_session
from edgeseg.tests.export import test_kit
from edgeseg.tests.support import tensorrt_standin as standin

CONTRACT = InputContract(height=64, width=32, mean=0.5)  # noise lies on both sides of it
FORMS = ("fp32", "fp16", "qdq", "qdq-fp16")


@pytest.fixture(scope="module")
def untrained():
    """Untrained network -> its FP32 ONNX at 64x32; edge-16 has Reshapes, both have Resizes."""

    def model(name):
        torch.manual_seed(0)
        return onnx_from_network(build_model(name), CONTRACT)

    return {name: model(name) for name in ("edge-16", "attunet-8")}


@pytest.fixture(scope="module")
def form_of(untrained):
    """(network, form) -> ONNX."""
    amax = {
        name: measure_ranges(model, list(images(2)[:, None])).amax("min-max")
        for name, model in untrained.items()
    }

    def form(name, kind):
        base = half_from_onnx(untrained[name]) if "fp16" in kind else untrained[name]
        return qdq_from_onnx(base, amax[name]) if "qdq" in kind else base

    return form


def images(count):
    shape = (count, 1, CONTRACT.height, CONTRACT.width)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def tiny(*nodes, size=(8, 8), out=(8, 8), opset=17, **constants):
    """A graph from `image` to `logits`, [1, 1, *size] to [1, 1, *out]."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, *out])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def first_dims(model):
    graph = onnx.load_model_from_string(model).graph
    return {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in (*graph.input, *graph.output)
    }


def refusal(*arguments, kind=Refused, **options):
    with pytest.raises(kind) as caught:
        make_plan(*arguments, **options)
    return caught.value.code


# --- a batch chosen at run time ------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["edge-16", "attunet-8"])
def test_each_frame_of_a_batch_is_answered_as_alone(form_of, name, form):
    static = form_of(name, form)
    dynamic = with_dynamic_batch(static, 3)
    assert first_dims(dynamic) == {"image": AXIS, "logits": AXIS}
    run, alone = exact_run(dynamic, 1), exact_run(static, 1)
    frames = images(3)
    singly = np.concatenate([alone(frame[None]) for frame in frames])
    for batch in (1, 2, 3):
        np.testing.assert_allclose(run(frames[:batch]), singly[:batch], atol=1e-5)


def test_height_and_width_stay_those_of_the_contract(untrained):
    run = exact_run(with_dynamic_batch(untrained["edge-16"], 2), 1)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run(np.zeros((1, 1, 64, 64), np.float32))


def test_openvino_takes_every_batch_up_to_the_largest_and_no_more(form_of, tmp_path):
    model = with_dynamic_batch(form_of("edge-16", "fp32"), 3)
    openvino_from_onnx(model, tmp_path, max_batch=3)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = open_engine("openvino", files, 1).run
    frames = images(4)
    singly = np.concatenate([run(frame[None]).copy() for frame in frames])
    np.testing.assert_allclose(run(frames[:3]), singly[:3], atol=1e-5)
    with pytest.raises(RuntimeError):
        run(frames)


def test_a_resize_to_sizes_asks_for_the_batch():
    sizes = np.array([1, 1, 12, 20], np.int64)
    node = helper.make_node("Resize", ["image", "", "", "s"], ["logits"], "up", mode="linear")
    run = exact_run(with_dynamic_batch(tiny(node, out=(12, 20), s=sizes), 2), 1)
    frames = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    singly = [run(frame[None])[0] for frame in frames]
    np.testing.assert_array_equal(run(frames), singly)


def test_a_reshape_behind_a_reshape_is_mended_too():
    nodes = [
        helper.make_node("Reshape", ["image", "a"], ["x"], "first"),
        helper.make_node("Reshape", ["x", "b"], ["logits"], "second"),
    ]
    shapes = {"a": np.array([1, 64]), "b": np.array([-1, 1, 8, 8])}
    dynamic = with_dynamic_batch(tiny(*nodes, **shapes), 2)
    frames = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(exact_run(dynamic, 1)(frames), frames)


def test_a_constant_joined_to_the_activations_is_refused():
    nodes = [
        helper.make_node("Concat", ["image", "c"], ["x"], "join", axis=1),
        helper.make_node("ReduceMax", ["x"], ["logits"], "most", axes=[1], keepdims=1),
    ]
    model = tiny(*nodes, c=np.ones((1, 1, 8, 8), np.float32))
    with pytest.raises(Refused) as caught:
        with_dynamic_batch(model, 2)
    assert caught.value.code == "E-BATCH-ROWS"


def test_a_graph_that_mixes_the_frames_of_a_batch_is_refused():
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], "mean", axes=[0], keepdims=1),
        helper.make_node("Sub", ["image", "mean"], ["centred"], "centre"),
        helper.make_node("Sub", ["centred", "mean"], ["logits"], "again"),
    ]
    run = exact_run(with_dynamic_batch(tiny(*nodes), 2), 1)
    frames = np.stack([np.ones((1, 8, 8)), -2 * np.ones((1, 8, 8))]).astype(np.float32)
    require_rows(
        "tiny", run, frames[:1], InputContract(), "fp32", 2
    )  # two equal frames tell nothing
    with pytest.raises(Refused) as caught:
        require_rows("tiny", run, frames, InputContract(), "int8", 2)
    assert caught.value.code == "E-BATCH-ROWS"


@pytest.mark.parametrize("answer", [float("nan"), float("inf")])
def test_a_batch_whose_answer_is_not_finite_is_refused(answer):
    def run(batch):
        return batch if len(batch) == 1 else np.full_like(batch, answer)

    with pytest.raises(Refused) as caught:
        require_rows("tiny", run, np.ones((2, 1, 8, 8), np.float32), InputContract(), "fp32", 2)
    assert caught.value.code == "E-BATCH-ROWS"


# --- whole frames --------------------------------------------------------------------------------

# Width and height: larger and smaller than 32x64, odd, boxes that do not fit, one axis as it is,
# both as they are.
SIZES = [(801, 599), (333, 501), (97, 131), (31, 17), (33, 63), (200, 64), (32, 300), (32, 64)]


def identity(contract=CONTRACT):
    """A network whose logits are its input."""
    size = (contract.height, contract.width)
    node = helper.make_node("Mul", ["image", "one"], ["logits"], "same")
    return tiny(node, size=size, out=size, one=np.float32(1))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_what_reaches_the_network_and_what_leaves_it_is_the_sessions_to_the_bit(width, height):
    frame = np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)
    answer = run_frames(frame_graph_from_onnx(identity(), CONTRACT, width, height), optimised=True)
    logits, mask = answer(frame)
    np.testing.assert_array_equal(logits, input_from_frame(frame, CONTRACT)[0, 0])
    session = answer_of(exact_run(identity(), 1), CONTRACT)
    np.testing.assert_array_equal(mask, session(frame)[1])
    assert mask.dtype == np.uint8
    assert 0 < mask.mean() < 1


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_the_threshold_is_the_contracts(threshold):
    contract = InputContract(height=64, width=32, mean=0.5, std=0.1, threshold=threshold)
    frame = np.random.default_rng(0).integers(0, 256, (70, 50), dtype=np.uint8)
    model = frame_graph_from_onnx(identity(contract), contract, 50, 70)
    mask = run_frames(model, optimised=False)(frame)[1]
    ours = answer_of(exact_run(identity(contract), 1), contract)(frame)[1]
    np.testing.assert_array_equal(mask, ours)
    at_half = answer_of(exact_run(identity(), 1), InputContract(64, 32, 0.5, 0.1))(frame)[1]
    assert (mask != at_half).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("width", "height"), [(301, 203), (40, 55)])
def test_frame_graph_equals_the_session_on_phantoms(form_of, form, width, height):
    model = form_of("edge-16", form)
    answer = run_frames(frame_graph_from_onnx(model, CONTRACT, width, height), optimised=True)
    session = Session.over(open_engine("onnxruntime", {"model.onnx": model}, 1), CONTRACT)
    for number in (1, 2):
        frame = resize_grey(draw_phantom("malignant", number, 0)[0], height, width)
        np.testing.assert_array_equal(answer(frame)[1], session.predict(frame))


def test_no_value_around_the_network_is_beyond_fp16_however_large_its_boxes_are():
    """TensorRT 8 may choose FP16 for them."""
    model = onnx.load_model_from_string(frame_graph_from_onnx(identity(), CONTRACT, 1000, 1500))
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    frame = np.full((1, 1, 1500, 1000), 255, np.uint8)
    largest = max(np.abs(value).max() for value in session.run(names, {"frame": frame}))
    assert 500 < largest < np.finfo(np.float16).max  # 31 x 23 pixels of 255 are 181 815


@pytest.mark.parametrize("form", FORMS)
def test_uint8_is_nowhere_but_before_and_behind_a_cast_with_float(form_of, form):
    """TensorRT takes it nowhere else, and casts it to and from nothing else, from 8.5 on."""
    model = frame_graph_from_onnx(form_of("edge-16", form), CONTRACT, 301, 203)
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model)).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    uint8 = {name for name, kind in kinds.items() if kind == TensorProto.UINT8}
    assert uint8 == {"frame", "mask"}
    ends = [node for node in graph.node if uint8 & {*node.input, *node.output}]
    assert [node.op_type for node in ends] == ["Cast", "Cast"]
    first, last = ends
    assert kinds[first.output[0]] == kinds[last.input[0]] == TensorProto.FLOAT


def test_names_of_the_network_that_are_the_frame_graphs_own_do_not_meet():
    nodes = [
        helper.make_node("Relu", ["image"], ["frame"], "before/0.Cast"),
        helper.make_node("Neg", ["frame"], ["mask"], "mask"),
        helper.make_node("Neg", ["mask"], ["logits"], "after/0.Transpose"),
    ]
    model = tiny(*nodes, size=(64, 32), out=(64, 32))
    frame = np.random.default_rng(0).integers(0, 256, (80, 60), dtype=np.uint8)
    graph = frame_graph_from_onnx(model, CONTRACT, 60, 80)
    logits, _ = run_frames(graph, optimised=True)(frame)
    np.testing.assert_array_equal(logits, np.maximum(input_from_frame(frame, CONTRACT)[0, 0], 0))


def phantom_checks(count):
    frames = [draw_phantom("malignant", number, 0) for number in range(1, count + 1)]
    return tuple(CheckFrame(frame, masks[0], str(n)) for n, (frame, masks) in enumerate(frames))


def form(run, model):
    return Form("onnxruntime", "fp32", {}, run, 0, (), (), model)


def test_frame_graph_unlike_the_session_is_refused():
    run = exact_run(identity(), 1)
    shifted = lambda image: np.roll(run(image), 9, axis=3)  # noqa: E731
    checks = phantom_checks(2)
    options = {"optimised": True}
    (graph,) = prove_frame_graphs(
        [form(run, identity())], (90, 70), run, CONTRACT, checks, **options
    )
    assert (graph.flipped_share, graph.hop.name, graph.hop.max_abs) == (0.0, "frame fp32", 0.0)
    with pytest.raises(Refused) as caught:
        prove_frame_graphs([form(shifted, identity())], (90, 70), run, CONTRACT, checks, **options)
    assert caught.value.code == "E-PARITY"


def test_frames_of_that_size_judge_where_one_has_a_lesion_and_else_all_resized():
    run = exact_run(identity(), 1)
    first, second = phantom_checks(2)
    here = CheckFrame(resize_grey(first.frame, 70, 90), resize_mask(first.truth, 70, 90), "here")
    without = CheckFrame(here.frame, np.zeros_like(here.truth), "none")

    def judged(*checks):
        (graph,) = prove_frame_graphs(
            [form(run, identity())], (90, 70), run, CONTRACT, checks, optimised=False
        )
        return graph.hop.frames

    assert judged(first, here, second) == 1
    assert judged(first, without, second) == 3


def test_frames_too_small_for_any_lesion_are_blamed_on_the_size_and_not_on_the_data():
    run = exact_run(identity(), 1)
    frame, truth = np.zeros((70, 90), np.uint8), np.zeros((70, 90), bool)
    truth[30:34, 40:44] = True  # not half of a pixel of 8x8
    with pytest.raises(InputError, match=r"of 8x8 px, so the frame graph .*--frame of") as caught:
        prove_frame_graphs(
            *([form(run, identity())], (8, 8), run, CONTRACT, [CheckFrame(frame, truth, "one")]),
            optimised=False,
        )
    assert caught.value.code == "E-PARITY-FRAMES"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"precision": "auto"}])
def test_a_dynamic_batch_on_a_dla_is_refused(options):
    target = find_target("xavier-nx@jp5.1")
    code = refusal(target, options["precision"], dla_core=0, max_batch=4)
    assert code == "E-TARGET-DYNAMIC"
    assert make_plan(target, options["precision"], dla_core=0).max_batch == 1


@pytest.mark.parametrize("most", [0, MAX_BATCH + 1])
def test_a_batch_out_of_range_is_refused(most):
    assert refusal(find_target("x86-cpu"), kind=InputError, max_batch=most) == "E-BATCH"


@pytest.mark.parametrize("frame", [(15, 300), (300, 9000)])
def test_a_frame_size_out_of_range_is_refused(frame):
    assert refusal(find_target("x86-cpu"), kind=InputError, frame=frame) == "E-FRAME-SIZE"


@pytest.mark.parametrize(
    ("target", "options", "why"),
    [
        ("rtx", {}, "takes plans"),
        ("xavier-nx@jp5.1", {"dla_core": 0}, "FP32, which the DLA does not have"),
        ("xavier-nx@jp5.1", {"cache": True}, "none of pre- and post-processing"),
        ("jetson", {"cache": True}, "none of pre- and post-processing"),
    ],
)
def test_frames_where_no_engine_takes_them_as_onnx_are_refused(target, options, why):
    with pytest.raises(Refused, match=why) as caught:
        make_plan(find_target(target), frame=(800, 600), **options)
    assert caught.value.code == "E-TARGET-FRAME"


def test_a_resize_that_tensorrt_may_do_in_fp16_is_noted():
    def notes(target, precision="auto", frame=(800, 600)):
        text = render_plan(make_plan(find_target(target), precision, frame=frame))
        return "may compute what --frame adds in FP16" in text

    assert notes("xavier-nx@jp5.1")
    assert not notes("xavier-nx@jp5.1", "fp32")
    assert not notes("xavier-nx@jp5.1", frame=None)
    assert not notes("jetson")


def test_a_precision_that_no_engine_takes_as_onnx_has_no_frame_graph():
    target = find_target("x86-cpu")
    assert refusal(target, "fp16", frame=(800, 600)) == "E-TARGET-PRECISION"
    plan = make_plan(target, frame=(800, 600))
    assert plan.precisions == ("fp32", "int8")
    assert "ONNX" in plan.refused["fp16"]


def test_the_plan_shows_batch_and_frames():
    plan = make_plan(find_target("jetson"), max_batch=4, frame=(800, 600))
    text = render_plan(plan)
    assert "1 to 4 frames" in text
    assert "800x600" in text
    assert "build_engine.py --frame" in text
    assert "build_engine" not in render_plan(make_plan(find_target("x86-cpu"), frame=(800, 600)))
    content = plan.to_dict()
    assert (content["batch"], content["frame"]) == ({"min": 1, "max": 4}, [800, 600])
    assert make_plan(find_target("jetson")).to_dict()["batch"] == {"min": 1, "max": 1}


@pytest.mark.parametrize("arguments", [["--dynamic", "1"], ["--frame", "800"], ["--frame", "x6"]])
def test_a_malformed_shape_is_a_wrong_call(arguments):
    done = CliRunner().invoke(cli, ["export", "--target", "x86-cpu", "--dry-run", *arguments])
    assert done.exit_code == 2


def test_the_command_line_hands_both_to_the_plan():
    arguments = ["--dry-run", "--json", "--dynamic", "4", "--frame", "800x600"]
    done = CliRunner().invoke(cli, ["export", "--target", "jetson", *arguments])
    content = json.loads(done.stdout)
    assert (content["batch"]["max"], content["frame"]) == (4, [800, 600])


# --- a frame graph that drops components ---------------------------------------------------------


def winding(side):
    """One component of a pixel's width that winds from the top to the bottom, [side, side]."""
    drawn = np.zeros((side, side), bool)
    drawn[::2] = True
    drawn[1::4, -1] = drawn[3::4, 0] = True
    return drawn


def planes_with_components():
    """Grey levels, [32, 48]: nothing, all, at the limits, winding, corners that touch, random."""
    draw = np.random.default_rng(0)
    empty, full = np.zeros((32, 48), np.uint8), np.full((32, 48), 255, np.uint8)
    path, corners = empty.copy(), empty.copy()
    path[:31, :31][winding(31)] = 160
    path[0, 0] = 250  # its peak is far from its other end
    corners[4:8, 4:8], corners[8:12, 8:12], corners[20:22, 20:22] = 150, 240, 240
    limits = empty.copy()  # squares and rows of as many pixels as the least area, and of one less
    for row, least in ((0, 16), (12, 31)):
        for column, pixels in ((0, least), (20, least - 1)):
            full_rows, rest = divmod(pixels, 4)
            limits[row : row + full_rows, column : column + 4] = 250
            limits[row + full_rows, column : column + rest] = 250
    for column, level in ((30, 239), (36, 240), (42, 241)):  # a peak of 0.9 is 240.04
        limits[24:30, column : column + 5] = level
    smooth = [
        resize_grey(draw.integers(0, 256, (size, size), dtype=np.uint8), 32, 48)
        for size in (6, 12, 24, 32)
        for _ in range(5)
    ]
    return [empty, full, limits, path, corners, *smooth]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "least",
    [{"least_peak": 0.9}, {"least_area": 0.01}, {"least_area": 0.02, "least_peak": 0.8}],
)
@pytest.mark.parametrize("size", [(48, 32), (90, 70)])
def test_frame_graph_drops_what_the_session_drops(least, engine, size):
    contract = InputContract(height=32, width=48, mean=0.5, std=0.2, **least)
    network = tiny(helper.make_node("Identity", ["image"], ["logits"]), size=(32, 48), out=(32, 48))
    model = frame_graph_from_onnx(network, contract, *size)
    if engine == "onnxruntime":
        run = run_frames(model, optimised=True)
    else:
        compiled = openvino.Core().compile_model(
            openvino.Core().read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )

        def run(frame):
            found = compiled(frame[None, None])
            return (found[compiled.output(name)][0, 0] for name in ("logits", "mask"))

    all_kept = replace(contract, least_area=0.0, least_peak=0.0)
    dropped = 0
    for plane in planes_with_components():
        frame = resize_grey(plane, size[1], size[0])
        logits, mask = run(frame)
        expected = mask_from_logits(logits, contract, *frame.shape)
        np.testing.assert_array_equal(mask, expected)
        dropped += bool((mask_from_logits(logits, all_kept, *frame.shape) != expected).any())
    assert dropped >= 5


# --- bundles -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(run, frames_of, tmp_path_factory):
    """(target, precision) -> bundle with batches up to 3 and frames of 90x70; nobody may write."""
    folder = tmp_path_factory.mktemp("shapes")

    def export(target, precision):
        out = folder / f"{target}-{precision}"
        if not out.exists():
            export_bundle(
                load_trained(run / "student.safetensors"),
                make_plan(find_target(target), precision, max_batch=3, frame=(90, 70)),
                out,
                frames_of(precision),
                split=run / "split.json",
                limits=Limits(max_drop=1.0, max_hd95_rise_px=100.0),
            )
        return out

    return export


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_of_both_runs_single_frames_batches_and_whole_frames(exported, precision):
    folder = exported("x86-cpu", precision)
    bundle = open_bundle(folder)
    assert bundle.manifest.batch == {"min": 1, "max": 3}
    file = f"frame-{precision}.onnx"
    facts = bundle.manifest.frame_graphs[precision]
    assert {name: facts[name] for name in ("file", "width", "height")} == {
        "file": file,
        "width": 90,
        "height": 70,
    }
    assert facts["flipped_share"] <= MAX_FLIPPED
    assert file in bundle.manifest.files
    assert file in (folder / "SHA256SUMS").read_text()
    hops = [hop["name"] for hop in bundle.manifest.evidence["parity"]]
    assert hops[-1] == f"frame {precision}"
    frame = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    for engine in ("openvino", "onnxruntime"):
        session = open_session(folder, engine=engine, threads=1)
        mask = session.predict(frame)
        image = np.repeat(input_from_frame(frame, session.contract), 3, axis=0)
        assert session.engine.run(image).shape == (3, 1, 64, 64)
    answer = run_frames((folder / file).read_bytes(), optimised=True)
    np.testing.assert_array_equal(answer(frame)[1], mask)


def test_a_bundle_is_static_and_has_no_frame_graph_unless_told(bundle_of):
    bundle = open_bundle(bundle_of("x86-cpu", "fp32"))
    assert bundle.manifest.batch == {"min": 1, "max": 1}
    assert bundle.manifest.frame_graphs == {}
    assert not list(bundle.path.glob("frame-*"))
    graph = onnx.load_model(bundle.path / "model.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_complexity_and_shares_are_those_of_one_frame(exported, bundle_of):
    ours = open_bundle(exported("x86-cpu", "int8")).manifest
    static = open_bundle(bundle_of("x86-cpu", "int8")).manifest
    assert ours.complexity == static.complexity
    assert ours.evidence["achieved"] == static.evidence["achieved"]


def test_a_kit_tells_its_profile_and_has_a_frame_graph_of_each_precision(exported):
    folder = exported("jetson", "auto")
    kit = json.loads((folder / "kit.json").read_text())
    single, full = [1, 1, 64, 64], [3, 1, 64, 64]
    assert kit["profile"] == {"min": single, "opt": single, "max": full}
    for build in kit["builds"].values():
        assert set(first_dims((folder / build["onnx"]).read_bytes()).values()) == {AXIS}
    assert set(kit["frame"]["builds"]) == set(kit["builds"])
    for precision in kit["builds"]:
        graph = onnx.load_model(folder / f"frame-{precision}.onnx").graph
        shape = graph.input[0].type.tensor_type.shape.dim
        assert [each.dim_value for each in shape] == [1, 1, 70, 90]  # one frame a call
        assert [each.name for each in graph.output] == ["mask", "logits"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_kit_builds_its_frame_graph_and_replays_frames_of_that_size(
    exported, precision, monkeypatch, tmp_path
):
    folder = exported("jetson", "auto")
    model = (folder / f"frame-{precision}.onnx").read_bytes()
    answer = run_frames(model, optimised=False)

    def network(frame):
        logits, mask = answer(frame[0, 0])
        return mask, logits

    frame, mask = (("frame", (1, 1, 70, 90), "UINT8"), ("mask", (1, 1, 70, 90), "UINT8"))
    layers = test_kit.information(
        test_kit.convolution(test_kit.DATATYPES[precision], Name="network//a/Conv")
    )
    tensors = (frame, mask, ("logits", (1, 1, 64, 64), "FLOAT"))
    standin.install(monkeypatch, "10.3", standin.World(network, layers, tensors))
    test_kit.fake_cuda_python(monkeypatch)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in test_kit.MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    plan = tmp_path / "e.plan"
    try:
        main = importlib.import_module("build_engine").main
        assert main(["--frame", "--precision", precision, "--out", str(plan)]) == 0
        assert main(["--check", str(plan)]) == 0
    finally:
        for name in test_kit.MODULES:
            sys.modules.pop(name, None)
    facts = json.loads((tmp_path / "e.plan.json").read_text())
    assert facts["onnx_sha256"] == hashlib.sha256(model).hexdigest()
    assert (facts["vectors"]["frames"], facts["vectors"]["flipped_share"]) == (4, 0.0)
    assert facts["vectors"]["max_flipped"] == GOLDEN_MAX_FLIPPED[precision]
    masks = np.load(folder / "vectors" / f"frames-{precision}.npz")["mask"]
    assert masks.any(axis=(1, 2, 3)).all()  # frames without lesion would prove little


def test_frames_of_a_kit_are_fewer_where_they_are_large_and_one_at_least():
    phantoms = [draw_phantom("malignant", number, 0)[0] for number in (1, 2, 3)]
    assert [frame.shape for frame in whole_frames(phantoms, 800, 600)] == [(600, 800)] * 3
    assert len(whole_frames(phantoms, 2048, 1024)) == 2
    assert [frame.shape for frame in whole_frames(phantoms, 4096, 2160)] == [(2160, 4096)]


def test_a_graph_that_takes_no_batch_is_refused_before_anything_is_kept(
    run, frames_of, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgeseg.export.forms.with_dynamic_batch", lambda model, most: model)
    with pytest.raises(Refused) as caught:
        export_bundle(
            load_trained(run / "student.safetensors"),
            make_plan(find_target("arm-cpu"), "fp32", max_batch=2),
            tmp_path / "out",
            frames_of("fp32"),
            split=run / "split.json",
            limits=Limits(max_drop=1.0, max_hd95_rise_px=100.0),
        )
    assert caught.value.code == "E-BATCH-ROWS"
    assert not list(tmp_path.iterdir())


# --- TensorRT-RTX --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fp32", "qdq-fp16"])
def test_rtx_builds_a_plan_for_a_batch_with_the_same_precision(form_of, form):
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx; make install brings it")
    model = form_of("edge-16", form)
    dynamic = with_dynamic_batch(model, 4)
    built = plan_from_onnx(dynamic, "8.9", max_batch=4)
    fixed = plan_from_onnx(model, "8.9")
    assert achieved_in_rtx(model, built.layers).macs == achieved_in_rtx(model, fixed.layers).macs
    assert built.activation_bytes > fixed.activation_bytes  # there is room for the batch
    with pytest.raises(EngineError) as caught:
        plan_from_onnx(dynamic, "8.9")
    assert caught.value.code == "E-RTX-BUILD"


@pytest.mark.parametrize("form", ["fp32", "qdq-fp16"])
@pytest.mark.parametrize("least", [{}, {"least_area": 0.01, "least_peak": 0.9}])
def test_rtx_takes_a_frame_graph(form_of, form, least):
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx; make install brings it")
    contract = replace(CONTRACT, **least)
    model = frame_graph_from_onnx(form_of("edge-16", form), contract, 301, 203)
    plan = plan_from_onnx(model, "8.9")
    assert plan.plan.startswith(b"vtrt")
    # To the builder the boxes are a convolution, in float and known by its node: a kit's `audit`.
    around = [layer for layer in plan.layers if all(o.startswith(AROUND) for o in layer.origins)]
    assert {layer.kind for layer in around} >= {"correlation", "gemm"}
    multiplying = [layer for layer in around if layer.kind in ("correlation", "gemm")]
    assert {layer.input_type for layer in multiplying} == {"Float"}
    assert not {layer.input_type for layer in around} & {"Half", "BFloat16"}
