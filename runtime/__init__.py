"""What a device executes: numpy, Pillow and one inference engine, nothing else.

>>> from edgeseg.runtime import open_session, read_image
>>> session = open_session(Path("bundle"))           # hashes are verified first
>>> mask = session.predict(read_image(Path("frame.png")))   # uint8 [H, W], 1 where lesion

The folder imports none of edgeseg's others and stays valid Python 3.8 (JetPack 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle, Manifest, open_bundle
    from .contract import InputContract
    from .errors import EdgesegError, EngineError, InputError, OutputError, Refused
    from .image import read_image
    from .layout import Layout
    from .lesion import Lesion, Spacing, lesions_of
    from .session import SelfTest, Session, open_session

__all__ = [
    "Bundle",
    "EdgesegError",
    "EngineError",
    "InputContract",
    "InputError",
    "Layout",
    "Lesion",
    "Manifest",
    "OutputError",
    "Refused",
    "SelfTest",
    "Session",
    "Spacing",
    "lesions_of",
    "open_bundle",
    "open_session",
    "read_image",
]

_MODULE_OF = {
    "Bundle": "bundle",
    "Manifest": "bundle",
    "open_bundle": "bundle",
    "InputContract": "contract",
    "EdgesegError": "errors",
    "EngineError": "errors",
    "InputError": "errors",
    "OutputError": "errors",
    "Refused": "errors",
    "read_image": "image",
    "Layout": "layout",
    "Lesion": "lesion",
    "Spacing": "lesion",
    "lesions_of": "lesion",
    "SelfTest": "session",
    "Session": "session",
    "open_session": "session",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the CLI's help must not wait for numpy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
