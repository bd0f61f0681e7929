"""Two processes that share every batch end with the weights of one process alone."""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import distributed, nn

from edgeseg.kd import distributed as kd_distributed
from edgeseg.kd.checkpoint import read_tensors
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.distributed import Group
from edgeseg.runtime.errors import InputError, Refused

pytestmark = pytest.mark.long

# One epoch each; all terms, an adapter included.
CONFIG = TrainConfig(
    size=32,
    student="edge-16",
    teacher="edge-16",
    general_epochs=1,
    teacher_epochs=1,
    student_epochs=1,
    batch=5,  # shares of three and two
    learning_rate=1e-4,
    distillation="kl+cwd+at+fitnet+ifvd+skds",
)
TRAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
real = torch.autocast
torch.autocast = lambda device, dtype=None, enabled=True: real(device, dtype=dtype, enabled=False)
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.train import train
train(read_dataset(Path(sys.argv[1])), Path(sys.argv[2]), TrainConfig.from_json(sys.argv[3]),
      device="cpu")
"""
# In float32 a value within rounding of a ReLU's zero takes the other branch, which changes the
# gradient of a batch this small by up to a twentieth, and AdamW steps as far along a gradient that
# is all noise as along any other. Whether that happens is luck, of the order of sums and so of the
# kernels. In float64 it does not happen.
IN_FLOAT64 = """
import torch
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
"""
# In float32 the gradients are compared, of every step and all with the weights of the start.
IN_FLOAT32 = """
import torch
gradients = []
def keep(self):
    every = (each.grad for group in self.param_groups for each in group["params"])
    gradients.append(torch.cat([each.flatten() for each in every if each is not None]))
torch.optim.AdamW.step = keep
"""
KEEP = """
import os
if os.environ.get("RANK", "0") == "0":
    torch.save(gradients, sys.argv[2] + ".gradients")
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# What torchrun does too, in children of one process that has imported what takes longest.
AS_ONE_AND_AS_TWO = """
import os, runpy, socket, sys, traceback
import torch
import torch._inductor

script, data, folder, config = sys.argv[1:]

def start(out, **environment):
    child = os.fork()
    if child:
        return child
    os.environ.update(environment)
    sys.argv = [script, data, os.path.join(folder, out), config]
    try:
        runpy.run_path(script)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
of_two = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
children = [start("one"), *(start("two", RANK=r, LOCAL_RANK=r, **of_two) for r in "01")]
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Fewer than others share: every process reads and learns them."""
    folder = tmp_path_factory.mktemp("few") / "phantoms"
    write_phantoms(folder, count=14)
    return folder


def train_as_one_and_as_two(script, phantoms, folder):
    """Run a script by one process and by two; return the folders of their runs."""
    (folder / "train.py").write_text(script)
    command = [sys.executable, "-c", AS_ONE_AND_AS_TWO, folder / "train.py"]
    ends = [phantoms, folder, CONFIG.to_json()]
    done = subprocess.run([*command, *ends], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "one", folder / "two"


@pytest.fixture(scope="module")
def in_float64(phantoms, tmp_path_factory):
    """The same training by one process and by two that torchrun starts."""
    folder = tmp_path_factory.mktemp("float64")
    (folder / "train.py").write_text(IN_FLOAT64 + TRAIN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        command = [sys.executable, *launcher, folder / "train.py"]
        ends = [phantoms, folder / name, CONFIG.to_json()]
        done = subprocess.run([*command, *ends], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "one", folder / "two"


def weights_of(run, stage):
    """All weights and batch statistics."""
    tensors = read_tensors(run / f"{stage}.safetensors")[0]
    assert tensors["head.weight"].dtype == torch.float64
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


@pytest.mark.parametrize(
    "stage", ["teacher-general", "teacher-benign", "teacher-malignant", "student"]
)
def test_two_processes_end_with_the_weights_of_one_within_float_noise(in_float64, stage):
    one, two = (weights_of(run, stage) for run in in_float64)
    assert (one - two).norm() < 1e-10 * one.norm()


@pytest.mark.numbers  # in float64, above, no kernel changes what comes out
def test_two_processes_find_the_gradients_of_one_in_float32_too(phantoms, tmp_path):
    runs = train_as_one_and_as_two(IN_FLOAT32 + TRAIN + KEEP, phantoms, tmp_path)
    one, two = (torch.load(f"{run}.gradients") for run in runs)
    apart = {}  # by network: the student has an adapter
    for ours, theirs in zip(one, two, strict=True):
        assert ours.dtype == torch.float32
        apart.setdefault(len(ours), []).append(float((ours - theirs).norm() / ours.norm()))
    assert len(apart) == 2
    # Least of the steps: in some a ReLU takes the other branch. Statistics or gradients summed in
    # bfloat16 put all of them 2e-3 apart at least (tried), float32 5e-5 at most.
    assert max(map(min, apart.values())) < 5e-4, apart


@pytest.mark.numbers
def test_what_processes_exchange_is_float32_where_the_network_computes_in_bfloat16(monkeypatch):
    exchanged = []
    real = kd_distributed._sum
    monkeypatch.setattr(
        kd_distributed, "_sum", lambda values: (exchanged.append(values.dtype), real(values))[1]
    )

    def keep(state, bucket):
        exchanged.append(bucket.buffer().dtype)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer names for what is used
            pair = kd_distributed.shared(network, Group(0, 2))
            pair.register_comm_hook(None, keep)
            logits = pair(torch.rand(2, 1, 8, 8))
        assert logits.dtype == torch.bfloat16
        logits.float().sum().backward()
    finally:
        distributed.destroy_process_group()
    assert len(exchanged) >= 3  # sums, squares, gradients
    assert set(exchanged) == {torch.float32}


def test_the_leader_alone_writes_the_log(in_float64):
    def rows(run):
        with (run / "log.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    one, two = map(rows, in_float64)
    assert len(one) == len(two) == 4
    for ours, theirs in zip(one, two, strict=True):
        assert (ours["stage"], ours["epoch"]) == (theirs["stage"], theirs["epoch"])
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-5)


def test_error_of_the_leader_is_raised_by_all_and_none_waits(phantoms, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    command = [sys.executable, "-c", AS_ONE_AND_AS_TWO, tmp_path / "train.py"]
    ends = [phantoms, blocked, CONFIG.to_json()]
    done = subprocess.run([*command, *ends], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("OutputError: E-OUT-WRITE") == 3  # one alone, and both of two


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(Refused("E-X", "what; mend")))
    assert (type(error), error.code, str(error)) == (Refused, "E-X", "E-X: what; mend")


def test_batch_that_leaves_a_process_without_an_image_is_refused():
    with pytest.raises(InputError, match="--batch") as caught:
        Group(0, 3).share(torch.arange(2).numpy())
    assert caught.value.code == "E-GROUP-SIZE"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_shares_of_a_batch_are_the_batch(size):
    batch = torch.arange(7).numpy()
    shares = [Group(rank, size).share(batch) for rank in range(size)]
    assert sorted(value for share in shares for value in share) == batch.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
