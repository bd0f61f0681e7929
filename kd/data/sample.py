"""One image with its class, patient and masks, and what a reader of a layout returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ...runtime.image import read_image
from .masks import read_mask

ImageReader = Callable[[Path], "npt.NDArray[np.uint8]"]
MaskReader = Callable[[Path], "npt.NDArray[np.bool_]"]


@dataclass(frozen=True)
class Sample:
    """One image with its class and masks."""

    name: str  # image path relative to the root, posix; of several sets behind the set's name
    label: str  # one of labels.EVERY_LABEL
    image: Path
    masks: tuple[Path, ...]  # their union is the truth; may be empty only for "normal"
    look: int | None = None  # number of its group, where groups were sought
    patient: str | None = None  # of this data set; None where it does not tell
    source: str = ""  # name of its data set
    part: str = ""  # one of parts.PARTS, where the data set itself tells
    mask_reader: MaskReader = read_mask  # of one mask file
    image_reader: ImageReader = read_image  # of the image, grey [H, W]

    @property
    def group(self) -> str:
        """Tell images of a patient and near-duplicates: they share it. Alone where not sought."""
        return self.name if self.look is None else f"group {self.look}"

    def read_image(self, *, colour: bool = False) -> npt.NDArray[np.uint8]:
        """Return the grey image, uint8 [H, W], or RGB [H, W, 3] where its file may have colours.

        Raises InputError as `runtime.image.read_image`.
        """
        if colour and self.image_reader is read_image:
            return read_image(self.image, colour=True)
        return self.image_reader(self.image)

    def read_mask(self) -> npt.NDArray[np.bool_]:
        """Return the union of the masks, bool [H, W]; all False where there is none.

        Raises:
            InputError: E-DATA-MASK-SIZE for a mask of another size than the image,
                E-DATA-MASK-EMPTY for a lesion without a marked pixel or a normal image with one,
                E-DATA-COLOUR for a colour that stands for nothing, or as
                `runtime.image.read_image` and `masks.inspect_mask`.
        """
        return self._mask_of(self.read_image())

    def read_both(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Return the grey image and the union of the masks, reading the image once.

        Raises InputError as `read_image` and `read_mask`.
        """
        image = self.read_image()
        return image, self._mask_of(image)

    def _mask_of(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        height, width = image.shape
        union = np.zeros((height, width), np.bool_)
        for path in self.masks:
            mask = self.mask_reader(path)
            if mask.shape != union.shape:
                raise InputError(
                    "E-DATA-MASK-SIZE",
                    f"mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels but image "
                    f"{self.image} has {width}x{height}; replace the mask or remove the image",
                )
            union |= mask
        if union.any() == (self.label == "normal"):
            raise InputError(
                "E-DATA-MASK-EMPTY",
                f"{self.image} is {self.label} but its mask marks "
                f"{'something' if union.any() else 'nothing'}; mend the mask or the label",
            )
        return union

    def read_labels(self, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the truth of a network of several classes, uint8 [H, W]: 0, or its class from 1.

        Masks that tell classes are read by them. Elsewhere what the mask marks is of the class
        that is called as the image's label is.

        Raises InputError: E-CLASSES for a class that is none of the network's, and as `read_mask`.
        """
        from .classes import ClassMask  # which makes samples

        mask = self.read_mask()
        labels = np.zeros(mask.shape, np.uint8)
        if isinstance(self.mask_reader, ClassMask):
            for path in self.masks:
                found = self.mask_reader.labels(path, classes)
                labels = np.where(labels == 0, found, labels)
        elif self.label in classes:
            labels[mask] = 1 + list(classes).index(self.label)
        elif self.label != "normal":
            raise InputError(
                "E-CLASSES",
                f"{self.name} is {self.label}, which is none of the network's classes "
                f"({', '.join(classes)}); name data whose classes it knows",
            )
        return labels


@dataclass(frozen=True)
class Listing:
    """What a layout finds in a folder, defects included; `read_dataset` refuses defects."""

    samples: tuple[Sample, ...]  # with a known label; a lesion may lack its mask here
    orphan_masks: tuple[Path, ...]  # masks of no image
    label_faults: tuple[str, ...] = ()  # one line each
    mask_faults: tuple[InputError, ...] = ()  # of masks that were read to know the label

    @property
    def without_mask(self) -> tuple[Sample, ...]:
        """The lesion images that have no mask."""
        return tuple(s for s in self.samples if s.label != "normal" and not s.masks)
