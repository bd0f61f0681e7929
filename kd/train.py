"""T²KD training: two class teachers, then one student that both of them teach.

Each image is taught by the teacher of its own class (routed by the training label); an image
without lesion has no teacher and is learnt from its empty mask alone. Labels are used in training
only: the student takes an image and nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..runtime.contract import InputContract
from ..runtime.errors import InputError, Refused
from ..runtime.files import cannot_write, sha256_of_file, write_bytes
from ..runtime.image import resize_grey, resize_mask
from ..runtime.metrics import count_pixels, dice_score
from ..runtime.progress import Progress, quiet
from .augment import augment
from .checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_tensors
from .config import SPLIT_FILE, STUDENT_FILE, TrainConfig
from .data.dataset import Dataset, Sample
from .data.split import Split, make_split, read_split, samples_of, write_split
from .log import RunLog
from .losses import pixel_kl, supervised_loss
from .models import build_model

TAUGHT = ("benign", "malignant")  # the classes that have a teacher
_CONFIG_FILE = "config.json"
_RUN_FILES = (_CONFIG_FILE, "*.safetensors", "*.state")  # any of them makes a folder a run
_EMA_DECAY = 0.995  # of the averaged weights that are kept, a step
_WARM_UP = 0.05  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class _Frames:
    """Samples at the network's size, in memory on the training device."""

    names: tuple[str, ...]
    images: torch.Tensor  # uint8 [N, 1, S, S]
    masks: torch.Tensor  # bool [N, 1, S, S]
    labels: np.ndarray  # str [N]

    def of_class(self, label: str) -> _Frames:
        """Return the frames of one class."""
        keep = np.flatnonzero(self.labels == label)
        return _Frames(
            tuple(self.names[index] for index in keep),
            self.images[keep],
            self.masks[keep],
            self.labels[keep],
        )


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray], dict[str, torch.Tensor]]
"""(logits, truth, images, labels) -> the named terms whose sum is minimised."""


def train(
    dataset: Dataset,
    out: Path,
    config: TrainConfig,
    *,
    split: Split | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress = quiet,
) -> Path:
    """Train teachers and student; return the student's checkpoint.

    Writes into `out`: config.json, split.json, teacher-benign.safetensors,
    teacher-malignant.safetensors, student.safetensors, log.csv and TensorBoard events. After a
    kill at any moment a resumed run ends with the weights of an uninterrupted one (same machine,
    same number of threads).

    Args:
        dataset: the images; once split, only those of the train and val parts are read.
        out: folder of the run, new unless `resume`.
        config: settings.
        split: None makes a leak-safe one with the settings' seed.
        resume: continue the run in `out`.
        device: "auto", "cpu" or "cuda".
        progress: shows how far a stage has come.

    Raises:
        InputError: E-DATA-CLASS (benign or malignant missing), E-RUN-EXISTS, E-RUN-MISSING,
            E-RUN-CONFIG (resumed with other settings or another split), E-DEVICE, E-MODEL-NAME,
            E-CONFIG (a network does not take the size).
        Refused: E-TRAIN-LOSS (loss or gradient not finite; the last good state is kept),
            E-RUN-STAGE (a finished stage in `out` is of another run).
        OutputError: E-OUT-WRITE.
    """
    run_device = _device(device)
    _require_models(config)
    split = _split_of_run(dataset, out, config, split, resume)
    _require_classes(split)
    contract = InputContract(height=config.size, width=config.size)
    frames = {
        part: _load(samples_of(split, dataset, part), config.size, part, run_device, progress)
        for part in ("train", "val")
    }
    if not resume:
        write_split(split, out / SPLIT_FILE)
        write_bytes(out / _CONFIG_FILE, config.to_json())  # last: it makes the folder a run
    provenance = {
        "config": asdict(config),
        "split_sha256": sha256_of_file(out / SPLIT_FILE),
        "train_images": len(frames["train"].names),
    }
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's own condition for it
    log = RunLog(out)

    def stage(
        name: str, model: str, data: _Frames, val: _Frames, epochs: int, loss: Loss
    ) -> nn.Module:
        target = out / f"{name}.safetensors"
        if not target.is_file():
            trained = _fit(
                name, model, data, val, epochs, loss, config, contract, log, progress, out
            )
            save_checkpoint(target, trained, model=model, contract=contract, provenance=provenance)
            (out / f"{name}.state").unlink(missing_ok=True)
        # Read back even if just written: a resumed run must see the same memory layout.
        loaded = load_checkpoint(target)
        if (loaded.model, loaded.provenance) != (model, provenance):
            raise Refused(
                "E-RUN-STAGE", f"{target} is not of this run: its settings or its split differ"
            )
        return _placed(loaded.network, run_device)

    try:
        teachers = {
            label: stage(
                f"teacher-{label}",
                config.teacher,
                frames["train"].of_class(label),
                frames["val"].of_class(label),
                config.teacher_epochs,
                lambda logits, truth, images, labels: {"masks": supervised_loss(logits, truth)},
            )
            for label in TAUGHT
        }
        stage(
            "student",
            config.student,
            frames["train"],
            frames["val"],
            config.student_epochs,
            _student_loss(teachers, config),
        )
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        log.close()
    return out / STUDENT_FILE


def _student_loss(teachers: dict[str, nn.Module], config: TrainConfig) -> Loss:
    """Masks plus routed distillation: each image through the teacher of its own class only."""

    def loss(
        logits: torch.Tensor, truth: torch.Tensor, images: torch.Tensor, labels: np.ndarray
    ) -> dict[str, torch.Tensor]:
        terms = {"masks": supervised_loss(logits, truth)}
        if config.distill_weight:
            taught = torch.zeros_like(logits)
            routed = torch.zeros(len(labels), dtype=torch.bool)
            for label, teacher in teachers.items():
                chosen = torch.from_numpy(labels == label)
                if chosen.any():
                    with torch.no_grad():
                        taught[chosen] = teacher(images[chosen]).float()
                    routed |= chosen
            kl = pixel_kl(logits, taught, routed.to(logits.device), temperature=config.temperature)
            terms["distill"] = config.distill_weight * kl
        return terms

    return loss


def _fit(
    name: str,
    model: str,
    data: _Frames,
    val: _Frames,
    epochs: int,
    loss_terms: Loss,
    config: TrainConfig,
    contract: InputContract,
    log: RunLog,
    progress: Progress,
    out: Path,
) -> nn.Module:
    """Run one stage from its last state, or from the start; return the averaged network."""
    device = data.images.device
    torch.manual_seed(_seed_of(config.seed, name))
    network, averaged = (_placed(build_model(model), device) for _ in range(2))
    averaged.eval()
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    state = out / f"{name}.state"
    first = _restore(state, network, averaged, optimizer) if state.is_file() else 0
    log.start_stage(name, first)
    steps = max(1, len(data.names) // config.batch)
    moves = progress(
        range(first * steps, epochs * steps), name.replace("-", " "), (epochs - first) * steps
    )
    sums: dict[str, float] = {}
    for move in moves:
        epoch, step = divmod(move, steps)
        if step == 0:
            sums = {}
            network.train()
            order = np.random.default_rng([config.seed, epoch]).permutation(len(data.names))
        chosen = order[step * config.batch : (step + 1) * config.batch]
        rate = config.learning_rate * _schedule(move, epochs * steps)
        terms, gradient_norm = _step(
            network, optimizer, loss_terms, data, chosen, contract, rate, move, config
        )
        total = sum(float(term) for term in terms.values())
        if not math.isfinite(total) or not math.isfinite(gradient_norm):
            batch = ", ".join(data.names[index] for index in chosen)
            raise Refused(
                "E-TRAIN-LOSS",
                f"{name}: loss {total}, gradient norm {gradient_norm} in epoch {epoch + 1} on "
                f"[{batch}]; the state after epoch {epoch} is kept, look at these images or lower "
                "the learning rate",
            )
        _average(averaged, network, move)
        for key, term in terms.items():
            sums[key] = sums.get(key, 0.0) + float(term) / steps
        if step == steps - 1:
            log.write_epoch(name, epoch, rate, sums, _mean_dice(averaged, val, contract))
            _save(state, network, averaged, optimizer, epoch + 1)
    return averaged


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    # channels_last is a third faster in bf16 on CPUs; the stub of `to` does not know it.
    placed: nn.Module = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_terms: Loss,
    data: _Frames,
    chosen: np.ndarray,
    contract: InputContract,
    rate: float,
    move: int,
    config: TrainConfig,
) -> tuple[dict[str, torch.Tensor], float]:
    """Make one optimiser step; return the loss terms and the norm of the gradient.

    No weight changes unless both are finite.
    """
    device = data.images.device
    generator = torch.Generator().manual_seed(_seed_of(config.seed, f"augment {move}"))
    images = data.images[chosen].float() / 255
    images, truth = augment(images, data.masks[chosen].float(), generator)
    images = ((images - contract.mean) / contract.std).to(memory_format=torch.channels_last)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(device.type, torch.bfloat16):
        logits = network(images).float()
        terms = loss_terms(logits, truth, images, data.labels[chosen])
    loss = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(nn.utils.clip_grad_norm_(network.parameters(), 5.0))
    if math.isfinite(norm) and torch.isfinite(loss):
        optimizer.step()
    return {name: term.detach() for name, term in terms.items()}, norm


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero; in (0, 1]."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, step: int) -> None:
    """Move the averaged weights towards the network's; faster while there are few steps."""
    keep = min(_EMA_DECAY, (1 + step) / (10 + step))
    for mean, value in zip(
        averaged.state_dict().values(), network.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - keep)
        else:
            mean.copy_(value)


@torch.no_grad()
def _mean_dice(network: nn.Module, frames: _Frames, contract: InputContract) -> float:
    """Mean Dice over the frames with a lesion, at the network's size; NaN without such frames."""
    scores = []
    device = frames.images.device
    for index in range(len(frames.names)):
        truth = frames.masks[index, 0].cpu().numpy()
        if not truth.any():
            continue
        image = (frames.images[index : index + 1].float() / 255 - contract.mean) / contract.std
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(image.to(memory_format=torch.channels_last))
        mask = (logits[0, 0].float() > contract.logit_threshold).cpu().numpy()
        scores.append(dice_score(count_pixels(mask, truth)))
    return float(np.mean(scores)) if scores else float("nan")


def _save(
    path: Path,
    network: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs_done: int,
) -> None:
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"averaged.{key}": value for key, value in averaged.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    write_tensors(path, tensors, {"epochs_done": str(epochs_done)})


def _restore(
    path: Path, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    tensors, metadata = read_tensors(path)

    def below(prefix: str) -> dict[str, torch.Tensor]:
        cut = len(prefix) + 1
        return {key[cut:]: value for key, value in tensors.items() if key.startswith(prefix + ".")}

    network.load_state_dict(below("network"))
    averaged.load_state_dict(below("averaged"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in below("optimizer").items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    content = optimizer.state_dict()
    content["state"] = moments
    optimizer.load_state_dict(content)
    return int(metadata["epochs_done"])


def _split_of_run(
    dataset: Dataset, out: Path, config: TrainConfig, split: Split | None, resume: bool
) -> Split:
    """Return the split of a new run, or that of the run to resume if its settings agree."""
    if not resume:
        left = [path for suffix in _RUN_FILES for path in sorted(out.glob(suffix))]
        if left:
            raise InputError(
                "E-RUN-EXISTS",
                f"{out} holds a run ({left[0].name}); continue it with --resume or choose another",
            )
        return split or make_split(dataset, seed=config.seed)
    if read_config(out) != config:
        raise InputError(
            "E-RUN-CONFIG", f"{out} was started with other settings; resume without changing any"
        )
    kept = read_split(out / SPLIT_FILE)
    if split not in (None, kept):
        raise InputError("E-RUN-CONFIG", f"{out} was started with another split; leave --split out")
    return kept


def read_config(run: Path) -> TrainConfig:
    """Return the settings of a run. Raises InputError: E-RUN-MISSING, E-CONFIG."""
    if not (run / _CONFIG_FILE).is_file():
        raise InputError("E-RUN-MISSING", f"{run} holds no run; start it without --resume")
    return TrainConfig.from_json((run / _CONFIG_FILE).read_bytes())


def _load(
    samples: Sequence[Sample], size: int, part: str, device: torch.device, progress: Progress
) -> _Frames:
    images = np.empty((len(samples), 1, size, size), np.uint8)
    masks = np.empty((len(samples), 1, size, size), np.bool_)
    for index, sample in enumerate(progress(samples, f"reading {part} images")):
        images[index, 0] = resize_grey(sample.read_image(), size, size)
        masks[index, 0] = resize_mask(sample.read_mask(), size, size)
    return _Frames(
        names=tuple(sample.name for sample in samples),
        images=torch.from_numpy(images).to(device),
        masks=torch.from_numpy(masks).to(device),
        labels=np.array([sample.label for sample in samples]),
    )


def _require_classes(split: Split) -> None:
    present = {entry.label for entry in split.entries if entry.part == "train"}
    for label in TAUGHT:
        if label not in present:
            raise InputError(
                "E-DATA-CLASS",
                f"the training part has no {label!r} image; T²KD needs a teacher for each of "
                f"{' and '.join(TAUGHT)}, so add images of that class",
            )


def _require_models(config: TrainConfig) -> None:
    """Refuse an unknown network, or a size it does not take, before the first epoch."""
    for model in (config.student, config.teacher):
        with torch.device("meta"), torch.inference_mode():  # shapes only
            network = build_model(model).eval()
            try:
                network(torch.zeros(1, 1, config.size, config.size))
            except RuntimeError as error:
                raise InputError(
                    "E-CONFIG",
                    f"{model} takes no images of {config.size} px ({error}); try a multiple of 32",
                ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("E-DEVICE", "no CUDA device is usable here; train with --device cpu")
    return torch.device(name)


def _seed_of(seed: int, purpose: str) -> int:
    """Return a seed that differs between purposes and not between runs."""
    words = [seed, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1)[0])
