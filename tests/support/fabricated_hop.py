"""A step of a parity chain whose numbers say that nothing changed."""

from __future__ import annotations

from edgeseg.runtime.proof import Hop


def hop(**changes):
    """A step without any difference but those named."""
    fields = {"name": "x", "frames": 9, "max_abs": 0.1, "flipped_share": 0.0, "mask_dice": 1.0}
    fields |= {"dice": 0.8, "dice_drop": 0.0, "dice_drop_low": 0.0, "dice_drop_high": 0.0}
    fields |= {"hd95_rise_px": 0.0, "hd95_rise_low_px": 0.0, "hd95_rise_high_px": 0.0}
    return Hop(**{**fields, **changes})
