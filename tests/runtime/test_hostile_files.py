"""Damaged and hostile bundles and checkpoints: a refusal with its code, never a traceback."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgeseg.export.datasheet import datasheet_of, render_datasheet
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.runtime.bundle import (
    MAX_DEPTH,
    MAX_MANIFEST_BYTES,
    MAX_SUMS_BYTES,
    SCHEMA,
    Bundle,
    Manifest,
    open_bundle,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EdgesegError, InputError, Refused
from edgeseg.tests.measure.tampering import tamper
from edgeseg.tests.support.fabricated_bundle import manifest_fields, write_bundle

FUZZ = int(os.environ.get("EDGESEG_FUZZ", "150"))  # manifests of each kind


def code_of(path):
    with pytest.raises(EdgesegError) as caught:
        open_bundle(path)
    return caught.value.code


def reseal(folder):
    """Recompute SHA256SUMS as an attacker would, without the library."""
    files = sorted(path for path in folder.rglob("*") if path.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
        if path.is_file()
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def rewrite_manifest(folder, change):
    """Change the parsed manifest in place, then reseal."""
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    reseal(folder)


# --- bundles whose bytes changed ---------------------------------------------------------------


def test_untouched_bundle_opens(bundle_copy):
    assert open_bundle(bundle_copy).manifest.precision == "int8"


def test_resealed_bundle_opens(bundle_copy):
    rewrite_manifest(bundle_copy, lambda content: None)
    assert open_bundle(bundle_copy).manifest.precision == "int8"


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "vectors/.DS_Store"])
def test_file_that_a_desktop_put_into_a_bundle_is_named_as_one(name, bundle_copy):
    (bundle_copy / name).write_bytes(b"view")
    with pytest.raises(Refused, match=f"{name} .*; delete it") as caught:
        open_bundle(bundle_copy)
    assert caught.value.code == "E-BUNDLE-HASH"


def test_one_changed_byte_anywhere_is_refused(bundle_copy):
    files = sorted(path for path in bundle_copy.rglob("*") if path.is_file())
    models = {"model.onnx", "model.xml", "model.bin"}
    records = {"manifest.json", "SHA256SUMS", "split.json", "calibration.json", "bom.cdx.json"}
    assert {file.name for file in files if file.parent == bundle_copy} == models | records
    assert {file.parent.name for file in files} == {"bundle", "vectors"}
    for file in files:
        whole = file.read_bytes()
        for position in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
            changed = bytearray(whole)
            changed[position] ^= 1
            file.write_bytes(changed)
            assert code_of(bundle_copy) == "E-BUNDLE-HASH", (file, position)
        file.write_bytes(whole)
    open_bundle(bundle_copy)


def test_one_changed_byte_is_refused_wherever_it_is(tmp_path):
    found = tamper(write_bundle(tmp_path / "toy"), 400)
    assert sum(found.values()) >= 400
    assert set(found) == {"E-BUNDLE-HASH"}


def test_cut_or_lengthened_file_is_refused(bundle_copy):
    for file in sorted(path for path in bundle_copy.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for content in (whole[:-1], whole + b"\0", b""):
            file.write_bytes(content)
            assert code_of(bundle_copy) == "E-BUNDLE-HASH", file
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["extra.txt", "deep/extra.txt", ".hidden"])
def test_added_file_is_refused(name, bundle_copy):
    (bundle_copy / name).parent.mkdir(exist_ok=True)
    (bundle_copy / name).write_text("")
    assert code_of(bundle_copy) == "E-BUNDLE-HASH"


def test_added_file_whose_name_is_no_text_is_refused(bundle_copy):
    Path(os.fsdecode(os.fsencode(bundle_copy) + b"/\xff")).touch()
    assert code_of(bundle_copy) == "E-BUNDLE-HASH"


def test_added_file_is_refused_even_when_the_sums_list_it(bundle_copy):
    (bundle_copy / "extra.txt").write_text("")
    reseal(bundle_copy)
    assert code_of(bundle_copy) == "E-MANIFEST-FIELD"


@pytest.mark.parametrize("name", ["model.onnx", "model.bin", "split.json"])
def test_removed_file_is_refused(name, bundle_copy):
    (bundle_copy / name).unlink()
    assert code_of(bundle_copy) == "E-BUNDLE-HASH"
    reseal(bundle_copy)
    assert code_of(bundle_copy) == "E-MANIFEST-FIELD"


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS"])
def test_folder_without_manifest_or_sums_is_no_bundle(name, bundle_copy):
    (bundle_copy / name).unlink()
    assert code_of(bundle_copy) == "E-BUNDLE-MISSING"


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "SHA256SUMS"])
def test_link_to_the_same_bytes_is_refused(name, bundle_copy, tmp_path):
    shutil.move(bundle_copy / name, tmp_path / name)
    (bundle_copy / name).symlink_to(tmp_path / name)
    assert code_of(bundle_copy) == "E-BUNDLE-LINK"


def test_linked_folder_is_refused(bundle_copy, tmp_path):
    (bundle_copy / "more").symlink_to(tmp_path)
    assert code_of(bundle_copy) == "E-BUNDLE-LINK"


@pytest.mark.parametrize(
    ("name", "limit"), [("manifest.json", MAX_MANIFEST_BYTES), ("SHA256SUMS", MAX_SUMS_BYTES)]
)
def test_huge_manifest_or_sums_is_refused_by_its_size(name, limit, bundle_copy):
    with (bundle_copy / name).open("r+b") as file:
        file.truncate(limit + 1)
    assert code_of(bundle_copy) == "E-MANIFEST-SIZE"


def test_model_of_another_bundle_is_refused(bundle_copy, bundle_of):
    shutil.copy(bundle_of("x86-cpu", "fp32") / "model.onnx", bundle_copy / "model.onnx")
    reseal(bundle_copy)  # but the manifest still has the hash of the model it was measured with
    assert code_of(bundle_copy) == "E-BUNDLE-HASH"


# --- manifests that lie, with the right sums -----------------------------------------------------


def change(**fields):
    return lambda content: content.update(fields)


def change_contract(**fields):
    return lambda content: content["contract"].update(fields)


@pytest.mark.parametrize(
    "schema",
    [
        *("edgeseg.bundle/1", "edgeseg.bundle/4.0", "edgeseg.bundle/2", "edgeseg.bundle/2.0.0"),
        *("edgeseg.bundle/2.00", "edgeseg.bundle/2.٠", "edgeseg.bundle/2.0\n", "other", ""),
        *(None, 1, ["edgeseg.bundle/2.0"]),
    ],
)
def test_another_schema_is_refused_by_name(schema, bundle_copy):
    rewrite_manifest(bundle_copy, change(schema=schema))
    assert code_of(bundle_copy) == "E-MANIFEST-NEWER"


def test_newer_major_is_told_with_both_versions_and_what_to_do():
    with pytest.raises(Refused, match=r"'edgeseg\.bundle/4\.1'.*'edgeseg\.bundle/3\.0'; update"):
        Manifest.from_json(json.dumps({**VALID, "schema": "edgeseg.bundle/4.1"}))


def test_newer_minor_is_read_without_what_it_adds():
    newer = Manifest.from_json(json.dumps({**VALID, "schema": "edgeseg.bundle/2.1", "later": [1]}))
    assert replace(newer, schema=SCHEMA) == Manifest.from_json(json.dumps(VALID))
    assert json.loads(newer.to_json()) == {**VALID, "schema": "edgeseg.bundle/2.1"}


def test_newer_minor_is_still_checked_in_what_is_known():
    with pytest.raises(Refused):
        Manifest.from_json(json.dumps({**VALID, "schema": "edgeseg.bundle/2.1", "models": []}))


@pytest.mark.parametrize(
    "text",
    ['{"name": "a", "name": "b"}', '{"contract": {"mean": 1, "mean": 2}}', '{"name": NaN}'],
)
def test_what_two_json_readers_could_read_differently_is_refused(text):
    with pytest.raises(Refused) as caught:
        Manifest.from_json(json.dumps(VALID)[:-1] + ", " + text[1:])
    assert caught.value.code == "E-MANIFEST-FIELD"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "[[1e400]]"])
def test_a_number_beyond_a_double_is_refused_wherever_it_is(number):
    with pytest.raises(Refused) as caught:
        Manifest.from_json(
            json.dumps({**VALID, "evidence": {"x": 0}}).replace(": 0}", f": {number}}}")
        )
    assert caught.value.code == "E-MANIFEST-FIELD"


def nested(depth):
    return json.dumps({**VALID, "evidence": {"x": 0}}).replace(
        ": 0}", ": " + "[" * depth + "]" * depth + "}"
    )


def test_nesting_beyond_what_the_c_runtime_reads_is_refused():
    Manifest.from_json(nested(MAX_DEPTH - 2))  # two objects are around it
    with pytest.raises(Refused, match="nested over 32 deep"):
        Manifest.from_json(nested(MAX_DEPTH - 1))


GOLDEN = {"frames": ["f.pgm"], "masks": {"a": ["m.pgm"]}, "max_flipped": {"a": 0.1}}


def test_golden_vectors_survive_json():
    manifest = Manifest.from_json(json.dumps({**VALID, "vectors": GOLDEN}))
    assert manifest.vectors.files == ("f.pgm", "m.pgm")
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "damage",
    [
        {"frames": "f.pgm"},
        {"frames": []},
        {"frames": ["f.pgm", "g.pgm"]},
        {"masks": {}},
        {"masks": {"b": ["m.pgm"]}},
        {"masks": {"a": [1]}},
        {"masks": []},
        {"max_flipped": {"a": 1.1}},
        {"max_flipped": {"a": -0.1}},
        {"max_flipped": {"a": True}},
        {"max_flipped": {"a": "0.1"}},
        {"max_flipped": {}},
        {"more": 1},
    ],
)
def test_golden_vectors_that_contradict_themselves_are_refused(damage):
    with pytest.raises(Refused) as caught:
        Manifest.from_json(json.dumps({**VALID, "vectors": {**GOLDEN, **damage}}))
    assert caught.value.code == "E-MANIFEST-FIELD"


def test_golden_vector_out_of_the_bundle_is_refused(bundle_copy):
    def damage(content):
        content["vectors"]["frames"][0] = "../frame.pgm"

    rewrite_manifest(bundle_copy, damage)
    assert code_of(bundle_copy) == "E-MANIFEST-FIELD"


@pytest.mark.parametrize(
    "field", ["schema", "name", "target", "precision", "contract", "models", "files"]
)
def test_missing_field_is_refused(field, bundle_copy):
    rewrite_manifest(bundle_copy, lambda content: content.pop(field))
    assert code_of(bundle_copy) == "E-MANIFEST-FIELD"


@pytest.mark.parametrize(
    "damage",
    [
        change(unknown=1),
        change(name=5),
        change(target=None),
        change(precision=["int8"]),
        change(contract=None),
        change(contract=["height", "width", "mean", "std", "threshold"]),
        change_contract(height=100),
        change_contract(height=10**400),
        change_contract(height=float("inf")),
        change_contract(mean=10**400),
        change_contract(mean=float("nan")),
        change_contract(std="0.2"),
        change_contract(extra=1),
        change(models=[]),
        change(models={"openvino": "model.xml"}),
        change(models={"openvino": None}),
        change(models={"openvino": [["model.xml"]]}),
        change(models={"openvino": ["../model.xml"]}),
        change(models={"openvino": ["/etc/passwd"]}),
        change(models={"openvino": ["./model.xml"]}),
        change(models={"onnxruntime": ["SHA256SUMS"]}),
        change(files=[]),
        change(files=["model.bin", "model.onnx", "model.xml", "split.json"]),
        change(files={}),
        lambda content: content["files"].update({"../x": "0" * 64}),
        change(complexity="small"),
        change(provenance=[]),
        change(evidence=0.5),
        change(cpu="vnni"),
        change(cpu=[1]),
        change(cpu={"vnni": 1}),
        change(batch={}),
        change(batch={"min": 1, "max": "4"}),
        change(batch={"min": 1, "max": True}),
        change(batch={"min": 2, "max": 1}),
        change(batch={"min": 0, "max": 1}),
        change(target="\ud800"),
        change(provenance={"\udfff": 1}),
    ],
)
def test_field_of_another_type_or_range_is_refused(damage, bundle_copy):
    rewrite_manifest(bundle_copy, damage)
    assert code_of(bundle_copy) == "E-MANIFEST-FIELD"


def test_path_out_of_the_bundle_is_refused_even_where_the_file_exists(bundle_copy):
    shutil.copy(bundle_copy / "model.onnx", bundle_copy.parent / "x")
    digest = hashlib.sha256((bundle_copy.parent / "x").read_bytes()).hexdigest()

    def damage(content):
        content["models"] = {"onnxruntime": ["../x"]}
        content["files"]["../x"] = digest

    rewrite_manifest(bundle_copy, damage)
    assert code_of(bundle_copy) == "E-MANIFEST-FIELD"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe\xff",
        b'{"schema": "edgeseg.bundle/2.0"}',
        b"[" * 100_000,
        b'{"schema":' * 100_000,
        b"9" * 10_000,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_manifest_that_is_no_json_object_is_refused(content, bundle_copy):
    (bundle_copy / "manifest.json").write_bytes(content)
    reseal(bundle_copy)
    assert code_of(bundle_copy) == "E-MANIFEST-FIELD"


VALID = json.loads(
    Manifest(
        name="attunet-8",
        target="x86-cpu",
        precision="fp32",
        contract=InputContract(),
        models={"onnxruntime": ("model.onnx",)},
        files={"model.onnx": "0" * 64},
    ).to_json()
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def test_valid_manifest_survives_json():
    manifest = Manifest.from_json(json.dumps(VALID))
    assert Manifest.from_json(manifest.to_json()) == manifest


@settings(max_examples=FUZZ, deadline=None, derandomize=True)
@given(field=st.sampled_from([*VALID, *VALID["contract"]]), value=ANY_JSON)
def test_any_value_in_any_field_is_taken_or_refused(field, value):
    content = {**VALID, "contract": dict(VALID["contract"])}
    (content if field in VALID else content["contract"])[field] = value
    try:
        taken = Manifest.from_json(json.dumps(content))
    except Refused:
        return
    assert field != "schema" or value == VALID["schema"]
    assert isinstance(taken.files, dict)


@settings(max_examples=FUZZ, deadline=None, derandomize=True)
@given(text=st.text(max_size=60) | ANY_JSON.map(json.dumps))
def test_any_text_is_refused_as_a_manifest(text):
    with pytest.raises(Refused):
        Manifest.from_json(text)


class OneByte:
    """A store whose every file has one byte."""

    path = Path("bundle")

    def names(self):
        return ()

    def size(self, name):
        return 1


WHOLE = json.loads(Manifest(files={"model.onnx": "0" * 64}, **manifest_fields()).to_json())


def places_in(value, path=()):
    """Yield the path of everything in a JSON value."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places_in(value[key], (*path, key))


@settings(max_examples=FUZZ, deadline=None, derandomize=True)
@given(
    place=st.sampled_from(list(places_in(WHOLE))),
    value=ANY_JSON | st.sampled_from(["\ud800", "inf", "nan", 10**400, {}, []]),
)
def test_the_data_sheet_of_any_manifest_is_printed_or_refused(place, value):
    content = copy.deepcopy(WHOLE)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    text = json.dumps(content).replace("Infinity", "1e999")
    try:
        manifest = Manifest.from_json(text)
        sheet = datasheet_of(Bundle(OneByte(), manifest, "0" * 64))
    except Refused:
        return
    json.dumps(sheet, indent=1, allow_nan=False)
    render_datasheet(sheet).encode()


# --- checkpoints ---------------------------------------------------------------------------------


def checkpoint_code_of(path):
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.fixture(scope="module")
def student(run):
    return run / "student.safetensors"


def metadata_of(path):
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length))["__metadata__"]


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return (open, (self.trace, "w"))


def test_pickled_checkpoint_under_our_name_is_refused_and_never_unpickled(tmp_path):
    trace = tmp_path / "exploded"
    for save in (
        lambda path: torch.save({"weight": torch.zeros(3)}, path),
        lambda path: path.write_bytes(pickle.dumps(Bomb(trace))),
    ):
        save(tmp_path / "student.safetensors")
        assert checkpoint_code_of(tmp_path / "student.safetensors") == "E-CKPT-READ"
    assert not trace.exists()


def test_cut_checkpoint_is_refused(student, tmp_path):
    whole = student.read_bytes()
    path = tmp_path / "student.safetensors"
    for length in (0, 1, 7, 8, 9, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert checkpoint_code_of(path) == "E-CKPT-READ", length


def test_random_bytes_are_refused(tmp_path):
    path = tmp_path / "student.safetensors"
    rng = np.random.default_rng(0)
    for length in (8, 100, 10_000):
        path.write_bytes(rng.bytes(length))
        assert checkpoint_code_of(path) == "E-CKPT-READ"


def test_header_that_claims_to_be_huge_is_refused(tmp_path):
    path = tmp_path / "student.safetensors"
    path.write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")
    assert checkpoint_code_of(path) == "E-CKPT-READ"


def test_missing_checkpoint_is_refused(tmp_path):
    assert checkpoint_code_of(tmp_path / "student.safetensors") == "E-CKPT-READ"


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"schema": "edgeseg.other/1"}])
def test_foreign_safetensors_are_refused(metadata, student, tmp_path):
    save_file(load_file(student), tmp_path / "foreign.safetensors", metadata)
    assert checkpoint_code_of(tmp_path / "foreign.safetensors") == "E-CKPT-SCHEMA"


@pytest.mark.parametrize(
    "damage",
    [
        {"contract": "{}"},
        {"contract": "no json"},
        {"contract": "[" * 10_000},
        {"contract": json.dumps({**InputContract().to_dict(), "mean": 10**400})},
        {"provenance": "no json"},
        {"provenance": "3"},
        {"model": None},
        {"contract": None},
        {"provenance": None},
    ],
)
def test_malformed_metadata_is_refused(damage, student, tmp_path):
    metadata = {**metadata_of(student), **damage}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    save_file(load_file(student), tmp_path / "bad.safetensors", metadata)
    assert checkpoint_code_of(tmp_path / "bad.safetensors") == "E-CKPT-SCHEMA"


def test_unknown_network_is_refused(student, tmp_path):
    metadata = {**metadata_of(student), "model": "attunet-9"}
    save_file(load_file(student), tmp_path / "bad.safetensors", metadata)
    assert checkpoint_code_of(tmp_path / "bad.safetensors") == "E-MODEL-NAME"


@pytest.mark.parametrize("model", ["attunet-16", "resnet50-attunet"])
def test_tensors_of_another_architecture_under_this_name_are_refused(model, student, tmp_path):
    metadata = {**metadata_of(student), "model": model}
    save_file(load_file(student), tmp_path / "bad.safetensors", metadata)
    assert checkpoint_code_of(tmp_path / "bad.safetensors") == "E-CKPT-ARCH"


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_one_wrong_tensor_is_refused(damage, student, tmp_path):
    tensors = load_file(student)
    if damage == "missing":
        del tensors["head.bias"]
    elif damage == "extra":
        tensors["head.extra"] = torch.zeros(1)
    else:
        tensors["head.bias"] = torch.zeros(2)
    save_file(tensors, tmp_path / "bad.safetensors", metadata_of(student))
    assert checkpoint_code_of(tmp_path / "bad.safetensors") == "E-CKPT-ARCH"
