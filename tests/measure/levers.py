"""What each setting of a training is worth, on folds; run by hand, not by pytest.

    python tests/measure/levers.py BUSI BUS-BRA --out levers --row "192 px" --row attunet-16

Every row changes what `BASE` says and is trained on each of five leak-safe folds, each with its own
seed, and scored on the test parts, so that each image is scored once. The table has both errors at
probability 0.5, the gain over the base image by image (intervals over groups), and both errors at
the operating point that the other folds' test parts give. Called again, also by a second process
with other rows, it goes on where it was stopped: answers lie in the runs' folders, `levers.json`
and `levers.md` hold all rows whose answers are there.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.benchmarks.measure.accuracy import (
    CALIBRATION_BINS,
    ImageScore,
    calibration_gaps,
    paired_difference,
    score_mask,
)
from edgeseg.benchmarks.measure.by_set import ALL_SETS, accuracy_by_set
from edgeseg.benchmarks.measure.froc import CaseParts, curves_of, parts_of, thresholds_for
from edgeseg.benchmarks.measure.operating_point import choose_point
from edgeseg.benchmarks.measure.temperature import fit_temperature
from edgeseg.cli.jobs.api import train
from edgeseg.cli.jobs.parts import samples_for
from edgeseg.cli.jobs.sources import CheckpointSource
from edgeseg.kd.config import STUDENT_FILE
from edgeseg.kd.data.dataset import read_datasets
from edgeseg.kd.data.split import make_folds, read_split, write_split
from edgeseg.kd.train import is_run
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import Refused
from edgeseg.runtime.files import write_bytes
from edgeseg.runtime.image import resize_mask
from edgeseg.runtime.progress import quiet

FOLDS = 5
MOST_MARKED = 0.25  # of the images without lesion; the default of `edgeseg tune`
BASE = "edge-32, 20 epochs, 128 px"
_BASE = {"student": "edge-32", "size": 128, "student_epochs": 20, "phantom_share": 0.0}
_ROUTED = "taught: routed"
_TAUGHT = {"teacher": "lite0-attunet", "general_epochs": 20, "teacher_epochs": 8, "views": 8}


@dataclass(frozen=True)
class Row:
    """A change of `_BASE` of the recipe `busi-bra-edge`, or what is made of other rows."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    teachers_of: str = ""  # the row whose class teachers it takes
    teacher_files: tuple[tuple[str, str], ...] = ()  # (row, file) of networks that teach as one
    scores: tuple[tuple[str, str], ...] = ()  # in place of a training: mean of these (row, file)
    without: str = ""  # a data set of which it learns nothing; it is tested all the same


# To add a row: a line here.
ROWS = {
    BASE: Row(),
    "60 epochs": Row({"student_epochs": 60}),
    "60 epochs, 5 % phantoms": Row({"student_epochs": 60, "phantom_share": 0.05}),
    "200 epochs, 5 % phantoms": Row({"student_epochs": 200, "phantom_share": 0.05}),
    "192 px": Row({"size": 192}),
    "192 px for as long": Row({"size": 192, "student_epochs": 9}),
    "256 px for as long": Row({"size": 256, "student_epochs": 5}),
    "edge-48": Row({"student": "edge-48"}),
    "edge-64": Row({"student": "edge-64"}),
    "attunet-16": Row({"student": "attunet-16"}),
    "5 % phantoms": Row({"phantom_share": 0.05}),
    "BUSI drawn 3 times": Row({"set_weights": "busi=3"}),
    "3 epochs on phantoms first": Row({"phantom_epochs": 3}),
    "no negatives": Row({"crop_share": 0.0, "empty_share": 0.0, "normal_weight": 1.0}),
    "no crops": Row({"crop_share": 0.0}),
    "crops in 25 % of the draws": Row({"crop_share": 0.25}),
    "normal images twice, no crops": Row({"crop_share": 0.0, "normal_weight": 2.0}),
    "sets and classes as they are": Row({"set_weights": "", "normal_weight": 1.0}),
    "without BUS-BRA": Row(without="bus-bra"),
    "without BUS-BRA for as long": Row({"student_epochs": 85}, without="bus-bra"),
    "without BUSI for as long": Row({"student_epochs": 27, "set_weights": ""}, without="busi"),
    "loss: cross-entropy alone": Row({"loss": "balanced"}),
    "loss: Dice alone": Row({"loss": "dice"}),
    "loss: no balance of area": Row({"loss": "bce+dice"}),
    "loss: no charge for false marks": Row({"loss": "balanced+overlap"}),
    _ROUTED: Row({"teaching": "routed", **_TAUGHT}),
    "taught: mean": Row({"teaching": "mean", **_TAUGHT}, _ROUTED),
    "taught: wrong": Row({"teaching": "wrong", **_TAUGHT}, _ROUTED),
    "taught: single": Row(
        {"teaching": "single", "views": 8},
        teacher_files=((_ROUTED, "teacher-general.safetensors"),),
    ),
    "taught: single, kl+fitnet": Row(
        {"teaching": "single", "distillation": "kl+fitnet", **_TAUGHT, "views": 0}, _ROUTED
    ),
    "taught: single, kl+at": Row(
        {"teaching": "single", "distillation": "kl+at", **_TAUGHT, "views": 0},
        "taught: single, kl+fitnet",
    ),
    "taught: ensemble, mirrored": Row(
        {"teaching": "single", "views": 8, "teacher_mirror": True},
        teacher_files=((_ROUTED, "teacher-general.safetensors"), (BASE, STUDENT_FILE)),
    ),
    "attunet-16, taught: single": Row(
        {"student": "attunet-16", "teaching": "single", "views": 8},
        teacher_files=((_ROUTED, "teacher-general.safetensors"),),
    ),
    "taught: itself": Row(
        {"teaching": "single", "views": 8}, teacher_files=((BASE, STUDENT_FILE),)
    ),
    "lite0-attunet, ImageNet": Row(scores=((_ROUTED, "teacher-general.safetensors"),)),
    "lite0-edge, random, 96 px": Row({"student": "lite0-edge", "size": 96, "encoder": "random"}),
    "lite0-edge, ImageNet, 96 px, half the rate": Row(
        {"student": "lite0-edge", "size": 96, "learning_rate": 1e-3}
    ),
    "lite0-edge, taught by lite0-attunet, 96 px": Row(
        {"student": "lite0-edge", "size": 96, "teaching": "single", "views": 8},
        teacher_files=(("lite0-attunet, ImageNet, 96 px", STUDENT_FILE),),
    ),
    "lite0-edge, ImageNet": Row({"student": "lite0-edge"}),
    "lite0-edge, ImageNet, 96 px": Row({"student": "lite0-edge", "size": 96}),
    "lite0-edge, ImageNet, 96 px, no crops": Row(
        {"student": "lite0-edge", "size": 96, "crop_share": 0.0}
    ),
    "attunet-16, no crops": Row({"student": "attunet-16", "crop_share": 0.0}),
    "lite0-attunet, ImageNet, 96 px": Row({"student": "lite0-attunet", "size": 96}),
    "lite2-attunet, ImageNet": Row({"student": "lite2-attunet"}),
    "mean of lite0-attunet and edge-32": Row(
        scores=((_ROUTED, "teacher-general.safetensors"), (BASE, STUDENT_FILE))
    ),
}


@dataclass(frozen=True)
class Answers:
    """What a row says of the test part of a fold."""

    scores: tuple[ImageScore, ...]  # at probability 0.5, nothing dropped
    parts: tuple[CaseParts, ...]
    contract: InputContract
    gaps: np.ndarray  # of the calibration, summed over the images [bins]
    scaled_gaps: np.ndarray  # of the logits divided by the temperature that the val part gives


def trained(data: Sequence[Path], fold: Path, split: Path, name: str, seed: int) -> Path:
    """Train a row on a fold unless it is done; return its student's checkpoint."""
    row, out = ROWS[name], fold / named(name)
    if not (out / STUDENT_FILE).is_file():
        resume = is_run(out)
        if row.without and not resume:
            split = split_without(split, row.without, fold / f"{named(name)}.split.json")
        taken: dict[str, Any] = {}
        if row.teachers_of and not resume:
            taken["teachers"] = fold / named(row.teachers_of)
        if row.teacher_files and not resume:
            taken["teacher_checkpoints"] = [
                fold / named(of) / file for of, file in row.teacher_files
            ]
        train(
            data,
            out,
            recipe="busi-bra-edge",
            split=None if resume else split,
            resume=resume,
            device="cpu",
            progress=quiet,
            **{**_BASE, "seed": seed, **row.settings},
            **taken,
        )
    return out / STUDENT_FILE


def split_without(split: Path, left_out: str, out: Path) -> Path:
    """Write a split in which a data set is in the test part only; return its file."""
    known = read_split(split)
    entries = tuple(e for e in known.entries if e.source != left_out or e.part == "test")
    out.unlink(missing_ok=True)
    write_split(replace(known, entries=entries), out)
    return out


def answers_of(data: Sequence[Path], fold: Path, split: Path, name: str, seed: int) -> Answers:
    """Return what a row says of a fold's test part, from its file if it was asked before."""
    kept = fold / f"{named(name)}.answers"
    if kept.is_file():
        found: Answers = pickle.loads(kept.read_bytes())
        return found
    files = [fold / named(of) / file for of, file in ROWS[name].scores]
    files = files or [trained(data, fold, split, name, seed)]
    sources = [CheckpointSource(file) for file in files]
    sessions = [source.open(None, 1) for source in sources]
    contract = sessions[0].contract

    def logits_of(case: Any) -> np.ndarray:
        logits: np.ndarray = np.mean([each.logits(case.read_image()) for each in sessions], axis=0)
        return logits

    on_val = []
    for case in samples_for(sources[0], data, "val"):
        logits = logits_of(case)
        on_val.append((logits, resize_mask(case.read_mask(), *logits.shape)))
    temperature = fit_temperature(on_val)
    thresholds = thresholds_for(contract)
    scores, parts = [], []
    gaps, scaled = np.zeros(CALIBRATION_BINS), np.zeros(CALIBRATION_BINS)
    for case in samples_for(sources[0], data, "test"):
        logits, truth = logits_of(case), case.read_mask()
        mask = sessions[0].read_out(logits, truth.shape)
        scores.append(score_mask(case, mask, truth, contract))
        parts.append(parts_of(logits, truth, thresholds, case.source))
        small = resize_mask(truth, *logits.shape)
        gaps += calibration_gaps(logits, small)
        scaled += calibration_gaps(logits, small, temperature)
    answers = Answers(tuple(scores), tuple(parts), contract, gaps, scaled)
    write_bytes(kept, pickle.dumps(answers))
    return answers


def named(row: str) -> str:
    """Return a row's folder."""
    return "".join(each if each.isalnum() else "-" for each in row)


def at_point_of_others(folds: Sequence[Answers]) -> dict[str, Any] | None:
    """Return both errors, each fold at the point that the other folds' test parts give.

    None of one fold, or where no point keeps half of the Dice.
    """
    dice: list[float] = []
    missed, marked = 0, 0.0
    for index, fold in enumerate(folds):
        others = [part for each in (*folds[:index], *folds[index + 1 :]) for part in each.parts]
        if not others:
            return None
        try:
            contract = choose_point(others, fold.contract, MOST_MARKED).contract
        except Refused:
            return None
        every = curves_of(fold.parts, contract)[0]
        thresholds = thresholds_for(fold.contract)
        point = every.points[thresholds.index(contract.thresholds[0])]
        dice += [point.dice] * every.lesions
        missed += point.missed
        marked += round(point.marked_share * every.without_lesion) if every.without_lesion else 0
    return {"dice": float(np.mean(dice)), "missed": missed, "marked": int(marked)}


def summary(name: str, folds: Sequence[Answers], base: Sequence[Answers]) -> dict[str, Any]:
    """Return what the table says of a row."""
    scores, others = ([score for each in of for score in each.scores] for of in (folds, base))
    sets = accuracy_by_set(scores, {each.name: each.name.partition("/")[0] for each in scores})
    every = sets[-1]  # of one set alone: its own row
    gain = paired_difference(scores, others)
    return {
        "row": name,
        "folds": len(folds),
        "lesions": every.lesions,
        "dice": every.dice.mean,
        "interval": (every.dice.low, every.dice.high),
        "by_set": {each.name: each.dice.mean for each in sets if each.name != ALL_SETS},
        "missed": every.missed,
        "normals": every.normals,
        "marked": every.marked,
        "gain": gain.mean,
        "gain_interval": (gain.low, gain.high),
        "at_point": at_point_of_others(folds),
        "calibration_error": [
            float(np.abs(sum(getattr(each, gaps) for each in folds)).sum() / len(scores))
            for gaps in ("gaps", "scaled_gaps")
        ],
    }


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table."""
    lines = [
        "| changed | folds | Dice (95 %) | by data set | missed | normals marked | "
        "against the first row (95 %) | at its point: Dice, missed, marked | calibration error |",
        "| --- | ---: | --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    for each in rows:
        low, high = each["interval"]
        sets = ", ".join(f"{name} {dice:.3f}" for name, dice in each["by_set"].items())
        gain = "{:+.4f} ({:+.4f} to {:+.4f})".format(each["gain"], *each["gain_interval"])
        point = each["at_point"]
        at = "{dice:.3f}, {missed}, {marked}".format(**point) if point else "–"
        errors = ", ".join(f"{error:.4f}" for error in each["calibration_error"])
        lines.append(
            f"| {each['row']} | {each['folds']} | {each['dice']:.3f} ({low:.3f}–{high:.3f}) | "
            f"{sets} | {each['missed']} of {each['lesions']} | "
            f"{each['marked']} of {each['normals']} | {gain} | {at} | {errors} |"
        )
    return "\n".join(lines) + "\n"


def needed_for(rows: Sequence[str]) -> list[str]:
    """Return the rows, each behind the base and behind those whose networks it takes."""
    wanted: dict[str, None] = {}
    for name in (BASE, *rows):
        row = ROWS[name]
        others = [of for of, _ in (*row.teacher_files, *row.scores)]
        wanted |= dict.fromkeys(filter(None, (*others, row.teachers_of, name)))
    return list(wanted)


def write_table(out: Path) -> str:
    """Write the table of all rows whose answers are there, from the first fold on; return it."""
    rows, base = [], []
    for name in ROWS:
        folds: list[Answers] = []
        for number in range(1, FOLDS + 1):
            kept = out / f"runs-{number}" / f"{named(name)}.answers"
            if not kept.is_file():
                break
            folds.append(pickle.loads(kept.read_bytes()))
        base = folds if name == BASE else base
        if folds and base:
            rows.append(summary(name, folds[: len(base)], base[: len(folds)]))
    text = to_markdown(rows)
    write_bytes(out / "levers.md", text)
    write_bytes(out / "levers.json", json.dumps(rows, indent=1))
    return text


def main() -> None:
    """Train, ask and write the table after each fold of each row."""
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
    for name in needed_for(asked.row):
        for number in range(1, asked.folds + 1):
            fold = asked.out / f"runs-{number}"
            fold.mkdir(exist_ok=True)
            began = time.monotonic()
            split = asked.out / f"fold-{number}.json"
            answers_of(asked.data, fold, split, name, seed=number - 1)
            minutes = (time.monotonic() - began) / 60
            print(f"fold {number}, {name}: {minutes:.1f} min", flush=True)
            write_table(asked.out)
    print(write_table(asked.out))


if __name__ == "__main__":
    main()
