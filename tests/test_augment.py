"Every effect by hand on tiny images, the two backends against each other, and what may not change a draw."
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchvision.transforms import v2

from cnnbench.augment import Augmenter, apply_arrays, apply_tensors, augment_arrays, augment_targets, augment_tensors
from cnnbench.config import from_json, to_code, to_json
from cnnbench.core import UsageError, draw_table
from cnnbench.data import ArrayImages, Dataset, Loader, plain_batch
from cnnbench.geometry import GREY, vary
from cnnbench.recipes import (
    COLUMNS,
    MOSAIC_COLUMNS,
    NONE,
    NOISE_LEVELS,
    NOISE_STARTS,
    PRESETS,
    AugmentConfig,
    Recipe,
    erase_boxes,
    is_exact,
    make_mix,
    make_mosaic,
    make_recipe,
    noise_strips,
)
from cnnbench.shapes import SHAPES, draw_shapes
from cnnbench.targets import BoxColumn, Boxes, Labels, MaskColumn, make_boxes

EFFECTS = {
    "crop": 3, "flip": 1, "flip_vertical": 1, "resized_crop": 0.6, "rotate": 60, "scale": 0.5, "translate": 0.3, "shear": 20, "perspective": 0.15,
    "brightness": 0.3, "contrast": 0.7, "saturation": 0.8, "hue": 60, "blur": 2, "noise": 30, "erase": 1,
}


def drawn(batch=1, **values):
    "Neutral draws, except those given."
    draws = np.full((batch, len(COLUMNS)), 0.5, np.float32)
    for name, value in values.items(): draws[:, COLUMNS[name]] = value
    return draws


def smooth(height, width, channels=3, batch=1, seed=0):
    "Random pictures without hard edges, uint8 (batch, height, width, channel)."
    y, x = np.mgrid[:height, :width]
    waves = np.random.default_rng(seed).uniform(0.1, 0.5, (batch, 1, 1, channels, 3))
    values = np.sin(waves[..., 0] * x[None, :, :, None] + waves[..., 1] * y[None, :, :, None] + 20 * waves[..., 2])
    return np.rint(127.5 + 120 * values).astype(np.uint8)


def random_pixels(*shape, seed=0): return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def carry_out(backend, images, draws=None, seed=0, **setting):
    "The images, (batch, height, width, channel), under one config, by either backend."
    config, shape = replace(NONE, **setting), (images.shape[3], *images.shape[1:3])
    if draws is None: draws = draw_table(seed, "augment", 0, len(images), len(COLUMNS))
    recipe, strips = make_recipe(config, draws, shape), noise_strips(config, seed, math.prod(shape))
    if backend == "opencv": return apply_arrays(images.copy(), recipe, strips)
    return apply_tensors(torch.from_numpy(images).permute(0, 3, 1, 2), recipe, strips).permute(0, 2, 3, 1).numpy()


def dataset_of(images, classes=10):
    "A data set of these images whose labels go round."
    return Dataset("tiny", ArrayImages(images), np.arange(len(images)) % classes, tuple(map(str, range(classes))))


both = pytest.mark.parametrize("backend", ["opencv", "torch"])
channels = pytest.mark.parametrize("channels", [1, 3])


# Geometry, by hand


@both
@channels
@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_equal_rot90(backend, channels, size):
    image = random_pixels(1, size, size, channels)
    for amount, turns in ((0.75, 1), (1, 2), (0.25, -1)):
        turned = carry_out(backend, image, drawn(rotate=amount), rotate=180)
        assert np.array_equal(turned[0], np.rot90(image[0], turns))


@both
@channels
def test_translating_by_whole_pixels_is_a_shift(backend, channels):
    image = random_pixels(1, 10, 20, channels)
    moved = carry_out(backend, image, drawn(translate_x=1, translate_y=0), translate=0.2)[0]  # 4 to the right, 2 up
    assert np.array_equal(moved[:-2, 4:], image[0, 2:, :-4])
    assert np.array_equal(moved[:-2, :4], image[0, 2:, 1:5][:, ::-1])  # reflected about the first column


@both
@channels
@pytest.mark.parametrize("axes", [("flip",), ("flip_vertical",), ("flip", "flip_vertical")])
@pytest.mark.parametrize("size", [(5, 8), (101, 102)])
def test_flips_are_exact(backend, channels, axes, size):
    image = random_pixels(2, *size, channels)
    flipped = carry_out(backend, image, **dict.fromkeys(axes, 1.0))
    assert np.array_equal(flipped, np.flip(image, [{"flip": 2, "flip_vertical": 1}[axis] for axis in axes]))


@both
@channels
@pytest.mark.parametrize("size", [(9, 12), (101, 102)])
@pytest.mark.parametrize("crop", [3, 50])  # the second is wider than the smaller image
def test_crops_are_slices_of_the_reflected_image(backend, channels, crop, size):
    height, width = size
    image, draws = random_pixels(40, height, width, channels), draw_table(1, "augment", 0, 40, len(COLUMNS))
    cropped, offsets = carry_out(backend, image, draws, crop=crop), set()
    for item in range(40):
        wide = np.pad(image[item], [(height, height), (width, width), (0, 0)], mode="reflect")
        most = [min(crop, side - 1) for side in size]
        down, right = (math.floor(draws[item, COLUMNS[f"crop_{axis}"]].item() * (2 * m + 1)) - m for axis, m in zip("yx", most, strict=True))
        offsets.add((down, right))
        assert np.array_equal(cropped[item], wide[height + down : 2 * height + down, width + right : 2 * width + right])
    assert len(offsets) > 20


@both
def test_crop_and_flip_together_only_move_pixels(backend):
    image = random_pixels(30, 8, 8, 3)
    image[:] = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)  # every value once
    result = carry_out(backend, image, crop=2, flip=0.5, flip_vertical=0.5)
    geometry = make_recipe(replace(NONE, crop=2, flip=0.5, flip_vertical=0.5), draw_table(0, "augment", 0, 30, len(COLUMNS)), (3, 8, 8)).geometry
    for item in range(30):
        x, y, _ = np.rint(geometry[item] @ (4, 4, 1)).astype(int)
        assert np.array_equal(result[item, 4, 4], image[item, y, x])


@both
def test_scaling_enlarges_about_the_centre(backend):
    image = np.zeros((1, 33, 33, 1), np.uint8)
    image[0, 12:21, 12:21] = 200
    large = carry_out(backend, image, drawn(scale=1), scale=1)[0, :, :, 0]
    assert large[16, 16 - 7 : 16 + 8].min() == 200 and large[16, 5] == 0 and large[16, 27] == 0
    assert abs((large > 100).sum() / 81 - 4) < 0.5
    assert np.array_equal(large, large[::-1]) and np.array_equal(large, large.T)


@both
def test_shear_slants_and_keeps_the_centre(backend):
    image = np.zeros((1, 21, 21, 1), np.uint8)
    image[0, :, 10] = 255
    slanted = carry_out(backend, image, drawn(shear_x=1), shear=30)[0, :, :, 0].astype(float)
    middles = (slanted * np.arange(21)).sum(1) / slanted.sum(1)
    assert np.allclose(middles[6:15], 10 + math.tan(math.radians(30)) * np.arange(-4, 5), atol=0.05)


@both
def test_perspective_keeps_straight_lines_and_brings_one_side_nearer(backend):
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[0, 10:31, 10:31] = 255
    tilted = carry_out(backend, image, drawn(perspective_x=1), perspective=0.2)[0, :, :, 0] > 127
    heights = tilted.sum(0)[np.flatnonzero(tilted.sum(0))]
    assert heights[-2] > heights[1] + 3 and (np.diff(heights[1:-1].astype(int)) >= 0).all()


@both
def test_resized_crop_shows_an_enlarged_window(backend):
    ramp = np.broadcast_to((np.arange(64) * 4).astype(np.uint8)[None, None, :, None], (1, 64, 64, 1)).copy()
    draws = drawn(cut_area=1, cut_aspect=0.5, cut_x=0.5)  # the middle quarter
    row = carry_out(backend, ramp, draws, resized_crop=0.75)[0, 32, :, 0].astype(float)
    assert np.allclose(row, 4 * ((np.arange(64) + 0.5) * 0.5 - 0.5 + 16), atol=1)


# Colour, by hand


@both
@channels
def test_brightness_and_contrast_equal_the_formula(backend, channels):
    image = random_pixels(1, 16, 16, channels)
    result = carry_out(backend, image, drawn(brightness=0.9, contrast=0.1), brightness=0.25, contrast=0.5)
    gain, offset = 1 - 0.8 * 0.5, 0.8 * 0.25 * 255
    expected = np.clip((image.astype(np.float64) - 127.5) * gain + 127.5 + offset, 0, 255)
    assert abs(result - expected).max() <= 0.5 + 1e-3


@both
def test_saturation_zero_is_grey(backend):
    image = random_pixels(1, 16, 16, 3)
    result = carry_out(backend, image, drawn(saturation=0), saturation=1).astype(float)
    assert abs(np.ptp(result, axis=3)).max() <= 1
    assert abs(result[..., 0] - image @ np.array([0.299, 0.587, 0.114])).max() <= 1.2


@both
def test_hue_and_saturation_leave_grey_and_single_channels_alone(backend):
    grey = np.repeat(random_pixels(4, 8, 8, 1), 3, 3)
    assert abs(carry_out(backend, grey, hue=90, saturation=1).astype(int) - grey).max() <= 1
    single = random_pixels(4, 8, 8, 1)
    assert np.array_equal(carry_out(backend, single, hue=90, saturation=1), single)


def test_hue_turns_colours_but_not_their_luma():
    image = np.full((1, 4, 4, 3), (150, 100, 90), np.uint8)
    turned = carry_out("opencv", image, drawn(hue=1), hue=60)[0, 0, 0].astype(float)
    luma = np.array([0.299, 0.587, 0.114])
    assert abs(turned @ luma - image[0, 0, 0] @ luma) < 1 and abs(turned - image[0, 0, 0]).max() > 20


# Blur, noise, erasing


@both
@channels
def test_blur_preserves_the_mean_and_removes_detail(backend, channels):
    image = random_pixels(1, 32, 32, channels)
    result = carry_out(backend, image, drawn(blur=1), blur=2)
    assert abs(result.mean() - image.mean()) < 1 and result.std() < image.std() / 4
    spike = np.zeros((1, 33, 33, channels), np.uint8)
    spike[0, 16, 16] = 255
    row = carry_out(backend, spike, drawn(blur=1), blur=1)[0, 16, :, 0].astype(float)
    bell = np.exp(-0.5 * (np.arange(33) - 16.0) ** 2)
    assert abs(row - 255 * bell / bell.sum() ** 2).max() <= 1.5


@both
@pytest.mark.parametrize("level", range(NOISE_LEVELS))
def test_noise_has_the_deviation_that_was_drawn(backend, level):
    image = np.full((1, 64, 64, 3), 128, np.uint8)
    change = carry_out(backend, image, drawn(noise=(level + 0.5) / NOISE_LEVELS, noise_start=0.3), noise=24).astype(float) - 128
    wanted = math.sqrt((24 * (level + 1) / NOISE_LEVELS) ** 2 + 1 / 12)  # rounding adds a twelfth
    assert abs(change.std() / wanted - 1) < 0.04 and abs(change.mean()) < 0.6


def test_noise_is_a_piece_of_the_strip_and_saturates():
    config, image = replace(NONE, noise=40), random_pixels(1, 8, 8, 3)
    draws = drawn(noise=0.99, noise_start=0.25)
    strips, start = noise_strips(config, 0, 192).numpy().astype(int), int(0.25 * NOISE_STARTS)
    piece = (strips[0, -1] - strips[1, -1])[start : start + 192].reshape(image.shape)
    for backend in ("opencv", "torch"):
        assert np.array_equal(carry_out(backend, image, draws, noise=40), np.clip(image + piece, 0, 255))


@both
@channels
def test_erasing_covers_the_area_that_was_drawn(backend, channels):
    image = np.zeros((1, 40, 60, channels), np.uint8)
    for amount in (0, 0.4, 1):
        draws = drawn(erase=0, erase_area=amount, erase_aspect=0.8, erase_x=0.9, erase_y=0.1, erase_level=0.6)
        result = carry_out(backend, image, draws, erase=0.5, erase_area=0.4)[0, :, :, 0]
        assert set(np.unique(result)) == {0, 153}
        assert abs((result > 0).mean() - 0.4 * (0.1 + 0.9 * amount)) < 0.02
    assert not carry_out(backend, image, drawn(erase=0.7), erase=0.5).any()


def test_erasing_stays_inside_for_any_draw():
    boxes = erase_boxes(replace(NONE, erase=1, erase_area=0.45, strength=2), draw_table(0, "augment", 0, 2000, len(COLUMNS)), (7, 13))
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 13 and boxes[:, 3].max() <= 7 and (boxes[:, 2:] >= boxes[:, :2]).all()


# Shrinking


@both
@channels
def test_a_shrunk_checkerboard_is_grey(backend, channels):
    board = np.broadcast_to((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None], (1, 64, 64, channels)).copy()
    for amount in (0.0, 0.1, 0.15):  # to 0.33, 0.42 and 0.46 of the size
        shrunk = carry_out(backend, board, drawn(scale=amount, rotate=0.6), scale=1, rotate=30, strength=2).astype(float)
        assert shrunk.std() < 25 and abs(shrunk.mean() - 127.5) < 3


@both
def test_shrinking_keeps_places(backend):
    image = np.zeros((1, 63, 65, 1), np.uint8)
    image[0, 30:33, 14:17] = 255  # 17 left of the centre (32, 31)
    shrunk = carry_out(backend, image, drawn(scale=0), scale=1, strength=2)[0, :, :, 0].astype(float)  # to a third
    near = shrunk[31 - 8 : 31 + 9, 32 - 8 : 32 + 9]
    x, y = (near.sum(0) * np.arange(24, 41)).sum() / near.sum(), (near.sum(1) * np.arange(23, 40)).sum() / near.sum()
    assert abs(x - (32 - 17 / 3)) < 0.3 and abs(y - 31) < 0.3


# The two backends


@channels
@pytest.mark.parametrize("effect", [*EFFECTS])
def test_backends_agree_on_each_effect(effect, channels):
    images = smooth(24, 30, channels, batch=12)
    opencv, by_torch = (carry_out(backend, images, **{effect: EFFECTS[effect]}).astype(int) for backend in ("opencv", "torch"))
    assert abs(opencv - by_torch).max() <= 2 and abs(opencv - by_torch).mean() < 0.3  # levels of 255


@channels
@pytest.mark.parametrize("size", [(8, 8), (17, 31), (96, 100)])
def test_backends_agree_on_everything_at_once(size, channels):
    images, setting = smooth(*size, channels, batch=16), {**EFFECTS, "strength": 1.0, "erase": 0.5}
    opencv, by_torch = (carry_out(backend, images, **setting).astype(int) for backend in ("opencv", "torch"))
    assert abs(opencv - by_torch).mean() < 0.5 and np.percentile(abs(opencv - by_torch), 99.9) <= 4


def test_backends_agree_on_mixing():
    config, images = replace(NONE, mixup=0.5, cutmix=1, flip=0.5), smooth(16, 20, 3, batch=40)
    draws = draw_table(0, "augment", 0, 40, len(COLUMNS))
    mix = make_mix(config, draws[:20], np.arange(40), (16, 20))
    everyone = np.concatenate([np.arange(20), mix.partners])
    recipe, pixels = make_recipe(config, draws[everyone], (3, 16, 20)), images[everyone]
    by_torch = augment_tensors(torch.from_numpy(pixels).permute(0, 3, 1, 2), recipe, None, mix)
    opencv = augment_arrays(pixels.copy(), recipe, None, mix)
    assert opencv.shape == by_torch.shape == (20, 3, 16, 20) and opencv.is_contiguous(memory_format=torch.channels_last)
    assert (opencv.int() - by_torch.int()).abs().max() <= 1


@both
@channels
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (64, 3)])
def test_the_smallest_images(backend, channels, size):
    result = carry_out(backend, random_pixels(4, *size, channels), **EFFECTS)
    assert result.shape == (4, *size, channels) and result.dtype == np.uint8


@both
def test_one_colour_stays_that_colour_under_all_geometry(backend):
    image = np.full((20, 20, 20, 3), (10, 120, 250), np.uint8)
    names = ("crop", "flip", "flip_vertical", "resized_crop", "rotate", "scale", "translate", "shear", "perspective")
    assert np.array_equal(carry_out(backend, image, strength=2, **{name: EFFECTS[name] for name in names}), image)


# What may and may not change a draw


@pytest.mark.parametrize("name", [*PRESETS])
def test_a_row_looks_the_same_in_any_company(name):
    data = dataset_of(random_pixels(50, 12, 12, 3))
    rows = np.arange(50)
    whole = Augmenter(PRESETS[name], data, seed=5, rows=rows)(rows, 7)
    augmenter, order = Augmenter(PRESETS[name], data, seed=5, rows=rows), np.random.default_rng(0).permutation(50)
    augmenter(order, 8)
    for part in np.split(order, [1, 4, 9, 20, 37]):
        batch = augmenter(part, 7)
        for held, expected in ((batch.images, whole.images), (batch.targets, whole.targets), (batch.geometry, whole.geometry)):
            assert torch.equal(held, expected[torch.from_numpy(part)])
        assert torch.equal(batch.rows, torch.from_numpy(part))


def test_seed_epoch_and_row_each_change_the_draw():
    data = dataset_of(np.repeat(random_pixels(1, 16, 16, 1), 4, 0))
    def look(seed, epoch, row): return Augmenter(AugmentConfig(), data, seed)(np.array([row]), epoch).images
    first = look(0, 0, 0)
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)): assert not torch.equal(first, look(*other))
    assert torch.equal(first, look(0, 0, 0))


def test_another_effect_does_not_change_a_draw():
    draws = draw_table(0, "augment", 0, 8, len(COLUMNS))
    others = {"noise": 9, "erase": 1, "hue": 3, "mixup": 1}
    alone, together = (make_recipe(replace(NONE, rotate=30, **more), draws, (3, 8, 8)) for more in ({}, others))
    assert np.array_equal(alone.geometry, together.geometry)


def test_more_rows_do_not_change_a_draw():
    images = random_pixels(30, 8, 8, 1)
    few, many = (Augmenter(AugmentConfig(noise=9), dataset_of(images[:count]), 0)(np.arange(10), 2) for count in (10, 30))
    assert torch.equal(few.images, many.images)


def test_any_number_of_threads_gives_the_same_bits():
    data = dataset_of(random_pixels(70, 20, 20, 3))
    rows, epochs = np.arange(70), {}
    for threads in (0, 1, 3):
        loader = Loader(data, rows, 16, seed=0, make=Augmenter(PRESETS["strong"], data, 0, rows), threads=threads)
        batches = [batch for epoch in range(3) for batch in loader(epoch)]
        epochs[threads] = torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])
    for threads in (1, 3):
        for held, expected in zip(epochs[threads], epochs[0], strict=True): assert torch.equal(held, expected)


def test_one_augmenter_in_many_threads_and_epochs_at_once():
    data = dataset_of(random_pixels(40, 10, 10, 3))
    augmenter, rows = Augmenter(AugmentConfig(noise=5), data, 0), np.arange(40)
    with ThreadPoolExecutor(4) as pool: made = list(pool.map(lambda epoch: augmenter(rows, epoch % 5).images, range(30)))
    for epoch, images in enumerate(made): assert torch.equal(images, Augmenter(AugmentConfig(noise=5), data, 0)(rows, epoch % 5).images)


def test_nothing_on_changes_nothing():
    data = dataset_of(random_pixels(20, 9, 11, 3))
    for config in (NONE, AugmentConfig(strength=0), PRESETS["none"]):
        batch = Augmenter(config, data, 0)(np.arange(20), 0)
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), data.images.array)
        assert torch.equal(batch.targets, torch.from_numpy(data.targets)) and torch.equal(batch.geometry, torch.eye(3).expand(20, 3, 3))
    assert is_exact(NONE) and not is_exact(AugmentConfig())


def test_the_data_set_is_not_written_to():
    images = random_pixels(12, 8, 8, 3)
    data = dataset_of(images.copy())
    Augmenter(PRESETS["strong"], data, 0, np.arange(12))(np.arange(12), 0)
    assert np.array_equal(data.images.array, images)


# Mixing


def test_cutmix_share_is_the_area_pasted():
    images = np.zeros((30, 20, 20, 1), np.uint8)
    images[15:] = 255  # the last class of two
    data = Dataset("halves", ArrayImages(images), np.repeat([0, 1], 15), ("dark", "light"))
    batch = Augmenter(replace(NONE, cutmix=1), data, 0, rows=np.arange(30))(np.arange(30), 0)
    assert batch.targets.dtype == torch.float32 and batch.targets.shape == (30, 2)
    assert torch.allclose(batch.targets.sum(1), torch.ones(30), atol=1e-6)
    assert torch.allclose(batch.images.float().mean((1, 2, 3)) / 255, batch.targets[:, 1], atol=1e-6)
    assert ((batch.targets[:, 1] > 0.05) & (batch.targets[:, 1] < 0.95)).sum() > 5


def test_mixup_share_is_the_share_of_the_pixels():
    images = np.zeros((30, 4, 4, 3), np.uint8)
    images[15:] = 200
    data = Dataset("halves", ArrayImages(images), np.repeat([0, 1], 15), ("dark", "light"))
    batch = Augmenter(replace(NONE, mixup=1), data, 0, rows=np.arange(30))(np.arange(30), 0)
    assert torch.allclose(batch.images.float().mean((1, 2, 3)) / 200, batch.targets[:, 1], atol=0.5 / 200 + 1e-6)


def test_partners_are_training_rows_only():
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    data = dataset_of(images, classes=40)
    batch = Augmenter(replace(NONE, mixup=0.5, cutmix=0.5), data, 0, rows=np.arange(20))(np.arange(20), 0)
    assert batch.targets[:, 20:].sum() == 0 and (batch.targets > 0).sum() > 30
    with pytest.raises(UsageError, match="training rows"): Augmenter(AugmentConfig(cutmix=1), data, 0)


def test_mix_chance_and_beta_law():
    draws = draw_table(0, "augment", 0, 4000, len(COLUMNS))
    mix = make_mix(replace(NONE, mixup=0.3, mix_chance=0.25), draws, np.arange(10), (8, 8))
    assert abs(len(mix.items) - 1000) < 100
    assert abs(mix.shares.mean() - 0.5) < 0.05 and abs(mix.shares.var() - 1 / (4 * 1.6)) < 0.02
    assert make_mix(replace(NONE, mixup=0.3, mix_chance=0), draws, np.arange(10), (8, 8)) is None


def test_a_partner_of_the_same_class_keeps_the_label_whole():
    mix = make_mix(replace(NONE, mixup=1), drawn(2, mix_share=0.3), np.arange(5), (4, 4))
    blended = Labels(np.array([1, 2]), 3).blended(Labels(np.array([1, 0]), 3), mix.items, mix.shares)
    assert blended.values.dtype == np.float32 and np.allclose(blended.values, [[0, 1, 0], [0.3, 0, 0.7]])


def test_batch_that_draws_no_mixing():
    data = dataset_of(random_pixels(4, 6, 6, 1))
    batch = Augmenter(replace(NONE, cutmix=1, mix_chance=1e-6), data, 0, rows=np.arange(4))(np.arange(4), 0)
    assert torch.equal(batch.targets.argmax(1), torch.arange(4)) and batch.targets.dtype == torch.float32


# Geometry that leads back


def test_geometry_leads_to_the_original_pixels():
    original = np.array([[2, 0, 7.5], [0, 2, 3.5], [0, 0, 1]], np.float32)
    data = replace(dataset_of(random_pixels(6, 10, 12, 1)), geometry=np.tile(original, (6, 1, 1)))
    batch = Augmenter(replace(NONE, flip=1), data, 0)(np.arange(6), 0)
    assert batch.geometry.dtype == torch.float32
    place = batch.geometry[3].numpy() @ (2, 5, 1)
    assert np.allclose(place, (2 * (11 - 2) + 7.5, 2 * 5 + 3.5, 1))



# Every kind of target


SCENES = [draw_shapes(1, row, 64, (1, 4)) for row in range(24)]
PIXELS = ArrayImages(np.stack([scene.image for scene in SCENES]))
BOXED = Dataset("boxes", PIXELS, BoxColumn(make_boxes([scene.boxes for scene in SCENES], [scene.labels for scene in SCENES]), 5), SHAPES)
MASKS = np.stack([scene.mask for scene in SCENES])
MASKED = Dataset("masks", PIXELS, MaskColumn(lambda rows: MASKS[rows], len(MASKS), 6), ("background", *SHAPES))
SEVERAL = Dataset("several", PIXELS, np.stack([np.bincount(scene.labels, minlength=5).clip(max=1) for scene in SCENES]).astype(np.uint8), SHAPES)
CLIPS = Dataset("clips", ArrayImages(random_pixels(12, 5, 24, 20, 3)), np.arange(12) % 3, ("a", "b", "c"))
KINDS = {"boxes": BOXED, "masks": MASKED, "several labels": SEVERAL, "clips": CLIPS}
EVERYTHING = replace(PRESETS["strong"], crop=3, mosaic=0.5, translate=0.1, mixup=0.5, cutmix=0.5)
kinds = pytest.mark.parametrize("kind", [*KINDS])


def tensors_of(batch):
    "All tensors of a batch, by name."
    targets = {"targets": batch.targets} if isinstance(batch.targets, torch.Tensor) else vars(batch.targets)
    held = {"images": batch.images, "geometry": batch.geometry, "rows": batch.rows, **targets}
    return {name: values for name, values in held.items() if isinstance(values, torch.Tensor)}


def assert_same(first, second):
    assert tensors_of(first).keys() == tensors_of(second).keys()
    for name, held in tensors_of(first).items(): assert torch.equal(held, tensors_of(second)[name]), name


def item_of(targets, place):
    "One image's targets as a list of tensors."
    if isinstance(targets, torch.Tensor): return [targets[place]]
    if isinstance(targets, Boxes): return [held for held in vars(targets.of(place)).values() if isinstance(held, torch.Tensor)]
    blended = targets.partner is not None and float(targets.share[place]) > 0
    return [targets.ids[place], *([targets.partner[place], targets.share[place]] if blended else [])]


@kinds
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_kind_is_the_same_with_any_number_of_threads(kind, threads):
    data = KINDS[kind]
    rows = np.arange(len(data))
    def epochs(threads):
        loader = Loader(data, rows, 5, seed=0, make=Augmenter(EVERYTHING, data, 0, rows), threads=threads)
        return [batch for epoch in range(2) for batch in loader(epoch)]
    for first, second in zip(epochs(threads), epochs(0), strict=True): assert_same(first, second)


@kinds
def test_every_kind_looks_the_same_in_any_company(kind):
    data = KINDS[kind]
    rows, augmenter = np.arange(len(data)), Augmenter(EVERYTHING, data, 5, np.arange(len(data)))
    whole, order = augmenter(rows, 3), np.random.default_rng(0).permutation(len(data))
    for part in np.split(order, [1, 4, 9]):
        batch = augmenter(part, 3)
        assert torch.equal(batch.images, whole.images[part]) and torch.equal(batch.geometry, whole.geometry[part])
        for place, row in enumerate(part):
            for held, expected in zip(item_of(batch.targets, place), item_of(whole.targets, row), strict=True): assert torch.equal(held, expected)


@kinds
def test_nothing_on_changes_no_kind(kind):
    data, rows = KINDS[kind], np.arange(len(KINDS[kind]))
    batch = Augmenter(NONE, data, 0)(rows, 0)
    assert_same(batch, replace(plain_batch(data)(rows, 0), geometry=torch.eye(3).expand(len(rows), 3, 3)))


@kinds
def test_validation_is_never_augmented(kind):
    data, rows = KINDS[kind], np.arange(len(KINDS[kind]))
    loader = Loader(data, rows, 4, seed=0, shuffle=False)
    for number, batch in enumerate(loader(0)):
        assert np.array_equal(batch.images.movedim(-3, -1).numpy(), data.images.read(rows[number * 4 : number * 4 + 4])) and batch.variation is None


@kinds
def test_both_backends_do_the_same_to_every_kind(kind):
    data, rows = KINDS[kind], np.arange(len(KINDS[kind]))
    setting = replace(EVERYTHING, noise=0, blur=0)
    opencv = Augmenter(setting, data, 0, rows)(rows, 1)
    recipe, mix, mosaic, everyone = drawn_for(setting, data, rows, 1)
    pixels = torch.from_numpy(data.images.read(everyone)).movedim(-1, -3)
    by_torch = augment_tensors(pixels, recipe, None, mix, mosaic)
    assert by_torch.shape == opencv.images.shape
    apart = (by_torch.int() - opencv.images.int()).abs().float()
    assert apart.mean() < (1.5 if kind == "clips" else 0.7), apart.mean()  # the clips are pure noise: each pixel an edge
    targets = data.column.take(everyone)
    if kind == "masks":
        moved, _ = augment_targets(targets.tensors(), recipe, mix, mosaic, data.shape[-2:], 0.25)
        assert (moved.ids == opencv.targets.ids).float().mean() > 0.995 and torch.equal(moved.share, opencv.targets.share)


def drawn_for(setting, data, rows, epoch, seed=0):
    "Recipe, mix, mosaic, and the rows read for a batch."
    augmenter, size = Augmenter(setting, data, seed, rows), data.shape[-2:]
    mix = make_mix(setting, augmenter.draws(rows, epoch), rows, size)
    mosaic = make_mosaic(setting, augmenter.draws(rows, epoch, "mosaic", len(MOSAIC_COLUMNS)), rows, size)
    everyone = np.concatenate([rows, *([] if mosaic is None else [mosaic.partners.ravel()]), *([] if mix is None else [mix.partners])])
    fill = None if data.column.take(rows[:1]).reflects else GREY
    return make_recipe(setting, augmenter.draws(everyone, epoch), data.shape[-3:], fill), mix, mosaic, everyone


def painted_and_framed(seed=0, **setting):
    "Pictures of plain rectangles after augmentation: with their boxes, and with their masks."
    rng, images, boxes = np.random.default_rng(seed), np.zeros((30, 64, 64, 1), np.uint8), []
    for image in images:
        left, top, wide, high = rng.integers((2, 2, 8, 8), (36, 36, 24, 24)).tolist()
        image[top : top + high, left : left + wide] = 255
        boxes.append([[left, top, left + wide, top + high]])
    data = Dataset("rectangles", ArrayImages(images), BoxColumn(make_boxes(boxes, [[0]] * 30), 1), ("rectangle",))
    masks = Dataset("rectangles", ArrayImages(images), MaskColumn(lambda rows: images[rows, :, :, 0] // 255, 30, 2), ("background", "rectangle"))
    made = [Augmenter(replace(NONE, visible=0, **setting), held, seed, np.arange(30))(np.arange(30), 0) for held in (data, masks)]
    return made[0], made[1]


@pytest.mark.parametrize("setting", [
    {"crop": 12}, {"flip": 0.5, "flip_vertical": 0.5}, {"translate": 0.3}, {"scale": 0.4}, {"resized_crop": 0.6}, {"mosaic": 1.0}, {"cutmix": 1.0},
    {"mosaic": 0.7, "scale": 0.3, "flip": 0.5, "cutmix": 0.5},
], ids=lambda setting: "+".join(setting))
def test_boxes_lie_around_what_is_seen(setting):
    framed, painted = painted_and_framed(**setting)
    for place in range(30):
        seen, held = (framed.images[place, 0] > 170), framed.targets.of(place)  # filled with 127
        union = torch.zeros(64, 64, dtype=torch.bool)
        for left, top, right, bottom in held.boxes.round().int().tolist(): union[top:bottom, left:right] = True
        edge = 2 * (held.boxes[:, 2:] - held.boxes[:, :2]).sum() + 8  # a pixel along each side
        assert (seen & ~union).sum() <= edge
        if "cutmix" not in setting: assert (union & ~seen).sum() <= edge
    agree = (painted.images[:, 0] > 127) == (painted.targets.ids == 1)
    assert agree.float().mean() > 0.985  # by mask, the border reflected


def test_boxes_that_are_hardly_seen_are_left_out():
    def found(visible):
        augmenter = Augmenter(replace(NONE, translate=0.5, visible=visible), BOXED, 0)
        return sum(len(augmenter(np.arange(24), epoch).targets.labels) for epoch in range(5))
    assert found(0.9) < 0.8 * found(0.0)
    batch = Augmenter(replace(NONE, translate=0.5, visible=1.0), BOXED, 0)(np.arange(24), 0)
    assert len(batch.targets) == 24 and batch.images.shape[0] == 24


def test_only_pictures_with_boxes_are_filled():
    dark = Dataset("dark", ArrayImages(np.zeros((9, 40, 40, 3), np.uint8)), BoxColumn(make_boxes([[]] * 9, [[]] * 9), 1), ("a",))
    for setting in (replace(NONE, translate=0.4), replace(NONE, crop=20), replace(NONE, rotate=90)):
        assert set(Augmenter(setting, dark, 0)(np.arange(9), 0).images.unique().tolist()) >= {0, GREY}
        for targets in (np.zeros(9, np.int64), MaskColumn(lambda rows: np.zeros((len(rows), 40, 40), np.uint8), 9, 1)):
            assert not Augmenter(setting, replace(dark, targets=targets), 0)(np.arange(9), 0).images.any()


def test_erased_pixels_are_neither_learned_nor_judged():
    batch = Augmenter(replace(NONE, erase=1, erase_area=0.4), MASKED, 0)(np.arange(24), 0)
    hidden = batch.targets.ids == 255
    assert 0.03 < hidden.float().mean() < 0.4
    for image, mask in zip(batch.images, hidden, strict=True): assert len(image[:, mask].unique()) == 1
    assert torch.equal(batch.targets.ids[~hidden], torch.from_numpy(MASKS)[~hidden])


def test_mixing_masks():
    rows = np.arange(24)
    mixed = Augmenter(replace(NONE, mixup=1), MASKED, 0, rows)(rows, 0).targets
    assert torch.equal(mixed.ids, torch.from_numpy(MASKS)) and ((mixed.share >= 0) & (mixed.share <= 1)).all()
    partners = make_mix(replace(NONE, mixup=1), Augmenter(NONE, MASKED, 0).draws(rows, 0), rows, (64, 64)).partners
    assert np.array_equal(mixed.partner.numpy(), MASKS[partners])
    pasted = Augmenter(replace(NONE, cutmix=1), MASKED, 0, rows)(rows, 0).targets
    assert pasted.partner is None and not torch.equal(pasted.ids, torch.from_numpy(MASKS))


def test_several_labels_blend():
    batch = Augmenter(replace(NONE, mixup=1), SEVERAL, 0, np.arange(24))(np.arange(24), 0)
    assert batch.targets.shape == (24, 5) and batch.targets.min() >= 0 and batch.targets.max() <= 1 + 1e-6
    assert torch.equal(Augmenter(NONE, SEVERAL, 0)(np.arange(24), 0).targets, torch.from_numpy(SEVERAL.targets).float())


# Mosaics


def test_a_mosaic_counts_labels_by_area():
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1).repeat(20, 1).repeat(24, 2)
    data = dataset_of(images, classes=40)
    batch = Augmenter(replace(NONE, mosaic=1), data, 0, rows=np.arange(20))(np.arange(20), 0)
    assert batch.targets[:, 20:].sum() == 0  # partners are training rows only
    for image, shares in zip(batch.images[:, 0], batch.targets, strict=True):
        assert torch.allclose(torch.bincount(image.flatten(), minlength=40) / image.numel(), shares, atol=1e-6)
    assert (batch.targets > 0).sum(1).max() == 4


def test_mosaics_change_nothing_else():
    rows = np.arange(24)
    some = Augmenter(replace(PRESETS["strong"], mosaic=0.4), MASKED, 0, rows)(rows, 0)
    none = Augmenter(PRESETS["strong"], MASKED, 0, rows)(rows, 0)
    same = (some.geometry == none.geometry).all((1, 2))
    assert 8 < same.sum() < 20 and torch.equal(some.images[same], none.images[same]) and torch.equal(some.targets.ids[same], none.targets.ids[same])


def test_geometry_of_a_mosaic_leads_to_its_own_row():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 3, (8, 64, 64, 1)).copy()
    ramp[..., 0] += np.arange(8, dtype=np.uint8)[:, None, None] * 6
    data = dataset_of(ramp)
    setting = replace(NONE, mosaic=1)
    _, _, mosaic, _ = drawn_for(setting, data, np.arange(8), 0)
    batch = Augmenter(setting, data, 0, np.arange(8))(np.arange(8), 0)
    for item in range(8):
        own = int(np.flatnonzero(mosaic.places[item] == item)[0])
        left, top, right, bottom = mosaic.windows[item, own]
        x, y = (left + right) // 2, (top + bottom) // 2
        place = batch.geometry[item].double().numpy() @ (x, y, 1)
        assert abs(float(batch.images[item, 0, y, x]) - (place[0] * 3 + 6 * item)) < 4


def test_mosaics_need_rows():
    with pytest.raises(UsageError, match="training rows"): Augmenter(replace(NONE, mosaic=0.5), BOXED, 0)
    assert make_mosaic(NONE, np.zeros((4, 7), np.float32), np.arange(4), (8, 8)) is None
    batch = Augmenter(replace(NONE, mosaic=1e-6), MASKED, 0, np.arange(24))(np.arange(24), 0)
    assert torch.equal(batch.targets.ids, torch.from_numpy(MASKS))


# Clips


def test_frames_share_all_draws_but_the_noise():
    still = Dataset("still", ArrayImages(np.repeat(random_pixels(6, 1, 30, 32, 3), 4, 1)), np.arange(6) % 2, ("a", "b"))
    for setting in (PRESETS["light"], replace(PRESETS["strong"], noise=0, mosaic=0.5), replace(NONE, crop=4, flip=0.5)):
        images = Augmenter(setting, still, 0, np.arange(6))(np.arange(6), 0).images
        assert images.shape == (6, 4, 3, 30, 32) and torch.equal(images, images[:, :1].expand_as(images))
    noisy = Augmenter(replace(NONE, noise=20), still, 0)(np.arange(6), 0).images
    assert all(not torch.equal(noisy[0, 0], noisy[0, frame]) for frame in range(1, 4))


def test_a_frame_is_treated_as_a_picture_is():
    clips = random_pixels(8, 3, 26, 22, 3)
    for frame in range(3):
        pictures = Dataset("frames", ArrayImages(clips[:, frame]), np.arange(8) % 3, ("a", "b", "c"))
        whole = replace(CLIPS, images=ArrayImages(clips), targets=np.arange(8) % 3)
        setting = replace(EVERYTHING, noise=0)
        first, second = (Augmenter(setting, data, 2, np.arange(8))(np.arange(8), 1) for data in (pictures, whole))
        assert torch.equal(first.images, second.images[:, frame]) and torch.equal(first.targets, second.targets)
        assert torch.equal(first.geometry, second.geometry)


# Transforms of torchvision


@kinds
def test_a_transform_after_ours_goes_with_every_kind(kind):
    data, rows = KINDS[kind], np.arange(len(KINDS[kind]))
    setting = replace(PRESETS["light"], mixup=0.3) if kind == "masks" else PRESETS["light"]
    plain = Augmenter(setting, data, 0, rows)(rows, 2)
    flipped = Augmenter(setting, data, 0, rows, after=v2.RandomHorizontalFlip(1.0))(rows, 2)
    assert torch.equal(flipped.images, plain.images.flip(-1))
    if kind == "masks":
        for name in ("ids", "partner"): assert torch.equal(vars(flipped.targets)[name], vars(plain.targets)[name].flip(2))
    elif kind == "boxes":
        mirrored = torch.tensor([64.0, 0, 64, 0]) + plain.targets.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1])
        assert torch.allclose(flipped.targets.boxes, mirrored)
        assert torch.equal(flipped.targets.labels, plain.targets.labels) and torch.equal(flipped.targets.owner, plain.targets.owner)
    else: assert torch.equal(flipped.targets, plain.targets)


def test_a_transform_before_ours_sees_the_row_itself():
    invert = Augmenter(NONE, MASKED, 0, before=v2.RandomInvert(1.0))(np.arange(4), 0)
    assert np.array_equal(255 - invert.images.permute(0, 2, 3, 1).numpy(), PIXELS.read(np.arange(4)))
    setting = replace(NONE, cutmix=1)
    both = Augmenter(setting, MASKED, 0, np.arange(24), before=v2.RandomInvert(1.0))(np.arange(4), 0)
    assert torch.equal(both.images, 255 - Augmenter(setting, MASKED, 0, np.arange(24))(np.arange(4), 0).images)  # partners too


def test_boxes_that_a_transform_drops():
    class Half(torch.nn.Module):
        def forward(self, item):
            return {**item, "boxes": item["boxes"][1:], "labels": item["labels"][1:]}
    plain, fewer = (Augmenter(PRESETS["light"], BOXED, 0, after=after)(np.arange(24), 0).targets for after in (None, Half()))
    for place in range(24):
        for name in ("boxes", "labels"): assert torch.equal(vars(fewer.of(place))[name], vars(plain.of(place))[name][1:])
    cropped = Augmenter(NONE, BOXED, 0, after=v2.Compose([v2.RandomCrop(64, padding=30), v2.SanitizeBoundingBoxes()]))(np.arange(24), 0).targets
    assert len(cropped.labels) < len(plain.labels) and len(cropped.labels) == len(cropped.boxes) == len(cropped.owner) == len(cropped.crowd)


def test_transforms_draw_by_row_whatever_other_threads_draw():
    sometimes = v2.RandomApply([v2.RandomPosterize(3)], 0.5)
    wild = v2.Compose([v2.RandomPhotometricDistort(p=1), sometimes, v2.ElasticTransform(20.0), v2.RandomGrayscale(0.2)])
    augmenter = Augmenter(NONE, MASKED, 0, after=wild)
    expected, stop = [augmenter(np.arange(6), epoch) for epoch in range(2)], False

    def draw_on():
        while not stop: torch.rand(100)

    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = augmenter(np.arange(6)[::-1], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.images.flip(0), expected[0].images) and torch.equal(again.targets.ids.flip(0), expected[0].targets.ids)
    with ThreadPoolExecutor(4) as pool:
        noisy = pool.submit(draw_on)
        made = list(pool.map(lambda number: augmenter(np.arange(6), number % 2), range(6)))
        stop = True
        noisy.result()
    for number, batch in enumerate(made): assert_same(batch, expected[number % 2])
    assert not torch.equal(expected[0].images, expected[1].images)


@pytest.mark.parametrize(("transform", "sentence"), [
    (v2.Resize(9), "must stay uint8"), (v2.ToDtype(torch.float32, scale=True), "must stay uint8"), (lambda item: None, "gives NoneType"),
    (lambda item: item["nothing"], "fails"), (lambda item: {**item, "boxes": item["boxes"][:0]}, "SanitizeBoundingBoxes"),
    (lambda item: item["image"], "gives Image: it must give back the dict of tensors that it gets, of image, boxes, labels"),
    (lambda item: {"image": item["image"]}, "gives dict of image: it must give back"),
    (lambda item: {**item, "labels": item["labels"].tolist()}, "must give back the dict of tensors"),
    (lambda item: {**item, "boxes": item["boxes"] * torch.nan}, "no finite numbers"),
])
def test_transforms_that_cannot_be_used(transform, sentence):
    with pytest.raises(UsageError, match=sentence): Augmenter(NONE, BOXED, 0, after=transform)(np.arange(8), 0)


def test_boxes_in_another_format_are_the_same_boxes():
    plain, other = (Augmenter(NONE, BOXED, 0, after=change)(np.arange(8), 0) for change in (None, v2.ConvertBoundingBoxFormat("CXCYWH")))
    assert torch.allclose(plain.targets.boxes, other.targets.boxes, atol=1e-4)


def test_transforms_by_name():
    by_name = Augmenter(replace(NONE, after="torchvision.transforms.v2:RandomHorizontalFlip"), MASKED, 0)(np.arange(24), 0)
    given = Augmenter(NONE, MASKED, 0, after=v2.RandomHorizontalFlip())(np.arange(24), 0)
    assert_same(by_name, given)
    for path in ("torchvision:__version__", "torchvision.transforms.v2:Nothing", "no_such_module:thing"):
        with pytest.raises(UsageError): Augmenter(replace(NONE, before=path), MASKED, 0)


# Late


def test_a_late_augmenter_leaves_the_loss_to_do_the_same():
    images = smooth(24, 24, 3, batch=10)
    data = dataset_of(images)
    for setting in (AugmentConfig(brightness=0.3, contrast=0.3, hue=20), replace(NONE, crop=4, flip=0.5), NONE):
        late, early = (Augmenter(setting, data, 3, late=wait)(np.arange(10), 4) for wait in (True, False))
        assert np.array_equal(late.images.permute(0, 2, 3, 1).numpy(), images) and torch.equal(late.targets, early.targets)
        varied = vary(late.images.float(), late.variation)
        assert (varied.round().clamp(0, 255) - early.images).abs().mean() < 0.7 and late.variation.exact == is_exact(setting)
        assert late.to("cpu").variation.geometry.shape == (10, 3, 3)
    for name in ("blur", "noise", "erase", "mixup", "cutmix", "mosaic"):
        with pytest.raises(UsageError, match=f"{name} to 0"): Augmenter(replace(NONE, **{name: 1}), data, 0, np.arange(10), late=True)


# Settings


@pytest.mark.parametrize("name", [*PRESETS])
def test_presets_round_trip(name):
    assert from_json(AugmentConfig, to_json(PRESETS[name])) == PRESETS[name]
    assert eval(to_code(PRESETS[name])) == PRESETS[name]


def test_every_setting_has_a_range_and_a_help():
    for item in fields(AugmentConfig):
        assert item.metadata["help"] and item.metadata.get("low", 0) == (0.02 if item.name == "erase_area" else 0), item.name


def test_defaults_do_not_change_what_a_digit_means():
    config = AugmentConfig()
    assert config == PRESETS["light"] and config.rotate <= 15
    assert not any(getattr(config, name) for name in ("flip", "flip_vertical", "mixup", "cutmix", "erase"))


def test_strength_scales_the_ranges():
    draws = draw_table(0, "augment", 0, 5, len(COLUMNS))
    pair = replace(NONE, translate=0.2, brightness=0.2, strength=1.5), replace(NONE, translate=0.3, brightness=0.3)
    one, two = (make_recipe(config, draws, (3, 9, 9)) for config in pair)
    assert np.allclose(one.geometry, two.geometry) and np.allclose(one.colour, two.colour)


@st.composite
def configs(draw):
    "Any valid config, each setting at zero half of the time."
    def value(item):
        low, high = item.metadata["low"], item.metadata["high"]
        numbers = st.integers(low, high) if item.name == "crop" else st.floats(low, high)
        return numbers if item.name == "erase_area" else st.one_of(st.just(0), numbers)
    return AugmentConfig(**{item.name: draw(value(item)) for item in fields(AugmentConfig) if "low" in item.metadata})


@settings(max_examples=60, deadline=None)
@given(configs(), st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]), st.integers(0, 2**32), st.integers(0, 5))
def test_any_config_on_any_size(config, height, width, channels, seed, epoch):
    assert from_json(AugmentConfig, to_json(config)) == config and eval(to_code(config)) == config
    data = dataset_of(smooth(height, width, channels, batch=6), classes=3)
    rows = np.array([4, 0, 5])
    batch = Augmenter(config, data, seed, rows=np.arange(6))(rows, epoch)
    assert batch.images.shape == (3, channels, height, width) and batch.images.dtype == torch.uint8
    assert batch.geometry.shape == (3, 3, 3) and batch.geometry.isfinite().all()
    if batch.targets.ndim == 2: assert torch.allclose(batch.targets.sum(1), torch.ones(3), atol=1e-5) and batch.targets.min() >= 0
    else: assert torch.equal(batch.targets, torch.from_numpy(data.targets[rows]))


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]), st.integers(0, 1000))
def test_the_backends_agree_on_any_config(config, height, width, channels, seed):
    images = smooth(height, width, channels, batch=4)
    shape, draws = (channels, height, width), draw_table(seed, "augment", 0, 4, len(COLUMNS))
    recipe, strips = make_recipe(config, draws, shape), noise_strips(config, seed, math.prod(shape))
    by_torch = apply_tensors(torch.from_numpy(images).permute(0, 3, 1, 2), recipe, strips).permute(0, 2, 3, 1).numpy().astype(int)
    opencv = apply_arrays(images.copy(), recipe, strips)
    assert isinstance(recipe, Recipe) and by_torch.shape == opencv.shape
    assert abs(by_torch - opencv).mean() < 1 and np.percentile(abs(by_torch - opencv), 99) <= 8


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_config_on_every_kind(data):
    config, kind, epoch = data.draw(configs()), data.draw(st.sampled_from([*KINDS])), data.draw(st.integers(0, 3))
    held, rows = KINDS[kind], np.array([4, 0, 5])
    batch = Augmenter(config, held, 1, rows=np.arange(6))(rows, epoch)
    assert batch.images.shape == (3, *held.shape) and batch.images.dtype == torch.uint8 and batch.geometry.isfinite().all()
    if kind == "boxes":
        boxes = batch.targets.boxes
        assert boxes.isfinite().all() and ((boxes >= 0) & (boxes <= 64)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (batch.targets.share > 0).all() and (batch.targets.owner.diff() >= 0).all()
    if kind == "masks": assert ((batch.targets.ids < 6) | (batch.targets.ids == 255)).all()
