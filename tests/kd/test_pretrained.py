"""Encoders with ImageNet weights: wired as in their training, read without running code."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from itertools import pairwise

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import edgeseg.kd.train as training
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.checkpoint import load_checkpoint, read_tensors
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.split import make_split
from edgeseg.kd.encoders import LITE0, LITE2, LiteEncoder, widths_of
from edgeseg.kd.models import MODELS, build_model, count_parameters
from edgeseg.kd.pretrained import kept_weights, read_encoder_weights
from edgeseg.kd.train import train
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EdgesegError
from edgeseg.runtime.files import sha256_of_file

# Blocks as (inputs, outputs, kernel, stride, expansion), from the tables of EfficientNet-Lite.
BLOCKS = {
    "lite0": [
        (32, 16, 3, 1, 1),
        *((16, 24, 3, 2, 6), (24, 24, 3, 1, 6)),
        *((24, 40, 5, 2, 6), (40, 40, 5, 1, 6)),
        *((40, 80, 3, 2, 6), (80, 80, 3, 1, 6), (80, 80, 3, 1, 6)),
        *((80, 112, 5, 1, 6), (112, 112, 5, 1, 6), (112, 112, 5, 1, 6)),
        *((112, 192, 5, 2, 6), (192, 192, 5, 1, 6)),
    ],
    "lite2": [
        (32, 16, 3, 1, 1),
        *((16, 24, 3, 2, 6), *[(24, 24, 3, 1, 6)] * 2),
        *((24, 48, 5, 2, 6), *[(48, 48, 5, 1, 6)] * 2),
        *((48, 88, 3, 2, 6), *[(88, 88, 3, 1, 6)] * 3),
        *((88, 120, 5, 1, 6), *[(120, 120, 5, 1, 6)] * 3),
        *((120, 208, 5, 2, 6), *[(208, 208, 5, 1, 6)] * 4),
    ],
}
F32, BF16 = torch.float32, torch.bfloat16
LITES = {"lite0": LITE0, "lite2": LITE2}
SHORT = TrainConfig(
    size=32,
    student="lite0-attunet",
    teacher="attunet-8",
    teaching="none",
    student_epochs=1,
    batch=8,
)


def made_weights(name, seed=0):
    """Return random weights with the names and shapes of the packages' files."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def convolution(place, *shape):
        spread = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        weights[f"{place}.weight"] = spread * torch.randn(shape, generator=generator)

    def norm(place, channels):
        for value, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -0.5, 0.5),
            ("running_mean", -0.5, 0.5),
            ("running_var", 0.5, 2.0),
        ):
            drawn = torch.rand(channels, generator=generator)
            weights[f"{place}.{value}"] = low + (high - low) * drawn
        weights[f"{place}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for number, (inputs, outputs, kernel, _, expansion) in enumerate(BLOCKS[name]):
        place, inner = f"_blocks.{number}.", inputs * expansion
        if expansion > 1:
            convolution(f"{place}_expand_conv", inner, inputs, 1, 1)
            norm(f"{place}_bn0", inner)
        convolution(f"{place}_depthwise_conv", inner, 1, kernel, kernel)
        norm(f"{place}_bn1", inner)
        convolution(f"{place}_project_conv", outputs, inner, 1, 1)
        norm(f"{place}_bn2", outputs)
    weights["_fc.bias"] = torch.zeros(1000)  # of the classifier, which is not read
    return weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "made.pth"
    torch.save(made_weights("lite0"), path)
    return path


@pytest.fixture(scope="module")
def started(dataset, weights_file, tmp_path_factory):
    """A run whose student starts from made-up weights."""
    out = tmp_path_factory.mktemp("started") / "run"
    split = make_split(dataset)
    return train(dataset, out, SHORT, split=split, encoder_weights=weights_file, device="cpu")


def code_of(call, *arguments, **options):
    with pytest.raises(EdgesegError) as caught:
        call(*arguments, **options)
    return caught.value.code


# --- the network that the weights were trained in ------------------------------------------------


def features_of(weights, name, grey):
    """Return the output of the last block at each resolution, as TensorFlow's network has it.

    But for the grey beyond the image, which is ours.
    """

    def conv(x, place, stride=1, groups=1, beyond_image=0.0):
        weight = weights[f"{place}.weight"]
        kernel = weight.shape[-1]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            beyond = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [beyond // 2, beyond - beyond // 2]
        return F.conv2d(F.pad(x, pads, value=beyond_image), weight, stride=stride, groups=groups)

    def norm(x, place):
        values = [
            weights[f"{place}.{value}"]
            for value in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.batch_norm(x, *values, eps=1e-3)

    x = ((255 * grey - 127) / 128).expand(-1, 3, -1, -1)
    mean_grey = (255 * InputContract.mean - 127) / 128  # what our zero is there
    x = norm(conv(x, "_conv_stem", 2, beyond_image=mean_grey), "_bn0").clamp(0, 6)
    features = [x]
    for number, (inputs, outputs, _, stride, expansion) in enumerate(BLOCKS[name]):
        place, inside = f"_blocks.{number}.", x
        if expansion > 1:
            inside = norm(conv(inside, f"{place}_expand_conv"), f"{place}_bn0").clamp(0, 6)
        inside = conv(inside, f"{place}_depthwise_conv", stride, inputs * expansion)
        inside = norm(inside, f"{place}_bn1").clamp(0, 6)
        inside = norm(conv(inside, f"{place}_project_conv"), f"{place}_bn2")
        x = inside + x if stride == 1 and inputs == outputs else inside
        features = [*features, x] if stride == 2 else [*features[:-1], x]
    return features


@pytest.mark.parametrize("name", LITES)
def test_encoder_computes_what_the_network_on_three_equal_channels_does(name, tmp_path):
    weights = made_weights(name)
    torch.save(weights, tmp_path / "made.pth")
    encoder = LiteEncoder(LITES[name]).eval()
    encoder.load_state_dict(read_encoder_weights(LITES[name], tmp_path / "made.pth").tensors)
    grey = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    contract = InputContract()
    with torch.inference_mode():
        ours = encoder((grey - contract.mean) / contract.std)
        theirs = features_of(weights, name, grey)
    assert len(ours) == len(theirs) == 5
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        assert (mine - expected).abs().max() < 1e-3 * expected.abs().max()  # borders included


@pytest.mark.parametrize("name", ["lite0-attunet", "lite0-edge"])
def test_onnx_of_the_network_computes_the_same_and_pads_inside_its_convolutions(name):
    torch.manual_seed(0)
    network = build_model(name).eval()
    content = onnx_from_network(network, InputContract(64, 64))
    kinds = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert kinds == {"Conv", "Clip", "Relu", "Add", "Resize", "Sigmoid", "Mul", "Concat"}
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"image": image.numpy()})
    with torch.inference_mode():
        ours = network(image).numpy()
    assert abs(ours - theirs).max() < 1e-4 * abs(ours).max()


@pytest.mark.parametrize("name", LITES)
def test_widths_are_those_of_the_features(name):
    with torch.device("meta"):
        features = LiteEncoder(LITES[name])(torch.zeros(1, 1, 64, 64))
    assert widths_of(LITES[name]) == tuple(each.shape[1] for each in features)
    sides = [64, *(each.shape[-1] for each in features)]
    assert all(coarse == fine // 2 for fine, coarse in pairwise(sides))


@pytest.mark.parametrize(
    ("name", "count"), [("lite0-attunet", 1_665_593), ("lite0-edge", 1_650_226)]
)
def test_student_with_a_pretrained_encoder_is_within_the_limit_of_parameters(name, count):
    assert count_parameters(build_model(name)) == count


@pytest.mark.parametrize("name", LITES)
def test_package_has_the_weights_that_are_known_and_they_fit_natural_images(name):
    lite = LITES[name]
    if importlib.util.find_spec(lite.package) is None:
        pytest.skip(f"{lite.package} is not here; make install brings it")
    weights = read_encoder_weights(lite)
    assert weights.facts["sha256"] == lite.sha256
    assert weights.facts["licence"] == "Apache-2.0"
    encoder = LiteEncoder(lite).eval()
    encoder.load_state_dict(weights.tensors)
    assert likeness_to_training(encoder) > 0.75
    with torch.no_grad():  # a network wired otherwise does not meet the statistics of its training
        for module in encoder.modules():
            if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
                module.weight.copy_(module.weight.flip(0))
    assert likeness_to_training(encoder) < 0.5


def likeness_to_training(encoder):
    """Return how the channels' means before batch norms correlate with those of the training.

    Of grey images with the spectrum of photographs; the median over the batch norms.
    """
    frequency = torch.fft.fftfreq(128)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp_min(1 / 128)
    noise = torch.randn(4, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    image = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    image = (0.45 + 0.22 * (image - image.mean()) / image.std()).clamp(0, 1)
    found = []

    def compare(norm, given):
        both = torch.stack([given[0].mean(dim=(0, 2, 3)), norm.running_mean])
        found.append(torch.corrcoef(both)[0, 1])

    hooks = [
        module.register_forward_pre_hook(compare)
        for module in encoder.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    contract = InputContract()
    with torch.inference_mode():
        encoder((image - contract.mean) / contract.std)
    for hook in hooks:
        hook.remove()
    return torch.stack(found).median()


# --- what is read, and what is refused -----------------------------------------------------------


def test_safetensors_and_pickled_weights_are_read_alike(weights_file, tmp_path):
    save_file(made_weights("lite0"), tmp_path / "made.safetensors")
    one = read_encoder_weights(LITE0, weights_file)
    other = read_encoder_weights(LITE0, tmp_path / "made.safetensors")
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert one.facts["sha256"] == sha256_of_file(weights_file)
    assert one.facts["name"] == "made.pth"  # without its folder
    assert other.facts["sha256"] != one.facts["sha256"]


def test_copy_that_is_kept_is_the_same(weights_file, tmp_path):
    weights = read_encoder_weights(LITE0, weights_file)
    weights.keep(tmp_path / "kept.safetensors")
    kept = kept_weights(tmp_path / "kept.safetensors")
    assert kept.facts == weights.facts
    assert all(torch.equal(kept.tensors[name], weights.tensors[name]) for name in weights.tensors)


def test_weights_without_their_package_are_refused():
    lite = replace(LITE0, package="edgeseg_has_no_such_package")
    assert code_of(read_encoder_weights, lite) == "E-EXTRA-MISSING"


@pytest.mark.parametrize("content", [b"other weights", None])
def test_package_with_another_file_is_refused(content, tmp_path, monkeypatch):
    (tmp_path / "made_package").mkdir()
    (tmp_path / "made_package" / "__init__.py").write_text("raise SystemExit('was run')")
    if content is not None:
        (tmp_path / "made_package" / "made.pth").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    lite = replace(LITE0, package="made_package", file="made.pth")
    assert code_of(read_encoder_weights, lite) == "E-ENCODER-HASH"


def without(name):
    return lambda weights: weights.pop(name)


def changed(name, value):
    return lambda weights: weights.update({name: value})


@pytest.mark.parametrize(
    "damage",
    [
        without("_blocks.12._project_conv.weight"),
        changed("_conv_stem.weight", torch.zeros(32, 1, 3, 3)),  # of a grey network
        changed("_blocks.3._depthwise_conv.weight", torch.zeros(144, 1, 3, 3)),
        changed("_bn0.bias", "text"),
        changed("_bn0.bias", torch.full((32,), float("nan"))),
        lambda weights: weights.update(made_weights("lite2")),
    ],
)
def test_weights_of_another_network_are_refused(damage, tmp_path):
    weights = made_weights("lite0")
    damage(weights)
    torch.save(weights, tmp_path / "made.pth")
    assert code_of(read_encoder_weights, LITE0, tmp_path / "made.pth") == "E-ENCODER-SHAPE"


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('was run')",)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", Bomb(), [1, 2]])
def test_file_that_holds_no_plain_weights_is_refused_and_no_code_of_it_is_run(content, tmp_path):
    path = tmp_path / "made.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert code_of(read_encoder_weights, LITE0, path) == "E-ENCODER-READ"


def test_file_that_is_not_there_is_refused(tmp_path):
    assert code_of(read_encoder_weights, LITE0, tmp_path / "made.pth") == "E-ENCODER-READ"


# --- runs ----------------------------------------------------------------------------------------


def test_student_starts_from_the_weights_and_tells_where_they_are_from(started, weights_file):
    checkpoint = load_checkpoint(started)
    assert checkpoint.provenance["encoder_weights"] == {
        "name": "made.pth",
        "sha256": sha256_of_file(weights_file),
        "licence": "not stated",
        "source": "a file of the user",
    }
    given = read_encoder_weights(LITE0, weights_file).tensors
    ours = checkpoint.network.encoder.state_dict()
    for name in ("stem.1.weight", "stages.5.1.project.0.weight"):
        moved = (ours[name] - given[name]).norm() / given[name].norm()
        assert 0 < moved < 0.3, name


def test_start_draws_the_decoder_by_its_seed_and_takes_the_encoder(weights_file):
    weights = read_encoder_weights(LITE0, weights_file)
    one, again, other = (weights.start("lite0-attunet", seed) for seed in (1, 1, 2))
    for name in one:
        assert torch.equal(one[name], again[name])
    assert not torch.equal(one["decoder.0.up.0.0.weight"], other["decoder.0.up.0.0.weight"])
    assert torch.equal(one["encoder.stem.1.weight"], weights.tensors["stem.1.weight"])


def test_run_is_resumed_without_the_file_and_ends_with_the_same_weights(
    dataset, started, tmp_path, monkeypatch
):
    copy = shutil.copytree(started.parent, tmp_path / "run")
    (copy / "student.safetensors").unlink()
    monkeypatch.setattr(training, "read_encoder_weights", None)  # not asked again
    train(dataset, copy, SHORT, resume=True, device="cpu")
    ours, theirs = (read_tensors(path) for path in (copy / started.name, started))
    assert ours[1] == theirs[1]
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])


def test_resumed_run_with_a_file_is_refused(dataset, started, weights_file):
    out = started.parent
    options = {"resume": True, "encoder_weights": weights_file, "device": "cpu"}
    assert code_of(train, dataset, out, SHORT, **options) == "E-RUN-CONFIG"


def test_only_the_teachers_tell_of_the_weights_that_only_they_start_from(
    dataset, weights_file, tmp_path
):
    config = replace(
        SHORT,
        student="attunet-8",
        teacher="lite0-attunet",
        teaching="routed",
        general_epochs=1,
        teacher_epochs=1,
    )
    student = train(dataset, tmp_path / "run", config, encoder_weights=weights_file, device="cpu")
    for stage in ("general", "benign", "malignant"):
        teacher = load_checkpoint(tmp_path / "run" / f"teacher-{stage}.safetensors")
        assert teacher.provenance["encoder_weights"]["sha256"] == sha256_of_file(weights_file)
    assert "encoder_weights" not in load_checkpoint(student).provenance
    # A second student needs no weights, as it trains no such network.
    split = training.read_split(tmp_path / "run" / "split.json")
    second = train(
        dataset, tmp_path / "second", config, split=split, teachers=tmp_path / "run", device="cpu"
    )
    assert not list(second.parent.glob("taken-encoder*"))


def test_run_without_the_package_is_refused_and_nothing_is_written(dataset, tmp_path, monkeypatch):
    lite = replace(LITE0, package="edgeseg_has_no_such_package")
    monkeypatch.setattr(training, "_lite_of", lambda model: lite if "lite" in model else None)
    assert code_of(train, dataset, tmp_path / "run", SHORT, device="cpu") == "E-EXTRA-MISSING"
    assert not (tmp_path / "run").exists()


def test_run_that_asks_for_random_weights_needs_no_package_and_tells_of_none(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "read_encoder_weights", None)
    student = train(dataset, tmp_path / "run", replace(SHORT, encoder="random"), device="cpu")
    assert "encoder_weights" not in load_checkpoint(student).provenance


@pytest.mark.parametrize("changes", [{"student": "attunet-8"}, {"encoder": "random"}])
def test_file_that_no_network_would_start_from_is_refused(changes, dataset, weights_file, tmp_path):
    config = replace(SHORT, **changes)
    options = {"encoder_weights": weights_file, "device": "cpu"}
    assert code_of(train, dataset, tmp_path / "run", config, **options) == "E-CONFIG"


def test_unknown_start_of_encoders_is_refused():
    assert code_of(replace, SHORT, encoder="lite0.pth") == "E-CONFIG"


def test_table_names_a_lite_encoder_for_its_networks_and_for_no_other():
    assert {name for name in MODELS if training._lite_of(name)} == {
        "lite0-attunet",
        "lite0-edge",
        "lite2-attunet",
    }


@pytest.mark.parametrize(("kernel", "stride", "dtype"), [(5, 1, F32), (3, 2, F32), (3, 1, BF16)])
def test_a_depthwise_convolution_is_trained_in_what_is_fast_on_a_cpu(kernel, stride, dtype):
    layer = LiteEncoder(LITE0).stages[2 if kernel == 5 else 1][stride == 1].depthwise[1]
    assert (layer.kernel_size[0], layer.stride[0]) == (kernel, stride)
    channels = layer.in_channels
    x = torch.randn(2, channels, 9, 9, dtype=BF16, requires_grad=True)
    with torch.autocast("cpu", BF16):
        trained = layer(x)
        answered = layer.eval()(x)
    assert (trained.dtype, answered.dtype) == (dtype, BF16)
    trained.sum().backward()
    plain = F.conv2d(x.detach().float(), layer.weight, None, stride, groups=channels)
    assert torch.allclose(trained.float(), plain, atol=1e-5 if dtype == F32 else 0.05)
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert layer.train().double()(x.detach().double()).dtype == torch.float64
