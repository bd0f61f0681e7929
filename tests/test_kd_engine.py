"""PyTorch as an engine: eager and compiled agree, and what cannot be compiled is an error."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edgeseg.kd.engine import TorchEngine
from edgeseg.runtime.errors import EngineError

IMAGE = np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32)
# PyTorch's own, when its compiler is imported.
compiles = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")


class Branching(nn.Module):
    """What it does depends on the values, so it is no single graph."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def engine_of(network: nn.Module, *, compiled: bool) -> TorchEngine:
    return TorchEngine(SimpleNamespace(network=network.eval()), 1, compiled=compiled)


@compiles
def test_compiled_network_gives_the_logits_of_the_eager_one():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    eager, compiled = (engine_of(network, compiled=each) for each in (False, True))
    assert (eager.name, compiled.name) == ("torch", "torch-compile")
    assert compiled._network is not network
    np.testing.assert_allclose(compiled.run(IMAGE), eager.run(IMAGE), atol=1e-5)


def test_torch_compile_without_a_cpp_compiler_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match=r"apt install g\+\+") as caught:
        engine_of(nn.Identity(), compiled=True)
    assert caught.value.code == "E-ENGINE-COMPILER"
    engine_of(nn.Identity(), compiled=False)


@compiles
def test_network_that_is_no_single_graph_is_refused_rather_than_run_in_parts():
    assert engine_of(Branching(), compiled=False).run(IMAGE).shape == IMAGE.shape
    with pytest.raises(EngineError) as caught:
        engine_of(Branching(), compiled=True).run(IMAGE)
    assert caught.value.code == "E-ENGINE-LOAD"


def test_torch_reports_its_threads():
    facts = engine_of(nn.Identity(), compiled=False).facts
    assert facts["threads"] == facts["streams"] == "1"
