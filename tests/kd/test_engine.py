"""PyTorch as an engine: eager and compiled agree, and what cannot be compiled is an error."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edgeseg.kd.engine import TorchCudaEngine, TorchEngine
from edgeseg.runtime.errors import EngineError

pytestmark = pytest.mark.numbers

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


@compiles
def test_compiled_network_leaves_nothing_that_a_later_run_under_other_instructions_reads(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 1))
    engine_of(network, compiled=True).run(IMAGE)
    assert list(tmp_path.iterdir())  # the kernels are here, each named by its instruction set
    assert not (tmp_path / "fxgraph").exists()
    engine = engine_of(network, compiled=False)
    torch._dynamo.reset()
    with torch.inference_mode():
        torch.compile(engine._network)(torch.from_numpy(IMAGE))
    assert (tmp_path / "fxgraph").exists()  # where PyTorch's own default would have kept it


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


# --- on a GPU: a stand-in, since none is at hand -------------------------------------------------


TF32 = (torch.backends.cuda.matmul, torch.backends.cudnn)


def checkpoint_of(network: nn.Module) -> SimpleNamespace:
    contract = SimpleNamespace(height=16, width=16)
    return SimpleNamespace(network=network.eval(), contract=contract)


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch with a GPU that is the CPU; returns the log of what happens in its stream."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")
            self.at_ms = float(len(log) ** 2)

        def synchronize(self):
            log.append("synchronize")

        def elapsed_time(self, later):
            return later.at_ms - self.at_ms

    zeros, to = torch.zeros, torch.Tensor.to

    def pinned_zeros(shape, pin_memory):
        assert pin_memory
        return zeros(shape)

    def to_gpu(tensor, device, non_blocking=False):
        assert device == "cuda:0"
        log.append("to the GPU" if non_blocking else "weights")
        return to(tensor, "cpu")

    def network_to_gpu(network, device):
        assert device == "cuda:0"
        network.register_forward_pre_hook(lambda *_: log.append("compute"))
        return network

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Fake GPU")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "zeros", pinned_zeros)
    monkeypatch.setattr(torch.Tensor, "to", to_gpu)
    monkeypatch.setattr(nn.Module, "to", network_to_gpu)
    before = [each.allow_tf32 for each in TF32]
    for each in TF32:
        each.allow_tf32 = True
    yield log
    for each, allowed in zip(TF32, before, strict=True):
        each.allow_tf32 = allowed


def test_torch_on_a_gpu_copies_computes_copies_back_and_waits(gpu):
    network = nn.Conv2d(1, 1, 3, padding=1)
    expected = engine_of(network, compiled=False).run(IMAGE).copy()
    engine = TorchCudaEngine(checkpoint_of(network))
    np.testing.assert_allclose(engine.run(IMAGE), expected, atol=1e-6)
    assert gpu == [
        *("record", "to the GPU", "record", "compute", "record", "record", "synchronize")
    ]
    # the events are at 1, 9, 25 and 36 ms
    assert engine.transfer_ms == (9 - 1) + (36 - 25)


def test_torch_on_a_gpu_takes_a_batch_and_then_a_frame_again(gpu):
    engine = TorchCudaEngine(checkpoint_of(nn.Identity()))
    for image in (np.concatenate([IMAGE, -IMAGE, IMAGE]), IMAGE):
        np.testing.assert_array_equal(engine.run(image), image)


def test_torch_on_a_gpu_computes_in_float32_and_says_so(gpu):
    facts = TorchCudaEngine(checkpoint_of(nn.Identity())).facts
    assert [each.allow_tf32 for each in TF32] == [False, False]
    assert (facts["tf32"], facts["device"], facts["threads"]) == ("no", "Fake GPU", "none")


def test_network_of_the_checkpoint_itself_stays_on_the_cpu(gpu):
    network = nn.Conv2d(1, 1, 3)
    assert TorchCudaEngine(checkpoint_of(network))._network is not network


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; needs a machine without one")
def test_torch_on_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(EngineError, match="run it in torch") as caught:
        TorchCudaEngine(checkpoint_of(nn.Identity()))
    assert caught.value.code == "E-ENGINE-DEVICE"
