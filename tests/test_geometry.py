"Images, masks and boxes under random matrices: drawn first and moved, or moved and then drawn; there and back; OpenCV against torch."
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbench.geometry import (
    GREY,
    Variation,
    affine,
    clip_boxes,
    is_whole,
    move_boxes,
    move_images,
    move_mask_tensors,
    move_masks,
    sample_tensors,
    shift_images,
    shift_tensors,
    vary,
    warp_tensors,
)
from cnnbench.recipes import COLUMNS, NONE, AugmentConfig, geometry_matrices
from cnnbench.core import draw_table

FREE = AugmentConfig(flip=0.5, resized_crop=0.4, rotate=40, scale=0.3, translate=0.2, shear=15, perspective=0.08)
STRAIGHT = AugmentConfig(flip=0.5, flip_vertical=0.5, resized_crop=0.4, rotate=0, scale=0.3, translate=0.2, shear=0)
EXACT = AugmentConfig(crop=9, flip=0.5, flip_vertical=0.5, rotate=0, scale=0, translate=0, shear=0)


def matrices_of(config, size, count, seed=0):
    "Random matrices, float64 (count, 3, 3)."
    return geometry_matrices(config, draw_table(seed, "augment", 0, count, len(COLUMNS)), size)


def smooth(batch, height, width, channels=3, seed=0):
    "Pictures without hard edges, uint8 (batch, height, width, channel)."
    coarse = np.random.default_rng(seed).uniform(0, 255, (batch, 6, 6, channels)).astype(np.float32)
    large = [cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels) for image in coarse]
    return np.clip(np.stack(large), 0, 255).astype(np.uint8)


def by_arrays(images, matrices, fill=None):
    return np.stack([moved for _, moved in move_images(images, matrices, is_whole(matrices), fill)])


def by_tensors(images, matrices, fill=None):
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    if is_whole(matrices): moved = shift_tensors(tensors, torch.from_numpy(matrices), fill)
    else: moved = warp_tensors(tensors.float(), matrices, fill).to(torch.uint8)
    return moved.permute(0, 2, 3, 1).numpy()


def masks_by_tensors(masks, matrices): return move_mask_tensors(torch.from_numpy(masks), matrices).numpy()


def drawn_box(box, size):
    "A picture in which exactly this box is white, uint8 (height, width, 1); partly covered pixels are grey."
    rows, columns = (np.clip(np.minimum(np.arange(side) + 1, high) - np.maximum(np.arange(side), low), 0, 1)
                     for side, low, high in ((size[0], box[1], box[3]), (size[1], box[0], box[2])))
    return np.rint(255 * rows[:, None] * columns)[..., None].astype(np.uint8)


def overlap(first, second): return (first & second).sum() / max((first | second).sum(), 1)


backends = pytest.mark.parametrize("moved_by", [by_arrays, by_tensors])


# Drawing and moving


@backends
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(8, 40), st.floats(8, 40), st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_moving_a_drawn_box_equals_drawing_the_moved_box(moved_by, seed, wide, high, across, down):
    size, matrices = (72, 80), matrices_of(STRAIGHT, (72, 80), 4, seed)
    x, y = np.round((80 - wide) * across), np.round((72 - high) * down)
    box = np.array([[x, y, x + round(wide), y + round(high)]])
    pictures = moved_by(np.repeat(drawn_box(box[0], size)[None], 4, 0), matrices, 0)
    boxes, shares = clip_boxes(move_boxes(np.repeat(box, 4, 0), matrices), np.array([0, 0, 80, 72]))
    for picture, moved, share in zip(pictures, boxes, shares, strict=True):
        if share * wide * high < 30: continue  # hardly anything is left
        expected = drawn_box(moved, size)
        assert abs(picture.astype(int) - expected).mean() < 2.5  # levels: only the edges differ, where sampling smooths them
        assert overlap(picture > 127, expected > 127) > 0.85


@backends
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_turned_box_is_the_box_around_the_turned_picture(moved_by, seed):
    size, matrices = (90, 90), matrices_of(FREE, (90, 90), 4, seed)
    box = np.array([[33, 36, 60, 52]])
    pictures = moved_by(np.repeat(drawn_box(box[0], size)[None], 4, 0), matrices, 0)
    for picture, moved in zip(pictures[..., 0], move_boxes(np.repeat(box, 4, 0), matrices), strict=True):
        if moved.min() < 1 or moved.max() > 89: continue
        y, x = np.nonzero(picture > 40)
        assert np.abs(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) - moved).max() < 2  # px


@pytest.mark.parametrize("masks_by", [move_masks, masks_by_tensors])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_moved_mask_shows_what_the_moved_picture_shows(masks_by, seed):
    matrices = matrices_of(FREE, (64, 70), 4, seed)
    mask = np.zeros((1, 64, 70), np.uint8)
    mask[0, 14:40, 20:52] = 1
    masks, pictures = masks_by(np.repeat(mask, 4, 0), matrices), by_arrays(np.repeat(mask * 255, 4, 0)[..., None], matrices)
    if max(np.linalg.svd(matrices[:, :2, :2])[1].ravel()) < 2:  # else the picture is averaged first
        for held, picture in zip(masks, pictures[..., 0], strict=True): assert overlap(held == 1, picture > 127) > 0.93 or (held == 1).sum() < 50


# There and back


@backends
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_inverse_brings_back_the_interior(moved_by, seed):
    config = AugmentConfig(flip=0.5, rotate=40, scale=0.2, translate=0.05, shear=10)
    matrices, images = matrices_of(config, (96, 96), 3, seed), smooth(3, 96, 96, seed=seed)
    back = moved_by(moved_by(images, matrices), np.linalg.inv(matrices))
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    for image, found, matrix in zip(images, back, np.linalg.inv(matrices), strict=True):
        places = matrix @ np.stack([x.ravel(), y.ravel(), np.ones(96 * 96)])
        kept = ((places[:2] > 2) & (places[:2] < 93)).all(0).reshape(96, 96)  # what was inside in between
        assert kept.sum() > 1000 and abs(image.astype(int) - found)[kept].mean() < 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_boxes_come_back_from_scaling_and_flipping(seed):
    matrices, rng = matrices_of(STRAIGHT, (50, 60), 12, seed), np.random.default_rng(seed)
    corner, sides = rng.uniform(0, 30, (12, 2)), rng.uniform(1, 20, (12, 2))
    boxes = np.concatenate([corner, corner + sides], 1)
    assert np.allclose(move_boxes(move_boxes(boxes, matrices), np.linalg.inv(matrices)), boxes, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_a_turned_box_holds_the_corners_and_no_more(seed):
    matrices = matrices_of(FREE, (50, 60), 12, seed)
    boxes = np.tile([10.0, 12.0, 31.0, 40.0], (12, 1))
    moved = move_boxes(boxes, matrices)
    corners = np.linalg.inv(matrices) @ np.array([[9.5, 30.5, 9.5, 30.5], [11.5, 11.5, 39.5, 39.5], [1, 1, 1, 1]])
    corners = corners[:, :2] / corners[:, 2:] + 0.5
    assert np.allclose(moved[:, :2], corners.min(2)) and np.allclose(moved[:, 2:], corners.max(2))


@pytest.mark.parametrize("size", [(20, 24), (101, 99)])
def test_identity_changes_not_a_bit(size):
    images, still = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8), affine(5)
    for fill in (None, GREY):
        for exact in (True, False):
            assert np.array_equal(np.stack([moved for _, moved in move_images(images, still, exact, fill)]), images)
        assert np.array_equal(warp_tensors(torch.from_numpy(images).permute(0, 3, 1, 2).float(), still, fill).permute(0, 2, 3, 1).numpy(), images)
        assert np.array_equal(by_tensors(images, still, fill), images)
    assert np.array_equal(move_masks(images[..., 0], still), images[..., 0])
    assert np.array_equal(move_masks(images[..., 0], still, np.tile([0, 0, size[1], size[0]], (5, 1))), images[..., 0])
    assert np.array_equal(masks_by_tensors(images[..., 0], still), images[..., 0])
    boxes = np.random.default_rng(1).uniform(0, 90, (5, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    assert np.array_equal(move_boxes(boxes.astype(np.float64), still).astype(np.float32), boxes)


# OpenCV against torch


@pytest.mark.parametrize("config", [FREE, STRAIGHT, EXACT], ids=["free", "straight", "exact"])
@pytest.mark.parametrize("fill", [None, GREY])
@pytest.mark.parametrize("size", [(24, 30), (110, 90)])
def test_both_ways_move_images_alike(config, fill, size):
    images, matrices = smooth(20, *size), matrices_of(config, size, 20)
    first, second = by_arrays(images, matrices, fill).astype(int), by_tensors(images, matrices, fill)
    if config is EXACT: assert np.array_equal(first, second)
    else: assert abs(first - second).mean() < 0.5 and np.percentile(abs(first - second), 99.5) <= 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 70), st.integers(8, 70))
def test_both_ways_move_masks_alike(seed, height, width):
    masks = np.random.default_rng(seed).integers(0, 9, (4, height, width), dtype=np.uint8)
    for config in (FREE, EXACT):
        matrices = matrices_of(config, (height, width), 4, seed)
        differ = (move_masks(masks, matrices) != masks_by_tensors(masks, matrices)).mean()
        assert differ == 0 if config is EXACT else differ < 0.01  # places within a thousandth of a pixel of the middle between two


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_both_ways_move_boxes_alike(seed):
    matrices, rng = matrices_of(FREE, (50, 60), 9, seed), np.random.default_rng(seed)
    corner = rng.uniform(-5, 50, (9, 2))
    boxes, windows = np.concatenate([corner, corner + rng.uniform(0, 30, (9, 2))], 1), np.tile([0.0, 0.0, 60.0, 50.0], (9, 1))
    moved = move_boxes(boxes, matrices), move_boxes(torch.from_numpy(boxes), torch.from_numpy(matrices)).numpy()
    assert np.allclose(*moved, atol=1e-9)
    for first, second in zip(clip_boxes(moved[0], windows), clip_boxes(torch.from_numpy(moved[0]), torch.from_numpy(windows)), strict=True):
        assert np.allclose(first, second.numpy(), atol=1e-12)


@pytest.mark.parametrize("fill", [None, GREY])
@pytest.mark.parametrize("config", [EXACT, AugmentConfig(crop=64, flip=0.5, rotate=0, scale=0, translate=0, shear=0)], ids=["near", "far"])
def test_exact_moves_of_a_batch_equal_those_of_each_image(fill, config):
    images, matrices = np.random.default_rng(0).integers(0, 256, (40, 12, 17, 3), dtype=np.uint8), matrices_of(config, (12, 17), 40)
    gathered = shift_images(images, matrices, fill)
    padded = np.pad(images, ((0, 0), (80, 80), (80, 80), (0, 0)), mode="reflect") if fill is None else \
        np.pad(images, ((0, 0), (80, 80), (80, 80), (0, 0)), constant_values=fill)
    for image, source, matrix in zip(gathered, padded, matrices.astype(int), strict=True):
        x, y = matrix[0, 0] * np.arange(17) + matrix[0, 2] + 80, matrix[1, 1] * np.arange(12) + matrix[1, 2] + 80
        assert np.array_equal(image, source[y][:, x])


# Beyond the border, and beyond the horizon


def test_filled_borders_are_grey_and_reflected_ones_are_not():
    images = np.full((1, 40, 40, 3), 200, np.uint8)
    for matrices in (affine(1, m02=20), affine(1, m02=20.5)):
        for moved_by in (by_arrays, by_tensors):
            assert (moved_by(images, matrices) == 200).all()
            assert (moved_by(images, matrices, GREY)[0, :, 21:] == GREY).all()


def test_a_box_beyond_the_horizon_is_not_seen():
    tilt = np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1.0]])[None]  # the source's horizon is at x = 50
    boxes = np.array([[60.0, 0, 100, 10], [40, 0, 60, 10], [0, 0, 10, 10]])  # beyond it, across it, on this side of it
    moved = move_boxes(boxes, np.repeat(np.linalg.inv(tilt), 3, 0))
    shares = clip_boxes(moved, np.array([0, 0, 400, 400]))[1]
    assert np.isfinite(moved).all() and shares[:2].max() < 1e-3 and shares[2] > 0.9


# Variations for the loss


@pytest.mark.parametrize("config", [FREE, EXACT], ids=["free", "exact"])
def test_a_variation_lets_gradients_through(config):
    matrices = torch.from_numpy(matrices_of(config, (12, 14), 3))
    colour = torch.tensor([[[0.5, 0.25, 3.0], [0.0, 1.5, -2.0]]] * 3, dtype=torch.float64)
    variation = Variation(matrices, config is EXACT, colour)
    images = torch.rand(3, 2, 12, 14, dtype=torch.float64, requires_grad=True)
    if config is EXACT: assert torch.autograd.gradcheck(lambda held: vary(held, variation), (images,))
    else:
        weights = torch.rand(3, 2, 12, 14, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((vary(images, variation) * weights).sum(), images)
        step = torch.rand_like(images)
        change = ((vary(images + step, variation) - vary(images, variation)) * weights).sum()  # vary is affine in the images
        assert torch.allclose(change, (gradient * step).sum(), rtol=1e-5)


def test_a_variation_is_what_augmentation_does_but_for_rounding():
    images, matrices = smooth(6, 40, 44), matrices_of(AugmentConfig(), (40, 44), 6)
    varied = vary(torch.from_numpy(images).permute(0, 3, 1, 2).float(), Variation(torch.from_numpy(matrices).float(), False))
    assert abs(varied.permute(0, 2, 3, 1).numpy() - by_arrays(images, matrices)).max() < 3
    bright = vary(torch.full((1, 1, 4, 4), 250.0), Variation(torch.eye(3)[None], True, torch.tensor([[[1.0, 20.0]]])))
    assert (bright == 270).all()  # not limited: a limit would stop the gradient


def test_sampling_outside_is_smooth_at_the_edge():
    ramp = torch.arange(8.0)[None, None, None].expand(1, 1, 4, 8) * 10
    moved = sample_tensors(ramp, torch.from_numpy(affine(1, m02=0.5)).float(), (4, 8))
    assert torch.allclose(moved[0, 0, 0], torch.tensor([5.0, 15, 25, 35, 45, 55, 65, 65]), atol=1e-3)


# Whole numbers


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000))
def test_whole_matrices_are_recognised(seed):
    assert is_whole(matrices_of(EXACT, (20, 30), 5, seed))
    assert not is_whole(matrices_of(STRAIGHT, (20, 30), 5, seed))
    assert is_whole(matrices_of(NONE, (20, 30), 5, seed))
