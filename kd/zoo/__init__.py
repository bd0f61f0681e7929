"""Students that ship with edgeseg, ready to use without training.

A name stands for five files in this folder, written by `edgeseg card`: ``<name>.safetensors`` (the
checkpoint), ``<name>.json`` (the evidence, see docs/formats.md), ``<name>.calibration.json`` (the
ranges for INT8), ``<name>.md`` (the model card) and ``<name>-phantoms.png``. Names are listed
without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ...runtime.errors import InputError

FOLDER = Path(__file__).parent
DEFAULT = "t2kd-edge"  # what `edgeseg export` takes where no source is named

# To ship a student: a line here and its files by `edgeseg card` (CONTRIBUTING.md).
SHIPPED: Mapping[str, str] = MappingProxyType(
    {
        "t2kd-edge": "Attention U-Net on an EfficientNet-Lite0, at a quarter of the resolution",
        "t2kd-attunet": "Attention U-Net of the size that T²KD's authors give",
    }
)
# The data set of students whose checkpoints do not name theirs: those of before they did.
UNNAMED_SET: Mapping[str, str] = MappingProxyType({"name": "busi", "layout": "busi"})


def evidence_file(checkpoint: Path) -> Path:
    """Return where a checkpoint's evidence lies if it has any: beside it."""
    return checkpoint.with_suffix(".json")


def calibration_file(checkpoint: Path) -> Path:
    """Return where the ranges of a checkpoint's INT8 form lie if they ship: beside it."""
    return checkpoint.with_suffix(".calibration.json")


def available_names() -> tuple[str, ...]:
    """Return the names whose weights and evidence are in this installation."""
    return tuple(
        name
        for name in SHIPPED
        if _weights_file(name).is_file() and evidence_file(_weights_file(name)).is_file()
    )


def find_weights(name: str) -> Path:
    """Return the checkpoint of a name in `SHIPPED`.

    Raises InputError (E-ZOO-WEIGHTS) if the installation lacks its files.
    """
    if name not in available_names():
        raise InputError(
            "E-ZOO-WEIGHTS",
            f"the weights of {name} are not in this installation ({_weights_file(name)} and its "
            ".json); install a release that has them or train a student with `edgeseg train`",
        )
    return _weights_file(name)


def _weights_file(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"
