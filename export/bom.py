"""The bill of materials of a bundle: CycloneDX 1.6 with a model card (ML-BOM), as JSON.

Everything in it comes from the manifest's fields and the hashes of the files, so the same bundle
has the same bill: there is no date, and the serial number is a UUID of the content.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.contract import InputContract
from ..runtime.proof import Proof, Provenance

FILE = "bom.cdx.json"
_NAMESPACE = uuid.UUID("6c1ea0bb-f25b-5f2e-9d8c-5b1d4ff1cdd4")  # of these bills; any constant does
_OWN_LICENCE = "Apache-2.0"
_LETTERBOX = {"stretch": "", "letterbox": " without distortion"}
_LIMITATIONS = (
    "For single B-mode frames; other devices, views and populations are for the user to measure.",
    "A frame without a lesion can get a mask, and a small lesion can be missed.",
)


def bom_of(fields: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return the bill of a bundle as JSON text.

    Args:
        fields: of the manifest, as `seal_bundle` takes them.
        files: path in the bundle -> SHA-256, of every file but this, manifest and sums.
    """
    provenance = Provenance.from_dict(fields["provenance"])
    data = _datasets_of(provenance)
    components = [
        *data,
        *(_file_component(path, digest, fields["models"]) for path, digest in files.items()),
        *(_tool_component(name, version) for name, version in provenance.tools.items()),
    ]
    content: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "edgeseg",
                        "version": provenance.tools["edgeseg"],
                        "licenses": [{"license": {"id": _OWN_LICENCE}}],
                    }
                ]
            },
            "component": _model_component(fields, provenance, data),
        },
        "components": components,
        "dependencies": [
            {"ref": "model", "dependsOn": [each["bom-ref"] for each in components]},
            *({"ref": each["bom-ref"]} for each in components),
        ],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True, allow_nan=False))
    content = {
        "bomFormat": content["bomFormat"],
        "specVersion": content["specVersion"],
        "serialNumber": f"urn:uuid:{serial}",
        **content,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _model_component(
    fields: Mapping[str, Any], provenance: Provenance, data: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    contract = fields["contract"]
    metrics = _metrics(Proof.from_dict(fields["evidence"]))
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": fields["name"],
        "version": provenance.checkpoint_sha256[:16],
        "description": f"Breast-ultrasound segmentation for {fields['target']}, "
        f"{fields['precision']}",
        "hashes": _hashes(provenance.checkpoint_sha256),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image segmentation",
                "architectureFamily": "convolutional neural network",
                "modelArchitecture": fields["name"],
                **({"datasets": [{"ref": each["bom-ref"]} for each in data]} if data else {}),
                "inputs": [{"format": _input_format(contract)}],
                "outputs": [{"format": _output_format(contract)}],
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics},
            "considerations": {"technicalLimitations": list(_LIMITATIONS)},
        },
        "properties": _properties(
            {
                "target": fields["target"],
                "precision": fields["precision"],
                **{name: fields["complexity"].get(name) for name in ("parameters", "macs")},
                "calibration": _calibration_text(provenance.calibration),
            }
        ),
    }


def _input_format(contract: InputContract) -> str:
    return (
        f"uint8 [H, W] grey or [H, W, 3] RGB of any size, resized to "
        f"{contract.width}x{contract.height} px{_LETTERBOX[contract.resize]}, normalised "
        f"{contract.normalisation()}"
    )


def _output_format(contract: InputContract) -> str:
    told = "1 where lesion"
    if len(contract.classes) > 1:
        told = ", ".join(f"{label} {name}" for label, name in enumerate(contract.classes, 1))
    return f"uint8 [H, W] mask of the frame's size, {told}"


def _metrics(proof: Proof) -> list[dict[str, Any]]:
    """Return Dice of the trained network and the drop of every exported form."""
    part = f"{proof.part}, {proof.frames} frames"
    metrics: list[dict[str, Any]] = [
        {"type": "Dice", "value": _number(proof.trained_dice), "slice": part}
    ]
    for hop in proof.parity:
        bounds = (("lowerBound", hop.dice_drop_low), ("upperBound", hop.dice_drop_high))
        interval = {name: _number(bound) for name, bound in bounds if not math.isnan(bound)}
        if not math.isnan(hop.dice):
            metrics.append({"type": f"Dice, {hop.name}", "value": _number(hop.dice), "slice": part})
        if not math.isnan(hop.dice_drop):
            metrics.append(
                {
                    "type": f"Dice drop to the trained network, {hop.name}",
                    "value": _number(hop.dice_drop),
                    "slice": part,
                    "confidenceInterval": interval,
                }
            )
    return metrics


def _number(value: float | None) -> str:
    return f"{value:.6f}"


def _datasets_of(provenance: Provenance) -> list[dict[str, Any]]:
    """Return what the network was trained on, where the provenance tells; no image is named."""
    known, training = list(provenance.data), provenance.training
    split = training.get("split_sha256") or provenance.split_sha256
    if not known and "train_images" in training:
        known = [{"name": "training images of the maker"}]
    alone = training.get("train_images") if len(known) == 1 else None
    return [_dataset(index, each, alone, split) for index, each in enumerate(known)]


def _dataset(
    index: int, known: Mapping[str, Any], images: int | None, split_sha256: str | None
) -> dict[str, Any]:
    by_class = known.get("images", {})
    if "spdx" in known:
        licence = {"id": known["spdx"]}
    else:
        licence = {"name": known["licence"]} if "licence" in known else {}
    cited = ", doi ".join(known[name] for name in ("citation", "doi") if name in known)
    return {
        "type": "data",
        "bom-ref": f"training-data-{index}" if index else "training-data",
        "name": known.get("title", known["name"]),
        **({"licenses": [{"license": licence}]} if licence else {}),
        **({"copyright": cited} if cited else {}),
        "properties": _properties(
            {
                "catalogue": known.get("catalogue"),
                "images": sum(by_class.values()) if by_class else images,
                **{f"images:{label}": count for label, count in by_class.items()},
                "groups": known.get("groups"),
                "split_sha256": split_sha256,
            }
        ),
    }


def _file_component(
    path: str, digest: str, models: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    engines = [engine for engine, names in models.items() if path in names]
    return {
        "type": "file",
        "bom-ref": f"file:{path}",
        "name": path,
        "hashes": _hashes(digest),
        **({"properties": _properties({"engine": ", ".join(engines)})} if engines else {}),
    }


def _tool_component(name: str, version: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": f"tool:{name}", "name": name, "version": version}


def _calibration_text(facts: Mapping[str, Any] | None) -> str | None:
    if facts is None:
        return None
    frames = len(facts["frames_sha256"])
    return f"{facts['source']}, {frames} frames, {facts['method']}"


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"name": f"edgeseg:{name}", "value": str(value)}
        for name, value in values.items()
        if value is not None
    ]


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
