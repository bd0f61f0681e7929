"""An ONNX from elsewhere as a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ....runtime.progress import Progress
from ..parts import Folders, Parts, data_missing, parts_anew


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX file that can be exported; nothing is known of its training."""

    what: ClassVar[str] = "ONNX"

    path: Path
    quantised: bool = False  # it brings its own INT8 pairs

    def trained_on(self) -> frozenset[str] | None:
        """See `ModelSource`; there is no list."""
        return None

    def run_split(self) -> Path | None:
        """See `Exportable`; there is none."""
        return None

    def training_data(self, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Exportable`."""
        from ....kd.data.catalogue import describe_sets

        return describe_sets(provenance.get("data", []))

    def parts(self, data: Folders, progress: Progress) -> Parts | None:
        """See `Exportable`; of a new split. What brings its INT8 does without."""
        if not data and self.quantised:
            return None
        if not data:
            raise data_missing(self.path, "images with masks")
        return parts_anew(data, progress)
