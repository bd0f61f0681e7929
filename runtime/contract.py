"""The input contract: all that training, calibration and the device must agree on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Dict, Mapping, Tuple, Union

from .errors import InputError

# Of a field that is written only where it differs from its default, so that what was written before
# there was such a field stays what it is, to the byte.
SPARSE: Mapping[str, bool] = MappingProxyType({"sparse": True})
# What the network's channels hold, and how many they are.
CHANNELS: Mapping[str, int] = MappingProxyType({"grey": 1, "grey3": 3, "rgb": 3, "bgr": 3})
RESIZES = ("stretch", "letterbox")
HEADS = ("sigmoid", "softmax")
MAX_CLASSES = 16  # the C runtime has the same limits
MAX_CLASS_BYTES = 63  # of a name as UTF-8
LESION = ("lesion",)  # the classes of a network that tells lesion from all else
Numbers = Union[float, Tuple[float, ...]]


@dataclass(frozen=True)
class InputContract:
    """What a network takes and how its answer is read.

    A frame becomes the channels that `channels` names: ``grey`` (one; colour by BT.601 luma),
    ``grey3`` (the same three times), ``rgb`` or ``bgr`` (a grey frame gives three alike). Each is
    resized to `height` x `width`, either stretched or, as a ``letterbox``, as large as it fits
    without distortion, in the middle of the grey level `pad`. Then it is normalised:
    ``x = (level / 255 - mean) / std``.

    The network answers one logit a pixel for each of the K `classes`. Of a `head` that is a
    ``softmax`` over the background and the classes these are the differences to the background's
    logit; of a ``sigmoid`` they are the logits themselves. A pixel is of the class whose logit is
    farthest above that of the class's threshold, the first of equal ones; where none is above, it
    is background. With thresholds of 0.5 that is the largest probability, as usual.

    Then the least lesion: of the pixels above a class's threshold an 8-connected component, at the
    network's size, is dropped that is smaller than `least_area` or nowhere as probable as
    `least_peak`, see `edgeseg.runtime.image.kept_logits`.

    `mean` and `std` are one number or one a channel of the network, in its order; `threshold`,
    `least_area` and `least_peak` one number or one a class.
    """

    height: int = 256  # px, network input, a multiple of 16 (four poolings)
    width: int = 256  # px, network input, a multiple of 16
    mean: Numbers = 0.33  # of level / 255, in [0, 1]; this one over BUSI's frames
    std: Numbers = 0.22  # of level / 255, in (0, 1]; this one over BUSI's frames
    threshold: Numbers = 0.5  # probability, in (0, 1)
    least_area: Numbers = field(default=0.0, metadata=SPARSE)  # share of the frame, in [0, 1)
    least_peak: Numbers = field(default=0.0, metadata=SPARSE)  # in (threshold, 1); 0: any
    channels: str = field(default="grey", metadata=SPARSE)  # key in `CHANNELS`
    resize: str = field(default="stretch", metadata=SPARSE)  # of `RESIZES`
    pad: int = field(default=0, metadata=SPARSE)  # grey level around a letterbox, 0..255
    classes: Tuple[str, ...] = field(default=LESION, metadata=SPARSE)  # without the background
    head: str = field(default="sigmoid", metadata=SPARSE)  # of `HEADS`

    def __post_init__(self) -> None:
        """Raise InputError (E-CONTRACT) for a value out of range."""
        for name in ("height", "width"):
            value = getattr(self, name)
            if type(value) is not int or not 16 <= value <= 4096 or value % 16:
                below = min(4096, max(16, int(value) // 16 * 16))
                raise InputError(
                    "E-CONTRACT",
                    f"{name} {value} is not a multiple of 16 in 16..4096; the nearest is {below}",
                )
        self._require_words()
        self._require_lengths()
        for mean, std in zip(self.means, self.stds):  # noqa: B905 - strict is of 3.10
            if not (0 <= mean <= 1 and 0 < std <= 1):  # NaN is not
                raise InputError(
                    "E-CONTRACT",
                    f"mean {mean:g} and std {std:g} are not in 0..1, std above 0; both are "
                    "of grey / 255, so divide those of grey levels by 255",
                )
        for threshold, area, peak in zip(  # noqa: B905
            self.thresholds, self.least_areas, self.least_peaks
        ):
            if not 0 < threshold < 1:
                raise InputError("E-CONTRACT", f"threshold {threshold} is not inside (0, 1)")
            if not 0 <= area < 1:
                raise InputError("E-CONTRACT", f"least_area {area} is not inside [0, 1)")
            if peak != 0 and not threshold < peak < 1:
                raise InputError(
                    "E-CONTRACT",
                    f"least_peak {peak} is neither 0 nor between the threshold {threshold} and 1",
                )

    def _require_words(self) -> None:
        for name, known in (("channels", tuple(CHANNELS)), ("resize", RESIZES), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise InputError(
                    "E-CONTRACT", f"{name} {getattr(self, name)!r} is none of {', '.join(known)}"
                )
        if type(self.pad) is not int or not 0 <= self.pad <= 255:
            raise InputError("E-CONTRACT", f"pad {self.pad} is no grey level in 0..255")
        if self.pad and self.resize != "letterbox":
            raise InputError("E-CONTRACT", "pad is of a letterbox; add it, or leave pad out")
        if not 1 <= len(self.classes) <= MAX_CLASSES or len(set(self.classes)) < len(self.classes):
            raise InputError(
                "E-CONTRACT",
                f"classes {list(self.classes)} are not 1 to {MAX_CLASSES} different names",
            )
        for each in self.classes:
            if not 1 <= len(each.encode()) <= MAX_CLASS_BYTES or not each.isprintable():
                raise InputError(
                    "E-CONTRACT",
                    f"class {each!r} is no printable name of 1 to {MAX_CLASS_BYTES} bytes",
                )
        if "background" in self.classes:
            raise InputError(
                "E-CONTRACT",
                "classes name what is marked: leave 'background' out, it is label 0; say "
                '"head": "softmax" where the network answers it in its first channel',
            )

    def _require_lengths(self) -> None:
        """Raise InputError where there is neither one number nor one for each."""
        for names, count, what in (
            (("mean", "std"), CHANNELS[self.channels], "channels"),
            (("threshold", "least_area", "least_peak"), len(self.classes), "classes"),
        ):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, tuple) and len(value) != count:
                    raise InputError(
                        "E-CONTRACT",
                        f"{name} has {len(value)} numbers for {count} {what}; give one, or one for "
                        "each",
                    )

    @property
    def depth(self) -> int:
        """How many channels the network takes."""
        return CHANNELS[self.channels]

    @property
    def takes_colour(self) -> bool:
        """Whether colours of a frame reach the network."""
        return self.channels in ("rgb", "bgr")

    @property
    def means(self) -> Tuple[float, ...]:
        """Of every channel of the network."""
        return _each(self.mean, self.depth)

    @property
    def stds(self) -> Tuple[float, ...]:
        """Of every channel of the network."""
        return _each(self.std, self.depth)

    @property
    def thresholds(self) -> Tuple[float, ...]:
        """Of every class."""
        return _each(self.threshold, len(self.classes))

    @property
    def least_areas(self) -> Tuple[float, ...]:
        """Of every class."""
        return _each(self.least_area, len(self.classes))

    @property
    def least_peaks(self) -> Tuple[float, ...]:
        """Of every class."""
        return _each(self.least_peak, len(self.classes))

    @property
    def logit_thresholds(self) -> Tuple[float, ...]:
        """The thresholds as logits, so that no sigmoid is computed on the device."""
        return tuple(map(_logit, self.thresholds))

    @property
    def least_logits(self) -> Tuple[float, ...]:
        """What the highest logit of a lesion must reach, by class; -inf where any will do."""
        return tuple(_logit(peak) if peak else -math.inf for peak in self.least_peaks)

    @property
    def drops(self) -> bool:
        """Whether there is a least lesion at all."""
        return any(self.least_areas) or any(self.least_peaks)

    @property
    def version(self) -> int:
        """The contract that it needs: 1 of a grey frame, stretched, one class "lesion"; else 2."""
        told = self.to_dict()
        needs_second = _SECOND & set(told) or any(isinstance(each, list) for each in told.values())
        return 2 if needs_second else 1

    # Those of a network of one class and one channel. Tools that know no other refuse the rest
    # first, see `require_one_class` and `require_grey`.

    @property
    def logit_threshold(self) -> float:
        """The threshold of the one class as a logit."""
        (level,) = self.logit_thresholds
        return level

    @property
    def least_px(self) -> int:
        """The fewest pixels of a lesion of the one class at the network's size."""
        (area,) = self.least_areas
        return math.ceil(area * (self.height * self.width))

    @property
    def least_logit(self) -> float:
        """What the highest logit of a lesion of the one class must reach; -inf: any will do."""
        (least,) = self.least_logits
        return least

    @property
    def least_text(self) -> str:
        """What is dropped, as a few words for people; empty where nothing is."""
        parts = []
        if any(self.least_areas):
            shares = numbers_text(tuple(100 * each for each in self.least_areas), ".4g")
            parts.append(f"of less than {shares} % of the frame")
        if any(self.least_peaks):
            parts.append(f"nowhere as probable as {numbers_text(self.least_peaks, '.6g')}")
        return "without components " + " or ".join(parts) if parts else ""

    def normalisation(self, form: str = "") -> str:
        """Return how a grey level is normalised, for people; form: of its numbers."""
        return f"(grey / 255 - {numbers_text(self.means, form)}) / {numbers_text(self.stds, form)}"

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON-ready values, sparse ones only where they say something."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        for each in fields(self):
            if each.metadata == SPARSE and getattr(self, each.name) == each.default:
                del values[each.name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputContract:
        """Read the result of `to_dict`. Raises InputError (E-CONTRACT) for other keys or types."""
        known = {each.name for each in fields(cls)}
        needed = {each.name for each in fields(cls) if each.metadata != SPARSE}
        if not needed <= set(values) <= known:
            raise InputError(
                "E-CONTRACT",
                f"input contract has fields {sorted(values)}; expected {sorted(needed)}, and of "
                f"{sorted(known - needed)} what it has",
            )
        read: Dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) and name in _LISTS else value
            for name, value in values.items()
        }
        for name, value in read.items():
            kinds, what = ((str,), "text") if name in _WORDS else ((int, float), "a number")
            every = value if isinstance(value, tuple) else (value,)
            if not all(type(each) in kinds for each in every) or (
                name == "classes" and not isinstance(value, tuple)
            ):
                what = "a list of names" if name == "classes" else what
                raise InputError("E-CONTRACT", f"input contract has a {name} that is not {what}")
        return cls(**read)


_WORDS = frozenset(("channels", "resize", "classes", "head"))
_SECOND = _WORDS | {"pad"}  # fields that contract 1 did not have
_LISTS = frozenset(("mean", "std", "threshold", "least_area", "least_peak", "classes"))


def require_one_class(contract: InputContract, what: str) -> None:
    """Raise InputError (E-CLASSES) for a contract of several classes.

    Args:
        contract: of a network.
        what: what knows one class alone, as the subject of a sentence.
    """
    if len(contract.classes) > 1:
        raise InputError(
            "E-CLASSES",
            f"{what} knows networks of one class; this one has {', '.join(contract.classes)}",
        )


def _each(value: Numbers, count: int) -> Tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,) * count


def numbers_text(values: Tuple[float, ...], form: str = "g") -> str:
    """Return numbers as text for people, one where they are alike."""
    distinct = values[:1] if len(set(values)) == 1 else values
    return " / ".join(format(each, form) for each in distinct)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
