"""A bundle as an export writes it, of a few kilobytes and without a network, in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.export.bom import FILE as BOM_FILE
from edgeseg.export.bom import bom_of
from edgeseg.runtime.bundle import GoldenVectors, hashes_of, seal_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.pgm import pnm_from_pixels


def manifest_fields() -> dict[str, Any]:
    """Every field but `files`; the figures are made up."""
    hop = {
        "name": "onnx fp32",
        "frames": 3,
        "max_abs": 1e-5,
        "flipped_share": 0.0,
        "mask_dice": 1.0,
        "dice": 0.8,
        "dice_drop": 0.0,
        "dice_drop_low": -0.001,
        "dice_drop_high": 0.001,
        "hd95_rise_px": 0.1,
        "hd95_rise_low_px": None,
        "hd95_rise_high_px": None,
    }
    return {
        "name": "toy",
        "target": "x86-cpu",
        "precision": "int8",
        "contract": InputContract(height=16, width=32),
        "models": {"openvino": ("model.bin", "model.xml"), "onnxruntime": ("model.onnx",)},
        "complexity": {
            "parameters": 7,
            "macs": 11,
            "weights_bytes": {"openvino": 7, "onnxruntime": 8},
        },
        "provenance": {
            "checkpoint_sha256": "c" * 64,
            "training": {"train_images": 5, "split_sha256": "d" * 64},
            "data": [
                {
                    "name": "busi",
                    "title": "BUSI",
                    "licence": "CC BY 4.0",
                    "spdx": "CC-BY-4.0",
                    "citation": "someone, 2020",
                    "doi": "10.1000/1",
                    "images": {"benign": 3, "normal": 2},
                },
                {"name": "clinic", "catalogue": "not in the catalogue"},
            ],
            "calibration": {
                "source": "split of the run",
                "classes": {"benign": 2},
                "method": "entropy",
                "weight_bits": 7,
                "frames_sha256": ["e" * 64, "f" * 64],
            },
            "tools": {"edgeseg": "0.1.0", "onnxruntime": "1.32.0"},
        },
        "evidence": {
            "part": "val",
            "frames": 3,
            "trained_dice": 0.8,
            "max_drop": 0.005,
            "max_hd95_rise_px": 1.0,
            "parity": [hop, {**hop, "name": "onnxruntime int8", "dice_drop": None}],
            "achieved": {"onnxruntime int8": {"int8": 0.9, "fp32": 0.1}},
            "verdicts": [
                {
                    "engine": "onnxruntime",
                    "precision": "int8",
                    "p50_ms": 1.5,
                    "ratio": 0.5,
                    "ratio_low": 0.45,
                    "ratio_high": 0.55,
                    "dice_drop": 0.0,
                    "shipped": True,
                }
            ],
            "refused": {},
            "kept_float": [],
            "qat": None,
        },
        "batch": {"min": 1, "max": 1},
        "frame_graphs": {},
        "vectors": GoldenVectors(
            ("vectors/frame-0.pgm",),
            {engine: (f"vectors/{engine}-0.pgm",) for engine in ("openvino", "onnxruntime")},
            {"openvino": 0.02, "onnxruntime": 0.02},
        ),
        "layout": {},
    }


def write_bundle(folder: Path, **changes: Any) -> Path:
    """Write a bundle into a new folder; `changes` are of the manifest's fields."""
    (folder / "vectors").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("model.bin", "model.xml", "model.onnx"):
        (folder / name).write_bytes(rng.bytes(300))
    for name in ("frame", "openvino", "onnxruntime"):
        grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
        (folder / "vectors" / f"{name}-0.pgm").write_bytes(pnm_from_pixels(grey))
    fields = {**manifest_fields(), **changes}
    (folder / BOM_FILE).write_text(bom_of(fields, hashes_of(folder)), encoding="utf-8")
    seal_bundle(folder, fields)
    return folder
