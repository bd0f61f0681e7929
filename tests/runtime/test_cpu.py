"""What a bundle needs of the CPU, and what happens where the CPU does not have it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edgeseg.export.datasheet import datasheet_of, render_datasheet
from edgeseg.runtime import cpu
from edgeseg.runtime.bundle import Manifest, open_bundle
from edgeseg.runtime.cpu import FEATURES, cpu_flags, missing_features, require_features
from edgeseg.runtime.engines import ENGINES, open_engine
from edgeseg.runtime.errors import EngineError, Refused
from edgeseg.runtime.session import open_session
from edgeseg.tests.support.working_bundle import write_working_bundle

HASWELL = "fpu sse4_1 avx avx2 fma"
CASCADE_LAKE = f"{HASWELL} avx512f avx512_vnni"
ALDER_LAKE = f"{HASWELL} avx_vnni"
COOPER_LAKE = f"{CASCADE_LAKE} avx512_bf16"
SAPPHIRE_RAPIDS = f"{COOPER_LAKE} avx_vnni amx_tile amx_int8 amx_bf16"
FRAME = np.zeros((32, 32), np.uint8)


@pytest.fixture
def cpu_with(monkeypatch, tmp_path):
    """Let the CPU have these flags only."""

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def pretend(flags):
        file = tmp_path / "cpuinfo"
        file.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n\nflags : other\n")
        monkeypatch.setattr(cpu, "CPUINFO", file)

    return pretend


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        (HASWELL, set()),
        (CASCADE_LAKE, {"vnni"}),
        (ALDER_LAKE, {"vnni"}),
        (COOPER_LAKE, {"vnni", "bf16"}),
        (SAPPHIRE_RAPIDS, {"vnni", "bf16", "amx"}),
        ("amx_tile amx_bf16", {"bf16"}),
        ("amx_bf16 amx_int8", set()),  # the system does not let processes use the tiles
        ("avx512_vnni_more xavx_vnni", set()),
    ],
)
def test_cpu_has_what_its_flags_say(cpu_with, flags, has):
    cpu_with(flags)
    assert set(FEATURES) - set(missing_features(FEATURES)) == has


@pytest.mark.parametrize(
    ("cap", "has"),
    [
        ("", {"vnni", "bf16", "amx"}),
        ("AVX2", set()),
        ("avx2_vnni", {"vnni"}),
        ("AVX512_CORE_VNNI", {"vnni"}),
        ("AVX512_CORE_BF16", {"vnni", "bf16"}),
        ("AVX512_CORE_AMX", {"vnni", "bf16", "amx"}),
    ],
)
def test_what_kernels_are_kept_from_the_cpu_does_not_have(cpu_with, monkeypatch, cap, has):
    cpu_with(SAPPHIRE_RAPIDS)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert set(FEATURES) - set(missing_features(FEATURES)) == has
    if "amx" not in has:
        with pytest.raises(EngineError, match=f"or ONEDNN_MAX_CPU_ISA={cap} keeps from it"):
            require_features(["amx"], "the bundle")


def test_flags_are_those_of_the_first_cpu(cpu_with):
    cpu_with(ALDER_LAKE)
    assert cpu_flags() == frozenset(ALDER_LAKE.split())


def test_what_is_missing_keeps_its_order_and_nothing_is_missing_of_nothing(cpu_with):
    cpu_with(CASCADE_LAKE)
    assert missing_features(["amx", "vnni", "bf16"]) == ("amx", "bf16")
    assert missing_features(()) == ()
    require_features((), "anything")


def test_system_that_tells_nothing_of_its_cpu_has_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "absent")
    with pytest.raises(EngineError, match="does not tell of the CPU: vnni") as caught:
        require_features(["vnni"], "bundle")
    assert caught.value.code == "E-CPU-FEATURE"
    assert missing_features(FEATURES) == tuple(FEATURES)


@pytest.mark.parametrize("needed", FEATURES)
def test_bundle_that_needs_what_the_cpu_lacks_is_refused_by_name(cpu_with, tmp_path, needed):
    bundle = write_working_bundle(tmp_path / "b", cpu=(needed,))
    cpu_with(SAPPHIRE_RAPIDS)
    assert open_session(bundle).predict(FRAME).shape == FRAME.shape
    cpu_with(HASWELL)
    with pytest.raises(
        EngineError, match=rf"b needs what this CPU does not have: {needed} \("
    ) as no:
        open_session(bundle)
    assert no.value.code == "E-CPU-FEATURE"
    assert no.value.exit_code == 4


def test_bundle_that_needs_something_unknown_is_refused_on_every_cpu(cpu_with, tmp_path):
    cpu_with(SAPPHIRE_RAPIDS)
    bundle = write_working_bundle(tmp_path / "b", cpu=("vnni", "avx99"))
    with pytest.raises(
        EngineError, match="'avx99' of the CPU, which this version does not know"
    ) as no:
        open_session(bundle)
    assert no.value.code == "E-CPU-FEATURE"


def test_bundle_is_verified_and_inspected_on_a_cpu_that_cannot_run_it(cpu_with, tmp_path):
    cpu_with(HASWELL)
    bundle = open_bundle(write_working_bundle(tmp_path / "b", cpu=("vnni",)))
    sheet = datasheet_of(bundle)
    assert sheet["cpu"] == ["vnni"]
    assert "a CPU with vnni" in render_datasheet(sheet)


def test_manifest_of_a_bundle_that_needs_nothing_is_as_before_there_was_the_field(tmp_path):
    plain = open_bundle(write_working_bundle(tmp_path / "plain")).manifest
    needy = open_bundle(write_working_bundle(tmp_path / "needy", cpu=("vnni",))).manifest
    assert "cpu" not in json.loads(plain.to_json())
    assert json.loads(needy.to_json())["cpu"] == ["vnni"]
    assert (plain.schema, needy.schema) == ("edgeseg.bundle/2.0", "edgeseg.bundle/3.0")
    with pytest.raises(Refused, match=r"E-MANIFEST-FIELD.*bundle/3"):
        Manifest.from_json(needy.to_json().replace("bundle/3.0", "bundle/2.0"))
    assert Manifest.from_json(needy.to_json()) == needy


def test_engine_in_bf16_is_refused_on_a_cpu_without_before_its_files_are_read(cpu_with):
    cpu_with(CASCADE_LAKE)
    with pytest.raises(EngineError, match="engine 'openvino-bf16' needs") as caught:
        open_engine("openvino-bf16", {}, 1)
    assert caught.value.code == "E-CPU-FEATURE"
    cpu_with(COOPER_LAKE)
    with pytest.raises(EngineError) as caught:
        open_engine("openvino-bf16", {}, 1)
    assert caught.value.code == "E-ENGINE-LOAD"


def test_engines_need_only_what_is_known():
    for entry in ENGINES.values():
        assert set(entry.cpu) <= set(FEATURES)


def test_looking_at_the_cpu_imports_no_engine():
    code = "import sys, edgeseg.runtime.cpu as c; c.cpu_flags(); print('openvino' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
