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
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
from .config import STUDENT_FILE, TrainConfig, features_of, with_later
from .data.dataset import LABELS, UNCLASSED, Dataset
from .data.split import Split, default_split, read_split, samples_of, split_to_json, write_split
from .distill import Distillation, find_distillation
from .distributed import join_group, leave_group
from .encoders import Lite
from .fit import Loss, Stage, Surroundings, compute_dtype, fit, placed
from .frames import Batch, FrameSet, draw_phantoms
from .log import RunLog
from .losses import supervised_loss, terms_of
from .models import (
    Network,
    Trace,
    build_model,
    centre_channels,
    require_trainable,
    with_features,
)
from .modules import names_function
from .pretrained import EncoderWeights, kept_weights, read_encoder_weights
from .sampling import load_part, require_drawable, sampling_of
from .seeds import seed_of, use_deterministic_operators
from .start import START, Start, facts_of, keep, kept_facts, kept_file
from .teaching import CLASSES_OF, Ensemble, Teachers, find_teaching

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
    "loss",
    "seed",
)
_EVERY = "every"  # the one teacher of teaching "single"
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
    teacher_checkpoints: Sequence[Path] = (),
    encoder_weights: Path | None = None,
    start: Start | None = None,
    device: str = "auto",
    progress: Progress = quiet,
) -> Path:
    """Train teachers and student; return the student's checkpoint.

    Writes into `out`: config.json, split.json, a checkpoint for each teacher and the student,
    log.csv, TensorBoard events and, where the settings ask for views, the cache of the teachers'
    logits. After a kill at any moment a resumed run ends with the weights of an uninterrupted one
    (same machine, same number of threads). Started by `torchrun`, the processes share every batch.

    Args:
        dataset: the images of one data set or several; once split, only those of the train and val
            parts are read.
        out: folder of the run, new unless `resume`.
        config: settings. A network that they name by a function is made, which runs its code.
        split: None takes the data's own, or makes a leak-safe one with the settings' seed.
        resume: continue the run in `out`.
        teachers: a run whose teachers are taken instead of training new ones; one that it lacks
            is trained from its general network. Its student's start from phantoms is taken too
            where the settings are the same. Goes with a new run only.
        teacher_checkpoints: networks of other runs, of any architecture, the mean of whose logits
            is the teacher of teaching "single"; none is trained. Go with a new run only.
        encoder_weights: a file that pre-trained encoders start from, in place of the package of
            extra [pretrained]; see `pretrained.read_encoder_weights`. Goes with a new run only.
        start: a checkpoint that the student is trained on from; see `start.facts_of`. Goes with a
            new run only.
        device: "auto", "cpu" or "cuda".
        progress: shows how far a stage has come.

    Raises:
        InputError: E-DATA-CLASS (a class that a teacher needs is missing, or one is unknown that
            the teaching goes by), E-SPLIT-SETS (`split` is of other data sets), E-RUN-EXISTS,
            E-RUN-MISSING, E-RUN-CONFIG (resumed with other settings or another split), E-DEVICE,
            E-MODEL-NAME, E-LOSS-NAME, E-DISTILL-NAME, E-TEACHING-NAME, E-CONFIG (a network does
            not take the size, a cache cannot hold features), E-MODULE-IMPORT, E-MODULE-NETWORK,
            E-MODEL-MODULE (a teacher that is taken is made by code that nobody allowed),
            E-CACHE-SIZE, E-TEACHER-MISSING (`teachers` has
            none of those asked for and no general network), E-TEACHER-CONTRACT (of another input
            contract or network), E-TEACHER-SPLIT (trained with another split), E-ENCODER-READ,
            E-ENCODER-SHAPE (of another network), E-SPLIT-PARTS, E-START-CONTRACT.
        EngineError: E-EXTRA-MISSING, ImageNet weights are asked for and not installed.
        Refused: E-TRAIN-LOSS, E-TRAIN-MEMORY (see `fit`), E-CACHE-OTHER (see `LogitCache`),
            E-RUN-STAGE (a finished stage in `out` is of another run), E-ENCODER-HASH,
            E-SPLIT-TORN (see `default_split`), E-START-SEEN.
        OutputError: E-OUT-WRITE.
    """
    run_device = _device(device)
    require_settings(config)
    split = _split_of_run(dataset, out, config, split, resume)
    _require_classes(split, config)
    contract = InputContract(height=config.size, width=config.size)
    split_sha256 = hashlib.sha256(split_to_json(split).encode()).hexdigest()
    asked = teachers, tuple(teacher_checkpoints)
    kept_apart = any(entry.part != "train" for entry in split.entries)
    taken = (
        {}
        if resume
        else _teachers_to_take(*asked, config, contract, split_sha256 if kept_apart else None)
    )
    if resume and any(asked):
        raise InputError(
            "E-RUN-CONFIG",
            "a run is resumed with its own teachers; leave --teachers and --teacher-checkpoint out",
        )
    if resume and start is not None:
        raise InputError("E-RUN-CONFIG", "a run is resumed with its own start; leave --start out")
    started = kept_facts(out) if resume else None
    if start is not None:
        loaded = load_checkpoint(start.file, asked_for=_asked_for(config))
        started = facts_of(start, loaded, config, contract, split)
    encoders = _encoders_of(config, out, encoder_weights, taken, resume, started is not None)
    frames = {
        part: load_part(part, samples_of(split, dataset, part), config, run_device, progress)
        for part in ("train", "val")
    }
    require_drawable(sampling_of(config), frames["train"])
    group = join_group(run_device)
    use_deterministic_operators(run_device)
    log = RunLog(out)
    around = Surroundings(out, config, contract, run_device, group, log, progress)

    def prepare() -> None:
        _remove_left_overs(out, resume)
        if not resume:
            write_split(split, out / SPLIT_FILE)
            for name, file in taken.items():
                write_bytes(out / f"{_TAKEN}{name}", file.read_bytes())
            for model, encoder in encoders.items():
                encoder.keep(out / _encoder_file_of(model))
            if start is not None and started is not None:
                keep(start, started, out)
            write_bytes(out / _CONFIG_FILE, config.to_json())  # last: it makes the folder a run

    try:
        group.by_leader(prepare)
        provenance = {
            "config": asdict(config),
            "split_sha256": split_sha256,
            "train_images": frames["train"].image_count,
            "data": _sets_of(split, dataset),
            **({} if split.torn_groups is None else {"torn_groups": split.torn_groups}),
        }
        run = _Run(around, frames, provenance, encoders, started)
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
    frames: Mapping[str, FrameSet]
    provenance: Mapping[str, Any]
    encoders: Mapping[str, EncoderWeights]  # by model, that its networks start from
    started: Mapping[str, Any] | None  # what the student is trained on from, of `facts_of`

    @functools.cached_property
    def phantoms(self) -> FrameSet:
        """The phantoms that networks start from, drawn when the first stage asks for them."""
        around = self.around
        progress = around.progress if around.group.leads else quiet
        config = around.config
        return draw_phantoms(PHANTOMS, config.seed, config.size, around.device, progress)

    def encoder_facts(self, model: str) -> Mapping[str, str]:
        """Return where the weights are from that a model's encoder starts with; empty: drawn."""
        return self.encoders[model].facts if model in self.encoders else {}

    def stage(
        self,
        stage: Stage,
        taught_by: Mapping[str, str] | None = None,
        encoder: Mapping[str, str] | None = None,
        started: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Return the checkpoint of a stage, trained first unless it is there.

        Args:
            stage: what to train.
            taught_by: SHA-256 of the teachers' checkpoints.
            encoder: where the weights are from that its encoder starts with, else `encoder_facts`.
            started: of `facts_of`, where it is trained on from another checkpoint; its encoder is
                that one's.
        """
        around = self.around
        provenance = {**self.provenance, "teachers": dict(taught_by or {})}
        if started is not None:
            provenance[START] = {**started}
            encoder = provenance[START].pop("encoder_weights", None)
        else:
            encoder = encoder or self.encoder_facts(stage.model)
        if encoder:
            provenance["encoder_weights"] = dict(encoder)
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
        loaded = load_checkpoint(target, asked_for=_asked_for(around.config))
        # A run of an older version does not name its data sets, nor the settings that came later.
        known = {"data": provenance["data"], **loaded.provenance}
        known["config"] = with_later(known.get("config"))
        if (loaded.model, known) != (stage.model, provenance):
            raise Refused(
                "E-RUN-STAGE", f"{target} is not of this run: its settings or its split differ"
            )
        return loaded


def _on_masks(terms: Sequence[str], trace: Trace, batch: Batch) -> dict[str, torch.Tensor]:
    return {"masks": supervised_loss(trace.logits, batch.truth, terms)}


def _mask_loss(config: TrainConfig) -> Loss:
    """Return the loss of a network that nobody teaches."""
    return functools.partial(_on_masks, terms_of(config.loss))


def _train_teachers(run: _Run) -> dict[str, Checkpoint]:
    """Train the teachers that the settings ask for, but those that were taken.

    Several for one place in the teaching, as "every-1" and "every-2" for "every", are an ensemble.
    """
    config, frames = run.around.config, run.frames
    asked_for = _asked_for(config)
    if several := _several_in(run.around.out, asked_for):
        return several
    names = find_teaching(config.teaching).teachers
    found = {name: run.around.out / f"{_TAKEN}{_file_of(name)}" for name in (*names, _GENERAL)}
    taken = {
        name: load_checkpoint(file, asked_for=asked_for)
        for name, file in found.items()
        if file.is_file()
    }

    def teacher(
        name: str, classes: tuple[str, ...], epochs: int, start: Weights | None, rate: float
    ) -> Checkpoint:
        data, val = (frames[part].of_classes(*classes) for part in ("train", "val"))
        stage = Stage(
            f"teacher-{name}",
            config.teacher,
            data,
            val,
            epochs,
            rate,
            _mask_loss(config),
            start,
            sampling=sampling_of(config),
        )
        return taken.get(name) or run.stage(stage, encoder=encoder)

    start, rate = None, config.learning_rate
    encoder: Mapping[str, str] | None = None
    if not set(names) <= set(taken):
        if _GENERAL not in taken:
            start = _first_weights(run, "teacher", config.teacher)
        if config.general_epochs:
            general = teacher(_GENERAL, CLASSES_OF["every"], config.general_epochs, start, rate)
            start, rate = general.network.state_dict(), rate * _SPECIALISE
            encoder = general.provenance.get("encoder_weights")
    return {
        name: teacher(name, CLASSES_OF[name], config.teacher_epochs, start, rate) for name in names
    }


def _first_weights(run: _Run, who: str, model: str) -> Weights | None:
    """Return the weights to start from; None: they are drawn.

    They are of ImageNet, of phantoms or, of a student, of the checkpoint that it is to start from.
    """
    around, config = run.around, run.around.config
    if who == "student" and run.started is not None:
        first = load_checkpoint(kept_file(around.out), asked_for=_asked_for(config))
        return first.network.state_dict()
    start = None
    if model in run.encoders:
        start = run.encoders[model].start(model, seed_of(config.seed, f"{who} on ImageNet"))
    if not config.phantom_epochs:
        return start
    name = f"phantom-{who}"
    taken = around.out / f"{_TAKEN}{name}.safetensors"
    if taken.is_file():
        return load_checkpoint(taken, asked_for=_asked_for(config)).network.state_dict()
    none = run.frames["train"].at(np.arange(0))
    # Drawn only if the stage is not done yet.
    frames = none if (around.out / f"{name}.safetensors").is_file() else run.phantoms
    epochs, rate = config.phantom_epochs, config.learning_rate
    stage = Stage(name, model, frames, none, epochs, rate, _mask_loss(config), start)
    return run.stage(stage).network.state_dict()


def _train_student(run: _Run, teachers: Mapping[str, Checkpoint]) -> None:
    around, config, data = run.around, run.around.config, run.frames["train"]
    teaching = find_teaching(config.teaching)
    terms = distillations_of(config)
    caches = {}
    if config.views:

        def open_caches() -> None:
            for name, members in _by_place(teachers).items():
                taught = data.images_only().of_classes(*teaching.taught_by(name))
                key = _cache_key(members, taught, run)
                caches[name] = LogitCache(
                    around.out / "cache", f"teacher-{name}", key, taught.names, config.views
                )

        around.group.by_leader(open_caches)  # which makes the files
        if not around.group.leads:
            open_caches()
    networks = teaching_networks(teachers, config, around.device)
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
            _first_weights(run, "student", config.student),
            adapted_channels=_centre_of(networks, config.size) if adapted else 0,
            views=config.views,
            sampling=sampling_of(config),
            build=functools.partial(build_model, features=features_of(config.student_features)),
        ),
        {name: teacher.sha256 for name, teacher in teachers.items()},
        started=run.started,
    )


def _asked_for(config: TrainConfig) -> tuple[str, str]:
    """Return the networks that the settings name, which `train` was asked for."""
    return config.student, config.teacher


def _centre_of(teachers: Mapping[str, Network], side: int) -> int:
    """Return the channels of the teachers' centre features; they are of one architecture."""
    return centre_channels(next(iter(teachers.values())), side)


def student_loss(
    teachers: Teachers, terms: Mapping[str, Distillation], config: TrainConfig
) -> Loss:
    """Return the student's loss: masks, and each distillation term on the images taught."""
    on_masks = _mask_loss(config)

    def loss(trace: Trace, batch: Batch) -> dict[str, torch.Tensor]:
        values = dict(on_masks(trace, batch))
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


def teaching_networks(
    teachers: Mapping[str, Checkpoint], config: TrainConfig, device: torch.device
) -> dict[str, Network]:
    """Return the network that answers at each place of the teaching, on its device."""
    networks = {}
    for name, members in _by_place(teachers).items():
        network = members[0].network
        if len(members) > 1 or config.teacher_mirror:
            each = [member.network for member in members]
            network = Ensemble(each, mirror=config.teacher_mirror).eval()
        else:
            network = with_features(network, features_of(config.teacher_features))
        networks[name] = placed(network, device)
    return networks


def _by_place(teachers: Mapping[str, Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Return the teachers by their place in the teaching: "every-2" is one of "every"."""
    places: dict[str, list[Checkpoint]] = {}
    for name, teacher in teachers.items():
        places.setdefault(name.partition("-")[0], []).append(teacher)
    return places


def _several_in(run: Path, asked_for: Collection[str] = ()) -> dict[str, Checkpoint]:
    """Return the checkpoints that were taken as one teacher, in their order."""
    pattern = f"{_TAKEN}teacher-{_EVERY}-*.safetensors"
    numbers = sorted(int(file.stem.rpartition("-")[2]) for file in run.glob(pattern))
    names = [f"{_EVERY}-{number}" for number in numbers]
    return {
        name: load_checkpoint(run / f"{_TAKEN}{_file_of(name)}", asked_for=asked_for)
        for name in names
    }


def _cache_key(members: Sequence[Checkpoint], taught: FrameSet, run: _Run) -> dict[str, Any]:
    """What a teacher's logits of a view depend on, beside the images' names."""
    teacher = members[0]
    pixels = hashlib.sha256(taught.images.cpu().numpy().tobytes())
    return {
        "teacher_sha256": "+".join(member.sha256 for member in members),
        **({"mirror": True} if run.around.config.teacher_mirror else {}),
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


def _teachers_to_take(
    run: Path | None,
    files: Sequence[Path],
    config: TrainConfig,
    contract: InputContract,
    split_sha256: str | None,
) -> dict[str, Path]:
    """Return the checkpoints of other runs that serve this one, by their names here.

    split_sha256: of this run's split; None where it keeps no image from training, so that whatever
        a teacher has seen tells nothing that is measured.
    """
    if run is not None and not files:
        return {file.name: file for file in _teachers_in(run, config, contract, split_sha256)}
    if files and (run is not None or config.teaching != "single"):
        raise InputError(
            "E-CONFIG",
            "--teacher-checkpoint is the teacher of --teaching single; give that and leave "
            "--teachers out",
        )
    if files:
        _require_no_features(config, "a mean of --teacher-checkpoint")
    for file in files:
        loaded = load_checkpoint(file, asked_for=_asked_for(config))
        _require_taught_alike(loaded, file, contract, split_sha256)
    return {_file_of(f"{_EVERY}-{number}"): file for number, file in enumerate(files, 1)}


def _teachers_in(
    source: Path, config: TrainConfig, contract: InputContract, split_sha256: str | None
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
        loaded = load_checkpoint(file, asked_for=_asked_for(config))
        if loaded.model != config.teacher:
            raise InputError(
                "E-TEACHER-CONTRACT",
                f"{file} is {loaded.model}, the student's run asks for {config.teacher}; give "
                "--teacher as it was there",
            )
        _require_taught_alike(loaded, file, contract, split_sha256)
    phantom = source / "phantom-student.safetensors"
    if config.phantom_epochs and phantom.is_file() and not _lite_of(config.student):
        loaded = load_checkpoint(phantom, asked_for=_asked_for(config))
        theirs = with_later(loaded.provenance["config"])
        ours = {name: getattr(config, name) for name in _OF_PHANTOMS}
        if isinstance(theirs, dict) and ours.items() <= theirs.items():
            found.append(phantom)
    return tuple(found)


def _require_taught_alike(
    teacher: Checkpoint, file: Path, contract: InputContract, split_sha256: str | None
) -> None:
    """Refuse a teacher for other images (E-TEACHER-CONTRACT) or with another split."""
    theirs, ours = (
        (each.height, each.width, each.mean, each.std) for each in (teacher.contract, contract)
    )
    if theirs != ours:  # how an answer is read, as its threshold, is no matter of teaching
        raise InputError(
            "E-TEACHER-CONTRACT",
            f"{file} is {teacher.model} for {teacher.contract}, the student's run asks for "
            f"{contract}; give --size as it was there",
        )
    if split_sha256 is not None and teacher.provenance.get("split_sha256") != split_sha256:
        raise InputError(
            "E-TEACHER-SPLIT",
            f"{file} was trained with another split, so it may know this run's test part; "
            f"give --split {file.parent / SPLIT_FILE}",
        )


def _encoders_of(
    config: TrainConfig,
    out: Path,
    file: Path | None,
    taken: Collection[str],
    resume: bool,
    started: bool,
) -> dict[str, EncoderWeights]:
    """Return the ImageNet weights that networks of the run start from, by model.

    started: the student starts from a checkpoint, and not from these.
    """
    teachers = find_teaching(config.teaching).teachers
    if resume:
        taken = [path.name.removeprefix(_TAKEN) for path in out.glob(f"{_TAKEN}*")]
    every = f"{_EVERY}-1" if _file_of(f"{_EVERY}-1") in taken else _EVERY
    wanted = {_file_of(every if name == _EVERY else name) for name in teachers}
    start = not wanted <= set(taken) and _file_of(_GENERAL) not in taken
    models = {*(() if started else (config.student,)), *((config.teacher,) if start else ())}
    lites = {model: lite for model in sorted(models) if (lite := _lite_of(model))}
    if file and resume:
        raise InputError(
            "E-RUN-CONFIG",
            "a run is resumed with its own encoder weights; leave --encoder-weights out",
        )
    if file and (not lites or config.encoder == "random"):
        raise InputError(
            "E-CONFIG",
            "no network of this run starts from encoder weights; leave --encoder-weights out",
        )
    if config.encoder == "random":
        return {}
    if resume:
        return {model: kept_weights(out / _encoder_file_of(model)) for model in lites}
    return {model: read_encoder_weights(lite, file) for model, lite in lites.items()}


def _encoder_file_of(model: str) -> str:
    return f"{_TAKEN}encoder-{model}.safetensors"


def _lite_of(model: str) -> Lite | None:
    if names_function(model):
        return None
    with torch.device("meta"):  # no weights
        return build_model(model).LITE


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
        return split or default_split(dataset, seed=config.seed)
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
    """Return those of the run's teachers that are in its folder, trained there or taken.

    The settings are the run's own, so that networks which a function makes must be allowed.
    """
    if several := _several_in(run):
        return several
    names = find_teaching(config.teaching).teachers
    files = {name: (run / _file_of(name), run / f"{_TAKEN}{_file_of(name)}") for name in names}
    return {
        name: load_checkpoint(file)
        for name, places in files.items()
        for file in places
        if file.is_file()
    }


def _sets_of(split: Split, dataset: Dataset) -> list[dict[str, Any]]:
    """Return name, layout, images by class and number of groups of each set in the train part."""
    found = []
    for member in dataset.members:
        entries = [
            entry
            for entry in split.entries
            if entry.part == "train" and entry.source in (member.name, "")
        ]
        images = Counter(entry.label for entry in entries)
        found.append(
            {
                "name": member.name,
                "layout": member.layout,
                "images": dict(sorted(images.items())),
                "groups": len({entry.group for entry in entries}),
            }
        )
    return found


def _require_classes(split: Split, config: TrainConfig) -> None:
    present = {entry.label for entry in split.entries if entry.part == "train"}
    teaching = find_teaching(config.teaching)
    if UNCLASSED in present and teaching.visits and UNCLASSED not in teaching.visits:
        raise InputError(
            "E-DATA-CLASS",
            f"the training part has lesions of unknown class ({UNCLASSED!r}), and teaching "
            f"{config.teaching!r} goes by class; choose --teaching single or none, or add "
            "labels.csv",
        )
    teachers = [name for name in teaching.teachers if name in LABELS]
    for label in teachers:
        if label not in present:
            raise InputError(
                "E-DATA-CLASS",
                f"the training part has no {label!r} image; teaching {config.teaching!r} needs a "
                f"teacher for each of {' and '.join(teachers)}, so add images of that class",
            )


def require_settings(config: TrainConfig) -> None:
    """Refuse an unknown name, or what cannot work together, before the first epoch.

    Raises InputError: E-TEACHING-NAME, E-DISTILL-NAME, E-LOSS-NAME, E-MODEL-NAME, E-CONFIG,
    E-MODULE-IMPORT, E-MODULE-NETWORK.
    """
    find_teaching(config.teaching)
    distillations_of(config)
    terms_of(config.loss)
    if config.views:
        _require_no_features(config, "--views, which keeps logits only,")
    if config.teacher_mirror:
        _require_no_features(config, "--teacher-mirror")
    for who, model, named in (
        ("student", config.student, config.student_features),
        ("teacher", config.teacher, config.teacher_features),
    ):
        features = features_of(named)
        if names_function(model):
            if not features and find_teaching(config.teaching).teachers:
                _require_no_features(config, f"{model} without --{who}-features")
            require_trainable(model, features, config.size)
            continue
        with torch.device("meta"):  # no weights
            step = build_model(model, features).MULTIPLE
        if config.size % step:
            raise InputError(
                "E-CONFIG",
                f"{model} takes no images of {config.size} px; choose a multiple of {step}",
            )


def _require_no_features(config: TrainConfig, what: str) -> None:
    reading = [name for name, each in distillations_of(config).items() if each.features]
    if reading:
        raise InputError(
            "E-CONFIG",
            f"{' and '.join(reading)} reads features of student and teachers, and {what} has "
            "none; leave one of them out",
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
