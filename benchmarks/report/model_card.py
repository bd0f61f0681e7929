"""The model card of a shipped student: Markdown and a picture, every figure from its evidence."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...runtime.files import write_bytes
from ...runtime.image import resize_grey, resize_mask
from ...runtime.metrics import boundary_of
from ..formatting import fixed, percent, significant
from ..measure.accuracy import METRICS, Case, ImageScore
from .evidence import DATA_KEY, Evidence, Measured, evidence_to_json
from .markdown import markdown_table
from .wording import mib, with_interval

_WORST_LESIONS = 3
_PICTURE_HEIGHT_PX = 160
_GAP_PX = 4
_PICTURE_SUFFIX = "-phantoms.png"
_GREYS = 24  # levels; speckle in all 256 would make the picture four times as large
_TRUTH, _ANSWER = (90, 230, 120), (255, 140, 0)  # green, orange

_CARD = """# {name}

{summary}.
Network `{model}`, taught `{teaching}`, on breast-ultrasound images; input {size} px, grey.

**Not a medical device.** Engineering evidence only: not a regulatory clearance and not a statement
of clinical performance. Nobody may be diagnosed or treated on its answers.

{whose}

## What it is

{facts}
## Figures

Test part of split `{split}`: {lesions} images with a lesion, {normals} without.

{figures}
Per image: means over images with a lesion, with their 95 % bootstrap interval, for which
near-duplicates are drawn together. Pooled: one ratio of summed pixels. HD95: in pixels of the
image, over the n images where something was marked. False positives: share of the n images without
a lesion where anything was marked. ECE: expected calibration error of the pixels' lesion
probability, 15 bins, all images.

### Dice by class and lesion size

{groups}
Sizes are the terciles of lesion area: small up to {small} of the image, large above {large}.

## Data

{data} The split keeps
near-duplicates together; SHA-256 of its file: `{split}`.
`{name}.json` lists the SHA-256 of all {seen} images.

## How it was trained

{training}
SHA-256 of the weights that ship: `{weights}`; of the measured checkpoint: `{measured}`; of the
measured INT8 bundle: `{bundle}`.

## Intended use

Trying and measuring segmentation on edge devices, as a starting point for one's own training, and
teaching. What was measured is {measured_on}

## Known failure cases

- The worst group above in FP32: {weakest}, Dice {weakest_dice}; all lesions {all_dice}.
- It marks something in {alarms} (FP32) and {alarms_int8} (INT8) of the {normals} test images
  without a lesion.
- The list of hashes finds exact copies of training images only: one that was saved again or cropped
  counts as unseen and scores too well.

The worst of {phantoms} phantoms (seed {seed}), answered with the weights that ship. Phantoms are
drawn: they show how it fails, not how often it fails on patients.

![{alternative}]({picture})
"""

# Of evidence from before sets were named in it: every student was trained on BUSI then.
_DATA_UNNAMED = """\
BUSI, breast-ultrasound images with masks, licence CC BY 4.0: W. Al-Dhabyani, M. Gomaa, H. Khaled,
A. Fahmy, Dataset of breast ultrasound images, Data in Brief 28 (2020) 104863, [doi
10.1016/j.dib.2019.104863](https://doi.org/10.1016/j.dib.2019.104863)."""
_MEASURED_UNNAMED = """\
BUSI: single B-mode frames of the breasts of adult women from one
hospital. {outside}"""
_OUTSIDE = "Other scanners, other hospitals, other organs and video are outside of it."
_OF_OTHERS = """\
**The figures are not of the weights that ship.** They are of the same network trained on the train
part of the split alone and scored on its test part. The weights that ship were then trained on all
{seen} images of the data set, test part included, so no image of it can score them, and
`edgeseg evaluate` refuses to. The settings of both are below."""
_OF_THESE = """\
The figures are of the weights that ship: trained on the {seen} images of the split's train part and
scored on its test part."""


def worst_of(scores: Sequence[ImageScore]) -> tuple[ImageScore, ...]:
    """Return the lesions of lowest Dice, then the normal image with most marked pixels if any."""
    lesions = sorted((s for s in scores if s.lesion_px), key=lambda s: (s.dice, s.name))
    alarms = [s for s in scores if not s.lesion_px and s.predicted_px]
    worst_alarm = sorted(alarms, key=lambda s: (-s.predicted_px, s.name))[:1]
    return (*lesions[:_WORST_LESIONS], *worst_alarm)


def draw_cases(cases: Sequence[tuple[Case, npt.NDArray[np.uint8]]]) -> bytes:
    """Return a PNG of cases side by side: outline of the truth green, of the answer orange.

    Args:
        cases: each with the answer, uint8 [H, W] of 0 and 1; at least one.
    """
    tiles = [_tile(case.read_image(), case.read_mask(), answer) for case, answer in cases]
    gap = np.zeros((_PICTURE_HEIGHT_PX, _GAP_PX), np.uint8)
    row = [part for tile in tiles for part in (gap, tile)][1:]
    picture = Image.fromarray(np.concatenate(row, axis=1), mode="P")
    greys = np.repeat(np.linspace(0, 255, _GREYS).astype(np.uint8), 3)
    picture.putpalette([*greys.tolist(), *_TRUTH, *_ANSWER])
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _tile(
    grey: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_], answer: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Return palette indices, uint8 [_PICTURE_HEIGHT_PX, width]."""
    size = (_PICTURE_HEIGHT_PX, round(grey.shape[1] * _PICTURE_HEIGHT_PX / grey.shape[0]))
    tile = (resize_grey(grey, *size).astype(np.uint16) * _GREYS // 256).astype(np.uint8)
    for colour, mask in ((_GREYS, truth), (_GREYS + 1, answer.astype(np.bool_))):
        rows, columns = boundary_of(resize_mask(mask, *size)).T
        tile[rows, columns] = colour
    return tile


def write_student(
    out: Path, weights: bytes, evidence: Evidence, summary: str, picture: bytes
) -> None:
    """Write the four files of a student into a folder, each atomically, over older ones.

    Raises OutputError (E-OUT-WRITE).
    """
    contents: dict[str, bytes | str] = {
        ".safetensors": weights,
        ".json": evidence_to_json(evidence),
        ".md": render_card(evidence, summary),
        _PICTURE_SUFFIX: picture,
    }
    for suffix, content in contents.items():
        write_bytes(out / f"{evidence.name}{suffix}", content)


def render_card(evidence: Evidence, summary: str) -> str:
    """Return the card as Markdown."""
    fp32, int8 = evidence.fp32, evidence.int8
    accuracy = fp32.accuracy
    lesion_groups = [group for group in accuracy.groups[1:] if group.images]
    weakest = min(lesion_groups, key=lambda group: group.per_image["dice"].mean)
    return _CARD.format(
        name=evidence.name,
        summary=summary,
        model=evidence.model,
        teaching=evidence.training.get("config.teaching", "unknown"),
        size=f"{evidence.contract.width}×{evidence.contract.height}",
        whose=(_OF_THESE if evidence.is_measured else _OF_OTHERS).format(
            seen=len(evidence.trained_on)
        ),
        seen=len(evidence.trained_on),
        data=_data(evidence),
        measured_on=_measured_on(evidence),
        facts=_facts(evidence),
        split=evidence.split_sha256,
        lesions=accuracy.lesions.images,
        normals=accuracy.images_without_lesion,
        figures=_figures(fp32, int8),
        groups=_groups(fp32, int8),
        small=percent(accuracy.small_up_to_share),
        large=percent(accuracy.large_above_share),
        training=_training(evidence),
        weights=evidence.checkpoint_sha256,
        measured=fp32.artifact_sha256,
        bundle=int8.artifact_sha256,
        weakest=weakest.name,
        weakest_dice=with_interval(weakest.per_image["dice"]),
        all_dice=fixed(accuracy.lesions.per_image["dice"].mean),
        alarms=percent(accuracy.false_positive_share),
        alarms_int8=percent(int8.accuracy.false_positive_share),
        phantoms=evidence.phantoms,
        seed=evidence.phantom_seed,
        alternative=_alternative(evidence),
        picture=f"{evidence.name}{_PICTURE_SUFFIX}",
    )


def _facts(evidence: Evidence) -> str:
    contract = evidence.contract
    rows = [
        ["network", evidence.model],
        ["input", f"{contract.width}×{contract.height} px, grey"],
        ["normalisation", contract.normalisation("g").replace("-", "−")],
        [
            "answer",
            f"a logit a pixel; lesion where the probability is above {contract.thresholds[0]:g}"
            + (f", {contract.least_text}" if contract.drops else ""),
        ],
        ["parameters", f"{significant(evidence.parameters / 1e6)} M"],
        ["multiply-accumulates a frame", f"{significant(evidence.macs / 1e9)} G"],
        ["file in FP32", f"{significant(mib(evidence.fp32.file_bytes))} MiB"],
        ["files in INT8 (OpenVINO)", f"{significant(mib(evidence.int8.file_bytes))} MiB"],
    ]
    return markdown_table(["", "value"], rows)


def _figures(*forms: Measured) -> str:
    def cells(form: Measured) -> list[str]:
        lesions = form.accuracy.lesions
        distance = lesions.per_image["hd95_px"]
        return [
            *(with_interval(lesions.per_image[metric]) for metric in METRICS[:-1]),
            f"{significant(distance.mean)} (n={distance.n})",
            fixed(lesions.pooled["dice"]),
            fixed(lesions.pooled["iou"]),
            f"{percent(form.accuracy.false_positive_share)} "
            f"(n={form.accuracy.images_without_lesion})",
            fixed(form.calibration_error),
        ]

    names = ["Dice per image", "IoU per image", "recall", "precision", "pixel accuracy"]
    names += ["HD95 px", "pooled Dice", "pooled IoU", "false positives", "ECE"]
    rows = [list(row) for row in zip(names, *map(cells, forms), strict=True)]
    return markdown_table(["", *map(_form_name, forms)], rows)


def _groups(*forms: Measured) -> str:
    rows = [
        [f"{group.name} (n={group.images})"]
        + [with_interval(form.accuracy.groups[index].per_image["dice"]) for form in forms]
        for index, group in enumerate(forms[0].accuracy.groups)
    ]
    return markdown_table(["", *map(_form_name, forms)], rows)


def _form_name(form: Measured) -> str:
    return f"{form.precision.upper()} ({form.engine})"


def _training(evidence: Evidence) -> str:
    shipped, measured = (
        {key: text for key, text in settings.items() if key != DATA_KEY}
        for settings in (evidence.training, evidence.measured_training)
    )
    rows = [
        [key, measured.get(key, "–"), shipped.get(key, "–")]
        for key in dict.fromkeys((*measured, *shipped))
    ]
    return markdown_table(["setting", "measured network", "weights that ship"], rows)


def _data(evidence: Evidence) -> str:
    sets = evidence.data
    if DATA_KEY not in evidence.training:
        return _DATA_UNNAMED
    if not sets:
        return "The checkpoint does not name its data sets."
    lines = []
    for each in sets:
        licence = each.get("licence", each.get("catalogue", ""))
        doi = f", [doi {each['doi']}](https://doi.org/{each['doi']})" if "doi" in each else ""
        cited = f": {each['citation']}{doi}" if "citation" in each else ""
        images = ", ".join(f"{n} {label}" for label, n in each.get("images", {}).items())
        counts = f" Images: {images}, in {each['groups']} groups." if images else ""
        lines.append(f"- {each.get('title', each['name'])}, licence {licence}{cited}.{counts}")
    return "\n".join([*lines, "\nGroups are images of a patient and near-duplicates."])


def _measured_on(evidence: Evidence) -> str:
    if DATA_KEY not in evidence.training:
        return _MEASURED_UNNAMED.format(outside=_OUTSIDE)
    names = " and ".join(str(each.get("title", each["name"])) for each in evidence.data)
    return f"{names or 'data that the checkpoint does not name'}: single B-mode frames.\n{_OUTSIDE}"


def _alternative(evidence: Evidence) -> str:
    """Describe the picture for those who do not see it."""
    tiles = [
        f"{score.name}, " + (f"Dice {fixed(score.dice)}" if score.lesion_px else "no lesion")
        for score in evidence.failures
    ]
    return (
        f"{len(tiles)} phantoms side by side, the outline of the truth in green and of the answer "
        f"in orange: {'; '.join(tiles)}"
    )
