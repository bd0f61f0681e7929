"""Augmentation: the same numbers for the same seed, masks that follow their images."""

from __future__ import annotations

import pytest
import torch

from edgeseg.kd.augment import VERSION, Draws, augment, draw_views


def drawn(seed, images, masks):
    seeds = [1000 * seed + index for index in range(len(images))]
    return augment(images, masks, draw_views(seeds, images.shape[-1]))


def test_same_seed_gives_the_same_batch_and_another_seed_another():
    images, masks = torch.rand(3, 1, 32, 32), (torch.rand(3, 1, 32, 32) > 0.5).float()
    first, again, other = (drawn(seed, images, masks) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_images_and_masks_stay_between_0_and_1():
    images, masks = torch.rand(8, 1, 32, 32), torch.ones(8, 1, 32, 32)
    for each in drawn(0, images, masks):
        assert each.shape == images.shape
        assert each.min() >= 0
        assert each.max() <= 1 + 1e-6


def test_mask_moves_with_its_image():
    images = torch.zeros(8, 1, 64, 64)
    images[:, :, 20:44, 10:40] = 1
    moved, masks = drawn(3, images, images.clone())
    inside, outside = masks > 0.99, masks < 0.01
    assert moved[inside].mean() > 0.7
    assert moved[outside].mean() < 0.15
    assert not torch.equal(masks, images)


def test_an_empty_mask_stays_empty():
    _, masks = drawn(0, torch.rand(4, 1, 32, 32), torch.zeros(4, 1, 32, 32))
    assert masks.max() == 0


def test_view_of_an_image_does_not_depend_on_its_batch():
    images, masks = torch.rand(3, 1, 32, 32), (torch.rand(3, 1, 32, 32) > 0.5).float()
    draws = draw_views([0, 1, 2], 32)
    together = augment(images, masks, draws)
    for row in range(3):
        one = Draws(*(each[row : row + 1] for each in draws))
        alone = augment(images[row : row + 1], masks[row : row + 1], one)
        for ours, theirs in zip(alone, together, strict=True):
            assert torch.equal(ours[0], theirs[row])


def test_views_of_this_version_are_what_they_were():
    # Cached teacher outputs depend on it: another value here needs another VERSION.
    rows = torch.linspace(0, 1, 32).view(1, 1, 32, 1)
    images = (rows * torch.linspace(0.2, 1, 32)).expand(2, 1, 32, 32)
    moved, masks = augment(images, (images > 0.4).float(), draw_views([3, 4], 32))
    assert VERSION == 2
    means = [each.mean().item() for each in (*moved, *masks)]
    assert means == pytest.approx([0.2486, 0.2209, 0.1426, 0.1593], abs=2e-4)
