"""What each setting of a training is worth, on folds; run by hand, not by pytest.

    python tests/measure/levers.py BUSI BUS-BRA --out levers --row "192 px" --row attunet-16

Every row changes what `BASE` says and is trained on each of five leak-safe folds, gets its
operating point on the fold's val part and is scored on its test part, so that each image is scored
once. The gain is paired with the base image by image, its interval over groups. Called again it
goes on where it was stopped; `levers.json` and `levers.md` in the folder hold what is done.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeseg.benchmarks.measure.accuracy import ImageScore, paired_difference
from edgeseg.benchmarks.measure.by_set import ALL_SETS, accuracy_by_set
from edgeseg.cli.jobs.api import evaluate, train
from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.cli.jobs.tuning import tune
from edgeseg.kd.config import STUDENT_FILE
from edgeseg.kd.data.dataset import read_datasets
from edgeseg.kd.data.split import make_folds, write_split
from edgeseg.kd.train import is_run
from edgeseg.runtime.progress import quiet

FOLDS = 5
MOST_MARKED = 0.25  # of the val part's images without lesion; the default of `edgeseg tune`
BASE = "edge-32, 20 epochs, 128 px"
_TEACHERS = "taught: routed"
_TAUGHT = {"teacher": "lite0-attunet", "general_epochs": 20, "teacher_epochs": 8, "views": 8}


@dataclass(frozen=True)
class Row:
    """A change of the recipe `busi-bra-edge` with 20 epochs."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    teachers_of: str = ""  # the row whose teachers it takes


ROWS = {
    BASE: Row(),
    "60 epochs": Row({"student_epochs": 60}),
    "192 px": Row({"size": 192}),
    "192 px for as long": Row({"size": 192, "student_epochs": 9}),
    "256 px for as long": Row({"size": 256, "student_epochs": 5}),
    "edge-64": Row({"student": "edge-64"}),
    "attunet-16": Row({"student": "attunet-16"}),
    "5 % phantoms": Row({"phantom_share": 0.05}),
    "3 epochs on phantoms first": Row({"phantom_epochs": 3}),
    "no negatives": Row({"crop_share": 0.0, "empty_share": 0.0, "normal_weight": 1.0}),
    "lite0-attunet, ImageNet": Row({"student": "lite0-attunet"}),
    "lite0-attunet, random": Row({"student": "lite0-attunet", "encoder": "random"}),
    _TEACHERS: Row({"teaching": "routed", **_TAUGHT}),
    "taught: mean": Row({"teaching": "mean", **_TAUGHT}, _TEACHERS),
    "taught: wrong": Row({"teaching": "wrong", **_TAUGHT}, _TEACHERS),
}


def scores_of(
    data: Sequence[Path], split: Path, out: Path, row: Row
) -> tuple[list[ImageScore], float]:
    """Train a row on a fold unless it is done; return the scores of the test part, and minutes."""
    began = time.monotonic()
    if not (out / STUDENT_FILE).is_file():
        resume = is_run(out)
        theirs = out.parent / named(row.teachers_of)
        taken = {"teachers": theirs} if row.teachers_of and not resume else {}
        train(
            data,
            out,
            recipe="busi-bra-edge",
            split=None if resume else split,
            resume=resume,
            device="cpu",
            progress=quiet,
            **{"student_epochs": 20, **row.settings},
            **taken,
        )
    minutes = (time.monotonic() - began) / 60
    point = out / "point.safetensors"
    if not point.is_file():
        tune(checkpoint_of(out), data, max_false_marks=MOST_MARKED, name="point")
    return list(evaluate(point, data, part="test", progress=quiet).scores), minutes


def named(row: str) -> str:
    """Return a row's folder."""
    return "".join(each if each.isalnum() else "-" for each in row)


def summary(
    name: str, scores: Sequence[ImageScore], base: Sequence[ImageScore], folds: int
) -> dict[str, Any]:
    """Return what a table says of a row."""
    sets = accuracy_by_set(scores, {each.name: each.name.partition("/")[0] for each in scores})
    every = sets[-1]  # of one set alone: its own row
    gain = paired_difference(scores, base)
    return {
        "row": name,
        "folds": folds,
        "lesions": every.lesions,
        "dice": every.dice.mean,
        "interval": (every.dice.low, every.dice.high),
        "by_set": {each.name: each.dice.mean for each in sets if each.name != ALL_SETS},
        "missed": every.missed,
        "normals": every.normals,
        "marked": every.marked,
        "gain": gain.mean,
        "gain_interval": (gain.low, gain.high),
    }


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table."""
    lines = [
        "| changed | folds | lesions | Dice (95 %) | by data set | missed | normals marked | "
        "against the first row (95 %) |",
        "| --- | ---: | ---: | --- | --- | ---: | ---: | --- |",
    ]
    for each in rows:
        low, high = each["interval"]
        sets = ", ".join(f"{name} {dice:.3f}" for name, dice in each["by_set"].items())
        gain = "{:+.4f} ({:+.4f} to {:+.4f})".format(each["gain"], *each["gain_interval"])
        lines.append(
            f"| {each['row']} | {each['folds']} | {each['lesions']} | {each['dice']:.3f} "
            f"({low:.3f}–{high:.3f}) | {sets} | {each['missed']} | "
            f"{each['marked']} of {each['normals']} | {gain} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, score and write the table after each fold of each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--row", action="append", choices=list(ROWS), default=[])
    parser.add_argument("--folds", type=int, default=FOLDS, help="of five, the first N")
    asked = parser.parse_args()
    if not asked.out.is_dir():
        asked.out.mkdir()
        for number, split in enumerate(make_folds(read_datasets(asked.data), folds=FOLDS), 1):
            write_split(split, asked.out / f"fold-{number}.json")
    done: dict[str, list[ImageScore]] = {}
    table = {}
    for number in range(1, asked.folds + 1):
        for name in dict.fromkeys((BASE, *asked.row)):
            split = asked.out / f"fold-{number}.json"
            out = asked.out / f"runs-{number}" / named(name)
            out.parent.mkdir(exist_ok=True)
            scores, minutes = scores_of(asked.data, split, out, ROWS[name])
            done.setdefault(name, []).extend(scores)
            table[name] = summary(name, done[name], done[BASE], number)
            print(f"fold {number}, {name}: {minutes:.1f} min", flush=True)
            (asked.out / "levers.md").write_text(to_markdown(list(table.values())))
            (asked.out / "levers.json").write_text(json.dumps(list(table.values()), indent=1))
    print(to_markdown(list(table.values())))


if __name__ == "__main__":
    main()
