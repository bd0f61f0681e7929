"""Refusals that no other test meets."""

from __future__ import annotations

import shutil

import pytest

from edgeseg.cli.jobs.parts import common_samples
from edgeseg.cli.jobs.sources import BundleSource
from edgeseg.export.device.recipes import UpdateRecipe, recipe_of, write_recipe
from edgeseg.export.device.registry import Address
from edgeseg.export.device.ssh import scan_host_key
from edgeseg.export.pipeline import Limits
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.split import make_split, write_split
from edgeseg.runtime.bundle import SPLIT_FILE, pack_bundle
from edgeseg.runtime.errors import EngineError, InputError
from edgeseg.tests.support.fabricated_bundle import write_bundle


@pytest.mark.parametrize("name", ["max_drop", "max_hd95_rise_px"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_limit_that_is_no_number_is_refused(name, value):
    with pytest.raises(InputError) as caught:
        Limits(**{name: value})
    assert caught.value.code == "E-LIMIT"


def test_updater_that_is_not_known_is_refused_before_anything_is_written(tmp_path):
    recipe = UpdateRecipe(tmp_path, "0" * 64, "orin", "36.4", "1", "true")
    with pytest.raises(InputError) as caught:
        write_recipe(recipe, "nope", tmp_path / "out")
    assert caught.value.code == "E-RECIPE-UPDATER"
    assert not (tmp_path / "out").exists()


def test_recipe_of_a_packed_bundle_is_refused(tmp_path):
    write_bundle(tmp_path / "bundle")
    pack_bundle(tmp_path / "bundle", tmp_path / "b.edgeseg")
    with pytest.raises(InputError) as caught:
        recipe_of(tmp_path / "b.edgeseg", board="orin", l4t="36.4", version=None, selftest="true")
    assert caught.value.code == "E-RECIPE-BUNDLE"


def test_machine_without_ssh_is_told_to_install_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EngineError) as caught:
        scan_host_key(Address("user", "host.invalid", 22))
    assert caught.value.code == "E-DEVICE-SSH"


def test_part_without_an_image_is_refused(phantoms, tmp_path):
    split = make_split(read_dataset(phantoms), fractions=(0.7, 0.3, 0.0))
    write_split(split, tmp_path / SPLIT_FILE)
    sources = [BundleSource(tmp_path)]
    assert common_samples(sources, [phantoms], "val")
    with pytest.raises(InputError) as caught:
        common_samples(sources, [phantoms], "test")
    assert caught.value.code == "E-SPLIT-EMPTY"
