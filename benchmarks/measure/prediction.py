"""How long a network would take on a device that is not here: an interval, never a measurement.

A layer takes the longer of its operations over the device's compute peak and its bytes over its
bandwidth, each times an efficiency, and then a launch. Layers run one after the other. The ranges
of efficiencies and launches are starting values for GPUs with a CUDA graph; no run on a device has
calibrated them yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .complexity import LayerCost

COMPUTE_EFFICIENCY = (0.35, 0.6)  # share of the dense peak that convolutions reach
MEMORY_EFFICIENCY = (0.6, 0.75)  # share of the bandwidth
LAUNCH_US = (3.0, 8.0)  # of each layer, with a CUDA graph


@dataclass(frozen=True)
class DevicePeaks:
    """What a data sheet says of a device; None is what it does not say, or what is not there."""

    name: str
    bandwidth_gb_s: float | None
    fp16_tflops: float | None  # dense
    int8_tops: float | None  # dense

    def compute_gflops(self, precision: str) -> float | None:
        """Return the peak for a layer of a precision; None where none is known."""
        tera = {"fp16": self.fp16_tflops, "int8": self.int8_tops}.get(precision)
        return tera * 1e3 if tera else None


@dataclass(frozen=True)
class Prediction:
    """The time of one call, *predicted*."""

    device: str
    precision: str  # "int8" where any layer is, else "fp16"
    low_ms: float  # at the best of all ranges
    high_ms: float  # at the worst
    bound: str  # "compute", "memory" or "launch": what most of `high_ms` is


def predict_latency(layers: Sequence[LayerCost], device: DevicePeaks) -> Prediction | None:
    """Predict the time of a network's layers; None where a peak that they need is not known.

    Args:
        layers: of `layer_costs(..., half=True)`, of an FP16 or FP32 file for FP16, of a Q/DQ file
            for INT8. Layers in FP32 have no peak here.
        device: with its name, as the table of targets has it.
    """
    precisions = {layer.precision for layer in layers if layer.macs}
    known = all(device.compute_gflops(precision) is not None for precision in precisions)
    if not device.bandwidth_gb_s or not known:
        return None
    low, high = (_parts_ms(layers, device, end) for end in (1, 0))
    return Prediction(
        device=device.name,
        precision="int8" if "int8" in precisions else "fp16",
        low_ms=sum(low.values()),
        high_ms=sum(high.values()),
        bound=max(high, key=lambda part: high[part]),
    )


def _parts_ms(layers: Sequence[LayerCost], device: DevicePeaks, best: int) -> dict[str, float]:
    """Return the time by what bounds it, with every range at its best end (1) or its worst (0)."""
    parts = {"compute": 0.0, "memory": 0.0, "launch": 0.0}
    bandwidth = (device.bandwidth_gb_s or 0.0) * MEMORY_EFFICIENCY[best]
    for layer in layers:
        memory_ms = layer.total_bytes / bandwidth / 1e6
        compute_ms = 0.0
        if layer.macs:
            peak = device.compute_gflops(layer.precision) or 0.0
            compute_ms = layer.flops / (peak * COMPUTE_EFFICIENCY[best]) / 1e6
        parts["compute" if compute_ms > memory_ms else "memory"] += max(compute_ms, memory_ms)
        parts["launch"] += LAUNCH_US[1 - best] / 1e3
    return parts
