"""What a device executes: numpy, Pillow and one inference engine, nothing else.

>>> from edgeseg.runtime import open_session, read_image
>>> session = open_session(Path("bundle"))           # hashes are verified first
>>> mask = session.predict(read_image(Path("frame.png")))   # uint8 [H, W], 1 where lesion

The folder imports none of edgeseg's others and stays valid Python 3.8 (JetPack 5).
"""

from .bundle import Bundle, Manifest, open_bundle
from .contract import InputContract
from .errors import EdgesegError, EngineError, InputError, OutputError, Refused
from .image import read_image
from .session import Session, open_session

__all__ = [
    "Bundle",
    "EdgesegError",
    "EngineError",
    "InputContract",
    "InputError",
    "Manifest",
    "OutputError",
    "Refused",
    "Session",
    "open_bundle",
    "open_session",
    "read_image",
]
