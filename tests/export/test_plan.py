"""The table of targets, walked, and what an export plans or refuses for each."""

from __future__ import annotations

import ast
import datetime
import json
from pathlib import Path

import pytest

from edgeseg.export import target as target_module
from edgeseg.export.kinds import KINDS
from edgeseg.export.kinds.kind import EngineBuild
from edgeseg.export.plan import AUTO, make_plan, notes_without, render_plan
from edgeseg.export.target import (
    ALIAS,
    PRECISIONS,
    Target,
    default_jetson,
    find_target,
    render_targets,
    targets,
)
from edgeseg.runtime import cpu
from edgeseg.runtime.errors import InputError, Refused

TABLE = json.loads(target_module._FILE.read_text(encoding="utf-8"))
VARIANTS = [
    ("variants", {**each, "name": f"{host['name']}@{each['name']}"})
    for host in TABLE["hosts"]
    for each in host.get("variants", [])
]
ROWS = [(kind, row) for kind in ("hosts", "jetpacks", "modules") for row in TABLE[kind]] + VARIANTS
NAMES = tuple(targets())
KITS = [name for name in NAMES if targets()[name].kind == "tensorrt" and name != "nano@jp4.6"]
WEAK_FP32 = EngineBuild("fp32.onnx", typed=False)
WEAK_FP16 = EngineBuild("fp16.onnx", typed=False, flags=("FP16",))
WEAK_QDQ = EngineBuild("qdq.onnx", typed=False, flags=("FP16", "INT8"))
WEAK_CACHE = EngineBuild("fp32.onnx", typed=False, flags=("FP16", "INT8"), cache="calib.cache")
TYPED_FP32 = EngineBuild("fp32.onnx", typed=True)
TYPED_FP16 = EngineBuild("fp16.onnx", typed=True)
TYPED_QDQ = EngineBuild("qdq-fp16.onnx", typed=True)
WEAK = {"fp32": WEAK_FP32, "fp16": WEAK_FP16, "int8": WEAK_QDQ}
TYPED = {"fp32": TYPED_FP32, "fp16": TYPED_FP16, "int8": TYPED_QDQ}
OLD_CPU, NEW_CPU = "avx2", "avx2 avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"


@pytest.fixture
def cpu_with(monkeypatch, tmp_path):
    """Let this machine be an x86 one whose CPU has these flags only."""

    def pretend(flags):
        file = tmp_path / "cpuinfo"
        file.write_text(f"flags : {flags}\n")
        monkeypatch.setattr(cpu, "CPUINFO", file)
        monkeypatch.setattr(target_module.platform, "machine", lambda: "x86_64")

    return pretend


def refusal(name, asked=AUTO, **options):
    with pytest.raises(Refused) as caught:
        make_plan(find_target(name), asked, **options)
    return caught.value


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "row"), ROWS, ids=[row["name"] for _, row in ROWS])
def test_every_row_has_a_source_and_a_date_that_has_been(kind, row):
    assert row["source"].strip()
    assert datetime.date(2026, 1, 1) <= datetime.date.fromisoformat(row["checked"])


def test_module_and_jetpack_make_a_target_exactly_where_they_share_a_chip():
    expected = {
        f"{module['name']}@{jetpack['name']}"
        for module in TABLE["modules"]
        for jetpack in TABLE["jetpacks"]
        if set(module["socs"]) & set(jetpack["socs"])
    }
    assert {name for name in NAMES if find_target(name).is_jetson} == expected
    assert {name for name in NAMES if "@" in name} - expected == {
        row["name"] for _, row in VARIANTS
    }
    for known in ("orin-nano-8@jp6.2", "agx-orin-64@jp7.2.2", "thor@jp7.0", "xavier-nx@jp5.1"):
        assert known in NAMES
    for impossible in ("xavier-nx@jp6.2", "orin-nano-8@jp7.2.2", "thor@jp6.2", "nano@jp5.1"):
        assert impossible not in NAMES


def test_no_two_rows_share_a_name():
    names = [row["name"] for _, row in ROWS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_every_target_parse(name):
    target = find_target(name)
    assert target.name == name
    assert target.kind in KINDS
    for capability in target.compute_capabilities:
        major, minor = (int(part) for part in capability.split("."))
        assert (5, 3) <= (major, minor) <= (12, 0)
    if target.kind == "tensorrt":
        assert (8, 2, 1) <= target.tensorrt_version <= (11, 4, 1)
        assert target.cuda
        assert target.python
    else:
        with pytest.raises(ValueError, match="has no TensorRT"):
            _ = target.tensorrt_version
    assert set(target.engines) <= set(PRECISIONS)
    assert bool(target.engines) == (target.kind == "cpu")
    assert target.weight_bits in (7, 8)


@pytest.mark.parametrize("kind", ["hosts", "modules"])
def test_row_with_a_key_that_no_target_has_is_refused(monkeypatch, tmp_path, kind):
    table = json.loads(json.dumps(TABLE))
    table[kind][0]["colour"] = "green"
    file = tmp_path / "targets.json"
    file.write_text(json.dumps(table))
    monkeypatch.setattr(target_module, "_FILE", file)
    with pytest.raises(TypeError, match="colour"):
        targets.__wrapped__()


def test_table_of_another_schema_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "targets.json"
    file.write_text(json.dumps({**TABLE, "schema": "edgeseg.targets/2"}))
    monkeypatch.setattr(target_module, "_FILE", file)
    with pytest.raises(ValueError, match=r"edgeseg\.targets/2"):
        targets.__wrapped__()


def test_jetson_is_short_for_a_target_that_exists():
    assert default_jetson() in NAMES
    assert find_target(ALIAS) == find_target(default_jetson())
    assert find_target(ALIAS).kind == "tensorrt"


def test_target_takes_hardware_from_its_module_software_from_its_jetpack_and_the_older_date():
    target = find_target("orin-nx-16@jp6.2")
    assert (target.compute_capabilities, target.memory_gib, target.int8_tops) == (("8.7",), 16, 30)
    assert (target.tensorrt, target.cuda, target.python) == ("10.3.0", "12.6", "3.10")
    assert "Orin NX data sheet" in target.source
    assert "JetPack 6.2" in target.source
    dates = [row["checked"] for _, row in ROWS if row["name"] in ("orin-nx-16", "jp6.2")]
    assert target.checked == min(dates)


@pytest.mark.parametrize(
    ("jetpack", "tensorrt"),
    [
        *(("agx-orin-64@jp5.1", (8, 5, 2)), ("agx-orin-64@jp6.0", (8, 6, 2))),
        *(("agx-orin-64@jp6.1", (10, 3, 0)), ("agx-orin-64@jp6.2", (10, 3, 0))),
        *(("thor@jp7.0", (10, 13, 3)), ("thor@jp7.1", (10, 13, 3))),
        *(("agx-orin-64@jp7.2", (10, 16, 2)), ("agx-orin-64@jp7.2.2", (11, 4, 1))),
    ],
)
def test_tensorrt_of_each_jetpack(jetpack, tensorrt):
    assert find_target(jetpack).tensorrt_version == tensorrt


@pytest.mark.parametrize(
    ("name", "cores"),
    [
        *(("orin-nano-8@jp6.2", 0), ("orin-nx-8@jp6.2", 1), ("orin-nx-16@jp6.2", 2)),
        *(("agx-xavier@jp5.1", 2), ("agx-orin-64@jp6.0", 2), ("thor@jp7.0", 0)),
        *(("agx-orin-64@jp7.2", 0), ("orin-nx-16@jp7.2", 0), ("agx-orin-64@jp7.2.2", 2)),
    ],
)
def test_module_has_its_dla_only_under_a_jetpack_that_drives_it(name, cores):
    assert find_target(name).dla_cores == cores


def test_table_of_targets_names_all_of_them():
    text = render_targets()
    for name in (*NAMES, ALIAS):
        target = find_target(name)
        module, _, jetpack = name.partition("@") if target.is_jetson else (name, "", "")
        starts = (f"{module} ", f"{module}@…")
        (line,) = [line for line in text.splitlines() if line.startswith(starts)]
        assert not jetpack or f"@{jetpack} (TensorRT {target.tensorrt})" in line


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("orin-nano-8", "orin-nano-8@jp6.2"),
        ("orin-nano-8@jp9.9", "orin-nano-8@jp6.0"),
        ("toaster", "x86-cpu, arm-cpu, x86-gpu, rtx, jetson"),
        ("", "x86-cpu"),
    ],
)
def test_unknown_target_is_refused_with_the_near_ones(name, near):
    with pytest.raises(InputError, match=near) as caught:
        find_target(name)
    assert caught.value.code == "E-TARGET-NAME"


def test_module_without_its_jetpack_is_told_its_own_jetpacks_only():
    with pytest.raises(InputError) as caught:
        find_target("xavier-nx@jp6.2")
    assert "xavier-nx@jp5.1" in str(caught.value)
    assert "orin" not in str(caught.value)


# --- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "builds"),
    [
        *(("xavier-nx@jp5.1", WEAK), ("agx-orin-64@jp5.1", WEAK), ("orin-nano-8@jp6.0", WEAK)),
        *(("orin-nano-8@jp6.1", TYPED), ("orin-nano-8@jp6.2", TYPED), ("thor@jp7.0", TYPED)),
        *(("orin-nx-16@jp7.2", TYPED), ("agx-orin-64@jp7.2.2", TYPED), ("x86-gpu", TYPED)),
    ],
)
def test_gpu_network_is_weakly_typed_with_flags_under_tensorrt_8_and_typed_from_10_on(name, builds):
    plan = make_plan(find_target(name))
    assert dict(plan.builds) == builds
    assert (plan.precisions, plan.default, dict(plan.refused)) == (tuple(TYPED), "fp16", {})


@pytest.mark.parametrize("name", KITS)
@pytest.mark.parametrize("options", [{}, {"cache": True}, {"dla_core": 0}])
def test_flags_stand_exactly_on_weakly_typed_networks_and_none_is_weak_from_11_on(name, options):
    try:
        plan = make_plan(find_target(name), **options)
    except Refused:
        assert options
        return
    for precision, build in plan.builds.items():
        assert build.typed == (not build.flags and build != WEAK_FP32)
        assert build.typed or plan.target.tensorrt_version[0] < 11
        assert (build.cache is not None) <= (precision == "int8")
        assert build.onnx == "fp32.onnx" or build.cache is None


@pytest.mark.parametrize("name", ["xavier-nx@jp5.1", "agx-orin-64@jp6.0", "orin-nx-16@jp6.2"])
def test_dla_takes_the_fp32_onnx_weakly_typed_and_int8_from_a_cache(name):
    plan = make_plan(find_target(name), dla_core=1)
    assert plan.precisions == ("fp16", "int8")
    assert dict(plan.builds) == {
        "fp16": EngineBuild("fp32.onnx", typed=False, flags=("FP16",), dla_core=1),
        "int8": EngineBuild(
            "fp32.onnx", typed=False, flags=("FP16", "INT8"), cache="calib.cache", dla_core=1
        ),
    }
    assert "FP16 and INT8 only" in plan.refused["fp32"]


@pytest.mark.parametrize(("name", "others"), [("orin-nano-8@jp6.0", WEAK), ("jetson", TYPED)])
def test_cache_makes_int8_implicit_and_leaves_the_other_precisions_as_they_are(name, others):
    plan = make_plan(find_target(name), cache=True)
    assert dict(plan.builds) == {**others, "int8": WEAK_CACHE}


@pytest.mark.parametrize("asked", TYPED)
def test_one_precision_that_is_asked_for_is_planned_as_among_all(asked):
    target = find_target("jetson")
    plan = make_plan(target, asked)
    assert plan.precisions == (asked,)
    assert plan.builds[asked] == make_plan(target).builds[asked]
    assert plan.default == asked


def test_auto_leaves_out_what_a_target_lacks_and_says_why():
    plan = make_plan(find_target("arm-cpu"))
    assert plan.precisions == ("fp32", "int8")
    assert plan.refused.keys() == {"fp16", "bf16"}
    assert "fp32, int8" in plan.refused["fp16"]
    assert "fp32, int8" in plan.refused["bf16"]
    assert "fp16" in render_plan(plan)


def test_this_machine_has_no_default_since_what_is_measured_decides():
    plan = make_plan(find_target("x86-cpu"))
    assert plan.default is None
    assert dict(plan.builds) == {}


def test_notes_name_as_the_default_what_the_gates_left():
    plan = make_plan(find_target("jetson"))
    assert any("fp16 is the default" in note for note in plan.notes)
    assert notes_without(plan, ()) == plan.notes
    left = notes_without(plan, ["fp16"])
    assert any("fp32 is the default" in note for note in left)
    assert not any("fp16" in note for note in left)


def test_notes_without_a_precision_keep_what_is_said_of_the_dla():
    plan = make_plan(find_target("agx-orin-64@jp6.2"), dla_core=0)
    left = notes_without(plan, ["fp16"])
    assert any("DLA" in note for note in left)
    assert not any("default" in note for note in left)  # INT8 alone is no choice


def test_cpu_elsewhere_keeps_the_widest_precision_until_it_is_measured_there():
    plan = make_plan(find_target("arm-cpu"))
    assert plan.default == "fp32"
    assert any("fp32 is the default" in note for note in plan.notes)
    assert dict(plan.builds) == {}


def test_cache_for_a_precision_without_ranges_is_refused():
    with pytest.raises(Refused) as caught:
        make_plan(find_target("jetson"), "fp16", cache=True)
    assert caught.value.code == "E-TARGET-CACHE"


def test_negative_dla_core_is_refused():
    with pytest.raises(Refused) as caught:
        make_plan(find_target("orin-nx-16@jp6.2"), dla_core=-1)
    assert caught.value.code == "E-TARGET-DLA"


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "options", "code", "fact"),
    [
        ("nano@jp4.6", "int8", {}, "E-TARGET-PRECISION", "5.3"),
        ("nano@jp4.6", "fp16", {}, "E-TARGET-TENSORRT", "8.2.1"),
        ("nano@jp4.6", AUTO, {}, "E-TARGET-TENSORRT", "8.2.1"),
        ("arm-cpu", "fp16", {}, "E-TARGET-PRECISION", "fp32, int8"),
        ("arm-cpu", "bf16", {}, "E-TARGET-PRECISION", "fp32, int8"),
        ("orin-nano-8@jp6.2", "bf16", {}, "E-TARGET-PRECISION", "fp32, fp16, int8"),
        ("rtx", "bf16", {}, "E-TARGET-PRECISION", "fp32, fp16, int8"),
        ("orin-nano-8@jp6.2", "fp16", {"dla_core": 0}, "E-TARGET-DLA", "no DLA"),
        ("orin-nx-8@jp6.2", "fp16", {"dla_core": 1}, "E-TARGET-DLA", "1 DLA cores"),
        ("orin-nx-16@jp6.2", "int8", {"dla_core": 2}, "E-TARGET-DLA", "2 DLA cores"),
        ("agx-orin-64@jp7.2", "fp16", {"dla_core": 0}, "E-TARGET-DLA", "no DLA"),
        ("orin-nx-16@jp7.2", AUTO, {"dla_core": 0}, "E-TARGET-DLA", "no DLA"),
        ("thor@jp7.2", "int8", {"dla_core": 0}, "E-TARGET-DLA", "no DLA"),
        ("agx-orin-64@jp7.2.2", "fp16", {"dla_core": 0}, "E-TARGET-DLA", "11.4.1"),
        ("agx-orin-64@jp7.2.2", "int8", {"cache": True}, "E-TARGET-CACHE", "11.4.1"),
        ("x86-gpu", "int8", {"cache": True}, "E-TARGET-CACHE", "11.4.1"),
        ("x86-gpu", "fp16", {"dla_core": 0}, "E-TARGET-DLA", "no DLA"),
        ("orin-nx-16@jp6.2", "fp32", {"dla_core": 0}, "E-TARGET-PRECISION", "FP16 and INT8"),
        ("x86-cpu", "int8", {"dla_core": 0}, "E-TARGET-DLA", "no DLA"),
        ("x86-cpu", "int8", {"cache": True}, "E-TARGET-CACHE", "Q/DQ only"),
        ("arm-cpu", "int8", {"cache": True}, "E-TARGET-CACHE", "Q/DQ only"),
        ("rtx", "int8", {"dla_core": 0}, "E-TARGET-DLA", "no DLA"),
        ("rtx", "int8", {"cache": True}, "E-TARGET-CACHE", "Q/DQ only"),
    ],
)
def test_what_a_target_cannot_do_is_refused_with_the_fact(name, asked, options, code, fact):
    refused = refusal(name, asked, **options)
    assert refused.code == code
    assert fact in str(refused)
    assert name in str(refused)


# --- the plan as text and as JSON ----------------------------------------------------------------


def every_plan():
    for name in NAMES:
        for options in ({}, {"cache": True}, {"dla_core": 0}):
            try:
                yield make_plan(find_target(name), **options)
            except Refused:
                assert options or name == "nano@jp4.6"


PLANS = tuple(every_plan())


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.target.name)
def test_plan_as_text_names_every_file_engine_and_reason(plan):
    text = render_plan(plan)
    lines = {line.split()[0]: line for line in text.splitlines()}
    for precision in plan.precisions:
        line = lines[precision]
        if plan.target.kind == "tensorrt":
            build = plan.builds[precision]
            half_qdq = build.onnx == "qdq-fp16.onnx"
            assert f"{build.onnx} (opset {19 if half_qdq else 17})" in line
            assert ("strongly" if build.typed else "weakly") in line
            assert (build.cache or "") in line
            assert f"core {build.dla_core}" in line or build.dla_core is None
            assert all(flag in line.partition("flags")[2] for flag in build.flags)
        else:
            engines = plan.target.engines.get(precision, ())
            capabilities = plan.target.compute_capabilities
            names = (*engines, *(f"sm{each.replace('.', '')}" for each in capabilities))
            assert names
            assert all(name in line for name in names)
        assert ("the default" in line) == (precision == plan.default)
    for precision, why in plan.refused.items():
        assert f"{precision}: {why}" in text
    assert plan.target.source in text
    assert plan.target.checked in text


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.target.name)
def test_plan_survives_json(plan):
    content = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert content["target"]["name"] == plan.target.name
    assert tuple(content["precisions"]) == plan.precisions
    assert content["refused"] == dict(plan.refused)
    found = {
        name: EngineBuild(**{**build, "flags": tuple(build["flags"])})
        for name, build in content["builds"].items()
    }
    assert found == dict(plan.builds)


def test_plan_that_needs_no_table_row_can_be_made_of_a_target_in_memory():
    target = Target("board", "tensorrt", "a board", "a test", "2026-01-01", tensorrt="10.0.0")
    assert dict(make_plan(target).builds) == TYPED
    older = Target("board", "tensorrt", "a board", "a test", "2026-01-01", tensorrt="8.5.0")
    assert dict(make_plan(older).builds) == WEAK


@pytest.mark.parametrize(
    ("machine", "here"),
    [("x86_64", ["x86-cpu"]), ("AMD64", ["x86-cpu"]), ("aarch64", ["arm-cpu"]), ("riscv64", [])],
)
def test_cpu_target_runs_here_where_the_machine_is_of_its_architecture(
    machine, here, monkeypatch, cpu_with
):
    cpu_with(OLD_CPU)
    monkeypatch.setattr(target_module.platform, "machine", lambda: machine)
    assert [name for name, target in targets().items() if target.runs_here] == here


@pytest.mark.parametrize(
    ("flags", "here"),
    [
        (OLD_CPU, ["x86-cpu"]),
        ("avx_vnni", ["x86-cpu", "x86-cpu@vnni"]),
        (NEW_CPU, ["x86-cpu", "x86-cpu@vnni", "x86-cpu@amx"]),
    ],
)
def test_variant_of_a_host_runs_here_where_the_cpu_has_what_it_names(cpu_with, flags, here):
    cpu_with(flags)
    assert [name for name, target in targets().items() if target.runs_here] == here


def test_variant_has_what_its_host_has_and_weights_of_8_bits():
    host = find_target("x86-cpu")
    assert (host.weight_bits, host.cpu) == (7, ())
    for name in ("vnni", "amx"):
        variant = find_target(f"x86-cpu@{name}")
        assert (variant.weight_bits, variant.cpu) == (8, (name,))
        assert (variant.kind, variant.engines, variant.machines) == (
            *(host.kind, host.engines, host.machines),
        )


def test_bundle_needs_of_the_cpu_what_its_target_and_its_engines_need():
    assert find_target("x86-cpu").needs("int8") == ()
    assert find_target("x86-cpu").needs("bf16") == ("bf16",)
    assert find_target("x86-cpu@vnni").needs("int8") == ("vnni",)
    assert find_target("x86-cpu@vnni").needs("bf16") == ("vnni", "bf16")
    assert find_target("jetson").needs("int8") == ()
    for target in targets().values():
        assert set(target.cpu) <= set(cpu.FEATURES)


@pytest.mark.parametrize("name", ["x86-cpu", "x86-cpu@vnni", "x86-cpu@amx"])
def test_bf16_is_planned_where_this_cpu_can_prove_it_and_refused_elsewhere(cpu_with, name):
    cpu_with(NEW_CPU)
    plan = make_plan(find_target(name), "bf16")
    assert (plan.precisions, plan.needs_ranges, plan.default) == (("bf16",), False, None)
    assert any("CPUs without" in note and "bf16" in note for note in plan.notes)
    assert make_plan(find_target(name)).precisions == PRECISIONS
    cpu_with(OLD_CPU)
    refused = refusal(name, "bf16")
    assert refused.code == "E-TARGET-PRECISION"
    assert "cannot be proved on this machine" in str(refused)
    left = make_plan(find_target(name))
    assert left.precisions == ("fp32", "fp16", "int8")
    assert left.refused.keys() == {"bf16"}


def test_bf16_of_another_architecture_than_this_machine_is_refused(cpu_with, monkeypatch):
    cpu_with(NEW_CPU)
    monkeypatch.setattr(target_module.platform, "machine", lambda: "aarch64")
    assert refusal("x86-cpu", "bf16").code == "E-TARGET-PRECISION"


def test_what_auto_leaves_out_is_no_matter_where_a_precision_was_asked_for(cpu_with):
    cpu_with(OLD_CPU)
    assert dict(make_plan(find_target("x86-cpu"), "int8").refused) == {}


@pytest.mark.parametrize(
    ("name", "asked", "needs"),
    [
        *(("x86-cpu", "fp32", False), ("x86-cpu", "fp16", False), ("x86-cpu", "int8", True)),
        *(("jetson", "fp32", False), ("jetson", "fp16", True), ("x86-cpu", AUTO, True)),
    ],
)
def test_ranges_are_needed_for_int8_and_for_arithmetic_in_fp16(name, asked, needs):
    assert make_plan(find_target(name), asked).needs_ranges is needs


# --- kinds ---------------------------------------------------------------------------------------


def compares_a_kind(source):
    """The lines in which a target's kind is compared: with ==, in a set, or by match."""
    found = []
    for node in ast.walk(ast.parse(source)):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.subject] if isinstance(node, ast.Match) else []
        sides += [node.slice] if isinstance(node, ast.Subscript) else []
        kinds = (each for each in sides if isinstance(each, ast.Attribute) and each.attr == "kind")
        found += [each.lineno for each in kinds if ast.unparse(each.value).endswith("target")]
    return found


def test_only_the_table_of_kinds_asks_which_kind_a_target_is():
    root = Path(__file__).parents[2]
    found = {
        str(file.relative_to(root)): lines
        for folder in ("export", "cli", "benchmarks", "kd", "runtime")
        for file in sorted((root / folder).rglob("*.py"))
        if (lines := compares_a_kind(file.read_text(encoding="utf-8")))
    }
    assert list(found) == ["export/kinds/__init__.py"]
    assert len(found["export/kinds/__init__.py"]) == 1


@pytest.mark.parametrize(
    "source",
    [
        'if target.kind == "cpu": pass',
        'x = 1 if "rtx" != plan.target.kind else 2',
        'y = recipe.plan.target.kind in ("cpu", "rtx")',
        "z = MAKERS[target.kind]",
        'match target.kind:\n    case "cpu": pass',
    ],
)
def test_comparison_of_a_kind_is_found(source):
    assert compares_a_kind(source) == [1]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_target_and_describes_each_of_its_precisions(name):
    plans = [plan for plan in PLANS if plan.target.kind == name]
    assert plans
    for plan in plans:
        for precision in plan.precisions:
            assert KINDS[name].describe(plan, precision)
