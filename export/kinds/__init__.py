"""The kinds of target. To add one: a module with its `Kind`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..target import Target
from .cpu import CPU
from .kind import Kind
from .rtx import RTX
from .tensorrt import TENSORRT

KINDS: Mapping[str, Kind] = MappingProxyType({"cpu": CPU, "rtx": RTX, "tensorrt": TENSORRT})


def kind_of(target: Target) -> Kind:
    """Return what a target's kind answers."""
    return KINDS[target.kind]
