"""T²KD training: class teachers, then one student that they teach.

Each image is taught by the teacher of its own class (routed by the training label); an image
without lesion has no teacher and is learnt from its empty mask alone. The other ways of teaching
are the controls that this one is measured against. Labels are used in training only: the student
takes an image and nothing else.

The teachers start from one network that was trained on all classes and then specialise: a class of
170 images alone is too little to learn where a lesion is (our addition, not the paper's).
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runtime.bundle import SPLIT_FILE
from ..runtime.contract import InputContract
from ..runtime.errors import InputError, Refused
from ..runtime.files import cannot_write, write_bytes
from ..runtime.paths import takes_paths
from ..runtime.progress import Progress, quiet
from .augment import VERSION
from .cache import LogitCache
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import STUDENT_FILE, TrainConfig
from .data.dataset import LABELS, Dataset
from .data.split import Split, make_split, read_split, samples_of, split_to_json, write_split
from .distill import Distillation, find_distillation
from .distributed import join_group, leave_group
from .fit import Loss, Stage, Surroundings, compute_dtype, fit, placed
from .frames import Batch, Frames, draw_phantoms, load_frames
from .log import RunLog
from .losses import supervised_loss
from .models import Trace, build_model, centre_channels
from .teaching import CLASSES_OF, Teachers, find_teaching

Weights = Mapping[str, torch.Tensor]

PHANTOMS = 1000  # on which networks start, where the settings ask for it
_CONFIG_FILE = "config.json"
_RUN_FILES = (_CONFIG_FILE, "[!t]*.safetensors", "teacher-*.safetensors", "*.state")
"""Any of them makes a folder a run; teachers that were taken alone do not."""
_TAKEN = "taken-"  # before the name of a teacher's checkpoint that came from another run
# The settings that the start from phantoms depends on
_OF_PHANTOMS = (
    "size",
    "student",
    "phantom_epochs",
    "batch",
    "learning_rate",
    "weight_decay",
    "seed",
)
_GENERAL = "general"  # the teacher that the others start from
_SPECIALISE = 0.3  # of the learning rate, for a teacher that starts from the general network


@takes_paths
def train(
    dataset: Dataset,
    out: Path,
    config: TrainConfig,
    *,
    split: Split | None = None,
    resume: bool = False,
    teachers: Path | None = None,
    device: str = "auto",
    progress: Progress = quiet,
) -> Path:
    """Train teachers and student; return the student's checkpoint.

    Writes into `out`: config.json, split.json, a checkpoint for each teacher and the student,
    log.csv, TensorBoard events and, where the settings ask for views, the cache of the teachers'
    logits. After a kill at any moment a resumed run ends with the weights of an uninterrupted one
    (same machine, same number of threads). Started by `torchrun`, the processes share every batch.

    Args:
        dataset: the images; once split, only those of the train and val parts are read.
        out: folder of the run, new unless `resume`.
        config: settings.
        split: None makes a leak-safe one with the settings' seed.
        resume: continue the run in `out`.
        teachers: a run whose teachers are taken instead of training new ones; one that it lacks
            is trained from its general network. Its student's start from phantoms is taken too
            where the settings are the same. Goes with a new run only.
        device: "auto", "cpu" or "cuda".
        progress: shows how far a stage has come.

    Raises:
        InputError: E-DATA-CLASS (a class that a teacher needs is missing), E-RUN-EXISTS,
            E-RUN-MISSING, E-RUN-CONFIG (resumed with other settings or another split), E-DEVICE,
            E-MODEL-NAME, E-DISTILL-NAME, E-TEACHING-NAME, E-CONFIG (a network does not take the
            size, a cache cannot hold features), E-CACHE-SIZE, E-TEACHER-MISSING (`teachers` has
            none of those asked for and no general network), E-TEACHER-CONTRACT (of another input
            contract or network), E-TEACHER-SPLIT (trained with another split).
        Refused: E-TRAIN-LOSS, E-TRAIN-MEMORY (see `fit`), E-CACHE-OTHER (see `LogitCache`),
            E-RUN-STAGE (a finished stage in `out` is of another run).
        OutputError: E-OUT-WRITE.
    """
    run_device = _device(device)
    require_settings(config)
    split = _split_of_run(dataset, out, config, split, resume)
    _require_classes(split, config)
    contract = InputContract(height=config.size, width=config.size)
    split_sha256 = hashlib.sha256(split_to_json(split).encode()).hexdigest()
    taken: tuple[Path, ...] = ()
    if teachers is not None:
        if resume:
            raise InputError(
                "E-RUN-CONFIG", "a run is resumed with its own teachers; leave --teachers out"
            )
        taken = _teachers_in(teachers, config, contract, split_sha256)
    frames = {
        part: load_frames(
            samples_of(split, dataset, part),
            config.size,
            run_device,
            progress,
            f"reading {part} images",
        )
        for part in ("train", "val")
    }
    group = join_group(run_device)
    # On GPUs some of the operators have no deterministic form.
    torch.use_deterministic_algorithms(run_device.type == "cpu")
    log = RunLog(out)
    around = Surroundings(out, config, contract, run_device, group, log, progress)

    def prepare() -> None:
        _remove_left_overs(out, resume)
        if not resume:
            write_split(split, out / SPLIT_FILE)
            for file in taken:
                write_bytes(out / f"{_TAKEN}{file.name}", file.read_bytes())
            write_bytes(out / _CONFIG_FILE, config.to_json())  # last: it makes the folder a run

    try:
        group.by_leader(prepare)
        provenance = {
            "config": asdict(config),
            "split_sha256": split_sha256,
            "train_images": len(frames["train"].names),
        }
        run = _Run(around, frames, provenance)
        _train_student(run, _train_teachers(run))
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        log.close()
        leave_group(group)
    return out / STUDENT_FILE


@dataclass(frozen=True)
class _Run:
    """What the stages need beside their own settings."""

    around: Surroundings
    frames: Mapping[str, Frames]
    provenance: Mapping[str, Any]

    @functools.cached_property
    def phantoms(self) -> Frames:
        """The phantoms that networks start from, drawn when the first stage asks for them."""
        around = self.around
        progress = around.progress if around.group.leads else quiet
        config = around.config
        return draw_phantoms(PHANTOMS, config.seed, config.size, around.device, progress)

    def stage(self, stage: Stage, taught_by: Mapping[str, str] | None = None) -> Checkpoint:
        """Return the checkpoint of a stage, trained first unless it is there.

        Args:
            stage: what to train.
            taught_by: SHA-256 of the teachers' checkpoints.
        """
        around = self.around
        provenance = {**self.provenance, "teachers": dict(taught_by or {})}
        target = around.out / f"{stage.name}.safetensors"
        trained = None if target.is_file() else fit(stage, around)

        def keep() -> None:
            if trained is not None:
                save_checkpoint(
                    target,
                    trained,
                    model=stage.model,
                    contract=around.contract,
                    provenance=provenance,
                )
            (around.out / f"{stage.name}.state").unlink(missing_ok=True)

        around.group.by_leader(keep)
        # Read back even if just written: a resumed run must see the same memory layout.
        loaded = load_checkpoint(target)
        if (loaded.model, loaded.provenance) != (stage.model, provenance):
            raise Refused(
                "E-RUN-STAGE", f"{target} is not of this run: its settings or its split differ"
            )
        return loaded


def _on_masks(trace: Trace, batch: Batch) -> dict[str, torch.Tensor]:
    return {"masks": supervised_loss(trace.logits, batch.truth)}


def _train_teachers(run: _Run) -> dict[str, Checkpoint]:
    """Train the teachers that the settings ask for, but those that were taken."""
    config, frames = run.around.config, run.frames
    names = find_teaching(config.teaching).teachers
    found = {name: run.around.out / f"{_TAKEN}{_file_of(name)}" for name in (*names, _GENERAL)}
    taken = {name: load_checkpoint(file) for name, file in found.items() if file.is_file()}

    def teacher(
        name: str, classes: tuple[str, ...], epochs: int, start: Weights | None, rate: float
    ) -> Checkpoint:
        data, val = (frames[part].of_classes(*classes) for part in ("train", "val"))
        stage = Stage(f"teacher-{name}", config.teacher, data, val, epochs, rate, _on_masks, start)
        return taken.get(name) or run.stage(stage)

    start, rate = None, config.learning_rate
    if not set(names) <= set(taken):
        if _GENERAL not in taken:
            start = _weights_from_phantoms(run, "teacher", config.teacher)
        if config.general_epochs:
            general = teacher(_GENERAL, LABELS, config.general_epochs, start, rate)
            start, rate = general.network.state_dict(), rate * _SPECIALISE
    return {
        name: teacher(name, CLASSES_OF[name], config.teacher_epochs, start, rate) for name in names
    }


def _weights_from_phantoms(run: _Run, who: str, model: str) -> Weights | None:
    """Return the weights to start from, or None where the settings ask for no phantoms."""
    around, config = run.around, run.around.config
    if not config.phantom_epochs:
        return None
    name = f"phantom-{who}"
    taken = around.out / f"{_TAKEN}{name}.safetensors"
    if taken.is_file():
        return load_checkpoint(taken).network.state_dict()
    none = run.frames["train"].at(np.arange(0))
    # Drawn only if the stage is not done yet.
    frames = none if (around.out / f"{name}.safetensors").is_file() else run.phantoms
    epochs, rate = config.phantom_epochs, config.learning_rate
    stage = Stage(name, model, frames, none, epochs, rate, _on_masks)
    return run.stage(stage).network.state_dict()


def _train_student(run: _Run, teachers: Mapping[str, Checkpoint]) -> None:
    around, config, data = run.around, run.around.config, run.frames["train"]
    teaching = find_teaching(config.teaching)
    terms = distillations_of(config)
    caches = {}
    if config.views:

        def open_caches() -> None:
            for name, teacher in teachers.items():
                taught = data.of_classes(*teaching.taught_by(name))
                key = _cache_key(teacher, taught, run)
                caches[name] = LogitCache(
                    around.out / "cache", f"teacher-{name}", key, taught.names, config.views
                )

        around.group.by_leader(open_caches)  # which makes the files
        if not around.group.leads:
            open_caches()
    networks = {name: placed(each.network, around.device) for name, each in teachers.items()}
    adapted = any(each.adapter for each in terms.values()) and bool(teachers)
    run.stage(
        Stage(
            "student",
            config.student,
            data,
            run.frames["val"],
            config.student_epochs,
            config.learning_rate,
            student_loss(Teachers(teaching, networks, caches), terms, config),
            _weights_from_phantoms(run, "student", config.student),
            adapted_channels=centre_channels(config.teacher) if adapted else 0,
            views=config.views,
        ),
        {name: teacher.sha256 for name, teacher in teachers.items()},
    )


def student_loss(
    teachers: Teachers, terms: Mapping[str, Distillation], config: TrainConfig
) -> Loss:
    """Return the student's loss: masks, and each distillation term on the images taught."""

    def loss(trace: Trace, batch: Batch) -> dict[str, torch.Tensor]:
        values = _on_masks(trace, batch)
        if not teachers.networks:
            return values
        answer, taught = teachers.answer(batch)
        for name, each in terms.items():
            if taught.any():
                value = each.term(trace, answer, batch.truth, config.temperature)
            else:  # keeps every parameter in the graph, as processes that share a batch must
                value = 0 * (trace.logits.sum(dim=(1, 2, 3)) + trace.centre.sum(dim=(1, 2, 3)))
            values[name] = config.distill_weight * each.weight * value * taught
        return values

    return loss


def distillations_of(config: TrainConfig) -> dict[str, Distillation]:
    """Return the distillation losses that the settings name. Raises InputError (E-DISTILL-NAME)."""
    return {name: find_distillation(name) for name in config.distillation.split("+")}


def _cache_key(teacher: Checkpoint, taught: Frames, run: _Run) -> dict[str, Any]:
    """What a teacher's logits of a view depend on, beside the images' names."""
    pixels = hashlib.sha256(taught.images.cpu().numpy().tobytes())
    return {
        "teacher_sha256": teacher.sha256,
        "images_sha256": pixels.hexdigest(),  # at the network's size
        "device": run.around.device.type,
        "precision": str(compute_dtype(run.around.device)),
        "contract": teacher.contract.to_dict(),
        "size": teacher.contract.height,
        "seed": run.around.config.seed,
        "augmentation": VERSION,
    }


def _file_of(teacher: str) -> str:
    return f"teacher-{teacher}.safetensors"


def _teachers_in(
    source: Path, config: TrainConfig, contract: InputContract, split_sha256: str
) -> tuple[Path, ...]:
    """Return the checkpoints of another run that can serve this one, all of them checked."""
    wanted = find_teaching(config.teaching).teachers
    files = [source / _file_of(name) for name in wanted]
    if config.general_epochs and not all(file.is_file() for file in files):
        files.append(source / _file_of(_GENERAL))
    found = [file for file in files if file.is_file()]
    if not source.is_dir() or (wanted and not found):
        raise InputError(
            "E-TEACHER-MISSING",
            f"{source} has none of {', '.join(file.name for file in files)}, which teaching "
            f"{config.teaching!r} needs; train them without --teachers",
        )
    for file in found:
        loaded = load_checkpoint(file)
        if (loaded.contract, loaded.model) != (contract, config.teacher):
            raise InputError(
                "E-TEACHER-CONTRACT",
                f"{file} is {loaded.model} for {loaded.contract}, the student's run asks for "
                f"{config.teacher} and {contract}; give --size and --teacher as they were there",
            )
        if loaded.provenance.get("split_sha256") != split_sha256:
            raise InputError(
                "E-TEACHER-SPLIT",
                f"{file} was trained with another split, so it may know this run's test part; "
                f"give --split {source / SPLIT_FILE}",
            )
    phantom = source / "phantom-student.safetensors"
    if config.phantom_epochs and phantom.is_file():
        theirs = load_checkpoint(phantom).provenance["config"]
        if all(theirs.get(name) == getattr(config, name) for name in _OF_PHANTOMS):
            found.append(phantom)
    return tuple(found)


def _remove_left_overs(out: Path, resume: bool) -> None:
    """Remove what a kill left: temporary files, and teachers that were taken for no run."""
    for pattern in (".*.state.*", ".*.safetensors.*", *(() if resume else (f"{_TAKEN}*",))):
        for file in out.glob(pattern):
            file.unlink()


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


@takes_paths
def is_run(folder: Path) -> bool:
    """Say whether a run was started in a folder."""
    return (folder / _CONFIG_FILE).is_file()


@takes_paths
def read_config(run: Path) -> TrainConfig:
    """Return the settings of a run. Raises InputError: E-RUN-MISSING, E-CONFIG."""
    if not is_run(run):
        raise InputError("E-RUN-MISSING", f"{run} holds no run; start it without --resume")
    return TrainConfig.from_json((run / _CONFIG_FILE).read_bytes())


@takes_paths
def load_teachers(run: Path, config: TrainConfig) -> dict[str, Checkpoint]:
    """Return those of the run's teachers that are in its folder, trained there or taken."""
    names = find_teaching(config.teaching).teachers
    files = {name: (run / _file_of(name), run / f"{_TAKEN}{_file_of(name)}") for name in names}
    return {
        name: load_checkpoint(file)
        for name, places in files.items()
        for file in places
        if file.is_file()
    }


def _require_classes(split: Split, config: TrainConfig) -> None:
    present = {entry.label for entry in split.entries if entry.part == "train"}
    teachers = [name for name in find_teaching(config.teaching).teachers if name in LABELS]
    for label in teachers:
        if label not in present:
            raise InputError(
                "E-DATA-CLASS",
                f"the training part has no {label!r} image; teaching {config.teaching!r} needs a "
                f"teacher for each of {' and '.join(teachers)}, so add images of that class",
            )


def require_settings(config: TrainConfig) -> None:
    """Refuse an unknown name, or what cannot work together, before the first epoch.

    Raises InputError: E-TEACHING-NAME, E-DISTILL-NAME, E-MODEL-NAME, E-CONFIG.
    """
    find_teaching(config.teaching)
    reads_features = [name for name, each in distillations_of(config).items() if each.features]
    if config.views and reads_features:
        raise InputError(
            "E-CONFIG",
            f"{' and '.join(reads_features)} reads the teachers' features and --views keeps their "
            "logits only; leave one of them out",
        )
    for model in (config.student, config.teacher):
        with torch.device("meta"):  # no weights
            step = build_model(model).MULTIPLE
        if config.size % step:
            raise InputError(
                "E-CONFIG",
                f"{model} takes no images of {config.size} px; choose a multiple of {step}",
            )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("E-DEVICE", "no CUDA device is usable here; train with --device cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one GPU for each process
        rank = int(os.environ["LOCAL_RANK"])
        if rank >= torch.cuda.device_count():
            raise InputError(
                "E-DEVICE",
                f"process {rank} has no GPU, there are {torch.cuda.device_count()}; start one "
                "process for each",
            )
        torch.cuda.set_device(rank)
        return torch.device("cuda", rank)
    return torch.device(name)
