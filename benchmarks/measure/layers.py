"""Where the time of a network goes, layer by layer, against what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .complexity import LayerCost, layer_costs, with_batch_of_one
from .latency import percentile
from .prediction import DevicePeaks, Prediction, predict_latency
from .profile import LayerTimes, profile_layers
from .roofline import Attained, Peaks, attained

_RUNS = 40


@dataclass(frozen=True)
class LayerReport:
    """The layers of one network in one engine."""

    costs: tuple[LayerCost, ...]
    times: LayerTimes
    attained: Attained
    predictions: tuple[Prediction, ...]  # of devices that are not here and whose peaks are known


def report_layers(
    engine: str,
    files: Mapping[str, bytes],
    model: bytes,
    peaks: Peaks,
    devices: Sequence[DevicePeaks],
) -> LayerReport:
    """Count, time and predict a network's layers.

    Args:
        engine: key in `profile.PROFILERS`.
        files: the engine's model files by name.
        model: ONNX that they were made from.
        peaks: of that engine on this machine; the network is timed with as many threads.
        devices: to predict for.

    Raises: as `profile_layers`.
    """
    model = with_batch_of_one(model)
    costs = layer_costs(model)
    times = profile_layers(engine, files, model, threads=peaks.threads, runs=_RUNS)
    on_device = layer_costs(model, half=True)
    predictions = (predict_latency(on_device, device) for device in devices)
    return LayerReport(
        costs=costs,
        times=times,
        attained=attained(
            costs,
            peaks,
            whole_ms=percentile(times.plain_ms, 0.5),
            layer_ms={layer.name: layer.median_ms for layer in times.layers},
        ),
        predictions=tuple(each for each in predictions if each is not None),
    )
