"""The input contract: all that training, calibration and the device must agree on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Dict, Mapping

from .errors import InputError

# Of a field that is written only where it differs from its default, so that what was written before
# there was such a field stays what it is, to the byte.
SPARSE: Mapping[str, bool] = MappingProxyType({"sparse": True})


@dataclass(frozen=True)
class InputContract:
    """What a network takes and how its answer is read.

    A frame is reduced to grey, resized to `height` x `width`, scaled to 0..1, then normalised:
    ``x = (grey / 255 - mean) / std``. The network answers one logit a pixel; a pixel is lesion
    where ``sigmoid(logit) > threshold``. Then the least lesion: of these pixels an 8-connected
    component, at the network's size, is dropped that is smaller than `least_area` or nowhere as
    probable as `least_peak`, see `edgeseg.runtime.image.kept_logits`.
    """

    height: int = 256  # px, network input, a multiple of 16 (four poolings)
    width: int = 256  # px, network input, a multiple of 16
    mean: float = 0.33  # of grey / 255, in [0, 1]; this one over BUSI's frames
    std: float = 0.22  # of grey / 255, in (0, 1]; this one over BUSI's frames
    threshold: float = 0.5  # probability, in (0, 1)
    least_area: float = field(default=0.0, metadata=SPARSE)  # share of the frame, in [0, 1)
    least_peak: float = field(default=0.0, metadata=SPARSE)  # in (threshold, 1); 0: any

    def __post_init__(self) -> None:
        """Raise InputError (E-CONTRACT) for a value out of range."""
        for name in ("height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 16 <= value <= 4096 or value % 16:
                below = min(4096, max(16, int(value) // 16 * 16))
                raise InputError(
                    "E-CONTRACT",
                    f"{name} {value} is not a multiple of 16 in 16..4096; the nearest is {below}",
                )
        if not (0 <= self.mean <= 1 and 0 < self.std <= 1):  # NaN is not
            raise InputError(
                "E-CONTRACT",
                f"mean {self.mean:g} and std {self.std:g} are not in 0..1, std above 0; both are "
                "of grey / 255, so divide those of grey levels by 255",
            )
        if not 0 < self.threshold < 1:
            raise InputError("E-CONTRACT", f"threshold {self.threshold} is not inside (0, 1)")
        if not 0 <= self.least_area < 1:
            raise InputError("E-CONTRACT", f"least_area {self.least_area} is not inside [0, 1)")
        if self.least_peak != 0 and not self.threshold < self.least_peak < 1:
            raise InputError(
                "E-CONTRACT",
                f"least_peak {self.least_peak} is neither 0 nor between the threshold "
                f"{self.threshold} and 1",
            )

    @property
    def logit_threshold(self) -> float:
        """The threshold as a logit, so that no sigmoid is computed on the device."""
        return _logit(self.threshold)

    @property
    def drops(self) -> bool:
        """Whether there is a least lesion at all."""
        return self.least_area > 0 or self.least_peak > 0

    @property
    def least_px(self) -> int:
        """The fewest pixels of a lesion at the network's size."""
        return math.ceil(self.least_area * (self.height * self.width))

    @property
    def least_logit(self) -> float:
        """What the highest logit of a lesion must reach; -inf where any will do."""
        return _logit(self.least_peak) if self.least_peak else -math.inf

    @property
    def least_text(self) -> str:
        """What is dropped, as a few words for people; empty where nothing is."""
        parts = []
        if self.least_area:
            parts.append(f"of less than {100 * self.least_area:.4g} % of the frame")
        if self.least_peak:
            parts.append(f"nowhere as probable as {self.least_peak:.6g}")
        return "without components " + " or ".join(parts) if parts else ""

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON-ready values, the least lesion only where there is one."""
        values = asdict(self)
        for each in fields(self):
            if each.metadata == SPARSE and values[each.name] == each.default:
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
        if not all(type(value) in (int, float) for value in values.values()):
            raise InputError("E-CONTRACT", "input contract has a field that is not a number")
        return cls(**values)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
