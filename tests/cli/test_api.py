"""The Python API: what `import edgeseg` offers does what the commands do."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner

import edgeseg
from edgeseg.benchmarks.record import Settings
from edgeseg.cli.jobs import api
from edgeseg.cli.main import cli
from edgeseg.export.pipeline import Limits
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.runtime.errors import EngineError, InputError
from edgeseg.runtime.progress import quiet

TINY = Settings(modes=(), rounds=3)


def command(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result.stdout


# --- the package ---------------------------------------------------------------------------------


def test_every_function_is_offered_at_the_root_and_importing_it_costs_nothing():
    assert sorted(edgeseg.__all__) == sorted(api.__all__)
    code = (
        "import sys, edgeseg; "
        "print(sorted(set(sys.modules) & {'numpy', 'torch', 'click', 'edgeseg.cli'})); "
        "print(callable(edgeseg.load), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True False"]


@pytest.mark.parametrize(
    "before", ["", "import edgeseg.export.plan", "from edgeseg.export import plan as _"]
)
def test_export_is_the_folder_and_the_function_in_any_order(before):
    code = (
        f"{before}\nimport edgeseg\nfrom edgeseg import export\nimport edgeseg.export.plan as p\n"
    )
    code += "assert callable(edgeseg.export) and export is edgeseg.export and p is export.plan\n"
    code += "export('no-such-source', target='x86-cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError: E-SOURCE: no-such-source" in done.stderr, done.stderr


def test_a_name_that_is_not_offered_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = edgeseg.fit


@pytest.mark.parametrize("name", ["train", "export", "evaluate", "benchmark"])
def test_the_command_calls_the_function_of_its_name(name):
    source = inspect.getsource(cli.commands[name].callback)
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(inspect.cleandoc(source)))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "api"
    }
    assert name in called


def test_defaults_of_export_are_those_of_its_command():
    ours = {
        name: parameter.default
        for name, parameter in inspect.signature(api.export).parameters.items()
    }
    theirs = {
        parameter.name: parameter.default
        for parameter in cli.commands["export"].params
        if isinstance(parameter, click.Option)
    }
    same = ("precision", "calib_images", "method", "max_drop", "max_hd95_rise")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert (ours["max_drop"], ours["max_hd95_rise"], ours["method"]) == (
        Limits().max_drop,
        Limits().max_hd95_rise_px,
        Limits().method,
    )


# --- one network ---------------------------------------------------------------------------------


def test_load_opens_whatever_a_command_takes(run, bundle_of):
    frame = np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)
    bundle = bundle_of("x86-cpu", "fp32")
    masks = [edgeseg.load(str(source), threads=1).predict(frame) for source in (run, bundle)]
    assert masks[0].shape == frame.shape
    assert np.mean(masks[0] != masks[1]) < 0.01
    assert edgeseg.load(bundle, engine="onnxruntime").engine.name == "onnxruntime"


def test_evaluate_finds_what_the_command_prints(bundle_of, phantoms):
    bundle = bundle_of("x86-cpu", "fp32")
    found = edgeseg.evaluate(bundle, phantoms, progress=quiet)
    printed = command("evaluate", bundle, phantoms, "--json", "-q")
    assert json.loads(json.dumps(found.to_dict())) == json.loads(printed)
    assert str(found) + "\n" == command("evaluate", bundle, phantoms, "-q")
    assert found.part == "test"
    assert {score.name for score in found.scores}


# --- training and export -------------------------------------------------------------------------


def test_train_writes_a_run_by_settings_and_refuses_unknown_ones(phantoms, tmp_path):
    settings = {"size": 32, "student": "attunet-8", "teaching": "none", "student_epochs": 1}
    student = edgeseg.train(
        str(phantoms), tmp_path / "run", device="cpu", progress=quiet, batch=8, **settings
    )
    provenance = load_checkpoint(student).provenance
    assert {name: provenance["config"][name] for name in settings} == settings
    with pytest.raises(InputError, match="no setting is called 'epochs'") as caught:
        edgeseg.train(phantoms, tmp_path / "other", epochs=3)
    assert caught.value.code == "E-CONFIG"
    assert not (tmp_path / "other").exists()


def test_plan_is_what_the_dry_run_prints():
    found = edgeseg.plan("jetson", "int8")
    printed = command("export", "--target", "jetson", "--precision", "int8", "--dry-run", "--json")
    assert json.loads(json.dumps(found.to_dict())) == json.loads(printed)


def test_export_returns_the_bundle_with_its_proof(run, phantoms, tmp_path):
    made = edgeseg.export(
        run,
        target="x86-cpu",
        precision="fp32",
        calib=phantoms,
        out=str(tmp_path / "bundle"),
        progress=quiet,
    )
    assert made.bundle.manifest.precision == "fp32"
    assert made.to_dict()["bundle"] == str(tmp_path / "bundle")
    assert "target: x86-cpu" in str(made)
    with pytest.raises(InputError) as caught:
        edgeseg.export(run, target="x86-cpu", calib=phantoms, out=made.path)
    assert caught.value.code == "E-OUT-EXISTS"


# --- benchmark -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(bundle_of, phantoms):
    bundle = bundle_of("x86-cpu", "fp32")
    return edgeseg.benchmark(
        [bundle], phantoms, engines=["onnxruntime", "openvino"], settings=TINY, progress=quiet
    )


def test_benchmark_is_a_record_that_a_notebook_shows(measured, tmp_path):
    assert {row.kind for row in measured.record.rows} == {"onnxruntime", "openvino"}
    shown = measured._repr_html_()
    assert shown.count("<tr>") == 1 + len(measured.record.rows)
    assert all(row.name in shown for row in measured.record.rows)
    assert not re.search(r"<(?!/?(p|table|tr|th|td)>)", shown)
    assert str(measured).count("onnxruntime") >= 1
    written = measured.write(tmp_path / "report.html")
    assert [path.suffix for path in written] == [".html", ".json", ".md", ".csv"]


def test_benchmark_becomes_a_table_where_pandas_is_there(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EngineError, match="pip install pandas"):
        measured.to_frame()
    monkeypatch.undo()
    pytest.importorskip("pandas", reason="no pandas; make install brings it")
    frame = measured.to_frame()
    assert frame["kind"].tolist() == [row.kind for row in measured.record.rows]
    assert frame["macs"].nunique() == 1


def test_a_bar_is_shown_where_nothing_else_is_asked_for(capsys):
    assert list(api._bars([1, 2], "counting")) == [1, 2]
    assert "counting" in capsys.readouterr().err
