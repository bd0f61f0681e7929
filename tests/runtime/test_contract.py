"""The input contract: what it takes, what it refuses, and that it survives JSON."""

from __future__ import annotations

import json
import math

import pytest

from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError


def test_contract_survives_json():
    contract = InputContract(height=64, width=96, mean=0.1, std=0.3, threshold=0.25)
    assert InputContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_contract_without_a_least_lesion_is_written_as_before_there_was_one():
    known = {"height", "width", "mean", "std", "threshold"}
    assert set(InputContract().to_dict()) == known
    assert InputContract.from_dict(InputContract().to_dict()) == InputContract()


@pytest.mark.parametrize("least", [{"least_area": 0.01}, {"least_peak": 0.75}])
def test_least_lesion_survives_json(least):
    contract = InputContract(threshold=0.4, **least)
    assert set(contract.to_dict()) - set(InputContract().to_dict()) == set(least)
    assert InputContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_least_lesion_is_told_in_pixels_and_as_a_logit():
    contract = InputContract(64, 32, least_area=0.001, least_peak=0.75)
    assert contract.least_px == 3  # of 2048, 2.048 rounded up
    assert contract.least_logit == pytest.approx(math.log(3))
    assert (InputContract().least_px, InputContract().least_logit) == (0, -math.inf)


def test_logit_threshold_is_0_at_one_half_and_log_3_at_three_quarters():
    assert InputContract(threshold=0.5).logit_threshold == 0
    assert InputContract(threshold=0.75).logit_threshold == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    "values",
    [
        {"height": 100},
        {"width": 0},
        {"width": 4112},
        {"height": 64.0},
        {"std": 0.0},
        {"std": math.nan},
        {"std": 1.001},
        {"std": 58.395},  # of grey levels of 255
        {"mean": math.nan},
        {"mean": -0.001},
        {"mean": 123.675},
        {"std": math.inf},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"threshold": math.nan},
        {"least_area": -0.1},
        {"least_area": 1.0},
        {"least_area": math.nan},
        {"least_peak": 0.5},
        {"least_peak": 0.3},
        {"least_peak": 1.0},
        {"least_peak": -0.2},
        {"least_peak": math.nan},
    ],
)
def test_value_out_of_range_is_refused(values):
    with pytest.raises(InputError) as caught:
        InputContract(**values)
    assert caught.value.code == "E-CONTRACT"


@pytest.mark.parametrize("values", [{"mean": 0, "std": 1}, {"mean": 1, "std": 1 / 255}])
def test_the_ends_of_the_ranges_of_mean_and_std_are_taken(values):
    assert InputContract(**values).mean == values["mean"]


def test_size_that_does_not_fit_is_answered_with_the_next_that_does():
    with pytest.raises(InputError, match="the nearest is 96"):
        InputContract(height=100)


@pytest.mark.parametrize(
    "change",
    [
        {"height": "64"},
        {"height": True},
        {"extra": 1},
        {"mean": None},
        {"mean": [[0.3]]},
        {"mean": ["0.3"]},
        {"height": [64]},
        {"classes": "lesion"},
        {"classes": [1]},
        {"channels": ["rgb"]},
        {"pad": "0"},
        {"least_area": "0"},
        {"least_peak": None},
    ],
)
def test_another_field_or_type_is_refused(change):
    with pytest.raises(InputError) as caught:
        InputContract.from_dict({**InputContract().to_dict(), **change})
    assert caught.value.code == "E-CONTRACT"


def test_missing_field_is_refused():
    values = InputContract().to_dict()
    del values["std"]
    with pytest.raises(InputError) as caught:
        InputContract.from_dict(values)
    assert caught.value.code == "E-CONTRACT"


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.3, 0.3)},
        {"channels": "rgb", "std": (0.2, 0.2)},
        {"classes": ("a", "b"), "threshold": (0.5, 0.5, 0.5)},
        {"classes": ("a", "b"), "threshold": (0.5, 1.0)},
        {"classes": ("a", "b"), "threshold": (0.5, 0.6), "least_peak": 0.55},
        {"classes": ("a", "a")},
        {"classes": ()},
        {"classes": ("background", "lesion")},
        {"classes": ("a\nb",)},
        {"classes": ("a" * 64,)},
        {"classes": tuple(map(str, range(17)))},
        {"channels": "yuv"},
        {"resize": "crop"},
        {"head": "logits"},
        {"pad": 114},
        {"pad": 256, "resize": "letterbox"},
    ],
)
def test_contract_2_out_of_range_is_refused(change):
    with pytest.raises(InputError, match="E-CONTRACT"):
        InputContract(**change)


@pytest.mark.parametrize(
    ("change", "version"),
    [
        ({}, 1),
        ({"least_area": 0.01}, 1),
        ({"channels": "grey3"}, 2),
        ({"mean": (0.3,)}, 2),
        ({"classes": ("tumour",)}, 2),
        ({"resize": "letterbox"}, 2),
        ({"head": "softmax"}, 2),
    ],
)
def test_contract_says_which_version_it_needs_and_is_read_back(change, version):
    contract = InputContract(**change)
    assert contract.version == version
    assert InputContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_one_number_is_that_of_every_channel_and_class():
    contract = InputContract(channels="bgr", classes=("benign", "malignant"), threshold=0.4)
    assert contract.means == (0.33,) * 3
    assert contract.thresholds == (0.4, 0.4)
