"""Typed provenance and proof: same bytes out, and what no export writes is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from edgeseg.runtime.bundle import Bundle, Manifest, open_bundle
from edgeseg.runtime.errors import Refused
from edgeseg.runtime.proof import Hop, Proof, Provenance
from edgeseg.tests.support.fabricated_bundle import manifest_fields, write_bundle


def fields_with(name, **changes):
    return {**manifest_fields()[name], **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"split_sha256": "a" * 64},
        {"trained_on": ["a" * 64, "b" * 64]},
        {"calibration": None},
    ],
)
def test_provenance_is_written_as_it_was_read_byte_for_byte(changes):
    written = Provenance.from_dict(fields_with("provenance", **changes)).to_dict()
    order = ("checkpoint_sha256", "training", "split_sha256", "trained_on", "data")
    expected = fields_with("provenance", **changes)
    names = [each for each in (*order, "calibration", "tools") if each in expected]
    assert json.dumps(written) == json.dumps({name: expected[name] for name in names})


@pytest.mark.parametrize("changes", [{}, {"qat": {"epochs": 2}}, {"contract_forced": True}])
def test_proof_says_what_it_was_read_from(changes):
    content = fields_with("evidence", **changes)
    assert Proof.from_dict(content).to_dict() == content


def test_null_of_a_hop_is_nan_and_null_again():
    content = {**manifest_fields()["evidence"]["parity"][0], "dice": None}
    hop = Hop.from_dict(content)
    assert math.isnan(hop.dice)
    assert hop.to_dict() == content


def test_a_field_of_a_newer_minor_version_is_left_out():
    assert "new" not in Proof.from_dict(fields_with("evidence", new=1)).to_dict()
    assert "new" not in Provenance.from_dict(fields_with("provenance", new=1)).to_dict()


def test_one_data_set_as_bundles_had_it_before_the_list_is_a_list_of_one():
    provenance = Provenance.from_dict(fields_with("provenance", data={"name": "busi"}))
    assert provenance.data == ({"name": "busi"},)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_bundle(tmp_path_factory.mktemp("proof") / "toy"))


def changed(bundle: Bundle, field: str, changes: dict) -> Bundle:
    content = json.loads(bundle.manifest.to_json())
    content[field].update(changes)
    manifest = Manifest.from_json(json.dumps(content))
    return dataclasses.replace(bundle, manifest=manifest)


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": "3"},
        {"frames": True},
        {"max_drop": None},
        {"parity": [{"name": "half a hop"}]},
        {"parity": {}},
        {"achieved": {"form": {"int8": "all"}}},
        {"kept_float": "conv"},
        {"qat": []},
        {"trained_dice": "high"},
    ],
)
def test_a_proof_that_no_export_writes_is_refused(bundle, changes):
    assert bundle.proof().frames == 3
    with pytest.raises(Refused) as caught:
        changed(bundle, "evidence", changes).proof()
    assert caught.value.code == "E-MANIFEST-FIELD"


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_sha256": None},
        {"training": []},
        {"trained_on": "a"},
        {"trained_on": [5]},
        {"data": "busi"},
        {"calibration": "none"},
        {"tools": []},
    ],
)
def test_a_provenance_that_no_export_writes_is_refused(bundle, changes):
    assert bundle.provenance().checkpoint_sha256 == "c" * 64
    with pytest.raises(Refused) as caught:
        changed(bundle, "provenance", changes).provenance()
    assert caught.value.code == "E-MANIFEST-FIELD"
