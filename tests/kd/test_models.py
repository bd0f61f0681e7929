"""Every network of the table: its size, its cost, and the figures of the paper."""

from __future__ import annotations

import pytest
import torch

from edgeseg.kd.models import (
    MODELS,
    Norm,
    build_model,
    count_macs,
    count_parameters,
    require_size,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError


def cost_of(name, size=256):
    """Return parameters and multiply-accumulates; on "meta" only shapes are computed."""
    with torch.device("meta"):
        network = build_model(name).eval()
        return count_parameters(network), count_macs(network, InputContract(size, size))


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_the_size_of_the_image(name):
    with torch.device("meta"), torch.inference_mode():
        network = build_model(name).eval()
        assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 64, 64)
        assert network(torch.zeros(2, 1, 64, 96)).shape == (2, 1, 64, 96)


@pytest.mark.parametrize("name", MODELS)
def test_sizes_that_a_network_is_said_to_take_are_those_that_it_takes(name):
    with torch.device("meta"), torch.inference_mode():
        network = build_model(name).eval()
        for height, width in ((16, 64), (32, 64), (48, 64), (64, 48), (96, 32)):
            try:
                taken = network(torch.zeros(1, 1, height, width)).shape == (1, 1, height, width)
            except RuntimeError:
                taken = False
            try:
                require_size(network, name, InputContract(height, width))
                said = True
            except InputError:
                said = False
            assert said == taken, (height, width)


def test_size_that_a_network_does_not_take_is_answered_with_the_nearest():
    network = build_model("edge-16")
    with pytest.raises(
        InputError, match="edge-16 takes multiples of 32 px and not 48x64; "
    ) as caught:
        require_size(network, "edge-16", InputContract(height=64, width=48))
    assert caught.value.code == "E-CONTRACT"
    assert str(caught.value).endswith("the nearest is 32x64")


def test_table_goes_from_the_smallest_to_the_largest():
    sizes = [cost_of(name, 64)[0] for name in MODELS]
    assert sizes[:5] == sorted(sizes[:5])  # Attention U-Nets
    assert sizes[5:9] == sorted(sizes[5:9])  # at a quarter of the resolution
    assert sizes[9:11] == sorted(sizes[9:11])  # ResNets
    assert sizes[11:] == sorted(sizes[11:])  # on EfficientNet-Lite


@pytest.mark.parametrize("name", MODELS)
def test_trace_has_the_logits_of_a_call_and_the_features_around_them(name):
    with torch.device("meta"), torch.inference_mode():
        network = build_model(name).eval()
        trace = network.trace(torch.zeros(2, 1, 64, 96))
    assert trace.logits.shape == (2, 1, 64, 96)
    assert trace.centre.shape[0] == trace.decoder.shape[0] == 2
    assert trace.centre.shape[2] < trace.decoder.shape[2] <= 64
    assert trace.decoder.shape[1] == network.head.in_channels


def test_edge_student_is_smaller_than_the_papers_and_costs_a_seventh():
    parameters, macs = cost_of("edge-32")
    assert parameters == 1_825_882
    assert macs / 1e9 == pytest.approx(0.585, abs=5e-4)


def test_student_has_2_18_million_parameters_and_4_155_gmacs():
    parameters, macs = cost_of("attunet-16")
    assert parameters == 2_184_453
    assert macs / 1e9 == pytest.approx(4.155, abs=5e-4)


def test_student_at_512_costs_four_times_256_the_16_62_gmacs_of_the_paper():
    _, at_256 = cost_of("attunet-16", 256)
    _, at_512 = cost_of("attunet-16", 512)
    assert at_512 == 4 * at_256
    assert at_512 / 1e9 == pytest.approx(16.62, abs=5e-3)


def test_attunet_64_is_the_original_of_34_88_million_parameters():
    assert cost_of("attunet-64")[0] / 1e6 == pytest.approx(34.88, abs=5e-3)


def test_resnet101_teacher_has_106_09_million_parameters_and_51_43_gmacs():
    parameters, macs = cost_of("resnet101-attunet")
    assert parameters / 1e6 == pytest.approx(106.09, abs=5e-3)
    assert macs / 1e9 == pytest.approx(51.43, abs=5e-3)


def test_a_convolution_costs_kernel_times_channels_times_pixels():
    # 3 outputs of 1 input over 3×3 with bias, at 16×16
    convolution = torch.nn.Conv2d(1, 3, 3, padding=1)
    assert count_parameters(convolution) == 3 * 9 + 3
    assert count_macs(convolution, InputContract(16, 16)) == 3 * 9 * 16 * 16


def test_same_seed_gives_the_same_network_and_another_seed_another():
    image = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)

    def logits(seed):
        torch.manual_seed(seed)
        with torch.inference_mode():
            return build_model("attunet-8").eval()(image)

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))


def test_images_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    network = build_model("attunet-8").eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(network(images)[1:], network(images[1:]), atol=1e-6)


def test_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="attunet-8, attunet-16") as caught:
        build_model("attunet-9")
    assert caught.value.code == "E-MODEL-NAME"


@pytest.mark.parametrize("name", ["attunet-8", "edge-16"])
def test_network_trains_on_a_single_image_of_the_least_size(name):
    network = build_model(name).train()
    image = torch.rand(1, 1, network.MULTIPLE, network.MULTIPLE)
    network(image).sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in network.parameters())


def test_single_value_a_channel_is_normalised_as_in_inference():
    norm = Norm(2)
    norm(torch.arange(72.0).reshape(4, 2, 3, 3))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    value = torch.tensor([5.0, -3.0]).reshape(1, 2, 1, 1)
    in_training = norm.train()(value)
    assert torch.equal(in_training, norm.eval()(value))
    assert in_training.abs().min() > 0.1  # the value less its own mean would be 0
    assert all(torch.equal(before[key], norm.state_dict()[key]) for key in before)


def test_several_values_a_channel_are_normalised_as_by_torch():
    images = torch.rand(2, 3, 1, 1)
    ours, theirs = Norm(3), torch.nn.BatchNorm2d(3)
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.running_var, theirs.running_var)
