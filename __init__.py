"""edgeseg: distil, export, run and measure small breast-ultrasound segmentation networks.

The folders, from the ground up; imports point downwards only (tests/test_layers.py):

- ``runtime/``: what a device executes. It owns the contract between image and network, reads
  bundles and makes masks. numpy, Pillow and one engine; Python 3.8. ``runtime/c`` is it in C.
- ``kd/``: data sets, splits that no patient crosses, networks, distillation, training.
- ``benchmarks/``: ``measure/`` has what is measured, ``record.py`` the result, ``run.py`` who
  measures in which order, ``report/`` how it is written for people.
- ``export/``: a checkpoint or a foreign ONNX becomes a bundle for a target, if its gates pass;
  ``kit/`` builds engines where TensorRT is, ``device/`` does so over ssh.
- ``cli/``: the commands; ``cli/jobs/`` is what they share.

Five types carry the rest:

- `runtime.contract.InputContract`: size, normalisation and how an answer is read as a mask.
- `runtime.bundle.Bundle`: files of a network with manifest, hashes and golden frames.
- `runtime.session.Session`: a contract over an engine; ``predict(frame)`` returns the mask.
- `kd.checkpoint.Checkpoint`: a trained network with its contract and provenance.
- `benchmarks.record.BenchmarkRecord`: one benchmark run, with every sample and its conditions.

How data flows: images and masks -> `kd.train.train` -> Checkpoint -> `export.pipeline` (plan,
calibrate, convert, gate) -> Bundle -> `runtime.session.open_session` -> mask; and Bundle ->
`benchmarks.run` -> BenchmarkRecord -> report.

From Python: `load`, `train`, `plan`, `export`, `evaluate` and `benchmark` do what the commands of
these names do (`cli/jobs/api.py`). Importing this package costs nothing: nothing below is imported
before it is asked for.

Start reading at `runtime/session.py`, then `export/pipeline.py`; from the outside at `cli/main.py`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cli.jobs.api import benchmark, evaluate, export, load, plan, train

__version__ = "0.2.0"
__all__ = ["benchmark", "evaluate", "export", "load", "plan", "train"]

# `import openvino` reports itself to an analytics service over the network, from a process that it
# forks, unless somebody declined before. It does without where this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    if name == "export":  # what imports a folder by `from` asks here first
        return import_module(".export", __name__)
    if name in __all__:
        from .cli.jobs import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _ExportPackage(ModuleType):
    """The folder `export/`, which is called as the function of its name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from .cli.jobs import api

        return api.export(*arguments, **named)


class _Package(ModuleType):
    """This package: `edgeseg.export(...)` works beside `edgeseg.export.plan`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "export":  # by the import of export/
            value.__class__ = _ExportPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
