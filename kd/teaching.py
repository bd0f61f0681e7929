"""Who teaches which image, and what the teachers say of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn

from ..runtime.errors import InputError
from .cache import LogitCache
from .data.dataset import EVERY_LABEL
from .frames import Batch
from .losses import area_balanced_bce
from .models import Network, Trace

CLASSES_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"benign": ("benign",), "malignant": ("malignant",), "every": EVERY_LABEL}
)
"""The teachers and the classes that each is trained on."""


@dataclass(frozen=True)
class Teaching:
    """Which teachers an image visits, by its training label; one that visits none has no target."""

    visits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_confidence: bool = False  # weigh teachers by how well they know the image, else alike

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers that take part."""
        return tuple(name for name in CLASSES_OF if any(name in v for v in self.visits.values()))

    def taught_by(self, teacher: str) -> tuple[str, ...]:
        """Return the labels of the images that visit a teacher."""
        return tuple(label for label, visited in self.visits.items() if teacher in visited)


_BOTH = ("benign", "malignant")
# To add a way of teaching: a row here; tests/kd/test_teaching.py walks the table.
TEACHINGS: Mapping[str, Teaching] = MappingProxyType(
    {
        # T²KD: each image by the teacher of its own class; normal images have none.
        "routed": Teaching({"benign": ("benign",), "malignant": ("malignant",)}),
        "mean": Teaching({"benign": _BOTH, "malignant": _BOTH}),
        # Zhang et al. 2022 (arXiv 2201.00007): softmax of minus each teacher's loss on the mask.
        "confidence": Teaching({"benign": _BOTH, "malignant": _BOTH}, by_confidence=True),
        "single": Teaching(dict.fromkeys(EVERY_LABEL, ("every",))),
        "wrong": Teaching({"benign": ("malignant",), "malignant": ("benign",)}),  # a control
        "none": Teaching(),  # a control
    }
)


def find_teaching(name: str) -> Teaching:
    """Return a way of teaching. Raises InputError (E-TEACHING-NAME) listing the known ones."""
    if name not in TEACHINGS:
        raise InputError(
            "E-TEACHING-NAME", f"no teaching {name!r}; choose of {', '.join(TEACHINGS)}"
        )
    return TEACHINGS[name]


class Ensemble(Network):
    """Teachers that answer as one: the mean of their logits; without features.

    Args:
        members: for images of one size and normalisation, in eval mode.
        mirror: whether each is asked about the mirrored image too.
    """

    def __init__(self, members: Sequence[Network], *, mirror: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mirror = mirror

    def trace(self, image: torch.Tensor) -> Trace:
        """Return the mean of the logits; the features are empty."""
        answers = []
        for member in self.members:
            answers.append(member(image).float())
            if self.mirror:
                answers.append(member(image.flip(3)).float().flip(3))
        nothing = image.new_zeros(len(image), 0, 1, 1)
        return Trace(torch.stack(answers).mean(dim=0), nothing, nothing)


@dataclass(frozen=True)
class Teachers:
    """Trained teachers, in eval mode, and what is kept of their answers."""

    teaching: Teaching
    networks: Mapping[str, Network]
    caches: Mapping[str, LogitCache]  # by teacher; empty: every batch is computed

    @torch.no_grad()
    def answer(self, batch: Batch) -> tuple[Trace, torch.Tensor]:
        """Return what the teachers of each image say, averaged, and who is taught.

        From a cache come logits alone: the features of the trace are then empty.

        Returns:
            The trace (zeros for an image without a teacher) and float32 [N], 1 where taught.
        """
        visited, answers = [], []
        for name in self.teaching.teachers:
            labels = self.teaching.taught_by(name)
            rows = [row for row, label in enumerate(batch.labels) if label in labels]
            if rows:
                visited.append(rows)
                answers.append(self._ask(name, batch, rows))
        count = len(batch.images)
        weights = torch.zeros(len(answers), count, device=batch.images.device)
        for index, (rows, trace) in enumerate(zip(visited, answers, strict=True)):
            weights[index, rows] = 1.0
            if self.teaching.by_confidence:
                loss = area_balanced_bce(trace.logits, batch.truth[rows])
                weights[index, rows] = (-loss).exp()
        taught = (weights.sum(0) > 0).float() if answers else weights.new_zeros(count)
        weights = weights / weights.sum(0).clamp_min(1e-12)
        return Trace(
            *(self._joined(field, visited, answers, weights) for field in range(3))
        ), taught

    def _joined(
        self, field: int, visited: list[list[int]], answers: list[Trace], weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted mean of one field of the answers, [N, ...]."""
        if not answers:
            return torch.zeros(0, device=weights.device)
        joined = answers[0][field].new_zeros(weights.shape[1], *answers[0][field].shape[1:])
        for index, (rows, trace) in enumerate(zip(visited, answers, strict=True)):
            joined[rows] += trace[field] * weights[index, rows].view(-1, 1, 1, 1)
        return joined

    def _ask(self, name: str, batch: Batch, rows: list[int]) -> Trace:
        """Return what one teacher says of some rows of a batch, from its cache if it has one."""
        images = batch.images[rows]
        if name not in self.caches:
            return Trace(*(each.float() for each in self.networks[name].trace(images)))
        cache, names = self.caches[name], [batch.names[row] for row in rows]
        views = batch.views[rows]
        logits, there = cache.read(names, views)
        if not there.all():
            new = [row for row, found in enumerate(there) if not found]
            answer = self.networks[name](images[new])
            cache.write([names[row] for row in new], views[new], answer)
            logits, _ = cache.read(names, views)
        nothing = images.new_zeros(len(rows), 0, 1, 1)
        return Trace(logits.to(images.device), nothing, nothing)
