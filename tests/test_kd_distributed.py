"""Two processes that share every batch end with the weights of one process alone."""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys

import pytest
import torch

from edgeseg.kd.checkpoint import read_tensors
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.distributed import Group
from edgeseg.runtime.errors import InputError, Refused

# One epoch each at a learning rate at which AdamW's first steps do not turn float noise into
# differences of a whole step; all terms, an adapter included.
CONFIG = TrainConfig(
    size=64,
    student="edge-16",
    teacher="edge-16",
    general_epochs=1,
    teacher_epochs=1,
    student_epochs=1,
    batch=5,  # shares of three and two
    learning_rate=1e-4,
    distillation="kl+cwd+at+fitnet+ifvd+skds",
)
# bfloat16 rounds whatever float32 noise there is up to 1 part in 256: compared in float32.
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


# The images of every batch in another order: the same sums, rounded otherwise.
PERMUTED = """
import numpy as np
import edgeseg.kd.distributed as distributed
distributed.Group.share = lambda self, batch: np.concatenate([batch[0::2], batch[1::2]])
"""


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """The same training by one process, by one with permuted batches, and by two."""
    folder = tmp_path_factory.mktemp("distributed")
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher, script in (
        ("one", [sys.executable], TRAIN),
        ("permuted", [sys.executable], PERMUTED + TRAIN),
        ("two", two, TRAIN),
    ):
        (folder / f"{name}.py").write_text(script)
        command = [*launcher, folder / f"{name}.py", phantoms, folder / name, CONFIG.to_json()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def weights_of(run, stage):
    """All weights but those that have no gradient save noise, along which AdamW steps all the same.

    These are the biases of convolutions before a batch norm, which takes them out again.
    """
    tensors = read_tensors(run / f"{stage}.safetensors")[0]
    kept = [name for name in tensors if not (name.endswith("0.bias") or "running_mean" in name)]
    return torch.cat([tensors[name].flatten().double() for name in sorted(kept)])


@pytest.mark.parametrize(
    "stage", ["teacher-general", "teacher-benign", "teacher-malignant", "student"]
)
def test_two_processes_end_with_the_weights_of_one_within_float_noise(runs, stage):
    one, permuted, two = (weights_of(runs / name, stage) for name in ("one", "permuted", "two"))
    noise = (one - permuted).norm()
    assert noise < 1e-3 * one.norm()
    assert (one - two).norm() < 3 * noise


def test_the_leader_alone_writes_the_log(runs):
    def rows(name):
        with (runs / name / "log.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    assert len(rows("one")) == len(rows("two")) == 4
    for ours, theirs in zip(rows("one"), rows("two"), strict=True):
        assert (ours["stage"], ours["epoch"]) == (theirs["stage"], theirs["epoch"])
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-3)


def test_error_of_the_leader_is_raised_by_all_and_none_waits(phantoms, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(tmp_path / "train.py", phantoms, blocked / "run", CONFIG.to_json()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("OutputError: E-OUT-WRITE") >= 1


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
