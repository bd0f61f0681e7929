"""What a user would pick instead: made once, opened again by a child, and honest about INT8."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeseg.benchmarks.baselines import BASELINES
from edgeseg.benchmarks.measure.process import report_probe
from edgeseg.cli.jobs.rivals import (
    _NETWORKS,
    RIVALS,
    _advice_left_out,
    open_rival,
    rival_candidates,
    rivals_named,
)
from edgeseg.export.parity import exact_run
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.kd.engine import TorchEngine
from edgeseg.runtime.cpu import missing_features
from edgeseg.runtime.errors import EngineError, InputError
from edgeseg.runtime.session import Session
from edgeseg.tests.support.instruction_sets import capped_below_avx512

pytestmark = pytest.mark.numbers

FRAME = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
# Largest difference of a logit by what a rival computes in, as a share of the largest logit: some
# thirty layers of the half formats add up to no more than sixteen of their roundings.
CLOSE = {"f32": 1e-4, "f16": 16 * 2**-11, "bf16": 16 * 2**-8}
OWN = [name for name, rival in RIVALS.items() if rival.trained and name != "torch-compile"]


@pytest.fixture(scope="module")
def checkpoint(run):
    return run / "student.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _default_of_a_capped_openvino():
    """Give OpenVINO the float type of the CPU that ONEDNN_MAX_CPU_ISA makes of this one.

    It asks the CPU itself, and so would ask for bfloat16 kernels that the cap has left out.
    """
    import openvino as ov

    real = ov.Core.compile_model

    def compiled(core, model, device, config=None):
        return real(core, model, device, {"INFERENCE_PRECISION_HINT": "f32", **(config or {})})

    with pytest.MonkeyPatch.context() as patch:
        if capped_below_avx512():
            patch.setattr(ov.Core, "compile_model", compiled)
        yield


@pytest.fixture(scope="module")
def candidates(checkpoint, tmp_path_factory):
    """The user's own network in every way, and one of the literature; compiling takes too long."""
    names = [*OWN, "unext"]
    return rival_candidates(
        checkpoint, names, 1, tmp_path_factory.mktemp("rivals"), frames=[FRAME] * 3
    )


def by_name(candidates, end: str):
    (found,) = (each for each in candidates if each.name.endswith(end))
    return found


def test_table_has_every_network_of_the_literature_in_both_engines_and_precisions():
    assert set(_NETWORKS) == set(BASELINES)
    for network in BASELINES:
        variants = [RIVALS[name] for name in rivals_named([network])]
        assert len({(each.engine, each.precision) for each in variants}) == len(variants) == 4
        assert not any(each.trained for each in variants)


def test_short_name_stands_for_all_its_variants_and_each_comes_once():
    names = ("torch-compile", "unext/openvino-int8")
    assert rivals_named(names[::-1]) == names
    assert len(rivals_named(["unext", "unext/openvino-int8", "unext"])) == 4
    assert rivals_named([]) == ()


@pytest.mark.parametrize("name", ["", "unet", "unext/", "unext/torch-fp32"])
def test_unknown_rival_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="cmunext-s, mobile-uvit") as caught:
        rivals_named([name])
    assert caught.value.code == "E-RIVAL-NAME"


def test_missing_engine_is_refused_before_anything_is_made(checkpoint, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name)
    )
    for name in ("openvino-default", "unext"):
        with pytest.raises(EngineError, match=r"pip install 'edgeseg\[openvino\]'") as caught:
            rival_candidates(checkpoint, ["torch-compile", name], 1, tmp_path)
        assert caught.value.code == "E-EXTRA-MISSING"
    assert list(tmp_path.iterdir()) == []


def test_every_way_to_run_the_users_network_gives_its_logits(candidates, checkpoint):
    loaded = load_checkpoint(checkpoint)
    expected = Session.over(TorchEngine(loaded, 1), loaded.contract).logits(FRAME).copy()
    for name in OWN:
        candidate = by_name(candidates, name)
        session = candidate.session
        close = 0.5 * np.ptp(expected)
        if name == "onnxruntime-quantize-static" and missing_features(["vnni"]):
            # ONNX Runtime's kernels saturate there, and the tool's defaults are what is measured.
            exact = replace(session.engine, run=exact_run(candidate.onnx, 1))
            session = Session.over(exact, session.contract)
        if RIVALS[name].precision == "fp32":
            close = CLOSE[session.engine.facts["float type"]] * np.abs(expected).max()
        np.testing.assert_allclose(
            session.logits(FRAME), expected, rtol=0, atol=close, err_msg=name
        )


def test_candidates_tell_engine_precision_and_size(candidates, checkpoint):
    assert len({each.name for each in candidates}) == len(candidates) == len(OWN) + 4
    macs = {each.complexity["macs"] for each in candidates if each.name.startswith("run/")}
    assert len(macs) == 1
    for each in candidates:
        assert each.kind == each.session.engine.name
        assert each.file_bytes >= each.complexity["weights_bytes"] > 0
        assert each.session.contract == load_checkpoint(checkpoint).contract
    static = by_name(candidates, "quantize-static")
    plain = by_name(candidates, "onnxruntime-default")
    assert static.complexity["weights_bytes"] < 0.3 * plain.complexity["weights_bytes"]


def test_int8_rivals_tell_how_much_of_them_runs_in_int8(candidates):
    shares = {
        each.name: float(each.session.engine.facts["int8 share of macs"])
        for each in candidates
        if each.precision == "int8"
    }
    assert len(shares) == 3
    assert all(0.5 < share < 1 for share in shares.values())  # the heads stay in float
    floats = [each for each in candidates if each.precision == "fp32"]
    assert not any("int8 share of macs" in each.session.engine.facts for each in floats)


def test_engines_of_one_network_of_the_literature_agree(candidates):
    first, *others = (each.session.logits(FRAME).copy() for each in candidates[len(OWN) :])
    for logits in others:
        np.testing.assert_allclose(logits, first, atol=0.2 * np.ptp(first))


def test_static_quantiser_keeps_its_advice_to_itself_and_nothing_else(caplog):
    caplog.set_level(logging.WARNING)  # a package that a test imported may have set another
    logger = logging.getLogger()
    with _advice_left_out():
        logger.warning("Please consider to run pre-processing before quantization. Refer to: x")
        logger.warning("Quantized bias `b` exceeds the range of a int32.")
    logger.warning("Please consider pre-processing before quantization.")
    assert [record.getMessage()[:9] for record in caplog.records] == ["Quantized", "Please co"]


QUANTISED = """
import sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from edgeseg.cli.jobs.rivals import _statically_quantised

shape = [1, 1, 16, 16]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
weights = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
image = np.ones(shape, np.float32)
print(len(_statically_quantised(model.SerializeToString(), iter([image]), Path(sys.argv[1]))))
"""


def test_static_quantiser_says_nothing_on_stderr(tmp_path):
    command = [sys.executable, "-c", QUANTISED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 500
    assert done.stderr == ""


def test_default_session_leaves_its_options_to_the_engine(candidates):
    facts = by_name(candidates, "onnxruntime-default").session.engine.facts
    assert facts["threads"] == facts["pinning"] == "engine's choice"
    assert by_name(candidates, "openvino-default").session.engine.facts["threads"].isdigit()


@pytest.mark.parametrize("end", ["openvino-default", "quantize-static", "openvino-int8"])
def test_child_opens_what_was_made_from_the_words_of_the_probe(candidates, checkpoint, end):
    candidate = by_name(candidates, end)
    words = candidate.probe[candidate.probe.index("probe") :]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[1] == str(checkpoint.resolve())

    def open_again():
        folder = Path(options["--folder"])
        return open_rival(options["--rival"], checkpoint, folder, int(options["--threads"]))

    assert set(json.loads(report_probe(open_again, FRAME))) >= {"opened_ns", "peak_rss_kib"}
    np.testing.assert_array_equal(open_again().predict(FRAME), candidate.session.predict(FRAME))


def test_same_name_gives_the_same_artifact(candidates, checkpoint, tmp_path):
    (again,) = rival_candidates(checkpoint, ["unext/onnxruntime-int8"], 1, tmp_path, frames=[FRAME])
    assert again.artifact_sha256 == by_name(candidates, "unext · onnxruntime-int8").artifact_sha256
