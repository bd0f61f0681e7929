"""The log of a run: one CSV row an epoch, and the same numbers for TensorBoard."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ..runtime.files import write_bytes

_COLUMNS = ("stage", "epoch", "learning_rate", "loss", "masks", "distill", "val_dice", "seconds")


class RunLog:
    """Appends to log.csv and to TensorBoard events in a run's folder."""

    def __init__(self, run: Path) -> None:
        self._path = run / "log.csv"
        self._run = run
        self._writer: SummaryWriter | None = None
        self._started = time.monotonic()

    def start_stage(self, stage: str, first_epoch: int) -> None:
        """Begin or resume a stage: drop its rows from `first_epoch` on, they will come again."""
        rows = []
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = [
                    row
                    for row in csv.DictReader(file)
                    if _is_whole(row)
                    and (row["stage"] != stage or int(row["epoch"]) <= first_epoch)
                ]
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self._path, text.getvalue())
        self.close()
        self._writer = SummaryWriter(str(self._run / "tensorboard" / stage), purge_step=first_epoch)
        self._started = time.monotonic()

    def write_epoch(
        self, stage: str, epoch: int, rate: float, terms: Mapping[str, float], val_dice: float
    ) -> None:
        """Log one epoch (counted from 0; the file counts from 1): mean loss terms, val Dice.

        The file has one column for the sum of all distillation terms, TensorBoard one for each.
        """
        total = sum(terms.values())
        values = {"learning_rate": rate, "loss": total, **terms, "val_dice": val_dice}
        seconds = time.monotonic() - self._started
        self._started = time.monotonic()
        columns = {**values, "distill": total - terms["masks"]}
        row = {key: f"{columns[key]:.6g}" for key in _COLUMNS if key in columns}
        row |= {"stage": stage, "epoch": str(epoch + 1), "seconds": f"{seconds:.2f}"}
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, _COLUMNS).writerow(row)
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(key, value, epoch)

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _is_whole(row: Mapping[str, str | None]) -> bool:
    """Say whether a row was written to its end; a full disk or a kill can cut the last one."""
    return None not in row.values() and str(row["epoch"]).isdigit()
