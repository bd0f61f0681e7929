"""The session: a frame in, a mask in the frame's own geometry out."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np

from . import lesion
from .bundle import Bundle, open_bundle
from .contract import InputContract, require_one_class
from .cpu import require_features
from .engine_files import engine_files
from .engines import (
    ENGINES,
    Engine,
    available_threads,
    files_of,
    is_installed,
    open_engine,
    require_installed,
)
from .errors import EngineError, Refused
from .image import (
    grey_from_frame,
    input_from_frame,
    mask_from_logits,
    planes_of_answer,
    require_frame,
)
from .layout import Layout
from .paths import takes_paths
from .pgm import labels_from_golden, pixels_from_pnm


class _OneAtATime:
    """Lets one thread in and refuses the next, which would find another's frame in the buffers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise EngineError(
                "E-SESSION-BUSY",
                "another thread is inside this session; open one session a thread, or take turns",
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Crop:
    """The part of a maker's frames that is segmented, with its buffer."""

    def __init__(self, layout: Layout, takes_colour: bool) -> None:
        self.layout = layout
        self.keep = layout.keep
        self._grey = np.empty_like(self.keep)
        self._colour = np.empty((*self.keep.shape, 3), np.uint8) if takes_colour else None

    def image_of(self, frame: np.ndarray) -> np.ndarray:
        """Return the crop, uint8, 0 where it is no image; valid until the next frame."""
        crop = self.layout.crop_of(frame)
        if self._colour is not None and crop.ndim == 3:
            np.multiply(crop, self.keep[:, :, None], out=self._colour)
            return self._colour
        np.multiply(grey_from_frame(crop), self.keep, out=self._grey)
        return self._grey


@dataclass(frozen=True)
class SelfTest:
    """What an engine answered here to the golden frames of its bundle."""

    engine: str
    frames: int
    worst_flipped: float  # share of a frame's lesion (of 1 px where there is none) that differs
    max_flipped: float  # largest share that the bundle accepts
    bit_equal: bool  # whether every mask is that of the export to the last bit
    repeats: int  # of every frame, after the first time
    repeats_equal: bool  # whether every repeat is its first mask to the last bit

    @property
    def passed(self) -> bool:
        """Whether the bundle may be used here; false for no frame and for NaN."""
        return self.frames > 0 and self.worst_flipped <= self.max_flipped and self.repeats_equal

    def to_text(self) -> str:
        """Return the result as one line."""
        equal = "equal to the bit" if self.bit_equal else "not equal to the bit"
        again = "equal" if self.repeats_equal else "not equal"
        return (
            f"{self.frames} golden frames by {self.engine} are {equal}; at most "
            f"{self.worst_flipped:.2%} of a lesion differs, {self.max_flipped:.2%} may"
            + (f"; {self.repeats} repeats of each are {again}" if self.repeats else "")
        )

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields and `passed` as JSON-ready values."""
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class Session:
    """A contract and an engine, ready to predict.

    The network's input and the crop of a layout are allocated once; a mask is a new array each
    time and the caller's own. What Pillow resizes and what the mask is interpolated in are
    temporary. One thread at a time: a second one is refused (E-SESSION-BUSY) and never gets a
    wrong mask.
    """

    contract: InputContract
    engine: Engine
    _input: np.ndarray = field(repr=False)
    largest_only: bool = False  # only the largest lesion is kept
    fill_holes: bool = False  # before that
    bundle: Optional[Bundle] = None  # whose golden frames `selftest` replays
    _crop: Optional[_Crop] = field(default=None, repr=False)
    _turn: _OneAtATime = field(default_factory=_OneAtATime, repr=False)

    @classmethod
    def over(
        cls,
        engine: Engine,
        contract: InputContract,
        *,
        layout: Optional[Layout] = None,
        largest_only: bool = False,
        fill_holes: bool = False,
        bundle: Optional[Bundle] = None,
    ) -> Session:
        """Return a session over an engine that is open already.

        Raises InputError: E-CLASSES for `largest_only` or `fill_holes` of several classes.
        """
        if largest_only or fill_holes:
            require_one_class(contract, "largest_only" if largest_only else "fill_holes")
        buffer = np.zeros((1, contract.depth, contract.height, contract.width), np.float32)
        crop = _Crop(layout, contract.takes_colour) if layout else None
        return cls(contract, engine, buffer, largest_only, fill_holes, bundle, crop)

    @property
    def layout(self) -> Optional[Layout]:
        """Where the image is in the frames; None: the whole frame is the image."""
        return self._crop.layout if self._crop else None

    def predict(self, frame: np.ndarray) -> np.ndarray:
        """Segment one frame.

        Args:
            frame: uint8 [H, W] or RGB [H, W, 3], any size (with a layout: its own) and strides.

        Returns:
            Mask, uint8 [H, W], 1 where lesion; of several classes the number of the pixel's class,
            from 1 in the contract's order.

        Raises:
            InputError: E-FRAME for another dtype or shape, see `require_frame`.
            EngineError: E-ENGINE-RESULT for logits that are not finite, E-SESSION-BUSY.
        """
        with self._turn:
            return self.read_out(self.infer(self.prepare(frame)), frame.shape)

    def logits(self, frame: np.ndarray) -> np.ndarray:
        """Return the logits, a copy, as `infer` does; see `predict`."""
        with self._turn:
            return np.array(self.infer(self.prepare(frame)))

    # The three steps of `predict`, apart so that a benchmark can time each within one call. They
    # do not keep a second thread out.

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """Return the network's input, float32 [1, C, height, width], valid until the next frame.

        Raises InputError: E-FRAME for another dtype or shape than `predict` takes.
        """
        if self._crop:
            require_frame(frame)
            frame = self._crop.image_of(frame)
        return input_from_frame(frame, self.contract, self._input)

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Return the logits, float32 [height, width], for what `prepare` returned.

        Of several classes they are [K, height, width]. They may be a view of the engine's own
        buffer, valid until the next call.
        Raises EngineError: E-ENGINE-RESULT for logits that are not finite.
        """
        logits = self.engine.run(image)
        if not np.isfinite(logits.sum()):  # NaN would read as "no lesion"
            raise EngineError(
                "E-ENGINE-RESULT", f"{self.engine.name} answered a number that is not finite"
            )
        return planes_of_answer(logits)

    def read_out(self, logits: np.ndarray, frame_shape: Tuple[int, ...]) -> np.ndarray:
        """Return the mask, uint8 [H, W], of a frame of shape [H, W] or [H, W, 3]."""
        height, width = self._crop.keep.shape if self._crop else frame_shape[:2]
        mask = mask_from_logits(logits, self.contract, height, width)
        if self._crop:
            mask &= self._crop.keep
        if self.fill_holes:  # those of the crop are those of the frame: around it is background
            mask = lesion.fill_holes(mask)
            if self._crop:  # a blanked box inside a lesion is no hole of it
                mask &= self._crop.keep
        if self.largest_only:
            mask = lesion.keep_largest(mask)
        return self._crop.layout.paste(mask) if self._crop else mask

    def selftest(self, *, repeats: int = 0) -> SelfTest:
        """Replay the golden frames of the bundle, without layout and options.

        Args:
            repeats: how many times more each frame is predicted, in turns with the others, to see
                whether the engine answers the same each time.

        Raises:
            Refused: E-SELFTEST (no golden frames for this engine), E-PGM, E-BUNDLE-HASH.
            EngineError: E-ENGINE-RESULT, E-SESSION-BUSY.
        """
        engine = files_of(self.engine.name)
        golden = tuple(self._golden(engine))
        with self._turn:
            first = [self._whole_mask(frame) for frame, _ in golden]
            repeats_equal = all(
                np.array_equal(self._whole_mask(frame), mask)
                for _ in range(repeats)
                for (frame, _), mask in zip(golden, first)  # noqa: B905 - strict is of 3.10
            )
        shares = [_flipped_share(mask, golden[index][1]) for index, mask in enumerate(first)]
        return SelfTest(
            engine=self.engine.name,
            frames=len(golden),
            worst_flipped=max(shares),
            max_flipped=self.bundle.manifest.vectors.max_flipped[engine] if self.bundle else 0.0,
            bit_equal=not any(shares),
            repeats=repeats,
            repeats_equal=repeats_equal,
        )

    def _golden(self, engine: str) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Yield golden frames and the masks of an engine, uint8 [H, W] each."""
        if self.bundle is None or not self.bundle.manifest.vectors.masks.get(engine):
            where = self.bundle.path if self.bundle else "what this session was opened over"
            raise Refused(
                "E-SELFTEST",
                f"{where} has no golden frames for {self.engine.name}; export the bundle again",
            )
        vectors = self.bundle.manifest.vectors
        for names in zip(vectors.frames, vectors.masks[engine]):  # noqa: B905
            frame, mask = (pixels_from_pnm(self.bundle.read(name), name) for name in names)
            if mask.ndim != 2 or frame.shape[:2] != mask.shape:
                raise Refused(
                    "E-SELFTEST",
                    f"{names[1]} is of another size than {names[0]}; export the bundle again",
                )
            yield frame, labels_from_golden(mask, self.contract)

    def _whole_mask(self, frame: np.ndarray) -> np.ndarray:
        logits = self.infer(input_from_frame(frame, self.contract, self._input))
        return mask_from_logits(logits, self.contract, *frame.shape[:2])


def _flipped_share(mask: np.ndarray, golden: np.ndarray) -> float:
    """Return the pixels that differ as a share of the golden lesion, or of 1 px if it is empty."""
    flipped, marked = (int(np.count_nonzero(each)) for each in (golden != mask, golden))
    return flipped / max(1, marked)


@takes_paths
def open_session(
    bundle: Path,
    *,
    engine: Optional[str] = None,
    threads: int = 0,
    largest_only: bool = False,
    fill_holes: bool = False,
    key: Optional[Path] = None,
) -> Session:
    """Verify a bundle and open it.

    Args:
        bundle: folder written by `edgeseg export`, or the file that it is packed into.
        engine: one of the bundle's engines, or of those that run another device with the files
            of one; None takes the first of the bundle's that is installed: `session.engine` says
            which, and its facts.
        threads: for the engine; 0 takes every core this process may use.
        largest_only: keep only the largest 8-connected lesion.
        fill_holes: make background that a lesion encloses lesion, before the largest is chosen.
        key: PEM file of the public key, or of the certificate of the authority, by which the
            bundle must be signed; see `open_bundle`.

    Raises:
        InputError: E-BUNDLE-MISSING, E-ENGINE-NOT-IN-BUNDLE, E-LAYOUT, E-KEY-READ.
        Refused: the bundle's integrity checks, see `open_bundle`; E-ENGINE-PLAN of a kit's plan,
            and E-SIGNATURE-PLAN where a key is given.
        EngineError: E-EXTRA-MISSING, E-ENGINE-LOAD, E-ENGINE-DEVICE, E-ENGINE-NOT-BUILT,
            E-CPU-FEATURE (the bundle needs what this CPU does not have).
    """
    return session_of(
        open_bundle(bundle, key=key),
        engine=engine,
        threads=threads,
        largest_only=largest_only,
        fill_holes=fill_holes,
    )


def session_of(
    bundle: Bundle,
    *,
    engine: Optional[str] = None,
    threads: int = 0,
    largest_only: bool = False,
    fill_holes: bool = False,
) -> Session:
    """Open a verified bundle; arguments and errors as `open_session`."""
    name = engine or first_installed(bundle)
    if name in bundle.manifest.models and name not in ENGINES:
        raise _only_on_device(bundle)
    manifest = bundle.manifest
    require_features(manifest.cpu, str(bundle.path))
    layout = Layout.from_dict(manifest.layout) if manifest.layout else None
    if files_of(name) in manifest.models:
        require_installed(name)  # before the files: a kit's are not there where nothing built them
    files = engine_files(bundle, name)
    return Session.over(
        open_engine(name, files, threads or available_threads()),
        manifest.contract,
        layout=layout,
        largest_only=largest_only,
        fill_holes=fill_holes,
        bundle=bundle,
    )


def first_installed(bundle: Bundle) -> str:
    """Return the bundle's preferred engine among those installed.

    Raises EngineError: E-EXTRA-MISSING naming what to install when there is none, E-ENGINE-DEVICE
    for a bundle that only its device can run.
    """
    known = [name for name in bundle.manifest.models if name in ENGINES]
    for name in known:
        if is_installed(name):
            return name
    if not any(ENGINES[name].on_cpu for name in known):
        raise _only_on_device(bundle)
    mends = " or ".join(ENGINES[name].extra for name in known)
    raise EngineError(
        "E-EXTRA-MISSING", f"no engine of {bundle.path} is installed here; it needs {mends}"
    )


def _only_on_device(bundle: Bundle) -> EngineError:
    return EngineError(
        "E-ENGINE-DEVICE",
        f"{bundle.path} is for {', '.join(bundle.manifest.models)} on {bundle.manifest.target} "
        "and cannot run here; take it there, or export for this machine",
    )
