"""Whether routed distillation beats its controls: the same student taught in every way.

Above the folders, because it trains with `kd` and scores with `benchmarks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ...benchmarks.formatting import text_table
from ...benchmarks.measure.accuracy import ImageScore, score_images
from ...kd.checkpoint import load_checkpoint
from ...kd.config import STUDENT_FILE, TrainConfig
from ...kd.data.dataset import Dataset
from ...kd.data.split import default_split, read_split, samples_of
from ...kd.distill import DISTILLATIONS
from ...kd.engine import TorchEngine
from ...kd.train import is_run, require_settings, train
from ...runtime.bundle import SPLIT_FILE
from ...runtime.engines import available_threads
from ...runtime.errors import InputError
from ...runtime.files import write_bytes
from ...runtime.metrics import bootstrap_interval
from ...runtime.progress import Progress, quiet
from ...runtime.session import Session

SCHEMA = "edgeseg.ablation/1"
REFERENCE = "routed"

# What each row changes in the settings. To add a row: a line here.
ROWS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        name: {"teaching": teaching, "distillation": "kl"}
        for name, teaching in (
            (REFERENCE, "routed"),
            ("no teacher", "none"),
            ("single teacher", "single"),
            ("mean of both", "mean"),
            ("by confidence", "confidence"),
            ("wrong teacher", "wrong"),
        )
    }
    | {
        f"routed, {name}": {"teaching": "routed", "distillation": name}
        for name in DISTILLATIONS
        if name != "kl"
    }
)


@dataclass(frozen=True)
class RowResult:
    """One way of teaching over all seeds; images are test images with a lesion, seeds apart."""

    name: str
    seeds: int
    images: int
    dice: float  # mean over the images of all seeds
    dice_of_seeds: tuple[float, ...]
    iou: float
    gain: float  # mean Dice minus the reference's, image by image
    gain_low: float  # 95 % bootstrap interval over groups, each pair of students taken as given
    gain_high: float


def reproduce(
    dataset: Dataset,
    out: Path,
    config: TrainConfig,
    *,
    seeds: int,
    rows: Sequence[str] = tuple(ROWS),
    device: str = "auto",
    progress: Progress = quiet,
) -> tuple[RowResult, ...]:
    """Train every row on every seed and write `ablation.json` and `ablation.md` into `out`.

    The intervals are over groups of near-duplicates: how much a pair of students would differ if
    it were trained once more shows in the column of the seeds alone.

    A seed has its own leak-safe split (data that come in parts keep theirs), weights and order of
    images; its rows share split and teachers. Students are scored on the test part, in PyTorch
    FP32, in each image's own geometry. Called again with the same `out` it continues: finished
    students are not trained anew.

    Args:
        dataset: the images.
        out: folder of the runs, one for each seed and row, and of the table.
        config: settings that the rows change.
        seeds: how many, from the settings' own seed up.
        rows: names in `ROWS`; the reference is always among them.
        device: as `train`.
        progress: shows how far a stage has come.

    Raises:
        InputError: E-ABLATION-ROW for an unknown row, and those of `train`.
        Refused, OutputError: as `train`.
    """
    if unknown := set(rows) - set(ROWS):
        raise InputError(
            "E-ABLATION-ROW", f"no row {sorted(unknown)[0]!r}; choose of {', '.join(ROWS)}"
        )
    wanted = {
        name: replace(config, **changes)  # type: ignore[arg-type]
        for name, changes in ROWS.items()
        if name in {*rows, REFERENCE}
    }
    for settings in wanted.values():  # before hours of training, not after
        require_settings(settings)
    scores: dict[str, list[tuple[ImageScore, ...]]] = {name: [] for name in wanted}
    for seed in range(config.seed, config.seed + seeds):
        folder = out / f"seed-{seed}"
        split = default_split(dataset, seed=seed)
        for name, settings in wanted.items():
            run = folder / name.replace(", ", "-").replace(" ", "-")
            resume = is_run(run)
            # Without a general network the reference has nothing for the one teacher of all.
            own = name == REFERENCE or (settings.teaching == "single" and not config.general_epochs)
            train(  # a finished run is compared with the settings and left as it is
                dataset,
                run,
                replace(settings, seed=seed),
                split=split,
                resume=resume,
                teachers=None if own or resume else folder / REFERENCE,
                device=device,
                progress=progress,
            )
            scores[name].append(_score(run, settings.student, dataset, progress))
            results = _summarise({row: done for row, done in scores.items() if done})
            write_bytes(out / "ablation.json", _to_json(results, config))
            write_bytes(out / "ablation.md", to_markdown(results))
    return results


def _score(run: Path, student: str, dataset: Dataset, progress: Progress) -> tuple[ImageScore, ...]:
    loaded = load_checkpoint(run / STUDENT_FILE, asked_for=(student,))
    session = Session.over(TorchEngine(loaded, available_threads()), loaded.contract)
    cases = samples_of(read_split(run / SPLIT_FILE), dataset, "test")
    scores = score_images(session.predict, cases, progress=progress)
    return tuple(score for score in scores if score.lesion_px)


def _summarise(scores: Mapping[str, Sequence[Sequence[ImageScore]]]) -> tuple[RowResult, ...]:
    results = []
    for name, of_seeds in scores.items():
        pairs = [
            (ours, theirs)
            for mine, reference in zip(of_seeds, scores[REFERENCE], strict=False)  # may be behind
            for ours, theirs in zip(mine, reference, strict=True)
        ]
        gains = [ours.dice - theirs.dice for ours, theirs in pairs]
        # An image that two seeds test has the same group in both.
        low, high = bootstrap_interval(gains, [ours.group for ours, _ in pairs])
        images = [score for seed in of_seeds for score in seed]
        results.append(
            RowResult(
                name=name,
                seeds=len(of_seeds),
                images=len(images),
                dice=float(np.mean([score.dice for score in images])),
                dice_of_seeds=tuple(float(np.mean([s.dice for s in seed])) for seed in of_seeds),
                iou=float(np.mean([score.iou for score in images])),
                gain=float(np.mean(gains)),
                gain_low=low,
                gain_high=high,
            )
        )
    return tuple(results)


def _to_json(results: Sequence[RowResult], config: TrainConfig) -> str:
    content = {
        "schema": SCHEMA,
        "config": asdict(config),
        "rows": {name: dict(changes) for name, changes in ROWS.items()},
        "results": [asdict(result) for result in results],
    }
    return json.dumps(content, indent=1) + "\n"


_COLUMNS = ("row", "seeds", "images", "Dice", "of each seed", "IoU", "against routed (95 %)")


def _cells(results: Sequence[RowResult]) -> list[tuple[str, ...]]:
    return [
        (
            each.name,
            str(each.seeds),
            str(each.images),
            f"{each.dice:.3f}",
            " ".join(f"{dice:.3f}" for dice in each.dice_of_seeds),
            f"{each.iou:.3f}",
            ""
            if each.name == REFERENCE
            else f"{each.gain:+.3f} ({each.gain_low:+.3f} to {each.gain_high:+.3f})",
        )
        for each in results
    ]


def to_markdown(results: Sequence[RowResult]) -> str:
    """Return the table as Markdown."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *_cells(results)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "\nIntervals draw near-duplicates together; training luck shows between seeds.\n"


def to_text(results: Sequence[RowResult]) -> str:
    """Return the table for a terminal."""
    return text_table(_COLUMNS, _cells(results))
