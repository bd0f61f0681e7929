"""Quantisation-aware training: a trained student learns on with the rounding of its INT8 form.

The forward pass rounds weights and activations as the Q/DQ graph of the export does; the gradient
passes as if nothing were rounded and stops where an activation is clipped (straight-through
estimator, Bengio et al. 2013, arXiv 1308.3432). Batch norms are folded into their convolutions
first, with the statistics of the training (Jacob et al. 2018, arXiv 1712.05877). Loss, teachers and
loop are those of the training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime.errors import InputError, Refused
from ..runtime.paths import takes_paths
from ..runtime.progress import Progress, quiet
from .checkpoint import OPERATING_POINT, Checkpoint, load_checkpoint, save_checkpoint
from .config import STUDENT_FILE, TrainConfig, with_later
from .data.dataset import Sample
from .distill import Distillation, find_distillation
from .distributed import Group
from .fit import Stage, Surroundings, fit, placed
from .frames import FrameSet
from .log import RunLog
from .models import Network, Trace, build_model
from .modules import names_function
from .sampling import load_part, sampling_of
from .seeds import use_deterministic_operators
from .teaching import Teachers, find_teaching
from .train import (
    distillations_of,
    is_run,
    load_teachers,
    read_config,
    student_loss,
    teaching_networks,
)

SELF = "self"  # in place of teachers: the student before quantisation
RATE = 0.03  # of the training's learning rate
_STAGE = "qat"
_CPU = torch.device("cpu")
_EVERY = "every"  # the one teacher of teaching "single"

Grid = tuple[float, int, int]
"""What a value is rounded to: step times a whole number between the two bounds."""


@dataclass(frozen=True)
class Quantisation:
    """What INT8 rounds in a network, by the paths of its modules."""

    convolutions: Mapping[str, int]  # bits, 2 to 8, of weights: symmetric, a step an output channel
    image: Grid | None  # of the network's input
    outputs: Mapping[str, Grid]  # of modules below; a convolution's is behind its batch norm


@dataclass(frozen=True)
class TrainedRun:
    """A finished run with all that its student can go on learning from."""

    student: Checkpoint
    config: TrainConfig
    teachers: Mapping[str, Checkpoint]  # empty where the folder lacks one of them


class QuantisedNetwork(Network):
    """A network whose batch norms are folded, computing in float32 what INT8 would."""

    def __init__(self, network: Network, quantisation: Quantisation) -> None:
        super().__init__()
        self.network = network
        self._image = quantisation.image
        norms = {}
        for path, convolution, norm in _normed_convolutions(network):
            norms[path] = norm
            norm.__class__ = _Shift
            norm.weight.requires_grad_(False)
            if convolution.bias is not None:  # the shift of the folded norm is in its place
                convolution.bias.requires_grad_(False)
        for path, bits in quantisation.convolutions.items():
            module = network.get_submodule(path)
            module.__class__ = _RoundedConv
            module.levels = 2 ** (bits - 1) - 1
        for path, grid in quantisation.outputs.items():
            if not path:
                raise ValueError("what is rounded inside `trace` itself has no module to round it")
            module = norms[path] if path in norms else network.get_submodule(path)
            module.register_forward_hook(partial(_round_output, grid))

    def trace(self, image: torch.Tensor) -> Trace:
        """Return logits and features."""
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 would round once more
            return self.network.trace(image if self._image is None else _on(self._image, image))


class _RoundedConv(nn.Conv2d):
    """A convolution whose weights are rounded in the forward pass."""

    levels: int  # on either side of zero

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = round_weight(self.weight, self.levels)
        outcome: torch.Tensor = self._conv_forward(x, weight, self.bias)
        return outcome


class _Shift(nn.BatchNorm2d):
    """A batch norm after `fold_norms`: only its bias is left, in training too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted: torch.Tensor = x + self.bias[:, None, None]
        return shifted


@takes_paths
def read_run(checkpoint: Path) -> TrainedRun:
    """Read the student of a run, its settings, and its teachers if they are all there.

    Raises:
        InputError: E-QAT-SOURCE (not the student of a run, or of a network from elsewhere), those
            of `load_checkpoint` and `read_config`.
        Refused: E-QAT-TEACHER (a teacher in the folder is not one that taught the student).
    """
    run = checkpoint.parent
    student = load_checkpoint(checkpoint)
    is_student = checkpoint.name == STUDENT_FILE or OPERATING_POINT in student.provenance
    if not is_student or not is_run(run):
        raise InputError(
            "E-QAT-SOURCE",
            f"{checkpoint} is not the student in the folder of its run; name the run, or leave "
            "--qat out",
        )
    if names_function(student.model):
        raise InputError(
            "E-QAT-SOURCE",
            f"{checkpoint} is of a network that {student.model} makes, and --qat knows where INT8 "
            "rounds in the networks of edgeseg alone; leave --qat out",
        )
    config = read_config(run)
    if with_later(student.provenance.get("config")) != asdict(config):
        raise InputError(
            "E-QAT-SOURCE",
            f"{checkpoint} was trained with other settings than {run} holds; put the original "
            "back, or leave --qat out",
        )
    taught_by = student.provenance.get("teachers", {})
    teachers = load_teachers(run, config)
    for name, teacher in teachers.items():
        if taught_by.get(name) != teacher.sha256:
            raise Refused(
                "E-QAT-TEACHER",
                f"teacher {name} in {run} is not the one that taught {checkpoint.name}; put the "
                "original back, or take all teachers out: the student then teaches itself",
            )
    complete = set(teachers) == set(taught_by)
    return TrainedRun(student, config, teachers if complete else {})


def load_parts(
    run: TrainedRun, samples: Mapping[str, Sequence[Sample]], progress: Progress = quiet
) -> dict[str, FrameSet]:
    """Read samples by part at the network's size. Raises InputError for unreadable files."""
    return {
        part: load_part(part, each, run.config, _CPU, progress) for part, each in samples.items()
    }


def fine_tune_quantised(
    run: TrainedRun,
    quantisation: Quantisation,
    frames: Mapping[str, FrameSet],
    *,
    epochs: int,
    progress: Progress = quiet,
) -> Checkpoint:
    """Train the student of a run on with the rounding of its INT8 form; same run, same result.

    The teachers of the run go on teaching; where there are none the student teaches itself as it
    was before. Either way the masks are learnt too. The learning rate is `RATE` of the training's.
    A distillation that needs an adapter is left out, as the adapter went with the training; if
    none is left it is "kl". Runs on the CPU and keeps no state: a stopped one begins anew.

    Args:
        run: of `read_run`.
        quantisation: what is rounded, and to what.
        frames: "train" is learnt from; "val" is only scored.
        epochs: over the train part, >= 1.
        progress: wraps the steps.

    Returns:
        A checkpoint of the same network and contract, with batch norms that only add. Its
        provenance has under "qat" what `edgeseg export` puts into the manifest.

    Raises Refused: E-TRAIN-LOSS, E-TRAIN-MEMORY (see `fit`).
    """
    config, student = run.config, run.student
    folded = build_model(student.model)
    folded.load_state_dict(student.network.state_dict())
    fold_norms(folded)
    terms = {name: each for name, each in distillations_of(config).items() if not each.adapter}
    terms = terms or {"kl": find_distillation("kl")}
    use_deterministic_operators(_CPU)

    def build(model: str) -> Network:
        return QuantisedNetwork(build_model(model), quantisation)

    with tempfile.TemporaryDirectory(prefix="edgeseg-") as name:
        folder = Path(name)
        log = RunLog(folder)
        stage = Stage(
            _STAGE,
            student.model,
            frames["train"],
            frames["val"],
            epochs,
            RATE * config.learning_rate,
            student_loss(_teachers_of(run), terms, config),
            QuantisedNetwork(folded, quantisation).state_dict(),
            sampling=sampling_of(config),
            build=build,
        )
        around = Surroundings(folder, config, student.contract, _CPU, Group(), log, progress)
        try:
            tuned = fit(stage, around)
        finally:
            log.close()
        plain = build_model(student.model)
        plain.load_state_dict(tuned.get_submodule("network").state_dict())
        file = folder / STUDENT_FILE
        provenance = {**student.provenance, "qat": _facts(run, stage, terms)}
        save_checkpoint(
            file, plain, model=student.model, contract=student.contract, provenance=provenance
        )
        return load_checkpoint(file)


@torch.no_grad()
def fold_norms(network: Network) -> None:
    """Fold every batch norm into the convolution before it, in place; what comes out stays.

    The norm is left as the identity plus its bias, so that the network keeps its architecture.
    """
    folded = set()
    for _, convolution, norm in _normed_convolutions(network):
        variance, mean = norm.get_buffer("running_var"), norm.get_buffer("running_mean")
        scale = norm.weight * (variance + norm.eps).rsqrt()
        bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias
        norm.bias.add_((bias - mean) * scale)
        convolution.weight.mul_(scale[:, None, None, None])
        if convolution.bias is not None:
            convolution.bias.zero_()
        norm.weight.fill_(1)
        mean.zero_()
        variance.fill_(1 - norm.eps)
        folded.add(norm)
    if folded != {each for each in network.modules() if isinstance(each, nn.BatchNorm2d)}:
        raise ValueError("a batch norm of the network does not follow a convolution")


def round_weight(weight: torch.Tensor, levels: int) -> torch.Tensor:
    """Round [O, I, h, w] to `levels` steps on either side of zero, a step for each O."""
    largest = weight.detach().abs().amax(dim=(1, 2, 3))
    smallest = torch.finfo(weight.dtype).smallest_normal
    step = torch.where(largest > 0, (largest / levels).clamp_min(smallest), 1.0)
    zero = torch.zeros_like(step, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, step, zero, 0, -levels, levels)


def _on(grid: Grid, values: torch.Tensor) -> torch.Tensor:
    step, least, most = grid
    return torch.fake_quantize_per_tensor_affine(values, step, 0, least, most)


def _round_output(grid: Grid, module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
    return _on(grid, output)


def _normed_convolutions(network: Network) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Yield every convolution that a batch norm follows, with its path."""
    for path, block in network.named_modules():
        if isinstance(block, nn.Sequential):
            for (name, convolution), (_, norm) in pairwise(block.named_children()):
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    yield f"{path}.{name}", convolution, norm


def _teachers_of(run: TrainedRun) -> Teachers:
    if run.teachers:
        networks = teaching_networks(run.teachers, run.config, _CPU)
        return Teachers(find_teaching(run.config.teaching), networks, {})
    return Teachers(find_teaching("single"), {_EVERY: placed(run.student.network, _CPU)}, {})


def _facts(run: TrainedRun, stage: Stage, terms: Mapping[str, Distillation]) -> dict[str, Any]:
    taught_by = {name: each.sha256 for name, each in run.teachers.items()}
    return {
        "epochs": stage.epochs,
        "learning_rate": stage.learning_rate,
        "seed": run.config.seed,
        "train_images": stage.data.image_count,
        "distillation": "+".join(terms),
        "teachers": taught_by or SELF,
    }
