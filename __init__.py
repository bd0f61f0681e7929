"""edgeseg: distil, export, run and measure small breast-ultrasound segmentation networks."""

import sys

__version__ = "0.1.0"

# `import openvino` reports itself to an analytics service over the network, from a process that it
# forks, unless somebody declined before. It does without where this package cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
