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


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """The same training by one process and by two."""
    folder = tmp_path_factory.mktemp("distributed")
    script = folder / "train.py"
    script.write_text(TRAIN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (
        ("one", [sys.executable]),
        (
            "two",
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                "2",
            ],
        ),
    ):
        command = [*launcher, script, phantoms, folder / name, CONFIG.to_json()]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(
    "stage", ["teacher-general", "teacher-benign", "teacher-malignant", "student"]
)
def test_two_processes_end_with_the_weights_of_one(runs, stage):
    one, two = (read_tensors(runs / name / f"{stage}.safetensors")[0] for name in ("one", "two"))
    assert list(one) == list(two)
    # The bias of a convolution before a batch norm has no gradient but noise, and AdamW steps
    # along noise as far as along a gradient; the batch norm takes such a bias out again.
    kept = [name for name in one if not (name.endswith("0.bias") or "running_mean" in name)]
    ours, theirs = (
        torch.cat([run[name].flatten().double() for name in kept]) for run in (one, two)
    )
    assert (ours - theirs).norm() < 2e-4 * ours.norm()


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
