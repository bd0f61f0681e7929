"""Bundles of every target and precision, their ONNX, their gates, and the kit for the device."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeseg.export.parity import (
    MAX_FLIPPED,
    CheckFrame,
    Hop,
    check_hop,
    reference_of,
    require_accuracy,
    require_parity,
)
from edgeseg.export.pipeline import (
    _require_int8,
    export_bundle,
    load_trained,
    read_calibration,
)
from edgeseg.export.target import PRECISIONS, TARGETS, find_target
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.split import read_split
from edgeseg.kd.models import count_macs, count_parameters
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.files import sha256_of_file
from edgeseg.runtime.image import read_image
from edgeseg.runtime.session import open_session

KIT = Path(__file__).parent.parent / "export" / "kit" / "build_engine.py"
EVERY = [(name, precision) for name, target in TARGETS.items() for precision in target.engines]
WITH_ONNX = [(n, p) for n, p in EVERY if "onnxruntime" in TARGETS[n].engines[p]]
INT8_ONNX = [(name, precision) for name, precision in WITH_ONNX if precision == "int8"]


def model_of(bundle):
    return onnx.load_model(bundle / "model.onnx")


def hop(**changes):
    fields = {"name": "x", "frames": 9, "max_abs": 0.1, "flipped_share": 0.0, "mask_dice": 1.0}
    fields |= {"dice": 0.8, "dice_drop": 0.0, "dice_drop_low": 0.0, "dice_drop_high": 0.0}
    return Hop(**{**fields, **changes})


# --- the table of targets, walked ----------------------------------------------------------------


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_bundle_opens_and_says_what_it_is(bundle_of, target, precision):
    manifest = open_bundle(bundle_of(target, precision)).manifest
    assert (manifest.name, manifest.target, manifest.precision) == ("attunet-8", target, precision)
    assert tuple(manifest.models) == TARGETS[target].engines[precision]


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_every_file_was_compared_with_the_trained_network_in_its_own_engine(
    bundle_of, target, precision
):
    manifest = open_bundle(bundle_of(target, precision)).manifest
    hops = {hop["name"]: hop for hop in manifest.evidence["parity"]}
    engines = TARGETS[target].engines[precision]
    assert set(hops) == {"onnxruntime fp32"} | {f"{engine} {precision}" for engine in engines}
    assert hops["onnxruntime fp32"]["max_abs"] < 1e-3
    for name, each in hops.items():
        assert each["frames"] == manifest.evidence["frames"] > 0
        assert each["flipped_share"] <= MAX_FLIPPED[name.split()[1]]
        assert each["mask_dice"] > 0.8
        drop = manifest.evidence["trained_dice"] - each["dice"]
        assert each["dice_drop"] == pytest.approx(drop, abs=1e-9)


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_every_engine_of_the_bundle_runs(bundle_of, target, precision):
    bundle = bundle_of(target, precision)
    frame = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    for engine in TARGETS[target].engines[precision]:
        session = open_session(bundle, engine=engine, threads=1)
        assert session.engine.name == engine
        assert session.predict(frame).shape == (70, 90)


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_bundle_tells_parameters_and_operations_of_the_checkpoint(
    bundle_of, run, target, precision
):
    complexity = open_bundle(bundle_of(target, precision)).manifest.complexity
    loaded = load_checkpoint(run / "student.safetensors")
    # Batch norms are folded: their 2 values a channel go, and each layer keeps weight and bias.
    norms = sum(
        2 * module.num_features
        for module in loaded.network.modules()
        if hasattr(module, "num_features")
    )
    assert complexity["parameters"] == count_parameters(loaded.network) - norms
    assert complexity["macs"] == count_macs(loaded.network, loaded.contract)
    bytes_each = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    for size in complexity["weights_bytes"].values():
        assert size == pytest.approx(bytes_each * complexity["parameters"], rel=0.2)


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_bundle_comes_with_the_split_and_the_hash_of_its_checkpoint(
    bundle_of, run, target, precision
):
    bundle = bundle_of(target, precision)
    provenance = open_bundle(bundle).manifest.provenance
    assert provenance["checkpoint_sha256"] == sha256_of_file(run / "student.safetensors")
    assert provenance["split_sha256"] == sha256_of_file(bundle / "split.json")
    assert (bundle / "split.json").read_bytes() == (run / "split.json").read_bytes()


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_kit_goes_along_where_the_target_says_so(bundle_of, target, precision):
    kit = bundle_of(target, precision) / "build_engine.py"
    assert kit.is_file() == TARGETS[target].kit
    if TARGETS[target].kit:
        assert kit.read_bytes() == KIT.read_bytes()


@pytest.mark.parametrize("target", TARGETS)
def test_precision_that_a_target_lacks_is_refused(target):
    for precision in set(PRECISIONS) - set(TARGETS[target].engines):
        with pytest.raises(Refused) as caught:
            find_target(target, precision)
        assert caught.value.code == "E-TARGET-PRECISION"


def test_some_target_lacks_a_precision():
    assert any(set(PRECISIONS) - set(target.engines) for target in TARGETS.values())


def test_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="x86-cpu, jetson") as caught:
        find_target("toaster", "int8")
    assert caught.value.code == "E-TARGET-NAME"


# --- the ONNX ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "precision"), WITH_ONNX)
def test_onnx_is_valid_opset_17_static_and_carries_the_contract(bundle_of, target, precision):
    bundle = bundle_of(target, precision)
    model = model_of(bundle)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")} == {
        17
    }
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    for value in (image, logits):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        assert shape == [1, 1, 64, 64]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    contract = open_bundle(bundle).manifest.contract
    assert json.loads(metadata["edgeseg.contract"]) == contract.to_dict()


@pytest.mark.parametrize(("target", "precision"), WITH_ONNX)
def test_batch_norm_is_folded(bundle_of, target, precision):
    operators = {node.op_type for node in model_of(bundle_of(target, precision)).graph.node}
    assert "BatchNormalization" not in operators
    assert "Conv" in operators


def test_fp16_onnx_has_its_weights_in_fp16(bundle_of):
    graph = model_of(bundle_of("jetson", "fp16")).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {weights[node.input[1]] for node in graph.node if node.op_type == "Conv"}
    assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(("target", "precision"), INT8_ONNX)
def test_int8_onnx_is_what_the_parsers_of_tensorrt_take(bundle_of, target, precision):
    graph = model_of(bundle_of(target, precision)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    dequantised = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert dequantised
    for node in dequantised:
        if node.input[0] in tensors:  # a weight; int32 would be a bias
            assert tensors[node.input[0]].data_type == onnx.TensorProto.INT8
    types = {tensor.data_type for tensor in graph.initializer}
    assert not types & {onnx.TensorProto.UINT8, onnx.TensorProto.INT32}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = numpy_helper.to_array(tensors[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()  # symmetric


@pytest.mark.parametrize(("target", "precision"), INT8_ONNX)
def test_int8_weights_have_a_scale_per_output_channel(bundle_of, target, precision):
    graph = model_of(bundle_of(target, precision)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    source = {node.output[0]: node for node in graph.node}
    quantised = 0
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        if node.input[1] in tensors:  # left in float: one output channel
            assert tensors[node.input[1]].dims[0] == 1
            continue
        weight = source[node.input[1]]
        channels = tensors[weight.input[0]].dims[0]
        assert list(tensors[weight.input[1]].dims) == [channels]
        assert channels > 1
        quantised += 1
    assert quantised == 30  # of 35: the head and four attention maps stay in float


@pytest.mark.parametrize(("target", "largest"), [("x86-cpu", 64), ("jetson", 127)])
def test_int8_weights_leave_room_where_kernels_add_products_in_16_bits(bundle_of, target, largest):
    tensors = map(numpy_helper.to_array, model_of(bundle_of(target, "int8")).graph.initializer)
    weights = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 4]
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == largest


# --- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_calibration_frames_are_of_the_train_part_and_none_of_the_others(bundle_of, target):
    bundle = bundle_of(target, "int8")
    facts = open_bundle(bundle).manifest.provenance["calibration"]
    entries = read_split(bundle / "split.json").entries
    of_part = {
        part: {entry.image_sha256 for entry in entries if entry.part == part}
        for part in ("train", "val", "test")
    }
    used = set(facts["frames_sha256"])
    assert len(used) == len(facts["frames_sha256"]) == 8
    assert used <= of_part["train"]
    assert not used & (of_part["val"] | of_part["test"])


def test_bundle_without_quantisation_names_no_calibration(bundle_of):
    provenance = open_bundle(bundle_of("x86-cpu", "fp32")).manifest.provenance
    assert provenance["calibration"] is None


def test_calibration_draws_the_same_frames_for_a_seed_and_all_when_there_are_few(phantoms):
    images = [sample.image for sample in read_dataset(phantoms).samples][:9]
    three = read_calibration(images, 3, read_image)
    assert three.sha256 == read_calibration(images, 3, read_image).sha256
    assert three.sha256 != read_calibration(images, 3, read_image, seed=1).sha256
    assert len(set(three.sha256)) == len(three.frames) == 3
    assert read_calibration(images, 99, read_image).sha256 == tuple(map(sha256_of_file, images))


def test_int8_without_calibration_is_refused(run, tmp_path):
    with pytest.raises(InputError) as caught:
        export_bundle(
            load_trained(run / "student.safetensors"),
            "x86-cpu",
            "int8",
            tmp_path / "out",
            calibration=None,
            checks=(),
            split=run / "split.json",
        )
    assert caught.value.code == "E-CALIB-MISSING"
    assert list(tmp_path.iterdir()) == []


# --- gates ---------------------------------------------------------------------------------------


def test_gate_that_nothing_can_pass_leaves_no_folder(export_to, tmp_path):
    with pytest.raises(Refused) as caught:
        export_to("jetson", "fp16", tmp_path / "out", max_drop=-1.0)
    assert caught.value.code == "E-ACCURACY"
    assert list(tmp_path.iterdir()) == []


def test_validation_without_any_lesion_is_refused(run, tmp_path):
    with pytest.raises(InputError) as caught:
        export_bundle(
            load_trained(run / "student.safetensors"),
            "x86-cpu",
            "fp32",
            tmp_path / "out",
            calibration=None,
            checks=(),
            split=run / "split.json",
        )
    assert caught.value.code == "E-PARITY-FRAMES"
    assert list(tmp_path.iterdir()) == []


def test_drop_at_the_limit_passes_and_one_above_or_unmeasured_does_not():
    require_accuracy(hop(dice_drop=0.005), 0.005)
    for drop in (0.0051, float("nan")):
        with pytest.raises(Refused) as caught:
            require_accuracy(hop(dice_drop=drop), 0.005)
        assert caught.value.code == "E-ACCURACY"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_too_many_flipped_pixels_or_a_logit_that_is_not_finite_is_refused(precision):
    limit = MAX_FLIPPED[precision]
    require_parity(hop(flipped_share=limit), precision)
    wrong = [{"flipped_share": limit * 1.01}, {"flipped_share": float("nan")}]
    for changes in [*wrong, {"max_abs": float("nan")}, {"max_abs": float("inf")}]:
        with pytest.raises(Refused) as caught:
            require_parity(hop(**changes), precision)
        assert caught.value.code == "E-PARITY"


def test_undefined_numbers_of_a_hop_become_null():
    assert hop(mask_dice=float("nan")).to_dict()["mask_dice"] is None
    assert hop(mask_dice=0.5).to_dict()["mask_dice"] == 0.5


# --- repeatability and interruption --------------------------------------------------------------


def files_that_differ(first, second):
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    return [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]


@pytest.fixture(scope="module")
def export_command(phantoms, run):
    """The command that exports the run for x86 in FP32, but for `--out`."""
    command = [sys.executable, "-m", "edgeseg", "export", str(run), "--target", "x86-cpu"]
    return [*command, "--precision", "fp32", "--calib", str(phantoms), "--quiet", "--out"]


def test_two_exports_of_one_checkpoint_are_the_same_bytes(bundle_of, export_to, tmp_path):
    again = export_to("jetson", "int8", tmp_path / "again")
    assert files_that_differ(bundle_of("jetson", "int8"), again) == []


def test_two_export_commands_give_the_same_bytes_with_openvino_too(export_command, tmp_path):
    # In one process OpenVINO numbers unnamed constants on, so model.xml would differ in names.
    for name in ("one", "two"):
        subprocess.run([*export_command, str(tmp_path / name)], check=True, capture_output=True)
    assert files_that_differ(tmp_path / "one", tmp_path / "two") == []


def test_export_killed_half_way_leaves_nothing_under_the_name(export_command, export_to, tmp_path):
    out = tmp_path / "bundle"
    process = subprocess.Popen([*export_command, str(out)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.partial-*/*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert not out.exists()
    (left_over,) = tmp_path.iterdir()
    export_to("jetson", "fp16", out)  # the next export takes the name and clears up
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert not left_over.exists()
    open_bundle(out)


def test_number_that_is_no_number_on_any_frame_fails_parity():
    lesion = np.zeros((32, 32), bool)
    lesion[8:16, 8:16] = True
    frame = np.zeros((32, 32), np.uint8)
    frames = [CheckFrame(frame, lesion, "a"), CheckFrame(frame, np.zeros_like(lesion), "b")]
    contract = InputContract(32, 32)
    logits = np.where(lesion, 5, -5).astype(np.float32)[None, None]
    reference = reference_of(lambda image: logits, contract, frames)
    answers = iter((logits, np.full_like(logits, np.nan)))
    hop = check_hop("broken", lambda image: next(answers), reference)
    with pytest.raises(Refused) as caught:
        require_parity(hop, "int8")
    assert caught.value.code == "E-PARITY"


@pytest.mark.parametrize(
    ("facts", "content", "passes"),
    [
        ({"convolutions": "f32 5, u8 30"}, b"", True),
        ({"convolutions": "f32 35"}, b"QuantizeLinear", False),  # what runs counts, not the file
        ({}, b"QuantizeLinear", True),
        ({}, b"Conv", False),
    ],
)
def test_int8_in_name_only_is_refused(facts, content, passes):
    engine = SimpleNamespace(facts=facts)
    if passes:
        _require_int8("engine", engine, {"model": content})
        return
    with pytest.raises(Refused) as caught:
        _require_int8("engine", engine, {"model": content})
    assert caught.value.code == "E-PRECISION-FALLBACK"
