"""The settings of a training run; the command line reads its defaults and help from here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from ..runtime.errors import InputError

STUDENT_FILE = "student.safetensors"
# Settings that came after 0.1; their defaults change nothing.
LATER = frozenset({"loss", "phantom_share", "student_features", "teacher_features"})


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of teachers and student; the batch recipe is ours, the paper publishes none."""

    size: int = _setting(256, "network input, px a side, a multiple of 16")
    student: str = _setting(
        "attunet-16", "student network; or package.module:function, its code runs"
    )
    teacher: str = _setting("attunet-32", "network of the teachers; or package.module:function")
    student_features: str = _setting(
        "", "of a student by function: CENTRE or CENTRE,DECODER, its modules as encoder.layer3"
    )
    teacher_features: str = _setting("", "of teachers by function: as --student-features")
    encoder: str = _setting(
        "imagenet", "start of encoders that ImageNet weights fit: imagenet, or random"
    )
    phantom_epochs: int = _setting(
        0, "epochs on 1000 phantoms before a network sees its first image; 0: none"
    )
    general_epochs: int = _setting(
        30, "epochs on all classes from which every teacher starts; 0: they start from nothing"
    )
    teacher_epochs: int = _setting(30, "epochs of each teacher on the classes it teaches")
    student_epochs: int = _setting(100, "epochs of the student")
    batch: int = _setting(8, "images a step")
    learning_rate: float = _setting(1e-3, "peak of AdamW's cosine schedule")
    weight_decay: float = _setting(1e-2, "of AdamW, decoupled")
    loss: str = _setting(
        "balanced+dice",
        "terms against the masks, joined by +: balanced, bce, dice, and overlap, a dice that "
        "charges no false mark",
    )
    teaching: str = _setting(
        "routed", "who teaches an image: routed, mean, confidence, single, wrong or none"
    )
    teacher_mirror: bool = _setting(
        False, "teachers say the mean of their logits for an image and for its mirror image"
    )
    distillation: str = _setting("kl", "kl, cwd, at, fitnet, ifvd, skds, or several as kl+at")
    temperature: float = _setting(2.0, "of the distillation, above 0")
    distill_weight: float = _setting(0.5, "of the distillation against the masks, above 0")
    views: int = _setting(
        0, "augmented views of an image, whose teacher outputs are kept on disk; 0: always new ones"
    )
    normal_weight: float = _setting(
        1.0, "how often an image without lesion is drawn against a lesion image, above 0"
    )
    set_weights: str = _setting(
        "", "how often the images of a data set are drawn, as busi=1.5,bus-bra=1; others: 1"
    )
    crop_share: float = _setting(
        0.0, "share of the draws that are lesion-free crops of lesion images; not of class teachers"
    )
    empty_share: float = _setting(
        0.0, "share of the draws that are black, uniform or speckle; not of class teachers"
    )
    phantom_share: float = _setting(
        0.0, "share of the draws that are phantoms, half without lesion; not of class teachers"
    )
    seed: int = _setting(0, "of split, initial weights, order and augmentation")

    def __post_init__(self) -> None:
        """Raise InputError (E-CONFIG) for a value out of range."""
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, (int, float) if each.type == "float" else type(each.default)):
                raise InputError("E-CONFIG", f"{each.name} is {value!r}, of another type")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError("E-CONFIG", f"{each.name} must be finite, not {value}")
        for name in ("teacher_epochs", "student_epochs", "batch"):
            if getattr(self, name) < 1:
                raise InputError(
                    "E-CONFIG", f"{name} must be at least 1, not {getattr(self, name)}"
                )
        if self.size < 32 or self.size % 16:
            raise InputError("E-CONFIG", f"size {self.size} is not a multiple of 16 from 32 up")
        for name in ("learning_rate", "temperature", "distill_weight", "normal_weight"):
            if not getattr(self, name) > 0:
                raise InputError("E-CONFIG", f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "phantom_epochs", "general_epochs", "views", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError("E-CONFIG", f"{name} must not be below 0: {getattr(self, name)}")
        shares = self.crop_share, self.empty_share, self.phantom_share
        if min(shares) < 0 or sum(shares) >= 1:
            raise InputError(
                "E-CONFIG",
                f"crop_share {shares[0]}, empty_share {shares[1]} and phantom_share {shares[2]} "
                "must not be below 0 and must leave a share for images",
            )
        set_weights_of(self.set_weights)
        features_of(self.student_features)
        features_of(self.teacher_features)
        if self.encoder not in ("imagenet", "random"):
            raise InputError(
                "E-CONFIG", f"encoder is {self.encoder!r} and should be imagenet or random"
            )

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> TrainConfig:
        """Read the result of `to_json`. Raises InputError (E-CONFIG) for other or missing keys.

        Settings of LATER may be missing: a run of an older version went by their defaults.
        """
        try:
            values = json.loads(text)
            known = {each.name for each in fields(cls)}
            if not known - LATER <= set(values) <= known:
                raise InputError("E-CONFIG", f"config has the keys {sorted(values)}")
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise InputError("E-CONFIG", f"config is malformed ({error})") from error


def set_weights_of(text: str) -> dict[str, float]:
    """Return weights by data set, from text as "busi=1.5,bus-bra=1"; empty text has none.

    Raises InputError (E-CONFIG) for other text, a weight that is not above 0, and a name twice.
    """
    weights: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not name or name in weights or not 0 < weight < math.inf:
            raise InputError(
                "E-CONFIG",
                f"set_weights has {part!r}; write each data set once with a weight above 0, as "
                "busi=1.5,bus-bra=1",
            )
        weights[name] = weight
    return weights


def features_of(text: str) -> tuple[str, ...]:
    """Return the paths of the modules in text as "encoder.layer3" or "encoder.layer4,decoder".

    Raises InputError (E-CONFIG) for more than two, and for one that is empty.
    """
    paths = tuple(text.split(",")) if text else ()
    if len(paths) > 2 or not all(paths):
        raise InputError(
            "E-CONFIG", f"features are {text!r}; name the module of the centre, or CENTRE,DECODER"
        )
    return paths


def with_later(recorded: object) -> object:
    """Return settings as a run recorded them, those that came after it at their defaults.

    What is no table of settings stays as it is, and equals none.
    """
    if not isinstance(recorded, dict):
        return recorded
    later = {each.name: each.default for each in fields(TrainConfig) if each.name in LATER}
    return {**later, **recorded}


_BUSI: Mapping[str, Any] = {"size": 128, "teacher": "edge-32"}
# Without teachers: on BUSI and BUS-BRA together none has beaten longer training yet. Each image
# without lesion is drawn three times, and lesion-free crops and empty frames are negatives too:
# BUS-BRA has no normal image.
_BUSI_AND_BRA: Mapping[str, Any] = {
    "teaching": "none",
    "batch": 16,
    "learning_rate": 2e-3,
    "normal_weight": 3.0,
    "set_weights": "busi=1.5",
    "crop_share": 0.1,
    "empty_share": 0.02,
    "phantom_share": 0.05,
}
# To add a recipe: a row here. The size of `busi-bra-edge`: at 96 px lite0-edge takes as long
# in INT8 as edge-32 at 128 px, on a CPU with AVX2, and knows more.
RECIPES: Mapping[str, TrainConfig] = MappingProxyType(
    {
        "t2kd-busi": TrainConfig(
            student="attunet-16",
            phantom_epochs=4,
            general_epochs=30,
            teacher_epochs=20,
            student_epochs=80,
            **_BUSI,
        ),
        "t2kd-busi-edge": TrainConfig(
            student="edge-32",
            phantom_epochs=3,
            general_epochs=25,
            teacher_epochs=15,
            student_epochs=100,
            **_BUSI,
        ),
        "busi-bra-edge": TrainConfig(
            student="lite0-edge", size=96, student_epochs=60, **_BUSI_AND_BRA
        ),
        "busi-bra": TrainConfig(student="attunet-16", size=128, student_epochs=60, **_BUSI_AND_BRA),
    }
)


def find_recipe(name: str) -> TrainConfig:
    """Return the settings of a recipe. Raises InputError (E-RECIPE-NAME) listing the known ones."""
    if name not in RECIPES:
        raise InputError("E-RECIPE-NAME", f"no recipe {name!r}; choose of {', '.join(RECIPES)}")
    return RECIPES[name]
