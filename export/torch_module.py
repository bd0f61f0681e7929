"""A torch network from elsewhere, named by the function that makes it, as an ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kd.modules import module_made_by, names_function
from ..runtime.contract import InputContract
from ..runtime.engines import available_threads
from ..runtime.errors import InputError, first_line
from .parity import exact_run
from .target import OPSET

if TYPE_CHECKING:
    import torch
    from torch import nn

_NESTED = ("state_dict", "model_state_dict", "model")  # where trainers keep the weights in a file
_MAX_APART = 1e-3  # of the largest answer, between torch and its ONNX


def is_module_name(path: Path) -> bool:
    """Say whether a source is ``package.module:function`` and no file of that name."""
    return names_function(str(path)) and not path.exists()


def write_module_as_onnx(
    name: str,
    weights: Path | None,
    contract: InputContract,
    out: Path,
    output: str | None = None,
) -> None:
    """Make a network and write it as ONNX, whose answers are compared with torch's.

    Args:
        name: see `module_made_by`; a network from float32 [N, 1, H, W] to logits or
            probabilities; outputs of a dict have its names, of a sequence ``output_0``, ….
        weights: a state dict as .safetensors or torch's own file, read without pickle's code, also
            under one of `_NESTED`; None where the function loads them.
        contract: gives height and width.
        out: the file to write.
        output: of several, the one that is written and compared; else all are, for their names.

    Raises InputError: E-MODULE-IMPORT, E-MODULE-WEIGHTS, E-MODULE-ONNX.
    """
    network = module_made_by(name)
    if weights is not None:
        _load(network, weights, name)
    write_network_as_onnx(network, name, contract, out, output)


def write_network_as_onnx(
    network: nn.Module, name: str, contract: InputContract, out: Path, output: str | None = None
) -> None:
    """Write a network as ONNX, whose answers are compared with torch's.

    See `write_module_as_onnx`, also for E-MODULE-ONNX; `name` is for messages.
    """
    import torch

    network = network.eval()
    # What is traced may hold values of its frame, so the answers to another are compared.
    random = np.random.default_rng(0).normal(
        size=(2, 1, contract.depth, contract.height, contract.width)
    )
    image, other = torch.from_numpy(random.astype(np.float32))
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer; what it gets wrong is compared below
            answers = _named(network(other))
            if output in answers and len(answers) > 1:
                answers, network = {output: answers[output]}, _one_of(network, output)
            torch.onnx.export(
                network,
                (image,),
                out,
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(answers),
            )
        if len(answers) > 1:
            return  # and are refused, with their names, until one is chosen
        found = exact_run(out.read_bytes(), available_threads())(other.numpy())
    except InputError:
        raise
    except Exception as error:  # of somebody's network and of the exporter
        raise InputError(
            "E-MODULE-ONNX",
            f"torch cannot write {name} as ONNX for a frame of {contract.height} x "
            f"{contract.width}: {first_line(error)}; export it yourself and name the file",
        ) from error
    expected = next(iter(answers.values())).float().numpy()
    apart = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    if not apart <= _MAX_APART * max(1.0, float(np.abs(expected).max())):
        raise InputError(
            "E-MODULE-ONNX",
            f"the ONNX that torch writes of {name} answers otherwise (by {apart:.4g}), as what it "
            "does depends on the frame; export it yourself and name the file",
        )


def _load(network: nn.Module, file: Path, name: str) -> None:
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and safetensors' share no narrower base
        raise InputError(
            "E-MODULE-WEIGHTS", f"cannot read weights from {file}: {first_line(error)}"
        ) from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise InputError("E-MODULE-WEIGHTS", f"{file} holds no state dict; save one")
    if content and all(str(key).startswith("module.") for key in content):  # of DataParallel
        content = {key.removeprefix("module."): value for key, value in content.items()}
    own = network.state_dict()
    wrong = [
        *(f"without {key}" for key in own if key not in content),
        *(f"with {key}" for key in content if key not in own),
        *(
            f"{key} of {tuple(content[key].shape)}, not {tuple(own[key].shape)}"
            for key in own
            if key in content and tuple(content[key].shape) != tuple(own[key].shape)
        ),
    ]
    if wrong:
        raise InputError(
            "E-MODULE-WEIGHTS",
            f"{file} does not fit {name}: {len(wrong)} differences, the first {wrong[0]}; name the "
            "weights of this network",
        )
    network.load_state_dict(content)


def _one_of(network: nn.Module, output: str) -> nn.Module:
    from torch import nn

    class One(nn.Module):
        """A network with one of its outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """Return the output."""
            return _named(self.network(image))[output]

    return One().eval()


def _named(answer: Any) -> dict[str, torch.Tensor]:
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, (list, tuple)):
        return {f"output_{index}": each for index, each in enumerate(answer)}
    return {"logits": answer}
