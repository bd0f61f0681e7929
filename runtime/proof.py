"""Where a bundle comes from and what its export proved: `provenance` and `evidence` of a manifest.

A manifest keeps both as JSON, so that fields of a newer minor version stay; writers and readers
take them from here. `from_dict` leaves out fields that it does not know, and raises KeyError,
TypeError or ValueError for what an export does not write; `Bundle.provenance` and `Bundle.proof`
turn that into a refusal.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Dict, Mapping, Optional, Tuple, Type, TypeVar

_Row = TypeVar("_Row", "Hop", "ClassDrop", "PrecisionTiming")


@dataclass(frozen=True)
class ClassDrop:
    """What one step of the export loses of one class, on the frames that have it."""

    name: str  # of the contract's `classes`
    frames: int
    dice: float  # mean against the truth
    dice_drop: float  # the trained network's mean Dice minus this one's
    dice_drop_low: float  # 95 % bootstrap interval over groups of frames
    dice_drop_high: float

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields with None for what is undefined."""
        return _with_none(asdict(self))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ClassDrop:
        """Read the result of `to_dict`."""
        return _row(cls, content)


@dataclass(frozen=True)
class Hop:
    """One step of the export compared with the trained network on the same frames."""

    name: str  # such as "openvino int8"
    frames: int
    max_abs: float  # largest difference of a logit; NaN if one is NaN
    flipped_share: float  # of pixels at network size, in 0..1
    mask_dice: float  # mean Dice between the two masks, frames where both are empty left out
    dice: float  # mean Dice against the truth, frames with a lesion
    dice_drop: float  # the trained network's mean Dice minus this one's
    dice_drop_low: float  # 95 % bootstrap interval over groups of frames
    dice_drop_high: float
    hd95_rise_px: float  # mean over frames where both have it: this one's minus the trained one's
    hd95_rise_low_px: float
    hd95_rise_high_px: float
    classes: Tuple[ClassDrop, ...] = ()  # of several, over which Dice and HD95 are means then

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields with None for what is undefined; `classes` where there are several."""
        content = _with_none(asdict(self))
        del content["classes"]
        if self.classes:
            content["classes"] = [each.to_dict() for each in self.classes]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Hop:
        """Read the result of `to_dict`."""
        rows = tuple(map(ClassDrop.from_dict, content.get("classes", ())))
        return replace(_row(cls, content), classes=rows)


@dataclass(frozen=True)
class PrecisionTiming:
    """How fast one precision in one engine is beside FP32 in the engine that runs it fastest."""

    engine: str
    precision: str
    p50_ms: float  # end to end, single frames, on the machine of the export
    ratio: float  # of that FP32's median time
    ratio_low: float  # interval of `latency.median_ratio`
    ratio_high: float
    dice_drop: float
    shipped: bool

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PrecisionTiming:
        """Read the result of `to_dict`, in which every number is one."""
        found = _row(cls, content)
        if None in _with_none(asdict(found)).values():
            raise ValueError("a verdict has a number that is null")
        return found


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from."""

    checkpoint_sha256: str  # of an ONNX from elsewhere: of its file, or of its files' hashes
    training: Mapping[str, Any]  # what is known of it
    calibration: Optional[Mapping[str, Any]]  # None: no precision that ships needs one
    tools: Mapping[str, str]  # name -> version
    split_sha256: Optional[str] = None  # of the split file in the bundle; None: there is none
    trained_on: Optional[Tuple[str, ...]] = None  # SHA-256 of each image a shipped student has seen
    data: Tuple[Mapping[str, Any], ...] = ()  # what is known of each data set; empty: not told

    def to_dict(self) -> Dict[str, Any]:
        """Return the manifest's `provenance`, in its order; what there is not is left out."""
        content: Dict[str, Any] = {
            "checkpoint_sha256": self.checkpoint_sha256,
            "training": dict(self.training),
        }
        if self.split_sha256 is not None:
            content["split_sha256"] = self.split_sha256
        if self.trained_on is not None:
            content["trained_on"] = list(self.trained_on)
        if self.data:
            content["data"] = [dict(each) for each in self.data]
        content["calibration"] = None if self.calibration is None else dict(self.calibration)
        content["tools"] = dict(self.tools)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Provenance:
        """Read the result of `to_dict`, or `data` as one set, as it was before there was a list."""
        calibration, listed = content["calibration"], content.get("trained_on")
        data, split = content.get("data", []), content.get("split_sha256")
        return cls(
            checkpoint_sha256=_of(str, content["checkpoint_sha256"], "checkpoint_sha256"),
            training=_of(dict, content["training"], "training"),
            calibration=None if calibration is None else _of(dict, calibration, "calibration"),
            tools=_of(dict, content["tools"], "tools"),
            split_sha256=None if split is None else _of(str, split, "split_sha256"),
            trained_on=None if listed is None else _texts(listed, "trained_on"),
            data=tuple(
                _of(dict, each, "data")
                for each in ([data] if isinstance(data, dict) else _of(list, data, "data"))
            ),
        )


@dataclass(frozen=True)
class Proof:
    """What the export of a bundle proved on its check frames, and the limits that it kept to."""

    part: str  # what the check frames are
    max_drop: float  # gate: of Dice, at the upper end of the 95 % interval
    max_hd95_rise_px: float  # gate: at the lower end of the 95 % interval
    frames: int
    trained_dice: Optional[float]  # mean of the trained network, frames with a lesion
    parity: Tuple[Hop, ...]
    achieved: Mapping[str, Mapping[str, float]]  # form -> precision -> share of the MACs
    verdicts: Tuple[PrecisionTiming, ...]  # where all precisions were measured
    refused: Mapping[str, str]  # precision -> why it was left out
    kept_float: Tuple[str, ...]  # convolutions that INT8 leaves in float
    qat: Optional[Mapping[str, Any]]  # how INT8 was retrained; None: it was not
    contract_forced: bool = False  # exported though the check frames may speak against it

    def to_dict(self) -> Dict[str, Any]:
        """Return the manifest's `evidence`, in its order."""
        content: Dict[str, Any] = {
            "part": self.part,
            "max_drop": self.max_drop,
            "max_hd95_rise_px": self.max_hd95_rise_px,
            "frames": self.frames,
            "trained_dice": self.trained_dice,
            "parity": [hop.to_dict() for hop in self.parity],
            "achieved": {form: dict(shares) for form, shares in self.achieved.items()},
            "verdicts": [each.to_dict() for each in self.verdicts],
            "refused": dict(self.refused),
            "kept_float": list(self.kept_float),
            "qat": None if self.qat is None else dict(self.qat),
        }
        if self.contract_forced:
            content["contract_forced"] = True
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Proof:
        """Read the result of `to_dict`."""
        qat, dice = content["qat"], content["trained_dice"]
        achieved = _of(dict, content["achieved"], "achieved")
        return cls(
            part=_of(str, content["part"], "part"),
            max_drop=_number(content["max_drop"], "max_drop"),
            max_hd95_rise_px=_number(content["max_hd95_rise_px"], "max_hd95_rise_px"),
            frames=_of(int, content["frames"], "frames"),
            trained_dice=None if dice is None else _number(dice, "trained_dice"),
            parity=tuple(map(Hop.from_dict, _of(list, content["parity"], "parity"))),
            achieved={
                form: {
                    precision: _number(share, "achieved")
                    for precision, share in _of(dict, shares, "achieved").items()
                }
                for form, shares in achieved.items()
            },
            verdicts=tuple(
                map(PrecisionTiming.from_dict, _of(list, content["verdicts"], "verdicts"))
            ),
            refused=_of(dict, content["refused"], "refused"),
            kept_float=_texts(content["kept_float"], "kept_float"),
            qat=None if qat is None else _of(dict, qat, "qat"),
            contract_forced=bool(content.get("contract_forced", False)),
        )


_TYPES: Mapping[str, Any] = {"str": str, "int": int, "bool": bool}


def _row(kind: Type[_Row], content: Mapping[str, Any]) -> _Row:
    """Read the flat fields of a dataclass; a float may be null, which is NaN."""
    values: Dict[str, Any] = {}
    for each in fields(kind):
        if each.type != "float" and each.type not in _TYPES:
            continue
        value = content[each.name]
        if each.type == "float":
            values[each.name] = math.nan if value is None else _number(value, each.name)
        else:
            values[each.name] = _of(_TYPES[str(each.type)], value, each.name)
    return kind(**values)


def _with_none(values: Mapping[str, Any]) -> Dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


def _of(kind: type, value: Any, what: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{what} is of another type")
    return value


def _number(value: Any, what: str) -> float:
    """Return a JSON number. Raises TypeError for anything else, such as the text "inf"."""
    if type(value) not in (int, float):
        raise TypeError(f"{what} is no number")
    return float(value)


def _texts(value: Any, what: str) -> Tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{what} is no list of texts")
    return tuple(value)
