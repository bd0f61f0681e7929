"""Whether a contract reads a network as it was trained: judged by its own answers to check frames.

Parity cannot tell: it compares a network with itself, and a wrong contract is wrong on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..runtime.contract import InputContract, numbers_text
from ..runtime.errors import InputError, Refused
from ..runtime.image import input_from_frame, mask_from_logits, planes_of_answer
from ..runtime.metrics import count_pixels, dice_score
from .parity import CheckFrame, Reference, Run

# Mean and std that networks are trained with: of ImageNet, -1..1, twice that, 0..1, of BUSI, grey
# levels of 255. That of the check frames themselves is tried as well.
_USUAL = ((0.485, 0.229), (0.5, 0.5), (0.5, 0.25), (0.0, 1.0), (0.33, 0.22), (0.0, 1 / 255))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY_LEVELS = (1 / 256, 1 / 254)  # std of a network that takes grey levels, on purpose
_MOST = 30.0  # |input| of a normalised image; dark grey with a std of 0.03 is beyond any data set
_NEAR = 0.05  # of Dice: so little above marking everything tells no lesion from the rest
# Dice from which another reading shows what a network was trained for. Of 40 untrained ones whose
# own is near that of marking everything, none reached 0.4, and negated, by marking dark, 0.52.
_CLEARLY, _CLEARLY_NEGATED = 0.45, 0.6
_SURE = 1.0  # logit beyond the threshold: an untrained network's answers are nearer to it
_FRAMES = 16  # most frames that other readings are tried on


def require_normal_input(contract: InputContract, frames: Sequence[CheckFrame]) -> None:
    """Raise InputError (E-CONTRACT) where the check frames become an input that no image has."""
    lowest = min(float(each.frame.min()) for each in frames)
    highest = max(float(each.frame.max()) for each in frames)
    for mean, std in zip(contract.means, contract.stds, strict=True):
        low, high = ((grey / 255 - mean) / std for grey in (lowest, highest))
        takes_grey_levels = _GREY_LEVELS[0] <= std <= _GREY_LEVELS[1]
        if max(-low, high) <= _MOST or takes_grey_levels:
            continue
        raise InputError(
            "E-CONTRACT",
            f"with mean {mean:g} and std {std:g} the check frames become {low:.4g} to {high:.4g}, "
            "which no normalised image is; both are of grey / 255: correct them, or go on with "
            "--force-contract",
        )


def require_own_answer(run: Run, reference: Reference) -> None:
    """Raise Refused (E-CONTRACT-DICE) for a network that is no use as the contract reads it.

    Its Dice is near that of marking everything or nothing, and another reading shows that it can do
    better, or its answers are all clearly on one side of the threshold. A network that is merely
    untrained passes, with a note: no contract would help it.

    Args:
        run: the network.
        reference: its answers.
    """
    with_lesion = [each for each in reference.frames if each.truth.any()]
    everything = float(np.mean([_dice(np.ones_like(each.truth), each) for each in with_lesion]))
    if reference.mean_dice > everything + _NEAR:
        return
    said = (
        f"as its contract says the network has a Dice of {reference.mean_dice:.3f} on the check "
        f"frames, where marking everything has {everything:.3f}"
    )
    step = -(-len(with_lesion) // _FRAMES)
    few = with_lesion[::step]
    if len(reference.contract.classes) > 1:
        found = _mean_dice(run, reference.contract, few)
        if found > everything + 2 * _NEAR:
            raise Refused(
                "E-CONTRACT-DICE",
                f"{said}; it finds what is marked with a Dice of {found:.3f} and calls it by "
                "other names: correct the order of the classes in --contract, or go on with "
                "--force-contract",
            )
    beyond, dice, reading = max(_readings(run, reference.contract, few))
    if beyond >= 0 and dice > everything + 2 * _NEAR:
        raise Refused(
            "E-CONTRACT-DICE",
            f"{said}; {reading} it has {dice:.3f}: correct --contract, or the network's output, "
            "or go on with --force-contract",
        )
    answers = [each.reshape(-1, *each.shape[-2:]) for each in reference.logits]
    for index, level in enumerate(reference.contract.logit_thresholds):
        low = min(float(each[index].min()) for each in answers)
        high = max(float(each[index].max()) for each in answers)
        if low > level + _SURE or high < level - _SURE:
            raise Refused(
                "E-CONTRACT-DICE",
                f"{said}, and all its answers lie between {low:.4g} and {high:.4g}, on one side of "
                f"{level:.4g}: correct --contract, or go on with --force-contract",
            )


def best_reading(
    run: Run, contract: InputContract, frames: Sequence[CheckFrame]
) -> tuple[InputContract, str]:
    """Return a contract with the usual mean and std under which masks fit the truth best, and why.

    Args:
        run: the network.
        contract: whose size and threshold stay.
        frames: with a lesion each.
    """
    best: tuple[float, InputContract] = (-1.0, contract)
    for tried in _normalisations(contract, frames):
        found = _mean_dice(run, tried, frames)
        best = (found, tried) if found > best[0] else best
    told = f"of the usual ones the best on {len(frames)} frames, with a Dice of {best[0]:.3f}"
    return best[1], told


def _mean_dice(run: Run, contract: InputContract, frames: Sequence[CheckFrame]) -> float:
    return _dice_of(_answers(run, contract, frames), contract, frames)


def _answers(run: Run, contract: InputContract, frames: Sequence[CheckFrame]) -> list[np.ndarray]:
    return [planes_of_answer(run(input_from_frame(each.frame, contract))) for each in frames]


def _dice_of(
    logits: Iterable[np.ndarray], contract: InputContract, frames: Sequence[CheckFrame]
) -> float:
    """Return the mean Dice of what is marked, whatever its class."""
    pairs = zip(logits, frames, strict=True)
    return float(
        np.mean(
            [
                _dice(mask_from_logits(own, contract, *each.frame.shape[:2]), each)
                for own, each in pairs
            ]
        )
    )


def _normalisations(
    contract: InputContract, frames: Sequence[CheckFrame]
) -> Iterator[InputContract]:
    """Yield the contract as it is and with each usual mean and std, the frames' own among them."""
    grey = np.concatenate([each.frame.reshape(-1) for each in frames]) / 255
    own = (float(grey.mean()), max(float(grey.std()), 1e-3))
    colours = [_IMAGENET] if contract.depth == 3 else []
    for mean, std in ((contract.mean, contract.std), *_USUAL, *colours, own):
        yield replace(contract, mean=mean, std=std)


def _readings(
    run: Run, contract: InputContract, frames: Sequence[CheckFrame]
) -> Iterator[tuple[float, float, str]]:
    """Yield readings of inputs and answers: how far beyond telling, the mean Dice, what it is."""
    for tried in _normalisations(contract, frames):
        answers = _answers(run, tried, frames)
        mean, std = (numbers_text(each, ".3g") for each in (tried.means, tried.stds))
        outputs = [("", 1.0, 0.0), (", its answer negated,", -1.0, 0.0)]
        if all(each.min() >= 0 for each in answers):
            # Shifted so that what a probability is compared with becomes the logit's threshold.
            for scale, what in ((1, "a probability"), (255, "a probability times 255")):
                shift = contract.logit_thresholds[0] - contract.thresholds[0] * scale
                outputs.append((f", its answer taken as {what},", 1.0, shift))
        for what, sign, shift in outputs:
            read = (sign * logits + np.float32(shift) for logits in answers)
            found = _dice_of(read, tried, frames)
            beyond = found - (_CLEARLY_NEGATED if sign < 0 else _CLEARLY)
            yield beyond, found, f"with mean {mean} and std {std}{what}"


def _dice(mask: np.ndarray, check: CheckFrame) -> float:
    return dice_score(count_pixels(mask, check.truth))
