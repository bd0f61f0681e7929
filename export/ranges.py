"""Ranges of activations from real frames: one pass, histograms that do not grow with the frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx

from ..runtime.errors import InputError, Refused
from .graph import activations_of, measured_of

BINS = 2048
LEVELS = 127  # symmetric INT8 has as many steps on either side of zero
_PERCENTILE = 99.99  # of |x|
_LEAST_KEPT = 0.99  # share of the values that entropy does not clip
_CANDIDATES = 200  # ranges that entropy and MSE choose among


@dataclass(frozen=True)
class Histogram:
    """How often |x| fell into each of `BINS` bins of equal width, from 0 up."""

    counts: np.ndarray  # int64 [BINS]
    width: float  # of a bin, > 0
    largest: float  # |x|, exact


@dataclass(frozen=True)
class Ranges:
    """What a pass over the frames has found, by tensor name."""

    histograms: Mapping[str, Histogram]  # of the tensors in `measured_of`
    largest: Mapping[str, float]  # |x| of every activation
    frames: int

    def amax(self, method: str) -> dict[str, float]:
        """Return the largest representable |x| of each tensor, > 0.

        A tensor that is zero on every frame gets 1: any range is exact for it.
        Raises InputError (E-CALIB-METHOD) for a method not in `METHODS`.
        """
        require_method(method)
        choose = METHODS[method]
        return {
            name: choose(histogram) if histogram.largest > 0 else 1.0
            for name, histogram in self.histograms.items()
        }


def measure_ranges(model: bytes, images: Iterable[np.ndarray]) -> Ranges:
    """Run FP32 ONNX over the images and gather its float activations, the input included.

    Memory holds the activations of one image and `BINS` counts a tensor, however many images.

    Args:
        model: FP32 ONNX with static shapes.
        images: float32 [1, 1, H, W] each, at least one.

    Raises:
        InputError: E-CALIB-EMPTY without an image.
        Refused: E-CALIB-RANGE if an activation is not finite; it names the tensor.
    """
    import onnxruntime as ort

    probe = onnx.load_model_from_string(model)
    name_in = probe.graph.input[0].name
    names = [name for name in activations_of(probe.graph) if name != name_in]
    known = {each.name for each in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    histograms: dict[str, Histogram] = {}
    largest = dict.fromkeys((name_in, *names), 0.0)
    measured = measured_of(probe.graph)
    frames = 0
    for image in images:
        for name, value in zip(
            largest, [image, *session.run(names, {name_in: image})], strict=True
        ):
            peak = max(float(value.max()), -float(value.min()))
            if not np.isfinite(peak):
                raise Refused(
                    "E-CALIB-RANGE",
                    f"activation {name} is not finite on calibration frame {frames + 1}; the "
                    "network is broken: train it again or take an earlier checkpoint",
                )
            largest[name] = max(largest[name], peak)
            if name in measured:
                histograms[name] = add_values(histograms.get(name), value)
        frames += 1
    if not frames:
        raise InputError("E-CALIB-EMPTY", "there is no calibration image; check --calib")
    return Ranges(MappingProxyType(histograms), MappingProxyType(largest), frames)


def add_values(histogram: Histogram | None, values: np.ndarray) -> Histogram:
    """Return the histogram with more values; bins are joined in pairs until the largest fits.

    The range grows by powers of two, so at least half of the bins stay in use.
    """
    magnitude = np.abs(values, dtype=np.float32).ravel()
    largest = float(magnitude.max())
    if histogram is None:
        histogram = Histogram(np.zeros(BINS, np.int64), max(largest, 1e-9) / BINS, 0.0)
    counts, width = histogram.counts, histogram.width
    while largest > width * BINS * (1 + 1e-6):
        counts = np.concatenate([counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
        width *= 2
    magnitude *= np.float32(1 / width)
    bins = np.minimum(magnitude.astype(np.intp), BINS - 1)
    return Histogram(
        counts + np.bincount(bins, minlength=BINS), width, max(largest, histogram.largest)
    )


def _min_max(histogram: Histogram) -> float:
    """Nothing is clipped."""
    return histogram.largest


def _percentile(histogram: Histogram) -> float:
    """|x| below which `_PERCENTILE` percent of the values lie."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edge = (int(np.searchsorted(share, _PERCENTILE / 100)) + 1) * histogram.width
    return min(edge, histogram.largest)


def _mse(histogram: Histogram) -> float:
    """The range with the least squared error of rounding and clipping together."""
    centres = (np.arange(BINS) + 0.5) * histogram.width
    ranges = histogram.largest * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    steps = ranges[:, None] / LEVELS
    rounded = np.minimum(np.round(centres / steps), LEVELS) * steps
    error = ((rounded - centres) ** 2) @ histogram.counts
    return float(ranges[int(np.argmin(error))])


def _entropy(histogram: Histogram) -> float:
    """The range whose quantised distribution diverges least (Kullback-Leibler) from the clipped.

    Migacz, "8-bit inference with TensorRT", GTC 2017: clipped counts go into the last bin of the
    reference; each level spreads its counts evenly over its bins that were not empty. The bin at
    zero, which a ReLU fills, counts as the one beside it. No more than one value in a hundred is
    clipped: where all that is clipped lands on a filled bin, the divergence does not see it.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    used = min(BINS, int(np.ceil(histogram.largest / histogram.width)))
    kept = int(np.searchsorted(np.cumsum(counts), _LEAST_KEPT * counts.sum())) + 1
    stops = np.unique(np.linspace(min(LEVELS + 1, used), used, _CANDIDATES).astype(int))
    stops = stops[stops >= min(kept, used)]
    divergences = [_divergence(counts, stop) for stop in stops]
    edge = float(stops[int(np.argmin(divergences))] * histogram.width)
    return min(edge, histogram.largest)


def _divergence(counts: np.ndarray, stop: int) -> float:
    """KL of the first `stop` bins, the rest clipped onto the last, from their quantised version."""
    reference = counts[:stop].copy()
    reference[-1] += counts[stop:].sum()
    levels = np.minimum(np.arange(stop) * (LEVELS + 1) // stop, LEVELS)
    filled = reference > 0
    total = np.bincount(levels, counts[:stop], minlength=LEVELS + 1)
    members = np.bincount(levels, filled, minlength=LEVELS + 1)
    quantised = np.where(filled, (total / np.maximum(members, 1))[levels], 0.0)
    if not quantised.sum():
        return float("inf")
    p, q = reference / reference.sum(), quantised / quantised.sum()
    # A filled bin of `reference` whose level is empty means infinite divergence.
    with np.errstate(divide="ignore"):
        return float(np.sum(p[filled] * np.log(p[filled] / q[filled])))


# To add a method: a function from a histogram to the largest representable |x|, and a line here.
METHODS: Mapping[str, Callable[[Histogram], float]] = MappingProxyType(
    {"min-max": _min_max, "percentile": _percentile, "mse": _mse, "entropy": _entropy}
)


def require_method(name: str) -> None:
    """Raise InputError (E-CALIB-METHOD) for a name not in `METHODS`, listing the known ones."""
    if name not in METHODS:
        raise InputError(
            "E-CALIB-METHOD", f"no calibration method {name!r}; choose of {', '.join(METHODS)}"
        )
