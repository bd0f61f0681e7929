"""One stage of training: a network, its data and its loss, resumable after every epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..runtime.contract import InputContract
from ..runtime.cpu import CAPPED_BELOW_BF16, ISA_CAP
from ..runtime.errors import Refused
from ..runtime.image import kept_logits
from ..runtime.metrics import count_pixels, dice_score
from ..runtime.progress import Progress
from .checkpoint import read_tensors, write_tensors
from .config import TrainConfig
from .distributed import Group, shared
from .frames import IMAGE, Batch, FrameSet, draw_batch, normalised
from .log import RunLog
from .models import Network, Trace, build_model, centre_channels
from .sampling import Sampling, epochs_of
from .seeds import seed_of

_EMA_DECAY = 0.995  # of the averaged weights that are kept, a step
_WARM_UP = 0.05  # share of the steps in which the learning rate rises
_EXPLODED = 1e3  # a loss; a healthy start is below 10
_MAX_GRADIENT_NORM = 5.0

Loss = Callable[[Trace, Batch], Mapping[str, torch.Tensor]]
"""(trace of the batch, the batch) -> named terms, [N] each; the mean of their sum is minimised."""


@dataclass(frozen=True)
class Stage:
    """What is trained, on what, how long and how fast."""

    name: str
    model: str  # of `build_model`
    data: FrameSet
    val: FrameSet
    epochs: int
    learning_rate: float  # at the peak of the schedule
    loss: Loss
    start: Mapping[str, torch.Tensor] | None = None  # weights to start from, else drawn by seed
    adapted_channels: int = 0  # of the centre's features after a 1×1 adapter; 0: none
    views: int = 0  # of each image, in turns; 0: a new one every epoch
    sampling: Sampling = field(default_factory=Sampling)
    build: Callable[[str], Network] = build_model  # makes the network of `model`


@dataclass(frozen=True)
class Surroundings:
    """What the stages of a run share."""

    out: Path
    config: TrainConfig
    contract: InputContract
    device: torch.device
    group: Group
    log: RunLog
    progress: Progress


class _Pupil(nn.Module):
    """A network that answers with its trace, the centre's features adapted to the teacher's."""

    def __init__(self, network: Network, adapted_channels: int, side: int) -> None:
        super().__init__()
        self.network = network
        self.adapter: nn.Module = nn.Identity()
        if adapted_channels:
            self.adapter = nn.Conv2d(centre_channels(network, side), adapted_channels, 1)

    def forward(self, images: torch.Tensor) -> Trace:
        trace = self.network.trace(images)
        return Trace(trace.logits.float(), self.adapter(trace.centre), trace.decoder)


def fit(stage: Stage, around: Surroundings) -> Network:
    """Train a stage from its last state, or from the start; return the averaged network.

    Raises Refused: E-TRAIN-LOSS (loss or gradient not finite, or exploded; the last good state is
    kept), E-TRAIN-MEMORY (a batch does not fit; says which does).
    """
    config, group, device = around.config, around.group, around.device
    torch.manual_seed(seed_of(config.seed, stage.name))
    network, averaged = (placed(stage.build(stage.model), device) for _ in range(2))
    if stage.start is not None:
        network.load_state_dict(stage.start)
    averaged.eval()
    averaged.load_state_dict(network.state_dict())
    pupil = _Pupil(network, stage.adapted_channels, config.size).to(device)
    # Fused: one pass over the memory. A step of edge-32 takes 5 % less time on a CPU.
    optimizer = torch.optim.AdamW(pupil.parameters(), weight_decay=config.weight_decay, fused=True)
    state = around.out / f"{stage.name}.state"
    first = _restore(state, pupil, averaged, optimizer) if state.is_file() else 0
    # The tensors stay the same ones: steps and `_restore` write into them.
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values(), strict=True))
    learner = Learner(shared(pupil, group), optimizer, stage, around)
    group.by_leader(lambda: around.log.start_stage(stage.name, first))
    epochs = epochs_of(stage.data, stage.sampling, config.seed, first)
    steps = max(1, stage.data.image_count // config.batch)
    moves = range(first * steps, stage.epochs * steps)
    shown = around.progress(moves, stage.name.replace("-", " "), len(moves))
    sums: dict[str, float] = {}
    for move in shown if group.leads else moves:
        epoch, step = divmod(move, steps)
        if step == 0:
            # Of networks that draw, such as by dropout: an epoch's draws hang on its number alone.
            torch.manual_seed(seed_of(config.seed, f"{stage.name} epoch {epoch}"))
            sums = {}
            pupil.train()
            rows, numbers = next(epochs)
        here = slice(step * config.batch, (step + 1) * config.batch)
        chosen, views = rows[here], numbers[here]
        if stage.views:
            of_image = stage.data.kinds[chosen] == IMAGE  # no teacher's answer is kept of others
            views = np.where(of_image, views % stage.views, views)
        rate = stage.learning_rate * _schedule(move, stage.epochs * steps)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        terms, norm = _step(learner, chosen, views)
        _require_sound(stage, terms, norm, epoch, chosen)
        _average(pairs, move)
        for key, term in terms.items():
            sums[key] = sums.get(key, 0.0) + term / steps
        if step == steps - 1:
            group.by_leader(partial(_log_epoch, stage, around, averaged, epoch, rate, sums))
            group.by_leader(partial(_save, state, pupil, averaged, optimizer, epoch + 1))
    return averaged


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return what networks are trained in: bfloat16 where the hardware computes in it.

    A CPU without AVX-512 BF16 emulates it, which makes a step 12 times as slow as in float32; so
    does one whose kernels ONEDNN_MAX_CPU_ISA caps. A torch that cannot tell trains in float32 too.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        read = getattr(torch.cpu, "get_capabilities", None)
        native = read is not None and bool(read().get("avx512_bf16"))
        capped = os.environ.get(ISA_CAP, "").upper() in CAPPED_BELOW_BF16
        native = native and not capped
    return torch.bfloat16 if native else torch.float32


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in `compute_dtype`."""
    dtype = compute_dtype(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def placed(network: Network, device: torch.device) -> Network:
    """Return a network on its device, in the layout that bf16 on CPUs is a third faster in."""
    moved: Network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


@dataclass(frozen=True)
class Learner:
    """What makes the steps of a stage."""

    pupil: nn.Module  # images -> Trace
    optimizer: torch.optim.Optimizer
    stage: Stage
    around: Surroundings


def _step(
    learner: Learner,
    chosen: np.ndarray,
    views: np.ndarray,
) -> tuple[dict[str, float], float]:
    """Make one optimiser step; return the mean terms of the batch and the gradient's norm.

    No weight changes unless all of them are finite.
    """
    terms = _backward_if_it_fits(learner, chosen, views)
    if terms is None:
        raise _too_large(learner, chosen, views)
    norm = float(nn.utils.clip_grad_norm_(learner.pupil.parameters(), _MAX_GRADIENT_NORM))
    if math.isfinite(norm) and all(map(math.isfinite, terms.values())):
        learner.optimizer.step()
    return terms, norm


def _backward_if_it_fits(
    learner: Learner,
    chosen: np.ndarray,
    views: np.ndarray,
) -> dict[str, float] | None:
    """Return what `_backward` does, or None, with its memory given back, where it does not fit."""
    try:
        return _backward(learner, chosen, views)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return None


def _backward(
    learner: Learner,
    chosen: np.ndarray,
    views: np.ndarray,
) -> dict[str, float]:
    """Leave the gradient of the batch's mean loss in the parameters; return its terms."""
    stage, around = learner.stage, learner.around
    group = around.group
    rows, numbers = group.share(chosen), group.share(views)
    batch = draw_batch(stage.data, rows, numbers, around.config.seed, around.contract)
    with mixed_precision(around.device):
        trace = learner.pupil(batch.images)
        values = stage.loss(trace, batch)
    means = torch.stack([value.sum() for value in values.values()]) / len(chosen)
    learner.optimizer.zero_grad()
    scaled = means.sum() * group.size  # DistributedDataParallel divides by the size
    scaled.backward()  # type: ignore[no-untyped-call]
    total = group.sum(means.detach())
    return dict(zip(values, total.tolist(), strict=True))


def _require_sound(
    stage: Stage, terms: Mapping[str, float], norm: float, epoch: int, chosen: np.ndarray
) -> None:
    total = sum(terms.values())
    if math.isfinite(norm) and total < _EXPLODED:
        return
    batch = ", ".join(stage.data.names[row] for row in chosen)
    raise Refused(
        "E-TRAIN-LOSS",
        f"{stage.name}: loss {total:.4g}, gradient norm {norm:.4g} in epoch {epoch + 1} on "
        f"[{batch}]; the state after epoch {epoch} is kept, look at these images or lower the "
        "learning rate",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _too_large(
    learner: Learner,
    chosen: np.ndarray,
    views: np.ndarray,
) -> Refused:
    """Return the error that says which batch fits, having tried halves if this process is alone."""
    stage, around = learner.stage, learner.around
    count = len(chosen) // 2 if around.group.size == 1 else 0
    while count and not _backward_if_it_fits(learner, chosen[:count], views[:count]):
        count //= 2
    if count:
        mend = f"{count} images do: start again with --batch {count}"
    elif around.group.size > 1:
        mend = "lower --batch"
    else:
        mend = "not even one image does: choose a smaller --size or network"
    return Refused(
        "E-TRAIN-MEMORY",
        f"{stage.name}: a batch of {len(chosen)} images of {around.contract.height} px does not "
        f"fit into the memory of {around.device}; {mend}",
    )


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero; in (0, 1]."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def _average(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], step: int) -> None:
    """Move averaged weights towards the network's, (averaged, its); faster in the first steps."""
    keep = min(_EMA_DECAY, (1 + step) / (10 + step))
    for mean, value in pairs:
        if mean.is_floating_point():
            mean.lerp_(value, 1 - keep)
        else:
            mean.copy_(value)


@torch.no_grad()
def mean_dice(network: Network, frames: FrameSet, contract: InputContract, batch: int) -> float:
    """Mean Dice over the frames with a lesion, at the network's size; NaN without such frames."""
    scores = []
    rows = np.flatnonzero(frames.masks.flatten(1).any(dim=1).cpu().numpy())
    for first in range(0, len(rows), batch):
        chosen = rows[first : first + batch]
        images = normalised(frames.images[chosen].float() / 255, contract)
        with mixed_precision(images.device):
            answers = network(images)
        for logits, mask in zip(answers.float().cpu(), frames.masks[chosen].cpu(), strict=True):
            kept = kept_logits(logits[0].numpy(), contract)
            counts = count_pixels(kept > contract.logit_threshold, mask[0].numpy())
            scores.append(dice_score(counts))
    return float(np.mean(scores)) if scores else float("nan")


def _log_epoch(
    stage: Stage,
    around: Surroundings,
    averaged: Network,
    epoch: int,
    rate: float,
    terms: Mapping[str, float],
) -> None:
    dice = mean_dice(averaged, stage.val, around.contract, around.config.batch)
    around.log.write_epoch(stage.name, epoch, rate, terms, dice)


def _save(
    path: Path,
    pupil: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs_done: int,
) -> None:
    tensors = {f"pupil.{key}": value for key, value in pupil.state_dict().items()}
    tensors |= {f"averaged.{key}": value for key, value in averaged.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    write_tensors(path, tensors, {"epochs_done": str(epochs_done)})


def _restore(
    path: Path, pupil: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    tensors, metadata = read_tensors(path)

    def below(prefix: str) -> dict[str, torch.Tensor]:
        cut = len(prefix) + 1
        return {key[cut:]: value for key, value in tensors.items() if key.startswith(prefix + ".")}

    pupil.load_state_dict(below("pupil"))
    averaged.load_state_dict(below("averaged"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in below("optimizer").items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    content = optimizer.state_dict()
    content["state"] = moments
    optimizer.load_state_dict(content)
    # The fused step walks a parameter and its moments by memory, so all must lie alike.
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if value.shape == parameter.shape:
                kept[key] = torch.empty_like(parameter).copy_(value)
    return int(metadata["epochs_done"])
