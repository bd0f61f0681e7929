"""Bundles of every kind of target and precision, their ONNX, their gates, and the kit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from edgeseg.export import forms, kit
from edgeseg.export.calibration import read_calibration
from edgeseg.export.golden import MAX_FLIPPED as KIT_MAX_FLIPPED
from edgeseg.export.kit.kit_files import read_kit
from edgeseg.export.parity import (
    MAX_FLIPPED,
    CheckFrame,
    check_hop,
    exact_run,
    reference_of,
    require_accuracy,
    require_boundary,
    require_parity,
)
from edgeseg.export.pipeline import (
    Frames,
    Limits,
    export_bundle,
    load_trained,
    read_calibration_frames,
)
from edgeseg.export.plan import WITHOUT_RANGES, make_plan
from edgeseg.export.target import PRECISIONS, find_target, targets
from edgeseg.export.to_openvino import openvino_from_onnx
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.split import read_split
from edgeseg.kd.models import count_macs, count_parameters
from edgeseg.runtime.bundle import GoldenVectors, open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.files import sha256_of_file
from edgeseg.runtime.image import input_from_frame, read_image
from edgeseg.runtime.layout import Layout
from edgeseg.runtime.pgm import pixels_from_pnm
from edgeseg.runtime.session import open_session
from edgeseg.tests.support.fabricated_hop import hop

pytestmark = pytest.mark.long

KIT = Path(__file__).parents[2] / "export" / "kit"
# Every kind, and of the kits every layout: weakly typed (8.5), typed with a cache (10.3), typed
# without one (11.4).
KITS = ("xavier-nx@jp5.1", "jetson", "agx-orin-64@jp7.2.2")
CPUS = ("x86-cpu", "arm-cpu")
EVERY = [
    (name, precision)
    for name in (*CPUS, *KITS, "rtx")
    for precision in make_plan(find_target(name)).precisions
]
OF_CPU = [(name, precision) for name, precision in EVERY if name in CPUS]
OF_KIT = [(name, precision) for name, precision in EVERY if name in KITS]
WITHOUT_ONNX = {("x86-cpu", "fp16"), ("x86-cpu", "bf16")}
WITH_ONNX = [each for each in EVERY if each[0] != "rtx" and each not in WITHOUT_ONNX]
INT8_ONNX = [(name, precision) for name, precision in WITH_ONNX if precision == "int8"]
CALIBRATED = [each for each in EVERY if each[1] not in WITHOUT_RANGES]
TYPES = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}


def engines_of(target, precision):
    if target in CPUS:
        return find_target(target).engines[precision]
    return ("tensorrt",) if target in KITS else ("tensorrt-rtx",)


def onnx_file_of(target, precision):
    build = make_plan(find_target(target)).builds.get(precision)
    return build.onnx if build else "model.onnx"


@pytest.fixture
def model_of(bundle_of):
    """(target, precision) -> the ONNX of its bundle."""

    def model(target, precision):
        return onnx.load_model(bundle_of(target, precision) / onnx_file_of(target, precision))

    return model


# --- bundles of every kind -----------------------------------------------------------------------


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_bundle_opens_and_says_what_it_is(bundle_of, target, precision):
    manifest = open_bundle(bundle_of(target, precision)).manifest
    assert (manifest.name, manifest.precision) == ("attunet-8", precision)
    assert manifest.target == find_target(target).name
    assert tuple(manifest.models) == engines_of(target, precision)


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_every_file_was_compared_with_the_trained_network(bundle_of, target, precision):
    manifest = open_bundle(bundle_of(target, precision)).manifest
    hops = {hop["name"]: hop for hop in manifest.evidence["parity"]}
    engines = engines_of(target, precision)
    assert set(hops) == {"onnx fp32"} | {f"{engine} {precision}" for engine in engines}
    assert hops["onnx fp32"]["max_abs"] < 1e-3
    for name, each in hops.items():
        assert each["frames"] == manifest.evidence["frames"] > 0
        assert each["flipped_share"] <= MAX_FLIPPED[name.split()[1]]
        assert each["mask_dice"] > 0.8
        drop = manifest.evidence["trained_dice"] - each["dice"]
        assert each["dice_drop"] == pytest.approx(drop, abs=1e-9)
        assert each["dice_drop_low"] <= each["dice_drop"] <= each["dice_drop_high"]
        assert each["hd95_rise_low_px"] <= each["hd95_rise_px"] <= each["hd95_rise_high_px"]


@pytest.mark.parametrize(("target", "precision"), OF_CPU)
def test_every_engine_of_a_cpu_bundle_runs(bundle_of, target, precision):
    bundle = bundle_of(target, precision)
    frame = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    for engine in engines_of(target, precision):
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
    assert tuple(complexity["weights_bytes"]) == engines_of(target, precision)
    bytes_each = {"fp32": 4, "bf16": 4, "fp16": 2, "int8": 1}[precision]
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
def test_kit_goes_along_where_the_target_takes_one(bundle_of, target, precision):
    bundle = bundle_of(target, precision)
    own = {path.name for path in bundle.iterdir() if path.suffix == ".py"}
    assert own == (set(kit.FILES) if target in KITS else set())
    assert all((bundle / name).read_bytes() == (KIT / name).read_bytes() for name in own)
    assert (bundle / "kit.json").exists() == (target in KITS)


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_manifest_and_bill_of_materials_follow_their_schemas(
    bundle_of, target, precision, jsonschema
):
    bundle = bundle_of(target, precision)
    manifest = json.loads((bundle / "manifest.json").read_text())
    major = manifest["schema"].removeprefix("edgeseg.bundle/").partition(".")[0]
    schema = json.loads((KIT.parent.parent / f"docs/schema/bundle-{major}.json").read_text())
    jsonschema.validate(manifest, schema)
    assert (major == "3") == ("cpu" in manifest)
    pytest.importorskip(
        "cyclonedx", reason="no cyclonedx-python-lib, which has the schema; make install brings it"
    )
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bill = (bundle / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None


@pytest.mark.parametrize("half", [False, True])
def test_openvino_gets_the_same_bytes_from_the_same_onnx(half, tmp_path):
    shape = ["image", onnx.TensorProto.FLOAT, [1, 1, 16, 16]]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight", "bias"], ["x"], "conv", pads=[1] * 4),
            helper.make_node("Relu", ["x"], ["logits"], "relu"),
        ],
        "toy",
        [helper.make_tensor_value_info(*shape)],
        [helper.make_tensor_value_info("logits", *shape[1:])],
        [
            numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "weight"),
            numpy_helper.from_array(np.ones(1, np.float32), "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        openvino_from_onnx(model, tmp_path / name, half=half)
    for name in ("model.xml", "model.bin"):
        first, again = (tmp_path / each / name for each in ("first", "again"))
        assert first.read_bytes() == again.read_bytes()
    assert "unnamed_" in (tmp_path / "first" / "model.xml").read_text()


@pytest.mark.parametrize("target", ["x86-cpu", "jetson"])
def test_same_inputs_give_the_same_bytes(bundle_of, export_to, tmp_path, target):
    first = bundle_of(target, "int8")
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))  # as on a machine of other cores: 2 for 1, else 1
    try:
        again = export_to(target, "int8", tmp_path / "again")
    finally:
        torch.set_num_threads(threads)
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert {
        each for each in files if (first / each).read_bytes() != (again / each).read_bytes()
    } == set()


def test_layout_goes_into_the_manifest(run, frames_of, tmp_path):
    layout = Layout(320, 240, (10, 20, 300, 230), ((10, 20, 50, 30),))
    exported = export_bundle(
        load_trained(run / "student.safetensors"),
        make_plan(find_target("x86-cpu"), "fp32"),
        tmp_path / "out",
        frames_of("fp32"),
        split=run / "split.json",
        layout=layout,
        limits=Limits(1.0, max_hd95_rise_px=100.0),
    )
    assert Layout.from_dict(open_bundle(exported.path).manifest.layout) == layout


@pytest.mark.parametrize(("target", "precision"), EVERY)
def test_golden_vectors_of_every_engine_travel_along(bundle_of, frames_of, target, precision):
    bundle = open_bundle(bundle_of(target, precision))
    vectors = bundle.manifest.vectors
    assert tuple(vectors.masks) == tuple(vectors.max_flipped) == engines_of(target, precision)
    frames = [pixels_from_pnm(bundle.read(name), name) for name in vectors.frames]
    assert len(frames) == len(frames_of("fp32").vectors) + 3
    height, width = bundle.manifest.contract.height, bundle.manifest.contract.width
    assert any(frame.shape[0] < height and frame.shape[1] < width for frame in frames)
    assert any(frame.shape[0] > 2 * height and frame.shape[1] > 2 * width for frame in frames)
    assert any(frame.shape[0] % 2 and frame.shape[1] % 2 for frame in frames)
    for names in vectors.masks.values():
        masks = [pixels_from_pnm(bundle.read(name), name) for name in names]
        assert [mask.shape for mask in masks] == [frame.shape for frame in frames]
        assert set(np.unique(np.concatenate([mask.ravel() for mask in masks]))) == {0, 255}


@pytest.mark.parametrize(("target", "precision"), [each for each in OF_CPU if each[0] == "x86-cpu"])
def test_a_session_answers_golden_frames_as_the_export_did(bundle_of, target, precision):
    bundle = open_bundle(bundle_of(target, precision))
    for engine, names in bundle.manifest.vectors.masks.items():
        session = open_session(bundle.path, engine=engine)
        for frame, name in zip(bundle.manifest.vectors.frames, names, strict=True):
            mask = session.predict(pixels_from_pnm(bundle.read(frame), frame))
            assert np.array_equal(mask * 255, pixels_from_pnm(bundle.read(name), name))


def test_export_without_golden_frames_says_so_in_its_manifest(run, frames_of, tmp_path):
    exported = export_bundle(
        load_trained(run / "student.safetensors"),
        make_plan(find_target("x86-cpu"), "fp32"),
        tmp_path / "out",
        replace(frames_of("fp32"), vectors=()),
        split=run / "split.json",
        limits=Limits(1.0, max_hd95_rise_px=100.0),
    )
    assert open_bundle(exported.path).manifest.vectors == GoldenVectors()
    assert not (exported.path / "vectors").exists()


# --- the table of targets, walked ----------------------------------------------------------------


@pytest.mark.parametrize("target", targets())
def test_precision_that_a_target_lacks_is_refused(target):
    found = find_target(target)
    lacks = {"int8"} - ({"int8"} if found.int8 else set())
    if found.kind == "cpu":
        lacks = set(PRECISIONS) - set(found.engines)
    for precision in lacks:
        with pytest.raises(Refused) as caught:
            make_plan(found, precision)
        assert caught.value.code == "E-TARGET-PRECISION"


def test_some_targets_lack_a_precision():
    assert "fp16" not in find_target("arm-cpu").engines
    assert not find_target("nano@jp4.6").int8


def test_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="x86-cpu, arm-cpu, x86-gpu, rtx, jetson") as caught:
        find_target("toaster")
    assert caught.value.code == "E-TARGET-NAME"


def test_module_without_its_jetpack_is_refused_with_those_it_takes():
    with pytest.raises(InputError, match=r"xavier-nx takes one of xavier-nx@jp5\.1$") as caught:
        find_target("xavier-nx@jp6.2")
    assert caught.value.code == "E-TARGET-NAME"


# --- the ONNX ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "precision"), WITH_ONNX)
def test_onnx_is_valid_static_of_the_oldest_opset_and_carries_the_contract(
    bundle_of, model_of, target, precision
):
    model = model_of(target, precision)
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    # Q/DQ of FP16 begin with 19, which TensorRT 10 takes; 8.5 takes 17.
    assert opsets == {19 if onnx_file_of(target, precision) == "qdq-fp16.onnx" else 17}
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    for value in (image, logits):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        assert shape == [1, 1, 64, 64]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    contract = open_bundle(bundle_of(target, precision)).manifest.contract
    assert json.loads(metadata["edgeseg.contract"]) == contract.to_dict()


@pytest.mark.parametrize(("target", "precision"), WITH_ONNX)
def test_batch_norm_is_folded(model_of, target, precision):
    operators = {node.op_type for node in model_of(target, precision).graph.node}
    assert "BatchNormalization" not in operators
    assert "Conv" in operators


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("target", KITS)
def test_float_onnx_of_a_kit_has_its_weights_in_its_precision(model_of, target, precision):
    graph = model_of(target, precision).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {weights[node.input[1]] for node in graph.node if node.op_type == "Conv"}
    assert kinds == {TYPES[precision]}


def quantisers_of(graph):
    return [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]


@pytest.mark.parametrize("target", KITS)
def test_int8_onnx_of_a_kit_is_what_the_parsers_of_tensorrt_take(model_of, target):
    graph = model_of(target, "int8").graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    assert quantisers_of(graph)
    for node in quantisers_of(graph):
        zero = numpy_helper.to_array(tensors[node.input[2]])
        assert zero.dtype == np.int8
        assert not zero.any()  # symmetric
    kinds = {tensor.data_type for tensor in graph.initializer}
    assert not kinds & {onnx.TensorProto.UINT8, onnx.TensorProto.INT32}  # int32 would be a bias


@pytest.mark.parametrize(
    ("target", "rest"),
    [("xavier-nx@jp5.1", "fp32"), ("jetson", "fp16"), ("agx-orin-64@jp7.2.2", "fp16")],
)
def test_scales_have_the_type_of_the_rest_of_the_graph(model_of, target, rest):
    graph = model_of(target, "int8").graph
    tensors = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {tensors[node.input[1]] for node in quantisers_of(graph)} == {TYPES[rest]}


@pytest.mark.parametrize("target", CPUS)
def test_int8_onnx_of_a_cpu_has_unsigned_activations_and_symmetric_weights(model_of, target):
    graph = model_of(target, "int8").graph
    tensors = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    }
    zeros = {"QuantizeLinear": [], "DequantizeLinear": []}
    for node in quantisers_of(graph):
        if node.input[0] in tensors:  # a weight
            assert tensors[node.input[0]].dtype == tensors[node.input[2]].dtype == np.int8
            assert not tensors[node.input[2]].any()
        else:
            assert tensors[node.input[2]].dtype == np.uint8
            zeros[node.op_type].append(int(tensors[node.input[2]]))
    # 0 behind a ReLU, which costs no step; 128 where values are negative too
    assert set(zeros["QuantizeLinear"]) == set(zeros["DequantizeLinear"]) == {0, 128}


@pytest.mark.parametrize(("target", "precision"), INT8_ONNX)
def test_int8_weights_have_a_scale_per_output_channel(model_of, target, precision):
    graph = model_of(target, precision).graph
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


@pytest.mark.parametrize(
    ("target", "largest"),
    [("x86-cpu", 63), ("arm-cpu", 127), *((target, 127) for target in KITS)],
)
def test_int8_weights_leave_room_where_kernels_add_products_in_16_bits(model_of, target, largest):
    tensors = map(numpy_helper.to_array, model_of(target, "int8").graph.initializer)
    weights = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 4]
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == largest


# --- the kit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "precision"), OF_KIT)
def test_kit_is_read_by_the_code_that_travels_with_it(bundle_of, target, precision):
    found, bundle = find_target(target), open_bundle(bundle_of(target, precision))
    read = read_kit(bundle.path)
    assert (read.target, read.default) == (found.name, precision)
    assert found.tensorrt.startswith(f"{read.tensorrt}.")
    assert (read.compute_capability,) == found.compute_capabilities
    assert read.logit_thresholds == bundle.manifest.contract.logit_thresholds
    plan = make_plan(found, precision)
    (build,) = read.builds.values()
    assert build.input == ("image", (1, 1, 64, 64), "float32")
    assert build.outputs == (("logits", (1, 1, 64, 64), "float32"),)
    assert read.frames == {}
    assert build[1:6] == (
        *(plan.builds[precision].onnx, plan.builds[precision].typed),
        *(plan.builds[precision].flags, None, None),
    )
    assert build.min_share == {"fp32": 0.99, "fp16": 0.99, "int8": 0.9}[precision]
    assert build.max_flipped == KIT_MAX_FLIPPED[precision]


@pytest.mark.parametrize(("target", "precision"), OF_KIT)
def test_golden_vectors_are_four_frames_and_the_answers_of_the_file_as_it_is_written(
    bundle_of, frames_of, target, precision
):
    bundle = open_bundle(bundle_of(target, precision))
    read = read_kit(bundle.path)
    inputs = np.load(bundle.path / read.builds[precision].vectors)
    frames = frames_of(precision).vectors
    contract = bundle.manifest.contract
    np.testing.assert_array_equal(
        inputs, np.concatenate([input_from_frame(frame, contract) for frame in frames])
    )
    assert (inputs.shape, inputs.dtype) == ((4, 1, 64, 64), np.float32)
    answer = exact_run(read.read(read.builds[precision].onnx), 1)
    expected = np.load(bundle.path / read.builds[precision].expected)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(
        expected, np.concatenate([answer(each[None]) for each in inputs]), atol=1e-4
    )


@pytest.mark.parametrize(
    ("target", "header"),
    [("xavier-nx@jp5.1", "TRT-8502-"), ("jetson", "TRT-100300-"), ("agx-orin-64@jp7.2.2", None)],
)
def test_calibration_cache_goes_along_until_tensorrt_11(bundle_of, target, header):
    cache = bundle_of(target, "int8") / "calib.cache"
    assert cache.exists() == (header is not None)
    if header:
        assert cache.read_text().startswith(f"{header}EntropyCalibration2\nimage: ")


# --- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "precision"), CALIBRATED)
def test_calibration_frames_are_of_the_train_part_and_none_of_the_others(
    bundle_of, target, precision
):
    bundle = bundle_of(target, precision)
    used = json.loads((bundle / "calibration.json").read_text())["frames_sha256"]
    entries = read_split(bundle / "split.json").entries
    of_part = {
        part: {entry.image_sha256 for entry in entries if entry.part == part}
        for part in ("train", "val", "test")
    }
    assert len(set(used)) == len(used) == 8
    assert set(used) <= of_part["train"]
    assert not set(used) & (of_part["val"] | of_part["test"])
    facts = open_bundle(bundle).manifest.provenance["calibration"]
    assert facts["frames_sha256"] == used
    assert facts["part"] == "train"


@pytest.mark.parametrize("target", KITS)
def test_record_of_a_bundle_serves_the_next_export_of_its_checkpoint(bundle_of, target):
    bundle = open_bundle(bundle_of(target, "int8"))
    master = (bundle_of(target, "fp32") / "fp32.onnx").read_bytes()
    provenance = bundle.manifest.provenance
    record = read_calibration(
        bundle.path / "calibration.json",
        provenance["checkpoint_sha256"],
        bundle.manifest.contract,
        master,
    )
    assert list(record.frames_sha256) == provenance["calibration"]["frames_sha256"]


def test_bundle_in_fp32_has_no_calibration(bundle_of):
    bundle = open_bundle(bundle_of("x86-cpu", "fp32"))
    assert bundle.manifest.provenance["calibration"] is None
    assert "calibration.json" not in bundle.manifest.files


def test_calibration_draws_the_same_frames_for_a_seed_and_all_when_there_are_few(phantoms):
    images = [sample.image for sample in read_dataset(phantoms).samples][:9]

    def drawn(count, **seed):
        return read_calibration_frames(images, count, read_image, **seed)

    assert drawn(3).sha256 == drawn(3).sha256
    assert drawn(3).sha256 != drawn(3, seed=1).sha256
    assert len(set(drawn(3).sha256)) == len(drawn(3).frames) == 3
    assert drawn(99).sha256 == tuple(map(sha256_of_file, images))


def refusal_without_frames(run, out, precision):
    """Return the code of exporting without any frame."""
    with pytest.raises(InputError) as caught:
        export_bundle(
            load_trained(run / "student.safetensors"),
            make_plan(find_target("x86-cpu"), precision),
            out,
            Frames(None, ()),
            split=run / "split.json",
        )
    return caught.value.code


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_int8_without_calibration_is_refused(run, tmp_path, precision):
    assert refusal_without_frames(run, tmp_path / "out", precision) == "E-CALIB-MISSING"
    assert list(tmp_path.iterdir()) == []


# --- gates ---------------------------------------------------------------------------------------


def test_gate_that_nothing_can_pass_leaves_no_folder(export_to, tmp_path):
    with pytest.raises(Refused) as caught:
        export_to("jetson", "fp16", tmp_path / "out", max_drop=-1.0)
    assert caught.value.code == "E-ACCURACY"
    assert list(tmp_path.iterdir()) == []


def test_validation_without_any_lesion_is_refused(run, tmp_path):
    assert refusal_without_frames(run, tmp_path / "out", "fp32") == "E-PARITY-FRAMES"
    assert list(tmp_path.iterdir()) == []


def test_upper_end_of_the_drop_at_the_limit_passes_and_one_above_or_unmeasured_does_not():
    require_accuracy(hop(dice_drop=0.001, dice_drop_high=0.005), 0.005)
    for high in (0.0051, float("nan")):
        with pytest.raises(Refused) as caught:
            require_accuracy(hop(dice_drop=0.001, dice_drop_high=high), 0.005)
        assert caught.value.code == "E-ACCURACY"


def test_rise_of_hd95_is_refused_only_where_its_whole_interval_is_above_the_limit():
    require_boundary(hop(hd95_rise_px=3.0, hd95_rise_low_px=1.0, hd95_rise_high_px=9.0), 1.0)
    require_boundary(hop(hd95_rise_low_px=float("nan")), 1.0)
    with pytest.raises(Refused) as caught:
        require_boundary(hop(hd95_rise_low_px=1.1), 1.0)
    assert caught.value.code == "E-BOUNDARY"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_too_many_flipped_pixels_or_a_logit_that_is_not_finite_is_refused(precision):
    limit = MAX_FLIPPED[precision]
    require_parity(hop(flipped_share=limit), precision)
    wrong = [{"flipped_share": limit * 1.01}, {"flipped_share": float("nan")}]
    for changes in [*wrong, {"max_abs": float("nan")}, {"max_abs": float("inf")}]:
        with pytest.raises(Refused) as caught:
            require_parity(hop(**changes), precision)
        assert caught.value.code == "E-PARITY"


@pytest.mark.parametrize("field", ["mask_dice", "dice_drop_high", "hd95_rise_px"])
def test_undefined_numbers_of_a_hop_become_null(field):
    assert hop(**{field: float("nan")}).to_dict()[field] is None
    assert hop(**{field: 0.5}).to_dict()[field] == 0.5


# --- repeatability and interruption --------------------------------------------------------------


def files_that_differ(first, second):
    def files_of(folder):
        return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())

    names = files_of(first)
    assert names == files_of(second)
    return [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]


@pytest.fixture(scope="module")
def export_command(phantoms, run):
    """The command that exports the run for x86 in FP32, but for `--out`."""
    code = "from edgeseg.cli.jobs import phantoms; phantoms.COUNT = 8; "
    code += "from edgeseg.cli.main import cli; cli()"
    command = [sys.executable, "-c", code, "export", str(run), "--target", "x86-cpu"]
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


def test_int8_in_name_only_is_refused_and_leaves_no_folder(export_to, tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "qdq_from_onnx", lambda model, amax, **how: model)
    with pytest.raises(Refused, match=r"openvino runs 0\.0% in it") as caught:
        export_to("x86-cpu", "int8", tmp_path / "out")
    assert caught.value.code == "E-PRECISION-FALLBACK"
    assert list(tmp_path.iterdir()) == []
