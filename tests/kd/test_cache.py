"""The cache of teachers' logits: what it keeps, what it refuses, and a kill while it writes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

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


# Fills the cache with a value that tells image and view, over and over until it is killed.
FILL = """
import sys
from pathlib import Path
import numpy as np, torch
from edgeseg.kd.cache import LogitCache
images = [str(i) for i in range(64)]
cache = LogitCache(Path(sys.argv[1]), "t", {"size": 64}, images, views=4)
print("open", flush=True)
while True:
    for view in range(4):
        for i in range(0, 64, 8):
            rows = images[i : i + 8]
            values = torch.tensor([float(4 * int(r) + view + 1) for r in rows])
            logits = values.view(-1, 1, 1, 1).expand(-1, 1, 64, 64)
            cache.write(rows, np.full(8, view), logits)
"""


def test_cache_killed_at_20_random_moments_of_writing_never_shows_a_half_written_view(tmp_path):
    images = [str(i) for i in range(64)]
    moments = random.Random(0)
    seen = 0
    for kill in range(20):
        if kill % 5 == 0:  # from empty again
            for file in tmp_path.iterdir():
                file.unlink()
        child = subprocess.Popen(
            [sys.executable, "-c", FILL, tmp_path], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        time.sleep(moments.uniform(0, 0.004))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        cache = LogitCache(tmp_path, "t", {"size": 64}, images, views=4)
        for view in range(4):
            logits, there = cache.read(images, np.full(64, view))
            for row in np.flatnonzero(there):
                assert (logits[row] == 4 * row + view + 1).all()
                seen += 1
    assert seen > 0


def test_header_says_what_the_logits_depend_on(tmp_path):
    LogitCache(tmp_path, "t", KEY, IMAGES, views=2)
    header = json.loads((tmp_path / "t.json").read_text())
    assert header == {**KEY, "images": list(IMAGES), "views": 2}
