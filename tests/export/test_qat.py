"""Quantisation-aware training: rounds as the Q/DQ graph does, learns, and is the last resort."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeseg.cli.jobs import phantoms as phantoms_job
from edgeseg.cli.jobs.calibrating import CalibrationRequest, frames_for_export, retraining_of
from edgeseg.cli.jobs.parts import samples_for
from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.cli.main import cli
from edgeseg.export import parity, pipeline
from edgeseg.export.calibration import CalibrationSet
from edgeseg.export.graph import measured_of
from edgeseg.export.parity import CheckFrame, exact_run
from edgeseg.export.pipeline import Frames, Limits, Retrained, export_bundle, load_trained
from edgeseg.export.plan import AUTO, make_plan
from edgeseg.export.qdq import qdq_from_onnx, rounding_of
from edgeseg.export.ranges import measure_ranges
from edgeseg.export.summary import render_export
from edgeseg.export.target import find_target
from edgeseg.export.to_onnx import module_of_node, onnx_from_network
from edgeseg.kd import fit
from edgeseg.kd.checkpoint import load_checkpoint, save_checkpoint
from edgeseg.kd.data.split import read_split
from edgeseg.kd.fit import mean_dice
from edgeseg.kd.losses import supervised_loss
from edgeseg.kd.models import Bottleneck, Network, Trace, build_model
from edgeseg.kd.qat import (
    RATE,
    SELF,
    Quantisation,
    QuantisedNetwork,
    fine_tune_quantised,
    fold_norms,
    load_parts,
    read_run,
    round_weight,
)
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.proof import PrecisionTiming

pytestmark = [pytest.mark.long, pytest.mark.numbers]

NOTHING = Quantisation({}, None, {})


class Residual(Network):
    """The encoder of a ResNet in small: one shortcut with a convolution, one without."""

    def __init__(self):
        super().__init__()
        first = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.Sequential(Bottleneck(8, 4, 2), Bottleneck(16, 4, 1))
        self.head = nn.Conv2d(16, 1, 1)

    def trace(self, image):
        x = self.stages(self.pool(self.stem(image)))
        logits = nn.functional.interpolate(self.head(x), scale_factor=8.0, mode="bilinear")
        return Trace(logits, x, x)


BUILDERS = {
    "edge": lambda: build_model("edge-16"),
    "attunet": lambda: build_model("attunet-8"),
    "bottlenecks": lambda: Residual(),
}


def with_statistics(network, size):
    """The network with batch norms that do something."""
    torch.manual_seed(0)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(1.5 * torch.randn(2, 1, size, size))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


def quantisation_of(rounding):
    """As `calibrating` translates it."""
    return Quantisation(
        {module_of_node(name): bits for name, bits in rounding.convolutions.items()},
        rounding.image,
        {module_of_node(name): grid for name, grid in rounding.outputs.items()},
    )


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


# --- the same arithmetic as the graph that ships --------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("unsigned", "bits"), [(True, 3), (False, 8)])
def test_training_rounds_as_the_qdq_graph_does(name, unsigned, bits):
    size = 32
    network = with_statistics(BUILDERS[name](), size)
    master = onnx_from_network(network, InputContract(size, size))
    image = np.random.default_rng(0).normal(size=(1, 1, size, size)).astype(np.float32)
    # The image is clipped. The steps of the others are wide: a missing one shows, and another order
    # of a sum hardly ever moves a value over the edge between two.
    found = measure_ranges(master, [image]).amax("min-max")
    amax = {name: (0.4 if name == "image" else 4) * value for name, value in found.items()}
    options = {"unsigned": unsigned, "weight_bits": bits, "keep_float": ["/head/Conv"]}
    rounding = rounding_of(master, amax, **options)
    fold_norms(network)
    quantised = QuantisedNetwork(network, quantisation_of(rounding)).train()
    with torch.no_grad():
        ours = quantised(torch.from_numpy(image)).numpy()
    theirs = exact_run(qdq_from_onnx(master, amax, **options), 1)(image)
    unrounded = exact_run(master, 1)(image)
    assert rms(ours - theirs) < 3e-3 * rms(unrounded - theirs)


def test_what_stays_in_float_is_not_rounded_and_what_repeats_is_rounded_once():
    master = onnx_from_network(build_model("edge-16"), InputContract(32, 32))
    amax = dict.fromkeys(measured_of(onnx.load_from_string(master).graph), 2)
    first, *others = rounding_of(master, {**amax, "image": 1}).convolutions
    rounding = rounding_of(master, {**amax, "image": 1}, keep_float=others)
    assert rounding.convolutions == {first: 8}
    assert module_of_node(first) == "encoder.0.0.0"
    assert rounding.image == (pytest.approx(1 / 127), -128, 127)
    # Of the ReLU behind it, not of the reshapes before it: these repeat the image.
    assert {module_of_node(name) for name in rounding.outputs} == {"encoder.0.1"}


def test_non_negative_activations_have_twice_the_steps_where_they_may():
    master = onnx_from_network(build_model("edge-16"), InputContract(32, 32))
    amax = dict.fromkeys(measured_of(onnx.load_from_string(master).graph), 2)
    rounding = rounding_of(master, {**amax, "image": 1}, unsigned=True)
    grids = {module_of_node(name): grid for name, grid in rounding.outputs.items()}
    assert grids["encoder.0.1"] == (pytest.approx(2 / 255), 0, 255)
    assert grids["decoder.0.gate.gate.0"] == (pytest.approx(2 / 127), -128, 127)


def test_value_that_no_module_gives_is_not_passed_over():
    with pytest.raises(ValueError, match="no module"):
        QuantisedNetwork(build_model("edge-16"), replace(NOTHING, outputs={"": (1.0, 0, 255)}))
    with pytest.raises(AttributeError):
        QuantisedNetwork(build_model("edge-16"), replace(NOTHING, outputs={"pool_1": (1.0, 0, 9)}))


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("/encoder.0/encoder.0.0/encoder.0.0.0/Conv", "encoder.0.0.0"),
        ("/decoder.0/gate/gate/gate.0/Conv", "decoder.0.gate.gate.0"),
        ("/decoder.0/gate/Mul", "decoder.0.gate"),
        ("/Concat", ""),
    ],
)
def test_name_of_a_node_tells_its_module(node, module):
    assert module_of_node(node) == module


@pytest.mark.parametrize("name", BUILDERS)
def test_folding_changes_no_answer_and_training_mode_no_statistics(name):
    network = with_statistics(BUILDERS[name](), 32)
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        before = network(image)
        fold_norms(network)
        assert torch.allclose(network(image), before, atol=1e-4 * float(before.abs().max()))
        frozen = QuantisedNetwork(network, NOTHING).train()
        state = {key: value.clone() for key, value in frozen.state_dict().items()}
        assert torch.allclose(frozen(image), before, atol=1e-4 * float(before.abs().max()))
    assert all(torch.equal(value, state[key]) for key, value in frozen.state_dict().items())


# --- gradients ------------------------------------------------------------------------------------


class Tiny(Network):
    """One convolution with its norm and ReLU, then a head of ones."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
        self.head = nn.Conv2d(2, 1, 1)
        nn.init.ones_(self.body[0].weight)
        nn.init.ones_(self.head.weight)
        for each in (self.body[0], self.head):
            nn.init.zeros_(each.bias)

    def trace(self, image):
        x = self.body(image)
        return Trace(self.head(x), x, x)


def rounded_tiny():
    network = Tiny().eval()
    fold_norms(network)
    # The image in halves from -1 to 1, what leaves the ReLU in quarters from 0 to 1.
    grids = {"image": (0.5, -2, 2), "outputs": {"body.2": (0.25, 0, 4)}}
    return QuantisedNetwork(network, Quantisation({"body.0": 8}, **grids)).train()


def test_gradient_passes_what_is_rounded_and_stops_where_it_is_clipped():
    image = torch.tensor([[[[0.7, 0.2, 3.0, -0.6]]]], requires_grad=True)
    logits = rounded_tiny()(image)
    assert torch.allclose(logits, torch.tensor([1.0, 0.0, 2.0, 0.0]), atol=1e-5)
    logits.sum().backward()
    # 0.7 passes; 0.2 became 0, which the ReLU stops; 3.0 is clipped; -0.6 the ReLU stops.
    assert torch.allclose(image.grad, torch.tensor([2.0, 0.0, 0.0, 0.0]), atol=1e-5)


def test_weights_and_shifts_learn_and_what_the_folding_left_over_does_not():
    network = rounded_tiny()
    network(torch.full((1, 1, 2, 2), 0.5)).sum().backward()
    learns = {name for name, value in network.named_parameters() if value.grad is not None}
    prefix = "network."
    body = {f"{prefix}body.0.weight", f"{prefix}body.1.bias"}
    assert learns == body | {f"{prefix}head.weight", f"{prefix}head.bias"}


def test_weight_has_its_own_step_for_each_output_channel():
    weight = torch.tensor([[1.0, 0.4], [10.0, 4.0], [0.0, 0.0]]).view(3, 2, 1, 1)
    expected = torch.tensor([[1.0, 1 / 3], [10.0, 10 / 3], [0.0, 0.0]]).view(3, 2, 1, 1)
    assert torch.allclose(round_weight(weight, 3), expected)


# --- a run learns on ------------------------------------------------------------------------------


TOO_NARROW = 1 / 4  # of its range is left to every activation: what the network finds is clipped


def narrowed(amax):
    """Return ranges that ruin INT8, however the network has turned out."""
    return {name: (1 if name == "image" else TOO_NARROW) * value for name, value in amax.items()}


@pytest.fixture(scope="module")
def lesson(run, phantoms):
    """The tiny run, its frames, and a rounding of INT8 that damages it: 3-bit weights, clipped."""
    source = checkpoint_of(run)
    trained = read_run(source.path)
    frames = load_parts(trained, {p: samples_for(source, [phantoms], p) for p in ("train", "val")})
    network = load_trained(source.path)
    master = network.to_onnx()
    images = [f.numpy()[None].astype(np.float32) / 255 for f in frames["train"].images[:6]]
    inputs = [(each - network.contract.mean) / network.contract.std for each in images]
    amax = narrowed(measure_ranges(master, inputs).amax("entropy"))
    rounding = rounding_of(master, amax, unsigned=True, weight_bits=3)
    return trained, frames, quantisation_of(rounding)


def in_int8(checkpoint, quantisation, frames):
    """Return the loss on the train part and the mean Dice on the val part, rounded."""
    network = build_model(checkpoint.model)
    network.load_state_dict(checkpoint.network.state_dict())
    fold_norms(network)
    rounded = QuantisedNetwork(network, quantisation).eval()
    train = frames["train"]
    batch = fit.draw_batch(train, np.arange(len(train.names)), 99, 0, checkpoint.contract)
    with torch.no_grad():
        loss = supervised_loss(rounded(batch.images), batch.truth, ("balanced", "dice")).mean()
    return float(loss), mean_dice(rounded, frames["val"], checkpoint.contract, 8)


def test_training_with_the_rounding_mends_a_damaged_int8(lesson):
    trained, frames, quantisation = lesson
    _, dice_in_float = in_int8(trained.student, NOTHING, frames)
    loss_before, dice_before = in_int8(trained.student, quantisation, frames)
    assert dice_before < 0.5 * dice_in_float, "nothing was damaged"
    tuned = fine_tune_quantised(trained, quantisation, frames, epochs=6)
    loss, dice = in_int8(tuned, quantisation, frames)
    assert loss < loss_before - 0.03
    assert dice > dice_before + 0.5 * dice_in_float
    assert (tuned.model, tuned.contract) == (trained.student.model, trained.student.contract)
    facts = tuned.provenance["qat"]
    rate = RATE * trained.config.learning_rate
    assert (facts["epochs"], facts["seed"], facts["learning_rate"]) == (6, 0, rate)
    assert facts["teachers"] == trained.student.provenance["teachers"]


def few(frames):
    return {part: each.at(np.arange(4)) for part, each in frames.items()}


def test_same_run_gives_the_same_weights(lesson):
    trained, frames, quantisation = lesson
    first, second = (
        fine_tune_quantised(trained, quantisation, few(frames), epochs=1) for _ in range(2)
    )
    assert differing(first, second) == set()
    assert len(differing(first, trained.student)) > 50


def differing(first, second):
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    return {name for name, value in ours.items() if not torch.equal(value, theirs[name])}


def test_run_without_teachers_teaches_itself_and_says_so(lesson):
    trained, frames, quantisation = lesson
    alone = replace(trained, teachers={})
    tuned = fine_tune_quantised(alone, quantisation, few(frames), epochs=1)
    assert tuned.provenance["qat"]["teachers"] == SELF
    taught = fine_tune_quantised(trained, quantisation, few(frames), epochs=1)
    assert differing(tuned, taught)


def test_distillation_whose_adapter_is_gone_is_left_out(lesson):
    trained, frames, quantisation = lesson
    used = {}
    for named in ("fitnet+at", "fitnet"):
        other = replace(trained, config=replace(trained.config, distillation=named))
        tuned = fine_tune_quantised(other, quantisation, few(frames), epochs=1)
        used[named] = tuned.provenance["qat"]["distillation"]
    assert used == {"fitnet+at": "at", "fitnet": "kl"}


# --- which runs -----------------------------------------------------------------------------------


@pytest.fixture
def own_run(run, tmp_path):
    """A run to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("tensorboard", "cache"))
    return folder


def test_teachers_are_found_trained_or_taken_and_all_or_none(own_run):
    student = own_run / "student.safetensors"
    assert set(read_run(student).teachers) == {"benign", "malignant"}
    own = own_run / "teacher-benign.safetensors"
    own.rename(own_run / "taken-teacher-benign.safetensors")
    assert set(read_run(student).teachers) == {"benign", "malignant"}
    (own_run / "taken-teacher-benign.safetensors").unlink()
    assert read_run(student).teachers == {}


def test_teacher_of_another_run_is_refused(own_run):
    shutil.copy(own_run / "teacher-malignant.safetensors", own_run / "teacher-benign.safetensors")
    with pytest.raises(Refused) as caught:
        read_run(own_run / "student.safetensors")
    assert caught.value.code == "E-QAT-TEACHER"


def without_settings(folder):
    (folder / "config.json").unlink()
    return folder / "student.safetensors"


def with_other_settings(folder):
    settings = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**settings, "seed": 7}))
    return folder / "student.safetensors"


def a_teacher(folder):
    return folder / "teacher-benign.safetensors"


@pytest.mark.parametrize("changed", [without_settings, with_other_settings, a_teacher])
def test_checkpoint_that_is_no_student_of_its_run_is_refused(own_run, changed):
    with pytest.raises(InputError) as caught:
        read_run(changed(own_run))
    assert caught.value.code == "E-QAT-SOURCE"


# --- in the pipeline ------------------------------------------------------------------------------

SIZE = 16
CONTRACT = InputContract(SIZE, SIZE, mean=0.5, std=0.25)
FACTS = {
    "epochs": 2,
    "learning_rate": 1e-4,
    "seed": 0,
    "train_images": 9,
    "distillation": "kl",
    "teachers": SELF,
}


def toy_model(gain):
    """a -> ReLU -> b -> ReLU -> c -> ReLU -> head: bright is lesion, whatever the gain.

    What a, b and c write is that many times as large.
    """
    nodes, tensors, source = [], [], "image"
    shapes = {"a": (4, 1), "b": (4, 4), "c": (4, 4), "head": (1, 4)}
    gains, biases = {"a": gain, "head": 1 / gain}, {"a": 2.0 * gain, "head": -3.0}
    for name, (out, into) in shapes.items():
        weight = np.full((out, into, 1, 1), gains.get(name, 1.0) / into, np.float32)
        bias = np.full(out, biases.get(name, 0.0), np.float32)
        tensors.append(numpy_helper.from_array(weight, f"{name}.w"))
        tensors.append(numpy_helper.from_array(bias, f"{name}.b"))
        written = "logits" if name == "head" else f"conv_{name}"
        nodes.append(helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [written], name))
        source = f"relu_{name}"
        if name != "head":
            nodes.append(helper.make_node("Relu", [written], [source], source))
    ends = [
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 1, SIZE, SIZE])]
        for end in ("image", "logits")
    ]
    graph = helper.make_graph(nodes, "toy", *ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()


@dataclass(frozen=True)
class Toy:
    """`toy_model` as what is exported."""

    gain: float = 1.0
    name: str = "toy"
    contract: InputContract = CONTRACT
    sha256: str = "1" * 64
    provenance: dict = field(default_factory=dict)
    quantised = None

    def to_onnx(self):
        return toy_model(self.gain)

    def run(self, image):
        return exact_run(self.to_onnx(), 1)(image)


LOUD = Toy(1000.0)  # fills the ranges that `export_toy` makes too large


def squares(count=6):
    """Bright squares on dark ground."""
    draw = np.random.default_rng(0)
    checks = []
    for index in range(count):
        truth = np.zeros((SIZE, SIZE), bool)
        top, left = draw.integers(0, SIZE - 6, 2)
        truth[top : top + 6, left : left + 6] = True
        frame = np.where(truth, 220, 20) + draw.integers(0, 20, truth.shape)
        checks.append(CheckFrame(frame.astype(np.uint8), truth, f"group {index}"))
    return tuple(checks)


class Trainer:
    """Stands in for the training: keeps what it was asked and gives back a network."""

    def __init__(self, network):
        self.network = network
        self.asked = []

    def __call__(self, rounding, progress):
        self.asked.append(rounding)
        return Retrained(self.network, FACTS)


@pytest.fixture
def export_toy(tmp_path, monkeypatch):
    """Export the toy with the ranges of some tensors 1000 times too large, so that INT8 is zero."""

    def export(tensors, trainer, *, target="arm-cpu", precision="int8", limits=None):
        calibrate = pipeline.calibrate

        def poisoned(*arguments, **options):
            found = calibrate(*arguments, **options)
            amax = {
                method: {n: 1000 * v if n in tensors else v for n, v in ranges.items()}
                for method, ranges in found.amax.items()
            }
            return replace(found, amax=amax)

        monkeypatch.setattr(pipeline, "calibrate", poisoned)
        checks = squares()
        images = CalibrationSet(tuple(each.frame for each in checks), ("2" * 64,), {"source": "x"})
        plan = make_plan(find_target(target), precision, retrains=True)
        frames = Frames(images, checks, "toys", tuple(each.frame for each in checks[:2]))
        exported = export_bundle(
            *(Toy(), plan, tmp_path / "out", frames),
            split=None,
            limits=limits or Limits(),
            retrain=trainer,
        )
        return exported, plan

    return export


RUINED = ("relu_a", "relu_b", "relu_c")  # all fail, and no two with c are within one half


@pytest.mark.parametrize("tensors", [(), ("relu_c",)])
def test_nothing_is_trained_where_int8_or_layers_in_float_pass(export_toy, tensors):
    trainer = Trainer(LOUD)
    exported, plan = export_toy(tensors, trainer)
    assert trainer.asked == []
    assert exported.qat is None
    assert open_bundle(exported.path).manifest.evidence["qat"] is None
    assert "quantisation-aware" not in render_export(exported, plan)
    assert exported.kept_float == (("c",) if tensors else ())


def test_training_comes_after_layers_in_float_and_its_network_ships(export_toy):
    trainer = Trainer(LOUD)
    exported, plan = export_toy(RUINED, trainer)
    (rounding,) = trainer.asked
    assert 0 < len(exported.kept_float) < 3
    rounded = {"a", "b", "c"} - set(exported.kept_float)
    assert rounding.convolutions == dict.fromkeys(rounded, plan.target.weight_bits)
    assert exported.qat == FACTS
    assert open_bundle(exported.path).manifest.evidence["qat"] == FACTS
    assert json.loads(json.dumps(exported.to_dict()))["qat"] == FACTS
    printed = render_export(exported, plan)
    assert "quantisation-aware training: 2 epochs on 9 images" in printed
    assert "taught by itself before INT8" in printed
    graph = onnx.load_model(exported.path / "model.onnx").graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    assert values["a.b"].max() == 2000  # the network that was trained


def test_training_that_does_not_help_is_refused_and_says_that_it_was_tried(export_toy, tmp_path):
    trainer = Trainer(Toy())
    with pytest.raises(Refused, match="after quantisation-aware training") as caught:
        export_toy(RUINED, trainer)
    assert caught.value.code == "E-PARITY"
    assert len(trainer.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_auto_leaves_out_int8_that_training_did_not_mend(export_toy):
    exported, _ = export_toy(RUINED, Trainer(Toy()), target="x86-cpu", precision=AUTO)
    assert "int8" not in {each.precision for each in exported.verdicts}
    assert exported.refused["int8"].startswith("E-PARITY: openvino int8 changes")
    assert exported.qat is None


def test_kit_has_the_trained_weights_in_int8_only_and_no_cache_of_the_others(export_toy):
    exported, _ = export_toy(
        RUINED, Trainer(LOUD), target="orin-nano-8@jp6.2", precision=AUTO, limits=Limits()
    )
    names = {path.name for path in exported.path.iterdir()}
    assert "calib.cache" not in names
    loudest = {}
    for file in sorted(name for name in names if name.endswith(".onnx")):
        graph = onnx.load_model(exported.path / file).graph
        biases = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        loudest[file] = float(max(v.max() for n, v in biases.items() if n.startswith("a.b")))
    assert loudest == {"fp32.onnx": 2.0, "fp16.onnx": 2.0, "qdq-fp16.onnx": 2000.0}
    builds = json.loads((exported.path / "kit.json").read_bytes())["builds"]
    assert builds["int8"]["onnx"] == "qdq-fp16.onnx"


def test_retrained_int8_that_is_the_fastest_says_that_it_was_retrained(export_toy, monkeypatch):
    def int8_is_fastest(forms, hops, *rest, progress):
        return tuple(
            PrecisionTiming(
                form.engine, form.precision, 1.0, 0.5, 0.5, 0.5, 0.0, form.precision == "int8"
            )
            for form in forms
        )

    monkeypatch.setattr(pipeline, "measure_verdicts", int8_is_fastest)
    exported, _ = export_toy(
        RUINED, Trainer(LOUD), target="x86-cpu", precision=AUTO, limits=Limits()
    )
    assert exported.precision == "int8"
    assert exported.qat is not None
    assert open_bundle(exported.path).manifest.evidence["qat"] == dict(exported.qat)


def test_kit_without_training_has_its_cache(export_toy):
    exported, _ = export_toy((), Trainer(LOUD), target="orin-nano-8@jp6.2", precision="int8")
    assert (exported.path / "calib.cache").is_file()


# --- a whole export -------------------------------------------------------------------------------


def test_export_trains_on_the_train_part_only_and_never_reads_the_test_part(
    run, phantoms, tmp_path, monkeypatch
):
    data = shutil.copytree(phantoms, tmp_path / "data")
    entries = read_split(run / "split.json").entries
    of_part = {p: {e.name for e in entries if e.part == p} for p in ("train", "val", "test")}
    source = checkpoint_of(run)
    for sample in samples_for(source, [phantoms], "test"):
        (data / sample.image.relative_to(phantoms)).write_bytes(b"not to be read")
    drawn = []
    draw = fit.draw_batch

    def watched(frames, rows, *arguments):
        drawn.extend(frames.names[row] for row in rows)
        return draw(frames, rows, *arguments)

    def require_training(hop, max_drop):
        """Refuse INT8 until something was trained on, however the network has turned out."""
        if "int8" in hop.name and not drawn:
            raise Refused("E-ACCURACY", "not trained on yet")

    monkeypatch.setattr(pipeline, "require_accuracy", require_training)
    monkeypatch.setattr(fit, "draw_batch", watched)
    monkeypatch.setattr(phantoms_job, "COUNT", 8)
    monkeypatch.setattr(pipeline, "rank_convolutions", lambda *_, **__: ())  # none back to float
    # Training moves more pixels of a network of eight epochs than rounding may.
    monkeypatch.setattr(parity, "MAX_FLIPPED", {**parity.MAX_FLIPPED, "int8": 1.0})
    request = CalibrationRequest([data], images=8)
    plan = make_plan(replace(find_target("arm-cpu"), weight_bits=3), "int8", retrains=True)
    frames, _ = frames_for_export(source, request)
    network = load_trained(source.path)

    def export(retrain):
        return export_bundle(
            *(network, plan, tmp_path / "out", frames),
            split=source.split_file(),
            limits=Limits(1.0, 100.0),
            retrain=retrain,
        )

    with pytest.raises(Refused) as caught:
        export(None)
    assert caught.value.code == "E-ACCURACY"
    exported = export(retraining_of(source, request, 1))
    assert set(drawn) <= of_part["train"]
    assert len(set(drawn)) > len(of_part["train"]) / 2
    assert exported.qat["train_images"] == len(of_part["train"])
    assert exported.qat["teachers"] == load_checkpoint(source.path).provenance["teachers"]
    assert exported.kept_float == ()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "asked", "options"),
    [
        ("x86-cpu", "fp32", {}),
        ("x86-cpu", "fp16", {}),
        ("arm-cpu", AUTO, {}),  # FP32 ships where nothing is measured
        ("agx-orin-64@jp6.2", "int8", {"cache": True}),
        ("agx-orin-64@jp6.2", AUTO, {"dla_core": 0}),
    ],
)
def test_int8_that_would_not_have_the_trained_weights_is_refused(target, asked, options):
    make_plan(find_target(target), asked, **options)
    with pytest.raises(Refused) as caught:
        make_plan(find_target(target), asked, **options, retrains=True)
    assert caught.value.code == "E-TARGET-QAT"


def test_target_without_int8_refuses_training_for_it():
    target = replace(find_target("orin-nano-8@jp6.2"), int8=False)
    with pytest.raises(Refused) as caught:
        make_plan(target, AUTO, retrains=True)
    assert caught.value.code == "E-TARGET-QAT"


def export_with_qat(source, *arguments):
    """Export with --qat; return the exit code and the code of the error."""
    command = ["export", str(source), "--target", "x86-cpu", "--precision", "int8", "--qat", "1"]
    result = CliRunner().invoke(cli, [*command, *map(str, arguments), "-q"])
    assert result.stderr.count("\n") == 1, result.stderr
    return result.exit_code, result.stderr.split(": ")[1]


def test_training_without_the_data_of_the_run_is_refused(run, phantoms, tmp_path):
    out = ("--out", tmp_path / "out")
    assert export_with_qat(run, *out) == (2, "E-QAT-DATA")
    assert export_with_qat(run, "--synthetic-calibration", *out) == (2, "E-QAT-DATA")
    record = tmp_path / "calibration.json"
    calibrated = ("--calib", phantoms, "--ranges", record)
    assert export_with_qat(run, *calibrated, *out) == (2, "E-CALIB-CHOICE")
    assert list(tmp_path.iterdir()) == []


def test_training_of_what_is_no_run_is_refused(run, phantoms, tmp_path, bundle_of):
    calib = ("--calib", phantoms, "--out", tmp_path / "out")
    assert export_with_qat("t2kd-edge", *calib) == (2, "E-QAT-SOURCE")
    assert export_with_qat(bundle_of("x86-cpu", "int8"), *calib) == (2, "E-SOURCE")
    loose = tmp_path / "loose.safetensors"
    loaded = load_checkpoint(run / "student.safetensors")
    save_checkpoint(
        loose, loaded.network, model=loaded.model, contract=loaded.contract, provenance={}
    )
    assert export_with_qat(loose, *calib) == (2, "E-QAT-SOURCE")
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(onnx_from_network(build_model("edge-16"), InputContract(32, 32)))
    assert export_with_qat(foreign, *calib) == (2, "E-QAT-SOURCE")
    assert not (tmp_path / "out").exists()


def test_training_for_what_is_not_quantised_is_refused_by_a_dry_run_too(run):
    command = ["export", str(run), "--target", "x86-cpu", "--precision", "fp16", "--qat", "1"]
    result = CliRunner().invoke(cli, [*command, "--dry-run"])
    assert result.exit_code == 3
    assert result.stderr.startswith("edgeseg: E-TARGET-QAT: ")
