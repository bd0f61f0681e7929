"""The input contract: all that training, calibration and the device must agree on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping

from .errors import InputError


@dataclass(frozen=True)
class InputContract:
    """What a network takes and how its answer is read.

    A frame is reduced to grey, resized to `height` x `width`, scaled to 0..1, then normalised:
    ``x = (grey / 255 - mean) / std``. The network answers one logit a pixel; a pixel is lesion
    where ``sigmoid(logit) > threshold``.
    """

    height: int = 256  # px, network input, a multiple of 16 (four poolings)
    width: int = 256  # px, network input, a multiple of 16
    mean: float = 0.33  # of grey / 255, in [0, 1]; this one over BUSI's frames
    std: float = 0.22  # of grey / 255, in (0, 1]; this one over BUSI's frames
    threshold: float = 0.5  # probability, in (0, 1)

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

    @property
    def logit_threshold(self) -> float:
        """The threshold as a logit, so that no sigmoid is computed on the device."""
        return math.log(self.threshold / (1 - self.threshold))

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputContract:
        """Read the result of `to_dict`. Raises InputError (E-CONTRACT) for other keys or types."""
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise InputError(
                "E-CONTRACT",
                f"input contract has fields {sorted(values)}; expected exactly {sorted(known)}",
            )
        if not all(type(value) in (int, float) for value in values.values()):
            raise InputError("E-CONTRACT", "input contract has a field that is not a number")
        return cls(**values)
