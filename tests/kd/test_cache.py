"""The cache of teachers' logits: what it keeps, what it refuses, and a kill while it writes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import edgeseg.kd.cache as caching
from edgeseg.kd.cache import LogitCache
from edgeseg.runtime.errors import InputError, Refused

IMAGES = ("a", "b", "c")
KEY = {"size": 8, "teacher_sha256": "0" * 64, "seed": 0}


def logits_of(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_logits_come_back_as_float16_keeps_them(tmp_path):
    cache = LogitCache(tmp_path, "t", KEY, IMAGES, views=2)
    cache.write(["c", "a"], np.array([1, 0]), logits_of(0.1, -3.0))
    logits, there = cache.read(["a", "b", "c", "c"], np.array([0, 0, 1, 0]))
    assert there.tolist() == [True, False, True, False]
    assert logits.shape == (4, 1, 8, 8)
    assert logits[0, 0, 0, 0].item() == -3.0
    assert logits[2, 0, 0, 0].item() == float(np.float16(0.1))


def test_cache_opened_again_still_holds_what_was_written(tmp_path):
    LogitCache(tmp_path, "t", KEY, IMAGES, views=2).write(["b"], np.array([1]), logits_of(2.0))
    _, there = LogitCache(tmp_path, "t", KEY, IMAGES, views=2).read(IMAGES, np.ones(3, int))
    assert there.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "change",
    [
        {"key": {**KEY, "teacher_sha256": "1" * 64}},
        {"key": {**KEY, "seed": 1}},
        {"images": ("a", "b")},
        {"images": ("a", "c", "b")},
        {"views": 3},
    ],
    ids=str,
)
def test_cache_of_other_data_weights_or_views_is_refused(change, tmp_path):
    given = {"key": KEY, "images": IMAGES, "views": 2}
    LogitCache(tmp_path, "t", **given).write(["b"], np.array([1]), logits_of(2.0))
    with pytest.raises(Refused, match="remove the folder") as caught:
        LogitCache(tmp_path, "t", **{**given, **change})
    assert caught.value.code == "E-CACHE-OTHER"
    _, there = LogitCache(tmp_path, "t", **given).read(["b"], np.array([1]))
    assert there.all()  # and it is left as it was


def test_cache_that_would_be_too_large_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "MAX_BYTES", 2 * 3 * 2 * 8 * 8 - 1)
    with pytest.raises(InputError, match="--views") as caught:
        LogitCache(tmp_path / "new", "t", KEY, IMAGES, views=2)
    assert caught.value.code == "E-CACHE-SIZE"
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(caching, "MAX_BYTES", 2 * 3 * 2 * 8 * 8)
    LogitCache(tmp_path / "new", "t", KEY, IMAGES, views=2)


@pytest.mark.parametrize("file", ["t.f16", "t.done"])
def test_cache_whose_files_are_cut_or_gone_is_refused(file, tmp_path):
    given = {"key": KEY, "images": IMAGES, "views": 2}
    LogitCache(tmp_path, "t", **given).write(["b"], np.array([1]), logits_of(2.0))
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:5])
    with pytest.raises(Refused) as caught:
        LogitCache(tmp_path, "t", **given)
    assert caught.value.code == "E-CACHE-OTHER"
    (tmp_path / file).unlink()
    with pytest.raises(Refused):
        LogitCache(tmp_path, "t", **given)


def test_cache_for_which_the_disk_has_no_room_fails_when_it_is_made(full_disk):
    with pytest.raises(OSError, match="space"):
        LogitCache(full_disk / "cache", "t", {"size": 256}, IMAGES, views=8)


# Children of one process fill the cache with a value that tells image and view, over and over until
# they are killed; what each leaves is read.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from edgeseg.kd.cache import LogitCache

folder, images = Path(sys.argv[1]), [str(i) for i in range(64)]

def opened():
    return LogitCache(folder, "t", {"size": 64}, images, views=4)

def fill(ready):
    cache = opened()
    os.write(ready, b".")
    while True:
        for view in range(4):
            for i in range(0, 64, 8):
                rows = images[i : i + 8]
                values = torch.tensor([float(4 * int(r) + view + 1) for r in rows])
                logits = values.view(-1, 1, 1, 1).expand(-1, 1, 64, 64)
                cache.write(rows, np.full(8, view), logits)

moments = random.Random(0)
there_of = []
for kill in range(20):
    if kill % 5 == 0:  # from empty again
        for file in folder.iterdir():
            file.unlink()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        fill(writer)
    assert os.read(reader, 1) == b"."
    time.sleep(moments.uniform(0, 0.004))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    cache, count = opened(), 0
    for view in range(4):
        logits, there = cache.read(images, np.full(64, view))
        for row in np.flatnonzero(there):
            assert (logits[row] == 4 * row + view + 1).all(), (kill, view, row)
            count += 1
    there_of.append(count)
print(*there_of)
"""


def test_cache_killed_at_20_random_moments_of_writing_never_shows_a_half_written_view(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = [int(count) for count in done.stdout.split()]
    assert len(there) == 20
    assert sum(there) > 0


def test_header_says_what_the_logits_depend_on(tmp_path):
    LogitCache(tmp_path, "t", KEY, IMAGES, views=2)
    header = json.loads((tmp_path / "t.json").read_text())
    assert header == {**KEY, "images": list(IMAGES), "views": 2}
