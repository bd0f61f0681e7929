"""The data sheet of a bundle: what it is and what is known of it, without loading a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.bundle import Bundle
from ..runtime.contract import InputContract
from ..runtime.errors import Refused
from ..runtime.proof import Proof, Provenance
from ..runtime.store import MANIFEST, SUMS

_WIDTH = 13  # of the first column
_PARITY = (
    "dice",
    "dice_drop",
    "dice_drop_low",
    "dice_drop_high",
    "hd95_rise_px",
    "hd95_rise_low_px",
    "hd95_rise_high_px",
    "flipped_share",
)
_LATENCY = ("engine", "precision", "p50_ms", "ratio", "ratio_low", "ratio_high", "shipped")


def datasheet_of(bundle: Bundle) -> dict[str, Any]:
    """Return the facts of a data sheet as JSON takes them.

    Args:
        bundle: a verified bundle.

    Raises Refused: E-MANIFEST-FIELD where evidence or provenance are not as an export writes them.
    """
    manifest, provenance = bundle.manifest, bundle.provenance()
    signature = "none"
    if bundle.is_signed:
        signature = "verified" if bundle.verified else "there, not verified (no key was given)"
    try:
        return {
            "bundle": str(bundle.path),
            "schema": manifest.schema,
            "sha256": bundle.sha256,
            "signature": signature,
            "signer": bundle.signer or None,
            "name": manifest.name,
            "target": manifest.target,
            "precision": manifest.precision,
            "cpu": list(manifest.cpu),
            "contract": manifest.contract.to_dict(),
            "layout": dict(manifest.layout),
            "batch": dict(manifest.batch),
            "engines": {
                engine: {name: bundle.size(name) for name in names}
                for engine, names in manifest.models.items()
            },
            "frame_graphs": dict(manifest.frame_graphs),
            "complexity": {
                **{name: int(manifest.complexity[name]) for name in ("parameters", "macs")},
                "weights_bytes": {
                    engine: int(size)
                    for engine, size in manifest.complexity["weights_bytes"].items()
                },
            },
            "evidence": _evidence_of(bundle.proof()),
            "calibration": _calibration_of(provenance.calibration),
            "training": _training_of(provenance),
            "tools": dict(provenance.tools),
            "vectors": {
                "frames": len(manifest.vectors.frames),
                "max_flipped": dict(manifest.vectors.max_flipped),
            },
            "files": {name: [bundle.size(name), sha] for name, sha in manifest.files.items()},
            "bytes": sum(bundle.size(name) for name in (*manifest.files, MANIFEST, SUMS)),
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Refused(
            "E-MANIFEST-FIELD",
            f"{bundle.path} does not state what an export does ({type(error).__name__}: {error}); "
            "export it again",
        ) from error


def render_datasheet(sheet: Mapping[str, Any]) -> str:
    """Return the data sheet as text."""
    contract, evidence = InputContract.from_dict(sheet["contract"]), sheet["evidence"]
    lines = [
        *_section("bundle for", [f"{sheet['target']}: {sheet['name']}, {sheet['precision']}"]),
        *_section("", [f"a CPU with {' and '.join(sheet['cpu'])}"] if sheet["cpu"] else []),
        *_section("", [sheet["bundle"], f"{sheet['bytes']} bytes, {sheet['schema']}"]),
        *_section("signature", [", by ".join(filter(None, (sheet["signature"], sheet["signer"])))]),
        *_section(
            "input",
            [
                *_input_lines(contract),
                *filter(None, [contract.least_text]),
                f"batch {sheet['batch'].get('min', 1)} to {sheet['batch'].get('max', 1)}",
            ],
        ),
        *_section("layout", [_layout_text(sheet["layout"])]),
        *_section(
            "engines",
            [
                f"{engine}: {', '.join(f'{name} ({size} bytes)' for name, size in files.items())}"
                for engine, files in sheet["engines"].items()
            ],
        ),
        *_section("complexity", _complexity_lines(sheet["complexity"])),
        *_section("accuracy", _accuracy_lines(evidence)),
        *_section("latency", _latency_lines(evidence)),
        *_section("calibration", _fact_lines(sheet["calibration"], "none: no precision needs it")),
        *_section("training", _fact_lines(sheet["training"], "not told")),
        *_section("vectors", _vector_lines(sheet["vectors"])),
        *_section("made with", [f"{name} {value}" for name, value in sheet["tools"].items()]),
        *_section("SHA-256", [f"{sheet['sha256']}  {SUMS}"]),
        *_section("", [f"{sha}  {name}" for name, (_, sha) in sheet["files"].items()]),
    ]
    return "\n".join(lines)


def _input_lines(contract: InputContract) -> list[str]:
    """Return how a frame becomes the input, and its answer a mask."""
    resized = "in a letterbox of" if contract.resize == "letterbox" else "resized to"
    lines = [
        f"uint8 grey or RGB frame of any size, {resized} {contract.width}x{contract.height} px"
    ]
    if contract.depth > 1:
        lines.append(f"{contract.depth} channels: {contract.channels}")
    norm = f"x = {contract.normalisation()}"
    if len(contract.classes) == 1:
        return [*lines, f"{norm}, lesion where probability > {contract.thresholds[0]}"]
    pairs = zip(contract.classes, contract.thresholds, strict=True)
    told = (f"{label} {name} (> {least})" for label, (name, least) in enumerate(pairs, 1))
    return [
        *lines,
        norm,
        f"labels, by probability ({contract.head}): 0 background, " + ", ".join(told),
    ]


def _evidence_of(proof: Proof) -> dict[str, Any]:
    return {
        "part": proof.part,
        "frames": proof.frames,
        "trained_dice": _number(proof.trained_dice),
        "max_drop": proof.max_drop,
        "parity": [_chosen(hop.to_dict(), ("name", *_PARITY)) for hop in proof.parity],
        "achieved": {name: dict(shares) for name, shares in proof.achieved.items()},
        "latency": [_chosen(each.to_dict(), _LATENCY) for each in proof.verdicts],
        "refused": dict(proof.refused),
        "kept_float": list(proof.kept_float),
        "retrained": proof.qat is not None,
    }


def _chosen(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}


def _calibration_of(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    if facts is None:
        return {}
    return {
        "source": str(facts["source"]),
        "frames": len(facts["frames_sha256"]),
        "classes": dict(facts.get("classes", {})),
        "method": str(facts["method"]),
        "weight_bits": int(facts["weight_bits"]),
    }


def _training_of(provenance: Provenance) -> dict[str, Any]:
    training = provenance.training
    return {
        "checkpoint_sha256": provenance.checkpoint_sha256,
        **({"data": [_copy_of(each) for each in provenance.data]} if provenance.data else {}),
        **{name: training[name] for name in ("train_images", "split_sha256") if name in training},
    }


def _copy_of(known: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a data set's facts; raises unless what it says of its images is by class."""
    return {**known, **({"images": dict(known["images"])} if "images" in known else {})}


def _number(value: Any) -> float:
    """Return a JSON number. Raises TypeError for anything else, such as the text "inf"."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    """Return lines behind a title, which stands on the first only.

    What a terminal would obey and not show is replaced: the manifest is someone else's text.
    """
    clean = ["".join(each if each.isprintable() else "?" for each in line) for line in lines]
    return [f"{'' if index else title:{_WIDTH}}{line}" for index, line in enumerate(clean)]


def _layout_text(layout: Mapping[str, Any]) -> str:
    if not layout:
        return "none: the whole frame is the image"
    blank = len(layout.get("blank", ()))
    return (
        f"frames of exactly {layout['width']}x{layout['height']} px, crop {layout['crop']}, "
        f"{blank} blank boxes, fan of {len(layout.get('fan', ()))} corners"
    )


def _complexity_lines(complexity: Mapping[str, Any]) -> list[str]:
    weights = [f"{size} bytes in {name}" for name, size in complexity["weights_bytes"].items()]
    return [
        f"{complexity['parameters']} parameters, {complexity['macs']} multiply-accumulates a frame",
        f"weights: {', '.join(weights)}",
    ]


def _accuracy_lines(evidence: Mapping[str, Any]) -> list[str]:
    lines = [
        f"on {evidence['part']} ({evidence['frames']} frames); trained network: Dice "
        f"{evidence['trained_dice']:.4f}"
    ]
    for hop in evidence["parity"]:
        interval = f"[{_signed(hop['dice_drop_low'])}, {_signed(hop['dice_drop_high'])}]"
        lines.append(
            f"{hop['name']}: Dice {_fixed(hop['dice'])}, drop {_signed(hop['dice_drop'])} "
            f"95 % {interval}, HD95 rise {_signed(hop['hd95_rise_px'])} px 95 % "
            f"[{_signed(hop['hd95_rise_low_px'])}, {_signed(hop['hd95_rise_high_px'])}]"
        )
    if evidence["kept_float"]:
        lines.append(f"kept in float: {', '.join(evidence['kept_float'])}")
    return lines


def _latency_lines(evidence: Mapping[str, Any]) -> list[str]:
    """Say what was measured on the exporting machine, with the interval of the ratio."""
    if not evidence["latency"]:
        return ["not measured by the export; see `edgeseg benchmark`"]
    return [
        f"{each['engine']} {each['precision']}: {each['p50_ms']:.2f} ms a frame where it was "
        f"exported, {each['ratio']:.2f} of FP32's time [{each['ratio_low']:.2f}, "
        f"{each['ratio_high']:.2f}]"
        for each in evidence["latency"]
    ]


def _fact_lines(facts: Mapping[str, Any], otherwise: str) -> list[str]:
    lines = []
    for name, value in facts.items():
        if name == "data":
            lines += [f"data: {_set_text(each)}" for each in value]
            continue
        text = str(value)
        if name == "classes":
            text = ", ".join(f"{count} {label}" for label, count in value.items()) or "not told"
        lines.append(f"{name}: {text}")
    return lines or [otherwise]


def _set_text(known: Mapping[str, Any]) -> str:
    """Say which data set it is, under which licence, and how many of its images were seen."""
    facts = [known.get("title", known.get("name", ""))]
    facts += [known[name] for name in ("licence", "citation", "catalogue") if name in known]
    facts += [f"doi {known['doi']}"] if "doi" in known else []
    facts += [f"{count} {label}" for label, count in known.get("images", {}).items()]
    return ", ".join(map(str, facts))


def _vector_lines(vectors: Mapping[str, Any]) -> list[str]:
    if not vectors["frames"]:
        return ["none"]
    limits = [f"{engine} {share:g}" for engine, share in vectors["max_flipped"].items()]
    return [
        f"{vectors['frames']} golden frames; largest share of a lesion that may differ: "
        f"{', '.join(limits)}"
    ]


def _fixed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.4f}"
