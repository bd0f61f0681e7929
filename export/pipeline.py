"""From a trained network to a proven bundle: plan, convert, compare on real frames, seal."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from .. import __version__
from ..benchmarks.measure.complexity import count_complexity, macs_of_nodes
from ..runtime.bundle import SPLIT_FILE, hashes_of, open_bundle, seal_bundle
from ..runtime.contract import InputContract
from ..runtime.engines import available_threads, open_engine
from ..runtime.errors import InputError, Refused
from ..runtime.files import atomic_folder, sha256_of_file
from ..runtime.image import input_from_frame
from ..runtime.layout import Layout
from ..runtime.paths import takes_paths
from ..runtime.progress import Progress, quiet
from ..runtime.proof import Hop, PrecisionTiming, Proof, Provenance
from .audit import require_share
from .batch import require_rows
from .bom import FILE as BOM_FILE
from .bom import bom_of
from .calibration import FILE as CALIBRATION_FILE
from .calibration import (
    METHOD,
    Calibration,
    CalibrationSet,
    FramesOnDisk,
    calibrate,
    read_calibration,
)
from .forms import Conversion, Form, least_share_of, make_forms, rounding_for
from .frame_gate import FrameGraph, frame_facts, prove_frame_graphs
from .frame_graph import require_frame_contract
from .golden import find_dropped_frame, find_empty_frame, golden_frames, write_vectors
from .kinds import kind_of
from .parity import (
    CheckFrame,
    Reference,
    check_hop,
    reference_of,
    require_accuracy,
    require_boundary,
    require_parity,
)
from .plan import AUTO, WITHOUT_RANGES, Plan, plan_for
from .qdq import Rounding
from .ranges import measure_ranges, require_method
from .reading import require_normal_input, require_own_answer
from .sensitivity import rank_convolutions
from .verdict import measure_verdicts

if TYPE_CHECKING:
    from torch import nn

RUN_SPLIT: Mapping[str, Any] = MappingProxyType({"source": "split of the run", "part": "train"})
_MOST_KEPT = 0.5  # share of the multiply-accumulates; beyond it INT8 is one in name only
_TOOLS = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt-rtx-cu13", "numpy", "pillow")


class ExportableNetwork(Protocol):
    """What is exported: a network, its contract, and where it comes from."""

    @property
    def name(self) -> str:
        """For the manifest."""
        ...

    @property
    def contract(self) -> InputContract:
        """How frames become inputs and logits become masks."""
        ...

    @property
    def sha256(self) -> str:
        """Of the file that it was read from."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What is known of its training."""
        ...

    @property
    def quantised(self) -> bytes | None:
        """The same as ONNX with INT8 pairs that it came with, see `quantised`; None without."""
        ...

    def to_onnx(self) -> bytes:
        """Return it as FP32 ONNX: ``image`` float32 [1, C, H, W] to ``logits`` [1, K, H, W]."""
        ...

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, C, H, W] to logits [1, K, H, W], as the reference for all forms."""
        ...


@dataclass(frozen=True)
class TrainedNetwork:
    """A checkpoint as a `ExportableNetwork`."""

    name: str
    network: nn.Module
    contract: InputContract
    sha256: str
    provenance: Mapping[str, Any]
    model: bytes | None = None  # its ONNX, where it is a network from elsewhere
    quantised: ClassVar[None] = None

    def to_onnx(self) -> bytes:
        """See `ExportableNetwork`."""
        from .to_onnx import onnx_from_network

        return self.model or onnx_from_network(self.network, self.contract)

    def run(self, image: np.ndarray) -> np.ndarray:
        """See `ExportableNetwork`; in PyTorch, on one thread whatever the machine has.

        Its sums come out in another order on two, and the manifest would hold other last digits.
        """
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                logits: np.ndarray = self.network(torch.from_numpy(image)).numpy()
        finally:
            torch.set_num_threads(threads)
        return logits


@dataclass(frozen=True)
class Retrained:
    """A network that has learnt to be rounded."""

    network: (
        ExportableNetwork  # same graph, node by node, and same contract as what was to be rounded
    )
    facts: Mapping[str, Any]  # how it was trained, for the manifest


class Retrain(Protocol):
    """Quantisation-aware training, of which this module knows no more than this."""

    def __call__(self, rounding: Rounding, progress: Progress) -> Retrained:
        """Train the exported network on with a rounding; may raise what training raises."""
        ...


@dataclass(frozen=True)
class Frames:
    """What an export is calibrated with and judged by."""

    calibration: CalibrationSet | Path | None  # frames, the record of an earlier calibration
    checks: tuple[CheckFrame, ...]
    checks_are: str = "val"  # for the manifest; "val" is that part of the run's split
    vectors: tuple[np.ndarray, ...] = ()  # uint8 [H, W]: golden inputs that travel in the bundle


@dataclass(frozen=True)
class Limits:
    """The gates."""

    max_drop: float = 0.005  # of Dice, at the upper end of the 95 % interval
    max_hd95_rise_px: float = 1.0  # at the lower end: single frames make it too noisy for more
    method: str = METHOD  # of calibration, key in `ranges.METHODS`
    force_contract: bool = False  # also where the check frames speak against it, see `reading`

    def __post_init__(self) -> None:
        """Raise InputError: E-LIMIT (not finite), E-CALIB-METHOD."""
        for name in ("max_drop", "max_hd95_rise_px"):
            if not np.isfinite(getattr(self, name)):
                raise InputError("E-LIMIT", f"{name} is {getattr(self, name)}; give a number")
        require_method(self.method)


@dataclass(frozen=True)
class Exported:
    """A written bundle and how it compares with the trained network."""

    path: Path
    precision: str  # the one that ships; of a kit, its default
    hops: tuple[Hop, ...]
    trained_dice: float  # mean on the check frames with a lesion
    verdicts: tuple[PrecisionTiming, ...]  # where all precisions were measured
    refused: Mapping[str, str]  # precision -> why it was left out
    kept_float: tuple[str, ...]  # convolutions that INT8 leaves in float to pass its gate
    achieved: Mapping[str, Mapping[str, float]]  # form -> precision -> share of MACs
    qat: Mapping[str, Any] | None  # how INT8 was retrained to pass its gate; None: it was not
    empty_frame: str | None  # how the golden frame with an empty answer was drawn; None: none is
    least: str  # what masks go without, for people; empty: the contract drops nothing
    dropped_frame: str | None  # how a golden frame was drawn in which something is dropped

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {
            "bundle": str(self.path),
            "precision": self.precision,
            "trained_dice": self.trained_dice,
            "parity": [hop.to_dict() for hop in self.hops],
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "refused": dict(self.refused),
            "kept_float": list(self.kept_float),
            "achieved": self.achieved,
            "qat": None if self.qat is None else dict(self.qat),
            "empty_frame": self.empty_frame,
            "least": self.least,
            "dropped_frame": self.dropped_frame,
        }


@dataclass(frozen=True)
class _Proved:
    """The forms of one precision that passed their gates."""

    forms: tuple[Form, ...]
    hops: tuple[Hop, ...]
    qat: Mapping[str, Any] | None = None  # of forms that were retrained


@dataclass(frozen=True)
class _Gates:
    """What every form is judged by, and what may mend INT8."""

    reference: Reference
    limits: Limits
    retrain: Retrain | None
    calibration: CalibrationSet | Path | None  # what measures a retrained network


@takes_paths
def read_calibration_frames(
    images: Sequence[Path],
    count: int,
    read: Callable[[Path], np.ndarray],
    seed: int = 0,
    *,
    origin: Mapping[str, Any] = RUN_SPLIT,
    labels: Sequence[str] = (),
) -> CalibrationSet:
    """Choose `count` frames by seed, or all when there are fewer; they are read one at a time.

    Args:
        images: files of the training part only.
        count: frames wanted, >= 1.
        read: from a path to uint8 [H, W].
        seed: of the draw.
        origin: where the images come from; the default is the training run's own split.
        labels: class of each image; only counted, for the record, after the draw.
    """
    order = sorted(np.random.default_rng(seed).permutation(len(images))[:count])
    chosen = [images[index] for index in order]
    classes = Counter(labels[index] for index in order) if labels else {}
    return CalibrationSet(
        FramesOnDisk(tuple(chosen), read),
        tuple(sha256_of_file(path) for path in chosen),
        {**origin, "classes": dict(sorted(classes.items()))},
    )


@takes_paths
def load_trained(checkpoint: Path) -> TrainedNetwork:
    """Read a checkpoint; one of a network from elsewhere becomes ONNX at once.

    Raises InputError: those of `edgeseg.kd.checkpoint.load_checkpoint` and `onnx_from_module`.
    """
    from ..kd.checkpoint import load_checkpoint  # what kd is for here: checkpoint to module
    from ..kd.modules import names_function

    loaded = load_checkpoint(checkpoint)
    trained = TrainedNetwork(
        loaded.model, loaded.network, loaded.contract, loaded.sha256, loaded.provenance
    )
    if not names_function(loaded.model):
        return trained
    from .foreign import onnx_from_module

    return replace(trained, model=onnx_from_module(loaded.network, loaded.model, loaded.contract))


@takes_paths
def export_bundle(
    trained: ExportableNetwork,
    plan: Plan,
    out: Path,
    frames: Frames,
    *,
    split: Path | None,
    trained_on: Collection[str] = (),
    data: Sequence[Mapping[str, Any]] = (),
    layout: Layout | None = None,
    limits: Limits = Limits(),
    retrain: Retrain | None = None,
    progress: Progress = quiet,
) -> Exported:
    """Write one bundle for one target, or nothing.

    Every file is run on the check frames and compared with the trained network before the bundle
    gets its name. Where the plan leaves the precision open, one that fails its gate is left out.

    Args:
        trained: what to export.
        plan: of `make_plan`.
        out: folder of the bundle; must not exist.
        frames: a calibration where `Plan.needs_ranges`; golden inputs, which a kit needs.
        split: the split file of the training run; it goes into the bundle. None for a shipped
            student, which has none.
        trained_on: SHA-256 of every image that a shipped student has seen; goes into the manifest.
        data: what is known of each data set that it was trained on: `name`, and, where known,
            `layout`, `title`, `licence`, `spdx`, `citation`, `doi`, `images` (by class), `groups`.
        layout: where the image is in the maker's frames; None: the whole frame is the image.
        limits: the gates.
        retrain: what INT8 is trained with if it fails its gate with layers kept in float; takes
            frames that calibrate, not a record. The other precisions stay those of `trained`.
        progress: shows how far each step has come.

    Raises:
        InputError: E-OUT-EXISTS, E-CALIB-MISSING, E-CALIB-EMPTY, E-CALIB-READ, E-CALIB-METHOD,
            E-PARITY-FRAMES, E-LAYOUT (with a frame graph, which knows no layout), E-CONTRACT (the
            check frames become an input that no image has).
        Refused: E-CONTRACT-DICE, E-PARITY, E-ACCURACY, E-BOUNDARY, E-PRECISION-FALLBACK,
            E-CALIB-RANGE, E-CALIB-KEY, E-RTX-PARSE, E-FRAME-CONTRACT,
            E-FRAME-LEAST.
        EngineError: E-EXTRA-MISSING, E-AUDIT, E-RTX-BUILD.
        OutputError: E-OUT-WRITE.
    """
    if frames.calibration is None and plan.needs_ranges and trained.quantised is None:
        raise InputError(
            "E-CALIB-MISSING",
            f"{' and '.join(plan.precisions)} for {plan.target.name} needs calibration images; "
            "name them with --calib",
        )
    if layout and plan.frame:
        raise InputError(
            "E-LAYOUT", "a frame graph applies no layout; leave --frame or --layout out"
        )
    if plan.frame:
        require_frame_contract(trained.contract, weakly_typed=plan.frame_is_weakly_typed)
    with atomic_folder(out) as folder:
        if split is not None:
            shutil.copyfile(split, folder / SPLIT_FILE)
        if frames.checks and not limits.force_contract:  # none is refused below
            require_normal_input(trained.contract, frames.checks)
        reference = reference_of(trained.run, trained.contract, frames.checks, progress=progress)
        if not limits.force_contract:
            require_own_answer(trained.run, reference)
        master = trained.to_onnx()
        plan = plan_for(plan, master, trained.quantised)
        first = _check_master(master, reference, progress)
        calibration = _calibration_of(trained, master, frames.calibration, progress)
        conversion = Conversion(
            plan,
            master,
            calibration,
            limits.method,
            folder,
            trained.quantised,
            _largest_of(plan, trained.quantised, reference),
        )
        gates = _Gates(reference, limits, retrain, frames.calibration)
        proved, refused = _prove_all(conversion, gates, progress)
        hops = (first, *(hop for each in proved.values() for hop in each.hops))
        verdicts, chosen = _choose(plan, proved, reference, progress)
        kind = kind_of(plan.target)
        shipped = proved if kind.ships_every_precision else {chosen: proved[chosen]}
        if verdicts:
            shipped = {chosen: _fastest_first(proved[chosen], verdicts)}
        models = _write_models(folder, shipped)
        every = [form for each in shipped.values() for form in each.forms]
        whole: tuple[FrameGraph, ...] = ()
        if plan.frame is not None:
            whole = prove_frame_graphs(
                every,
                plan.frame,
                trained.run,
                trained.contract,
                frames.checks,
                optimised=plan.target.runs_here,
                progress=progress,
            )
            hops += tuple(each.hop for each in whole)
            for each in whole:
                (folder / each.file).write_bytes(each.model)
        empty = dropped = None
        if frames.vectors:
            empty = find_empty_frame(every, trained.contract)
            dropped = find_dropped_frame(every, trained.contract, frames.vectors)
        kind.ship(
            folder,
            conversion,
            {name: each.forms[0] for name, each in shipped.items()},
            frames.vectors,
            trained.contract,
            chosen,
            empty=empty,
            dropped=dropped,
            frame_graphs=whole,
            cache=all(each.qat is None for each in shipped.values()),
        )
        golden = golden_frames(frames.vectors, trained.contract, empty, dropped)
        vectors = write_vectors(folder, golden, shipped[chosen].forms, trained.contract)
        if calibration is not None and set(shipped) - WITHOUT_RANGES:
            (folder / CALIBRATION_FILE).write_text(calibration.to_json(), encoding="utf-8")
        kept_float = shipped["int8"].forms[0].kept_float if "int8" in shipped else ()
        qat = shipped["int8"].qat if "int8" in shipped else None
        achieved = _achieved_shares(shipped)
        provenance = Provenance(
            checkpoint_sha256=trained.sha256,
            training=trained.provenance,
            split_sha256=None if split is None else sha256_of_file(split),
            trained_on=tuple(sorted(trained_on)) or None,
            data=tuple(data),
            calibration=_calibration_facts(calibration, shipped, limits.method, plan),
            tools={"edgeseg": __version__, **_versions()},
        )
        proof = Proof(
            part=frames.checks_are,
            max_drop=limits.max_drop,
            max_hd95_rise_px=limits.max_hd95_rise_px,
            frames=len(frames.checks),
            trained_dice=reference.mean_dice,
            parity=hops,
            achieved=achieved,
            verdicts=verdicts,
            refused=refused,
            kept_float=kept_float,
            qat=qat,
            contract_forced=limits.force_contract,
        )
        manifest = {
            "name": trained.name,
            "target": plan.target.name,
            "precision": chosen,
            "contract": trained.contract,
            "models": models,
            "batch": {"min": 1, "max": plan.max_batch},
            "frame_graphs": frame_facts(whole),
            "vectors": vectors,
            "layout": layout.to_dict() if layout else {},
            "cpu": plan.target.needs(chosen),
            "complexity": _complexity_facts(master, shipped, chosen),
            "provenance": provenance.to_dict(),
            "evidence": proof.to_dict(),
        }
        (folder / BOM_FILE).write_text(bom_of(manifest, hashes_of(folder)), encoding="utf-8")
        seal_bundle(folder, manifest)
        open_bundle(folder)  # what is kept can be opened
    return Exported(
        path=out,
        precision=chosen,
        hops=hops,
        trained_dice=reference.mean_dice,
        verdicts=verdicts,
        refused=refused,
        kept_float=kept_float,
        achieved=achieved,
        qat=qat,
        empty_frame=empty.name if empty else None,
        least=trained.contract.least_text,
        dropped_frame=dropped.name if dropped else None,
    )


def _check_master(master: bytes, reference: Reference, progress: Progress) -> Hop:
    engine = open_engine("onnxruntime", {"model.onnx": master}, available_threads())
    hop = check_hop("onnx fp32", engine.run, reference, progress=progress)
    require_parity(hop, "fp32")
    return hop


def _calibration_of(
    trained: ExportableNetwork,
    master: bytes,
    source: CalibrationSet | Path | None,
    progress: Progress,
) -> Calibration | None:
    """Calibrate, or read the record of an earlier calibration."""
    if source is None:
        return None
    if isinstance(source, Path):
        return read_calibration(source, trained.sha256, trained.contract, master)
    return calibrate(trained.sha256, trained.contract, master, source, progress=progress)


def _largest_of(
    plan: Plan, quantised: bytes | None, reference: Reference
) -> dict[str, float] | None:
    """Return the largest |x| of each activation on the check frames, of a network with pairs.

    None where it has none, or where no arithmetic in FP16 asks for it.
    """
    if quantised is None or kind_of(plan.target).stores_half_only:
        return None
    inputs = (input_from_frame(each.frame, reference.contract) for each in reference.frames)
    return dict(measure_ranges(quantised, inputs).largest)


def _prove_all(
    conversion: Conversion, gates: _Gates, progress: Progress
) -> tuple[dict[str, _Proved], dict[str, str]]:
    """Return what passed by precision, and why others did not; what was asked for raises."""
    proved: dict[str, _Proved] = {}
    refused = {name: f"E-TARGET-PRECISION: {why}" for name, why in conversion.plan.refused.items()}
    for precision in conversion.plan.precisions:
        try:
            proved[precision] = _prove(conversion, precision, gates, progress)
        except Refused as error:
            last = precision == conversion.plan.precisions[-1] and not proved
            if conversion.plan.asked != AUTO or precision == "fp32" or last:
                raise
            refused[precision] = str(error)
    return proved, refused


def _prove(conversion: Conversion, precision: str, gates: _Gates, progress: Progress) -> _Proved:
    """Make the forms of one precision and pass them through the gates.

    INT8 that loses too much gets its costliest convolutions back in float, twice as many each
    time, as long as they are at most `_MOST_KEPT` of the multiply-accumulates. If that does not
    do, the network is retrained with the last of these lists, where there is what retrains it.
    """
    found = _gate(conversion, precision, (), gates, progress)
    if isinstance(found, _Proved):
        return found
    build = conversion.plan.builds.get(precision)
    mendable = found.code in ("E-ACCURACY", "E-PARITY", "E-BOUNDARY")
    if (
        precision != "int8"
        or conversion.calibration is None
        or (build and build.cache)
        or not mendable
    ):
        raise found  # a cache cannot say which layers stay in float
    ranking = rank_convolutions(
        conversion.master,
        conversion.calibration.amax[conversion.method],
        gates.reference,
        progress=progress,
    )
    macs = dict(macs_of_nodes(conversion.master))
    count = 1
    keep: tuple[str, ...] = ()
    while count < len(ranking):
        more = tuple(each.name for each in ranking[:count])
        if sum(macs[name] for name in more) > _MOST_KEPT * sum(macs.values()):
            break
        keep = more
        again = _gate(conversion, precision, keep, gates, progress)
        if isinstance(again, _Proved):
            return again
        count *= 2
    if gates.retrain is None:
        raise found
    return _prove_retrained(conversion, keep, gates, gates.retrain, progress)


def _prove_retrained(
    conversion: Conversion,
    keep: tuple[str, ...],
    gates: _Gates,
    retrain: Retrain,
    progress: Progress,
) -> _Proved:
    """Retrain for INT8 and pass what comes out through the same gates, or raise their refusal.

    The ranges stay: the weights have learnt to be rounded by these. How large an activation grows
    is measured again, as it decides what FP16 can hold.
    """
    images = gates.calibration
    if conversion.calibration is None or not isinstance(images, CalibrationSet):
        raise ValueError("retraining needs frames that calibrate")
    retrained = retrain(rounding_for(conversion, keep), progress)
    network = retrained.network
    master = network.to_onnx()
    measured = calibrate(network.sha256, network.contract, master, images, progress=progress)
    calibration = replace(measured, amax=conversion.calibration.amax)
    again = _gate(
        replace(conversion, master=master, calibration=calibration), "int8", keep, gates, progress
    )
    if isinstance(again, _Proved):
        return replace(again, qat=retrained.facts)
    _, _, message = str(again).partition(": ")
    raise Refused(again.code, f"{message}; this is after quantisation-aware training")


def _gate(
    conversion: Conversion,
    precision: str,
    keep_float: tuple[str, ...],
    gates: _Gates,
    progress: Progress,
) -> _Proved | Refused:
    """Return the forms that pass, or the first refusal."""
    forms = make_forms(conversion, precision, keep_float)
    stored_only = precision == "fp16" and kind_of(conversion.plan.target).stores_half_only
    hops = []
    try:
        for form in forms:
            for achieved in form.achieved:
                if not stored_only:
                    least = least_share_of(conversion, precision, form.kept_float)
                    require_share(achieved, precision, least)
            hop = check_hop(form.name, form.run, gates.reference, progress=progress)
            require_parity(hop, precision)
            require_accuracy(hop, gates.limits.max_drop)
            require_boundary(hop, gates.limits.max_hd95_rise_px)
            if conversion.plan.max_batch > 1:
                _require_batch(form, gates.reference, conversion.plan.max_batch)
            hops.append(hop)
    except Refused as error:
        return error
    return _Proved(forms, tuple(hops))


def _require_batch(form: Form, reference: Reference, most: int) -> None:
    """See `require_rows`; the frames are the first of the check frames."""
    contract = reference.contract
    frames = [check.frame for check in reference.frames[:most]]
    images = np.concatenate([input_from_frame(frame, contract) for frame in frames])
    require_rows(form.name, form.run, images, contract, form.precision, most)


def _choose(
    plan: Plan, proved: Mapping[str, _Proved], reference: Reference, progress: Progress
) -> tuple[tuple[PrecisionTiming, ...], str]:
    """Return what was measured and the precision that ships."""
    if plan.asked != AUTO:
        return (), plan.asked
    if not plan.target.runs_here:
        return (), plan.default if plan.default and plan.default in proved else next(iter(proved))
    verdicts = measure_verdicts(
        [form for each in proved.values() for form in each.forms],
        [hop for each in proved.values() for hop in each.hops],
        reference.contract,
        [check.frame for check in reference.frames],
        progress=progress,
    )
    return verdicts, next(each.precision for each in verdicts if each.shipped)


def _fastest_first(proved: _Proved, verdicts: Sequence[PrecisionTiming]) -> _Proved:
    """Order the forms as they were measured: a session takes the first engine that is there."""
    p50_ms = {(each.engine, each.precision): each.p50_ms for each in verdicts}
    forms = sorted(proved.forms, key=lambda form: p50_ms[form.engine, form.precision])
    return replace(proved, forms=tuple(forms))


def _write_models(folder: Path, shipped: Mapping[str, _Proved]) -> dict[str, tuple[str, ...]]:
    """Write the files and return their names by engine."""
    models: dict[str, tuple[str, ...]] = {}
    for proved in shipped.values():
        for form in proved.forms:
            for name, content in form.files.items():
                (folder / name).write_bytes(content)
            names = dict.fromkeys((*models.get(form.engine, ()), *form.files))
            models[form.engine] = tuple(names)
    return models


def _complexity_facts(master: bytes, shipped: Mapping[str, _Proved], chosen: str) -> dict[str, Any]:
    complexity = count_complexity(master)
    return {
        "parameters": complexity.parameters,
        "macs": complexity.macs,
        "weights_bytes": {form.engine: form.weights_bytes for form in shipped[chosen].forms},
    }


def _achieved_shares(shipped: Mapping[str, _Proved]) -> dict[str, dict[str, float]]:
    """Return the share of MACs by executed precision, of every form that tells."""
    return {
        f"{form.name} {name}" if len(form.achieved) > 1 else form.name: {
            precision: achieved.share(precision) for precision in achieved.macs
        }
        for proved in shipped.values()
        for form in proved.forms
        for name, achieved in zip(form.files, form.achieved, strict=False)
    }


def _calibration_facts(
    calibration: Calibration | None,
    shipped: Mapping[str, _Proved],
    method: str,
    plan: Plan,
) -> dict[str, Any] | None:
    if calibration is None or not set(shipped) - WITHOUT_RANGES:
        return None
    return {
        **calibration.origin,
        "method": method,
        "weight_bits": plan.target.weight_bits,
        "frames_sha256": list(calibration.frames_sha256),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
