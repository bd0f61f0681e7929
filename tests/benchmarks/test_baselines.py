"""The networks of the literature: as large as published, sound in ONNX, quantisable."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgeseg.benchmarks.baselines import BASELINES, build_baseline
from edgeseg.benchmarks.baselines.unext import Shift
from edgeseg.benchmarks.measure.complexity import count_complexity
from edgeseg.export.parity import exact_run
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.models import count_macs, count_parameters
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError


def macs_of(network: torch.nn.Module, *, attention: bool) -> int:
    """Multiply-accumulates of a 256×256 image, with or without products of two activations."""
    with FlopCounterMode(display=False) as counter:  # on "meta": shapes only
        network.to("meta")(torch.zeros(1, 3, 256, 256, device="meta"))
    by_operator = counter.get_flop_counts()["Global"]
    products = sum(flops for name, flops in by_operator.items() if "bmm" in str(name))
    return (sum(by_operator.values()) - (0 if attention else products)) // 2


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_has_the_parameters_of_its_paper(name):
    published = BASELINES[name].parameters
    ours = count_parameters(build_baseline(name, 256, 256, channels=3)) / 1e6
    assert ours == pytest.approx(published, abs=0.005)  # the last printed digit


@pytest.mark.parametrize(
    ("name", "ours"), [("unext", 0.562), ("cmunext-s", 1.012), ("mobile-uvit", 2.416)]
)
def test_baseline_has_the_macs_of_its_paper_to_8_percent(name, ours):
    # Counters differ in norms, activations and upsampling, and that of Mobile U-ViT's paper seems
    # to leave out the products inside attention.
    network = build_baseline(name, 256, 256, channels=3)
    gmacs = macs_of(network, attention=False) / 1e9
    assert gmacs == pytest.approx(ours, abs=0.001)
    assert gmacs == pytest.approx(BASELINES[name].gmacs, rel=0.08)


def test_attention_costs_mobile_uvit_a_quarter_more_than_its_paper_counts():
    network = build_baseline("mobile-uvit", 256, 256, channels=3)
    assert macs_of(network, attention=True) / 1e9 == pytest.approx(3.246, abs=0.001)
    for name in ("unext", "cmunext-s"):
        network = build_baseline(name, 256, 256, channels=3)
        assert macs_of(network, attention=True) == macs_of(network, attention=False)


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_gives_one_logit_a_pixel_and_the_same_in_onnx(name):
    contract = InputContract(height=64, width=96)
    network = build_baseline(name, 64, 96)
    model = onnx_from_network(network, contract)
    image = np.random.default_rng(0).normal(size=(1, 1, 64, 96)).astype(np.float32)
    with torch.inference_mode():
        logits = network(torch.from_numpy(image)).numpy()
    assert logits.shape == (1, 1, 64, 96)
    assert np.ptp(logits) > 1e-3
    np.testing.assert_allclose(exact_run(model, 1)(image), logits, atol=1e-4)
    assert onnx.load_model_from_string(model).opset_import[0].version == 17


@pytest.mark.parametrize("name", BASELINES)
def test_onnx_of_a_baseline_counts_what_torch_counts(name):
    contract = InputContract(height=64, width=64)
    network = build_baseline(name, 64, 64)
    counted = count_complexity(onnx_from_network(network, contract))
    assert counted.macs == count_macs(network, contract)
    # Batch norms that follow a convolution are folded into it.
    assert counted.parameters == pytest.approx(count_parameters(network), rel=0.01)


def test_weights_of_a_baseline_are_the_same_each_time_and_draw_nothing_from_the_users_generator():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = (build_baseline("unext", 64, 64).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("name", "size"), [("unext", 48), ("cmunext-s", 40), ("mobile-uvit", 8)])
def test_size_that_the_levels_do_not_divide_is_refused(name, size):
    with pytest.raises(InputError) as caught:
        build_baseline(name, 96, size)
    assert caught.value.code == "E-RIVAL-SIZE"


def test_shift_moves_groups_of_channels_apart_and_brings_zeros_in():
    x = torch.arange(1.0, 6.0).reshape(1, 1, 1, 5).repeat(1, 5, 1, 1)  # five channels 1 2 3 4 5
    moved = Shift(5, dim=3)(x)[0, :, 0].tolist()
    assert moved == [
        [3, 4, 5, 0, 0],
        [2, 3, 4, 5, 0],
        [1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4],
        [0, 0, 1, 2, 3],
    ]
    upright = Shift(5, dim=2)(x.transpose(2, 3))
    assert torch.equal(upright, Shift(5, dim=3)(x).transpose(2, 3))
