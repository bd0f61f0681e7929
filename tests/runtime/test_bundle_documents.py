"""What a bundle says of itself: the manifest's schema, the bill of materials, the data sheet."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeseg.cli.jobs.sources import find_source
from edgeseg.cli.main import cli
from edgeseg.export.bom import bom_of
from edgeseg.export.datasheet import datasheet_of, render_datasheet
from edgeseg.runtime import bundle as bundle_module
from edgeseg.runtime.bundle import Manifest, open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.engine_files import built_plan
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.tests.support.fabricated_bundle import manifest_fields, write_bundle

ROOT = Path(__file__).parents[2]
SCHEMA, SCHEMA_3 = (
    json.loads((ROOT / f"docs/schema/bundle-{major}.json").read_text()) for major in (2, 3)
)
SECOND = {"channels", "resize", "pad", "classes", "head"}  # fields of contract 2 alone
HASHES = {"model.onnx": "a" * 64, "vectors/frame-0.pgm": "b" * 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "toy")


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


# --- the published schema ------------------------------------------------------------------------


def test_schema_is_a_schema_and_names_every_field_of_the_manifest(jsonschema):
    known = {field.name for field in dataclasses.fields(Manifest)}
    contract = {field.name for field in dataclasses.fields(InputContract)}
    without = known - {"cpu"}  # left out where nothing is needed
    for schema, fields, names in (
        (SCHEMA, contract - SECOND, without),
        (SCHEMA_3, contract, known),
    ):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert set(schema["properties"]) == names
        assert set(schema["required"]) == without
        assert set(schema["properties"]["contract"]["properties"]) == fields


def test_manifest_follows_the_schema(folder, jsonschema):
    jsonschema.validate(manifest_of(folder), SCHEMA)


@pytest.mark.parametrize(
    "second",
    [
        {"channels": "bgr", "mean": (0.1, 0.2, 0.3)},
        {"channels": "grey3", "resize": "letterbox", "pad": 114},
        {"classes": ("benign", "malignant"), "threshold": (0.4, 0.6), "least_area": (0.01, 0.0)},
        {"classes": ("tumour",), "head": "softmax"},
        {"threshold": (0.5,)},
    ],
)
def test_manifest_of_contract_2_is_schema_3_and_no_other(tmp_path, second, jsonschema):
    contract = InputContract(height=64, width=96, **second)
    folder = write_bundle(tmp_path / "toy", contract=contract)
    content = manifest_of(folder)
    assert content["schema"] == "edgeseg.bundle/3.0"
    jsonschema.validate(content, SCHEMA_3)
    assert open_bundle(folder).manifest.contract == contract
    content["schema"] = "edgeseg.bundle/2.0"  # what older readers would take
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
    with pytest.raises(Refused, match=r"E-MANIFEST-FIELD.*bundle/3"):
        Manifest.from_json(json.dumps(content))


@pytest.mark.parametrize("least", [{}, {"least_area": 0.01, "least_peak": 0.7}])
def test_manifest_has_a_least_lesion_only_where_there_is_one(tmp_path, least, jsonschema):
    contract = InputContract(height=64, width=96, **least)
    folder = write_bundle(tmp_path / "toy", contract=contract)
    jsonschema.validate(manifest_of(folder), SCHEMA)
    before = {"height", "width", "mean", "std", "threshold"}
    assert set(manifest_of(folder)["contract"]) == before | set(least)
    assert open_bundle(folder).manifest.contract == contract


@pytest.mark.parametrize(
    "layout",
    [
        {"width": 800, "height": 600, "crop": [0, 0, 800, 600]},
        {
            "width": 800,
            "height": 600,
            "crop": [10, 20, 790, 580],
            "blank": [[0, 0, 9, 9]],
            "fan": [[0, 0], [800, 0], [400, 600]],
        },
    ],
)
def test_manifest_with_a_layout_follows_the_schema(folder, layout, jsonschema):
    jsonschema.validate({**manifest_of(folder), "layout": layout}, SCHEMA)


def test_manifest_that_needs_something_of_the_cpu_follows_the_schema(folder, jsonschema):
    needy = {**manifest_of(folder), "schema": "edgeseg.bundle/3.0", "cpu": ["bf16"]}
    jsonschema.validate(needy, SCHEMA_3)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**needy, "schema": "edgeseg.bundle/2.0"}, SCHEMA)
    for wrong in ("bf16", [1]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**needy, "cpu": wrong}, SCHEMA_3)
    assert Manifest.from_json(json.dumps(needy)).cpu == ("bf16",)


def test_newer_minor_with_a_new_field_follows_the_schema(folder, jsonschema):
    newer = {**manifest_of(folder), "schema": "edgeseg.bundle/2.1", "later": 1}
    jsonschema.validate(newer, SCHEMA)
    Manifest.from_json(json.dumps(newer))


def test_data_sheet_names_the_schema_of_the_bundle_not_of_the_reader(tmp_path):
    folder = write_bundle(tmp_path / "toy", schema="edgeseg.bundle/2.7")
    sheet = datasheet_of(open_bundle(folder))
    assert sheet["schema"] == "edgeseg.bundle/2.7"
    assert "edgeseg.bundle/2.7" in render_datasheet(sheet)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgeseg.bundle/4.0"},
        {"schema": "edgeseg.bundle/2"},
        {"models": {"openvino": "model.xml"}},
        {"models": {"openvino": ["../model.xml"]}},
        {"files": {"a b": "0" * 64}},
        {"files": {"a": "0"}},
        {"contract": {}},
        {"vectors": {"frames": [], "masks": {}, "max_flipped": {"a": 2}}},
        {"layout": {"width": 5}},
        {"precision": "int4"},
    ],
)
def test_what_the_schema_must_refuse_is_refused(folder, change, jsonschema):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest_of(folder), **change}, SCHEMA)


# --- the bill of materials -----------------------------------------------------------------------


def errors_of(bom):
    """Validate against CycloneDX's own schema, which the library carries; return what is wrong."""
    pytest.importorskip(
        "cyclonedx", reason="no cyclonedx-python-lib, which has the schema; make install brings it"
    )
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom)


def without(*path):
    fields = manifest_fields()
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return fields


@pytest.mark.parametrize(
    "fields",
    [
        manifest_fields(),
        without("provenance", "data"),
        without("provenance", "training", "train_images"),
        {**manifest_fields(), "provenance": {**manifest_fields()["provenance"], "training": {}}},
        {
            **manifest_fields(),
            "provenance": {**manifest_fields()["provenance"], "calibration": None},
        },
    ],
    ids=["whole", "no name of the data", "no images", "no training", "no calibration"],
)
def test_bill_follows_cyclonedx(fields):
    assert errors_of(bom_of(fields, HASHES)) is None


def test_bill_that_does_not_follow_is_found():
    assert errors_of(bom_of(manifest_fields(), {"x": "no hash"})) is not None


def test_bill_of_a_bundle_has_every_file_with_its_hash(folder):
    bom = json.loads((folder / "bom.cdx.json").read_text())
    files = {
        each["name"]: each["hashes"][0]["content"]
        for each in bom["components"]
        if each["type"] == "file"
    }
    hashes = dict(open_bundle(folder).manifest.files)
    del hashes["bom.cdx.json"]
    assert files == hashes


def test_bill_names_the_network_the_data_with_their_licence_and_the_tools():
    bom = json.loads(bom_of(manifest_fields(), HASHES))
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "toy")
    assert model["hashes"] == [{"alg": "SHA-256", "content": "c" * 64}]
    refs = [{"ref": "training-data"}, {"ref": "training-data-1"}]
    assert model["modelCard"]["modelParameters"]["datasets"] == refs
    by_ref = {each["bom-ref"]: each for each in bom["components"]}
    assert by_ref["training-data"]["name"] == "BUSI"
    assert by_ref["training-data"]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert by_ref["training-data"]["copyright"] == "someone, 2020, doi 10.1000/1"
    properties = {each["name"]: each["value"] for each in by_ref["training-data"]["properties"]}
    assert (properties["edgeseg:images"], properties["edgeseg:images:normal"]) == ("5", "2")
    other = by_ref["training-data-1"]
    assert other["name"] == "clinic"
    assert "licenses" not in other
    assert "not in the catalogue" in [each["value"] for each in other["properties"]]
    assert by_ref["tool:onnxruntime"]["version"] == "1.32.0"


def test_no_licence_is_claimed_for_data_that_the_provenance_does_not_name():
    bom = json.loads(bom_of(without("provenance", "data"), HASHES))
    (data,) = [each for each in bom["components"] if each["type"] == "data"]
    assert "licenses" not in data


def test_every_reference_of_a_bill_is_there_once():
    bom = json.loads(bom_of(manifest_fields(), HASHES))
    refs = ["model", *(each["bom-ref"] for each in bom["components"])]
    assert len(set(refs)) == len(refs)
    assert {each["ref"] for each in bom["dependencies"]} == set(refs)
    assert set(bom["dependencies"][0]["dependsOn"]) == set(refs) - {"model"}


def test_same_content_gives_the_same_bill_and_another_content_another_number():
    first, again = bom_of(manifest_fields(), HASHES), bom_of(manifest_fields(), HASHES)
    other = bom_of({**manifest_fields(), "name": "other"}, HASHES)
    assert first == again
    numbers = [json.loads(bom)["serialNumber"] for bom in (first, other)]
    assert numbers[0] != numbers[1]
    assert "timestamp" not in first


# --- the data sheet ------------------------------------------------------------------------------


def test_data_sheet_has_what_an_engineer_asks_for(folder):
    text = render_datasheet(datasheet_of(open_bundle(folder)))
    for fact in (
        *("x86-cpu: toy, int8", "resized to 32x16 px", "the whole frame is the image"),
        *(
            "openvino: model.bin (300 bytes)",
            "7 parameters",
            "drop +0.0000 95 % [-0.0010, +0.0010]",
        ),
        *("drop undefined", "1.50 ms a frame", "0.50 of FP32's time [0.45, 0.55]"),
        *(
            "frames: 2",
            "2 benign",
            "1 golden frames",
            "signature    none",
            "BUSI, CC BY 4.0",
            "clinic, not in",
        ),
        open_bundle(folder).manifest.files["model.xml"],
    ):
        assert fact in text, fact
    assert max(map(len, text.splitlines())) < 200


def test_data_sheet_without_evidence_of_latency_or_calibration_says_so(tmp_path):
    fields = manifest_fields()
    folder = write_bundle(
        tmp_path / "toy",
        evidence={**fields["evidence"], "verdicts": []},
        provenance={**fields["provenance"], "calibration": None},
    )
    text = render_datasheet(datasheet_of(open_bundle(folder)))
    assert "not measured by the export" in text
    assert "no precision needs it" in text


@pytest.mark.parametrize("field", ["evidence", "provenance", "complexity"])
@pytest.mark.parametrize("content", [{}, {"parity": 5}, {"parity": [5], "verdicts": [[]]}])
def test_data_sheet_of_a_bundle_that_tells_nothing_is_refused(tmp_path, field, content):
    folder = write_bundle(tmp_path / "toy")
    manifest = manifest_of(folder)
    manifest[field] = content
    bundle = open_bundle(folder)
    bundle = dataclasses.replace(bundle, manifest=Manifest.from_json(json.dumps(manifest)))
    with pytest.raises(Refused) as caught:
        datasheet_of(bundle)
    assert caught.value.code == "E-MANIFEST-FIELD"


def test_data_sheet_shows_what_a_terminal_would_obey(tmp_path):
    folder = write_bundle(tmp_path / "toy", name="\x1b[2Jcleared\r\n")
    text = render_datasheet(datasheet_of(open_bundle(folder)))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "?[2Jcleared??" in text


# --- the commands --------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, ["bundle", *map(str, arguments)])


def test_inspect_prints_the_sheet_or_json(folder):
    assert run("inspect", folder).stdout.startswith("bundle for   x86-cpu: toy, int8\n")
    sheet = json.loads(run("inspect", folder, "--json").stdout)
    assert sheet["engines"]["onnxruntime"] == {"model.onnx": 300}
    assert sheet["signature"] == "none"


def test_inspect_loads_no_engine(folder):
    code = (
        "import sys; from edgeseg.cli.main import cli\n"
        f"try: cli(['bundle', 'inspect', {str(folder)!r}])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'onnx', 'openvino', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_pack_verify_and_unpack_by_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("pack", folder).stdout.startswith("packed: toy.edgeseg")
    assert "signature none" in run("verify", "toy.edgeseg").stdout
    assert run("unpack", "toy.edgeseg").exit_code == 0
    assert open_bundle(tmp_path / "toy").sha256 == open_bundle(folder).sha256
    again = run("unpack", "toy.edgeseg")
    assert (again.exit_code, "E-OUT-EXISTS" in again.stderr) == (2, True)


def test_verify_of_a_damaged_bundle_ends_with_3(tmp_path):
    folder = write_bundle(tmp_path / "toy")
    (folder / "model.bin").write_bytes(b"")
    done = run("verify", folder)
    assert done.exit_code == 3
    assert done.stderr.startswith("edgeseg: E-BUNDLE-HASH")


def test_sign_and_verify_with_keys_of_openssl(tmp_path):
    pytest.importorskip(
        "model_signing", reason="signatures need the extra [sign]; make install brings it"
    )
    folder = write_bundle(tmp_path / "toy")
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    make = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    try:
        subprocess.run([*make, "-out", private], check=True, capture_output=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    except FileNotFoundError:
        pytest.skip("no openssl; apt install openssl")
    assert run("verify", folder, "--key", public).stderr.startswith("edgeseg: E-SIGNATURE-MISSING")
    assert run("sign", folder, "--key", private).exit_code == 0
    assert "signature not verified" in run("verify", folder).stdout
    assert json.loads(run("verify", folder, "--key", public, "--json").stdout)["signature"] == (
        "verified"
    )
    assert "signature    verified\n" in run("inspect", folder, "--key", public).stdout
    assert "signature    there, not verified (no key was given)\n" in run("inspect", folder).stdout


def test_a_bundle_is_unpacked_beside_its_file_where_the_plan_of_a_kit_is_looked_for(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").mkdir()
    assert run("pack", folder, "--out", "away/toy.edgeseg").exit_code == 0
    done = run("unpack", "away/toy.edgeseg")
    assert done.stdout == "unpacked: away/toy\n"
    assert built_plan(open_bundle(tmp_path / "away/toy.edgeseg")) == built_plan(
        open_bundle(tmp_path / "away/toy")
    )


def test_through_a_link_the_plan_of_a_kit_is_looked_for_beside_what_it_points_to(folder, tmp_path):
    release = tmp_path / "release"
    release.mkdir()
    shutil.copytree(folder, release / "kit")
    assert run("pack", folder, "--out", release / "packed.edgeseg").exit_code == 0
    for link, real in (("folder", "kit"), ("file.edgeseg", "packed.edgeseg")):
        (tmp_path / link).symlink_to(release / real)
        plan = built_plan(open_bundle(tmp_path / link))
        assert plan == built_plan(open_bundle(release / real))
        assert plan.parent == release.resolve()
    done = run("unpack", tmp_path / "file.edgeseg")
    assert done.stdout == f"unpacked: {release.resolve() / 'packed'}\n"
    assert built_plan(open_bundle(release / "packed")) == plan


@pytest.mark.parametrize("command", ["pack", "unpack", "verify"])
def test_a_link_to_itself_is_no_bundle(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").symlink_to("toy")
    done = run(command, "toy")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("edgeseg: E-BUNDLE-MISSING")


def test_the_folder_one_is_in_is_unpacked_already(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "is a folder already" in run("unpack", ".").stderr


def test_packing_what_is_packed_names_no_file_twice(folder, tmp_path, monkeypatch):
    (tmp_path / "from").mkdir()
    assert run("pack", folder, "--out", tmp_path / "from/toy.edgeseg").exit_code == 0
    monkeypatch.chdir(tmp_path)
    done = run("pack", "from/toy.edgeseg")
    assert done.stdout.startswith("packed: toy.edgeseg (")


def test_an_error_shows_what_a_terminal_would_obey(tmp_path):
    done = run("inspect", tmp_path / "a\x1b]0;title\x07")
    assert done.exit_code == 2
    assert "a?]0;title?" in done.stderr
    assert all(each.isprintable() for each in done.stderr.rstrip("\n"))


def test_who_takes_no_packed_bundle_names_the_commands_that_do(folder, tmp_path):
    assert run("pack", folder, "--out", tmp_path / "toy.edgeseg").exit_code == 0
    with pytest.raises(InputError, match="`selftest`, `stream`, `device` and `bundle` take"):
        find_source(tmp_path / "toy.edgeseg")


@pytest.mark.parametrize("page", ["docs/on-the-device.md", "docs/session.md"])
def test_no_example_asserts_its_selftest_which_python_o_drops(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "selftest(" in text
    assert "assert session" not in text


def test_an_interrupted_command_promises_no_resume_that_it_does_not_have(folder, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "open_bundle", interrupt)
    done = run("verify", folder)
    assert done.exit_code == 130
    assert done.stderr == (
        "edgeseg: E-INTERRUPTED: stopped; a command that has --resume continues with it\n"
    )
