"""What takes a path takes it as text too."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

import edgeseg.runtime
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.data.split import make_split, read_split, write_split
from edgeseg.runtime.bundle import open_bundle, pack_bundle, unpack_bundle
from edgeseg.runtime.errors import EdgesegError
from edgeseg.runtime.paths import takes_paths
from edgeseg.runtime.predict import find_images, predict_files
from edgeseg.runtime.session import open_session

MODULES = (  # of the library as its users call it; the others are called by these
    *("runtime.bundle", "runtime.image", "runtime.predict", "runtime.session"),
    *("runtime.stream.sources", "kd.checkpoint", "kd.data.audit", "kd.data.dataset"),
    *("kd.data.phantom", "kd.data.split", "kd.qat", "kd.train", "export.calibration"),
    *(
        "cli.jobs.api",
        "export.foreign",
        "export.inspection",
        "export.pipeline",
        "benchmarks.measure.accuracy",
        "benchmarks.compare",
    ),
    *("benchmarks.report.comparison", "benchmarks.record", "benchmarks.report.files"),
)


def takers(module):
    """The public functions of a module that take a path."""
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and any(
            "Path" in str(text) for key, text in function.__annotations__.items() if key != "return"
        )
    }


@pytest.mark.parametrize("name", MODULES)
def test_every_function_of_the_library_that_takes_a_path_takes_text(name):
    found = takers(importlib.import_module(f"edgeseg.{name}"))
    assert found
    assert [each for each in found if not hasattr(found[each], "__wrapped__")] == []


def test_every_public_function_of_the_runtime_is_in_a_module_that_is_walked():
    functions = [getattr(edgeseg.runtime, name) for name in edgeseg.runtime.__all__]
    homes = {each.__module__ for each in functions if inspect.isfunction(each)}
    with_paths = {home for home in homes if takers(importlib.import_module(home))}
    assert with_paths <= {f"edgeseg.{name}" for name in MODULES}


def outcome(function, *words):
    """The class and the text of the error that a call ends with."""
    with pytest.raises(EdgesegError) as caught:
        function(*words)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("name", ["read_image", "open_bundle", "open_session"])
def test_text_that_names_nothing_is_refused_as_its_path_is(name, tmp_path):
    function = getattr(edgeseg.runtime, name)
    missing = tmp_path / "missing"
    assert outcome(function, str(missing)) == outcome(function, missing)


def test_bundles_and_images_are_named_by_text(bundle_of, phantoms, tmp_path):
    bundle, packed = str(bundle_of("x86-cpu", "fp32")), str(tmp_path / "b.edgeseg")
    pack_bundle(bundle, packed)
    unpack_bundle(packed, str(tmp_path / "b"))
    assert open_bundle(packed).sha256 == open_bundle(bundle).sha256
    found = find_images([str(phantoms / "benign" / "benign (1).png")])
    predict_files(open_session(bundle, key=None), list(found.images), str(tmp_path / "out"))
    assert (tmp_path / "out").is_dir()


def test_data_and_splits_are_named_by_text(tmp_path):
    dataset = write_phantoms(str(tmp_path / "data"), count=4)
    split = make_split(dataset)
    write_split(split, str(tmp_path / "split.json"))
    assert read_split(str(tmp_path / "split.json")) == split


def test_only_what_is_annotated_as_a_path_becomes_one():
    @takes_paths
    def given(path: Path, text: str, *, paths: list[Path] | None = None):
        return path, text, paths

    assert given("a", "b") == (Path("a"), "b", None)
    assert given(text="b", path="a", paths=["c", Path("d")]) == (
        *(Path("a"), "b"),
        [Path("c"), Path("d")],
    )
