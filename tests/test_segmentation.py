"""Segmenters: every network and loss, ignored and blended pixels, steps cut up, tiles, the deployed module, answers, what is explained."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchvision.ops import sigmoid_focal_loss

from cnnbench.core import UsageError, torch_seed
from cnnbench.data import Batch, DataConfig, Dataset, ShapesConfig, plain_batch
from cnnbench.export import Form, check_onnx, export_onnx
from cnnbench.layers import Normalize
from cnnbench.models import ModelConfig
from cnnbench.scenes import load_scene_masks
from cnnbench.segmentation import (
    LOSSES, SEGMENTERS, MaskAnswer, MaskPredictions, Segmentation, Tiled, UNet, balanced, count_pixels, cross_entropy, dice, draw_mask, focal,
    image_ious, level_losses, mask_colours, masks_apart, mix, pixel_figures, place_mask, predict_tiled, shares_of, telling_class,
    tile_starts, tile_window,
)
from cnnbench.targets import IGNORE, MaskColumn, Masks
from cnnbench.tasks import Place, SegmentationConfig, TaskConfig

CLASSES, SHAPE, MEAN, STD = ("background", "a", "b", "c"), (3, 64, 64), (120.0,) * 3, (60.0,) * 3
PLAIN = TaskConfig("segmentation")
OWN = f"{__name__}:own_segmenter"


def own_segmenter(shape, outputs, config):
    "A network of a user's own, without batch norm."
    return nn.Sequential(nn.Conv2d(shape[0], 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, outputs, 5, padding=2))


def own_loss(logits, shares, config): return (logits.softmax(1) - shares).square().mean((1, 2, 3))


def draw_ids(count: int, size=(64, 64), seed: int = 0, ignored: float = 0.0) -> torch.Tensor:
    "Masks of large random patches."
    rng = np.random.default_rng(seed)
    ids = np.stack([cv2.resize(rng.integers(0, len(CLASSES), (5, 5), np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) for _ in range(count)])
    ids[rng.random(ids.shape) < ignored] = IGNORE
    return torch.from_numpy(ids)


def draw_batch(count: int, ignored: float = 0.1, blended: bool = False) -> Batch:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *SHAPE), np.uint8))
    masks = Masks(draw_ids(count, ignored=ignored))
    if blended: masks = replace(masks, partner=draw_ids(count, seed=2, ignored=ignored), share=torch.linspace(0, 0.8, count))
    return Batch(images, masks, torch.arange(count))


def make(name: str = "unet", task: Segmentation | None = None, **settings) -> nn.Module:
    if name == "unet": settings = {"width": 0.25} | settings
    return (task or Segmentation(PLAIN, CLASSES)).build(ModelConfig(name, **settings), SHAPE, MEAN, STD)


@pytest.mark.parametrize("name", [*SEGMENTERS, OWN])
def test_every_network_learns_and_decodes(name):
    task, batch = Segmentation(PLAIN, CLASSES), draw_batch(2)
    model = make(name, task)
    loss = task.loss(model, batch, "model", 0)
    loss.backward()
    assert loss.shape == () and torch.isfinite(loss)
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    task.loss(model, draw_batch(1), "model", 0).backward()  # a last batch of one image
    model.eval()
    ids, sure = task.deployed(model)(batch.images)
    assert ids.dtype == torch.uint8 and ids.shape == sure.shape == (2, 64, 64) and int(ids.max()) < len(CLASSES)
    assert torch.equal(ids.long(), model(batch.images).argmax(1)) and float(sure.detach().min()) >= 1 / len(CLASSES)
    again = make(name, task)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), make(name, task).parameters(), strict=True))


@pytest.mark.parametrize(("name", "tile"), [
    ("unet", 0), ("lraspp_mobilenet_v3_large", 0), ("deeplabv3_mobilenet_v3_large", 0), (OWN, 0), ("unet", 48), (OWN, 32),
])
def test_export_agrees_on_drawn_images(name, tile, tmp_path):
    dataset = load_scene_masks(DataConfig(name="shapes", size=64, shapes=ShapesConfig(count=10)))
    task = Segmentation(TaskConfig("segmentation", segmentation=SegmentationConfig(tile=tile)), dataset.classes)
    model = task.build(ModelConfig(name, **({"width": 0.25} if name == "unet" else {})), SHAPE, MEAN, STD)
    images = torch.from_numpy(dataset.images.read(np.arange(10))).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        for _ in range(3): model(images)
    deployed, form = task.deployed(model), Form(task.input_names, task.output_names, task.apart)
    path = export_onnx(deployed, tmp_path / "m.onnx", task.inputs(images), form=form)
    parity = check_onnx(path, deployed, task.inputs(images), form=form)  # in batches of 1, 2 and 7
    assert parity.passed and parity.decisions_equal > 0.999 and parity.images == 10


@pytest.mark.parametrize("name", ["resnet18", "lite0"])
def test_a_unet_stands_on_any_backbone(name):
    model = make(backbone=name)
    assert isinstance(model.network, UNet) and model(draw_batch(2).images).shape == (2, 4, 64, 64)
    odd = Segmentation(PLAIN, CLASSES).build(ModelConfig("unet", backbone=name, width=0.25), (3, 70, 50), MEAN, STD)
    assert odd(torch.zeros(2, 3, 70, 50, dtype=torch.uint8)).shape == (2, 4, 70, 50)


def test_grey_images():
    for name in ("unet", "fcn_resnet50"):
        model = Segmentation(PLAIN, CLASSES).build(ModelConfig(name), (1, 32, 32), (120.0,), (60.0,))
        assert model(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape == (2, 4, 32, 32)


def test_the_trunk_of_another_model_is_taken_over(tmp_path):
    source = make()
    with torch.no_grad(): source(draw_batch(4).images)  # batch norm's figures are no longer those of a fresh one
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, tmp_path / "source.safetensors")
    taken = make(weights=str(tmp_path / "source.safetensors")).state_dict()
    trunk = [name for name in taken if name.startswith("network.backbone.")]
    assert trunk and all(torch.equal(taken[name], source.state_dict()[name]) for name in trunk)


# losses

def test_losses_equal_torch_and_torchvision():
    logits, ids = torch.randn(3, 4, 8, 8, dtype=torch.float64), draw_ids(3, (8, 8), ignored=0.2)
    shares, each = shares_of(Masks(ids), 4).double(), [ids[place : place + 1].long() for place in range(3)]
    wanted = [F.cross_entropy(logits[place : place + 1], each[place], ignore_index=IGNORE) for place in range(3)]
    assert torch.allclose(cross_entropy(logits, shares, PLAIN), torch.stack(wanted))
    soft = [F.cross_entropy(logits[place : place + 1], each[place], ignore_index=IGNORE, label_smoothing=0.1) for place in range(3)]
    assert torch.allclose(cross_entropy(logits, shares, replace(PLAIN, smoothing=0.1)), torch.stack(soft))
    pair, two = torch.randn(1, 2, 8, 8, dtype=torch.float64), (ids[:1] > 1).to(torch.uint8)  # of two classes, softmax is a sigmoid of the difference
    binary = sigmoid_focal_loss(pair[:, 1] - pair[:, 0], two.double(), alpha=-1, gamma=2, reduction="mean")
    assert torch.allclose(focal(pair, shares_of(Masks(two), 2).double(), PLAIN), binary[None])


def test_dice_and_balance_by_hand():
    ids = torch.tensor([[[0, 0, 0, 1]]], dtype=torch.uint8)
    shares, logits = shares_of(Masks(ids), 3), torch.zeros(1, 3, 1, 4)
    even = 1 / 3
    wanted = 1 - ((2 * 3 * even + 1) / (4 * even + 3 + 1) + (2 * even + 1) / (4 * even + 1 + 1)) / 2  # the third class is not there
    assert float(dice(logits, shares, PLAIN)) == pytest.approx(wanted, abs=1e-6)
    logits[:, 0] = 1.0
    first, second = np.log(np.e + 2) - 1, np.log(np.e + 2)
    assert float(balanced(logits, shares, PLAIN)) == pytest.approx(((3 * first + second) / 4 + (first + second) / 2) / 2, abs=1e-6)
    heavy = replace(PLAIN, segmentation=SegmentationConfig(dice=3))
    assert torch.allclose(mix(logits, shares, heavy), balanced(logits, shares, PLAIN) + 3 * dice(logits, shares, PLAIN))


@pytest.mark.parametrize("name", [*LOSSES, f"{__name__}:own_loss"])
def test_every_loss_gives_a_number_an_image(name):
    task, batch = Segmentation(replace(PLAIN, loss=name), CLASSES), draw_batch(3, ignored=0 if ":" in name else 0.1)
    model = make(OWN, task)
    whole = task.loss(model, batch, "model", 0)
    parts = [task.loss(model, Batch(batch.images[place, None], batch.targets.pick(slice(place, place + 1)), batch.rows[place, None]), "model", 0)
             for place in range(3)]
    assert torch.allclose(whole, sum(parts), atol=1e-5)
    right = torch.where(F.one_hot(batch.targets.ids.long().clamp(max=3), 4).permute(0, 3, 1, 2) > 0, 20.0, -20.0)
    shares = shares_of(batch.targets, 4)
    assert (task.criterion(right, shares, task.config) < task.criterion(-right, shares, task.config)).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_ignored_pixels_do_nothing(name):
    task, batch = Segmentation(replace(PLAIN, loss=name), CLASSES), draw_batch(2, ignored=0.3)
    logits = torch.randn(2, 4, 64, 64, requires_grad=True)
    task.criterion(logits, shares_of(batch.targets, 4), task.config).sum().backward()
    hidden = (batch.targets.ids == IGNORE)[:, None].expand_as(logits)
    assert (logits.grad[hidden] == 0).all() and (logits.grad[~hidden] != 0).any()
    nothing = Masks(torch.full((2, 64, 64), IGNORE, dtype=torch.uint8))
    loss = task.loss(make(OWN, task), replace(batch, targets=nothing), "model", 0)
    assert float(loss.detach()) == 0


def test_levels_see_no_ignored_pixels():
    ids = draw_ids(2)
    ids[:, 32:] = IGNORE  # whole windows of every level
    levels = [torch.zeros(2, 4, side, side, requires_grad=True) for side in (8, 16, 32, 64)]
    level_losses(Segmentation(PLAIN, CLASSES), levels, Masks(ids)).sum().backward()
    for held in levels:
        upper, lower = held.grad.chunk(2, dim=2)
        assert (lower == 0).all() and (upper != 0).any()


def test_blended_masks_weigh_both():
    batch = draw_batch(3, ignored=0, blended=True)
    logits = torch.randn(3, 4, 64, 64)
    def loss(ids: torch.Tensor) -> torch.Tensor: return cross_entropy(logits, shares_of(Masks(ids), 4), PLAIN)
    mixed, share = cross_entropy(logits, shares_of(batch.targets, 4), PLAIN), batch.targets.share
    assert torch.allclose(mixed, loss(batch.targets.ids) * (1 - share) + loss(batch.targets.partner) * share, atol=1e-5)


@pytest.mark.parametrize("blended", [False, True])
def test_accumulation_of_1_equals_8(blended):
    task, batch = Segmentation(PLAIN, CLASSES), draw_batch(8, blended=blended)
    model = make("unet", task).eval()  # batch norm at rest: its figures would be those of a micro-batch
    def gradient(size: int) -> list[torch.Tensor]:
        model.zero_grad()
        for start in range(0, 8, size):
            part = slice(start, start + size)
            (task.loss(model, Batch(batch.images[part], batch.targets.pick(part), batch.rows[part]), "model", 0) / 8).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]
    for one, other in zip(gradient(8), gradient(1), strict=True): assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def test_few_images_are_learned_by_heart():
    dataset = load_scene_masks(DataConfig(name="shapes", size=64, shapes=ShapesConfig(count=10)))
    batch, task = plain_batch(dataset)(np.arange(4), 0), Segmentation(PLAIN, dataset.classes)
    model = task.build(ModelConfig("unet", width=0.5), SHAPE, MEAN, STD)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(60):
        (task.loss(model, batch, "model", step) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
    figures = task.validate(model, [batch])
    assert model.training and figures["val_mean_iou"] > 0.8 and figures["val_dice"] > figures["val_mean_iou"]


# figures

def test_figures_equal_torchmetrics():
    guesses, truth = draw_ids(5, seed=3).long(), draw_ids(5, seed=4, ignored=0.1)
    truth[truth == 3], guesses[guesses == 3] = 0, 0  # a class that occurs nowhere
    figures = pixel_figures(count_pixels(guesses, truth, 4))
    assert figures["mean_iou"] == pytest.approx(float(multiclass_jaccard_index(guesses, truth.long(), 4, ignore_index=IGNORE)), abs=1e-6)
    assert figures["accuracy"] == pytest.approx(float((guesses == truth)[truth != IGNORE].float().mean()), abs=1e-6)
    each = image_ious(guesses.to(torch.uint8).numpy(), truth.numpy(), 4)
    wanted = [float(multiclass_jaccard_index(guess, known.long(), 4, ignore_index=IGNORE)) for guess, known in zip(guesses, truth, strict=True)]
    assert each == pytest.approx(wanted, abs=1e-6)


def test_validation_is_that_of_the_predictions():
    task, batches = Segmentation(PLAIN, CLASSES), [draw_batch(3), draw_batch(2)]
    model = make("unet", task)
    figures, made = task.validate(model, batches), task.predict(model, batches)
    assert set(figures) == {"val_loss", "val_mean_iou", "val_dice", "val_accuracy"} and model.training
    assert made.rows.tolist() == [0, 1, 2, 0, 1] and made.masks.dtype == np.uint8 and len(made) == 5
    cells = count_pixels(torch.from_numpy(made.masks), torch.cat([batch.targets.ids for batch in batches]), 4)
    assert figures["val_mean_iou"] == pytest.approx(pixel_figures(cells)["mean_iou"], abs=1e-9)
    with pytest.raises(UsageError, match="split is empty"): task.predict(model, [])


# tiles

class Around(nn.Module):
    "Looks 6 px around, without a norm."

    def __init__(self, channels: int = 3):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(channels, 6, 7, padding=3), nn.ReLU(), nn.Conv2d(6, 3, 7, padding=3))

    def forward(self, images): return self.convs(images.float() / 64)


@pytest.mark.parametrize(("size", "tile", "overlap"), [
    (100, 48, 24), (100, 100, 25), (64, 100, 25), (333, 96, 24), (40, 16, 0), (97, 32, 28), (200, 33, 1),
])
def test_tiles_cover_an_axis(size, tile, overlap):
    starts = tile_starts(size, tile, overlap)
    total, side = np.zeros(size), min(tile, size)
    for start in starts: total[start : start + side] += tile_window(start, size, side, overlap).numpy()
    assert starts[0] == 0 and starts[-1] + side == size and (np.diff(starts) > 0).all() and (total > 0).all()
    assert all(first + side - second >= overlap for first, second in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("size", [(150, 97), (48, 160), (30, 30)])
def test_tiles_leave_no_seam(size):
    with torch_seed(0): model = Around()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with torch.no_grad(): whole = model(torch.from_numpy(image).permute(2, 0, 1)[None]).softmax(1)[0].numpy()
    tiled = predict_tiled(model, image, 48, 0.5)  # the overlap's outer quarter is as wide as what the network sees
    assert tiled.shape == whole.shape and np.abs(tiled - whole).max() < 1e-5 and model.training
    assert np.abs(tiled.sum(0) - 1).max() < 1e-5


def test_tiles_of_a_constant_are_constant():
    constant = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(constant.weight)
    with torch.no_grad(): made = Tiled(nn.Sequential(Normalize((0,) * 3, (1,) * 3), constant), 32)(torch.zeros(2, 3, 90, 50, dtype=torch.uint8))
    wanted = constant.bias.log_softmax(0)[:, None, None]
    assert torch.allclose(made, wanted.expand_as(made), atol=1e-5)


def test_tiles_of_a_strided_network_lie_on_its_grid():
    with torch_seed(0): model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Upsample(scale_factor=4)).eval()
    image = torch.rand(1, 3, 256, 192)
    with torch.no_grad(): assert torch.allclose(Tiled(model, 128)(image).exp(), model(image).softmax(1), atol=1e-5)


# pictures, answers, what is explained

def test_pictures_of_masks():
    ids = np.zeros((10, 10), np.uint8)
    ids[2:8, 2:8], ids[9] = 2, IGNORE
    picture = draw_mask(np.full((10, 10, 1), 100, np.uint8), ids, CLASSES)
    colours = mask_colours(CLASSES)
    assert picture.shape == (10, 10, 3) and (picture[0] == 100).all() and (picture[2, 2] == colours[2]).all()
    assert np.abs(picture[5, 5] - (0.55 * 100 + 0.45 * colours[2])).max() <= 1 and (picture[9, 5] == 127).all()
    assert not (draw_mask(np.full((10, 10), 100, np.uint8), ids * 0, ("road", "sky")) == 100).all()  # without a background every class is tinted


def test_answers_lie_on_the_original():
    task, ids = Segmentation(PLAIN, CLASSES), draw_ids(1)[0].numpy()
    double = Place(np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]), (128, 128))
    window = Place(np.array([[1, 0, 10], [0, 1, 5], [0, 0, 1.0]]), (80, 100))
    large, shifted = task.answers([np.stack([ids, ids]), np.zeros((2, 64, 64))], [double, window])
    assert np.array_equal(large.mask, ids.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(shifted.mask[5:69, 10:74], ids) and (shifted.mask == IGNORE).sum() == 80 * 100 - 64 * 64
    assert place_mask(ids, Place(np.eye(3), (64, 64))) is ids
    records = shifted.records()
    assert sum(row["pixels"] for row in records) == 64 * 64 and sum(row["share"] for row in records) == pytest.approx(1, abs=1e-5)
    assert [row["pixels"] for row in records] == sorted((row["pixels"] for row in records), reverse=True)
    assert large.words().startswith(f"{records[0]['class']} {records[0]['share']:.1%}")
    assert MaskAnswer(np.full((4, 4), IGNORE, np.uint8), CLASSES).words() == "nothing"


def test_how_far_apart():
    ids, sure = np.array([[[0, 1]]], np.uint8), np.array([[[0.9, 0.6]]], np.float32)
    other, other_sure = np.array([[[0, 2]]], np.uint8), np.array([[[0.8, 0.6]]], np.float32)
    found = masks_apart([ids, sure], [other, other_sure])
    assert found.largest == pytest.approx(0.2, abs=1e-6) and found.equal == 0.5 and found.scale == pytest.approx(0.8)  # 0.6 + 0.6 - 1
    assert masks_apart([ids, sure], [ids, sure]).largest == 0
    tie = masks_apart([ids, sure * 0 + 0.5], [other, sure * 0 + 0.5])
    assert tie.largest == 0 and tie.equal == 0.5  # a tie may be broken either way


def test_the_most_telling_class():
    truth = np.array([[0, 0, 1, 1, 2, 2, 2, IGNORE]], np.uint8)
    assert telling_class(np.array([[0, 3, 1, 1, 1, 2, 2, 3]], np.uint8), truth, 4, True) == 1  # one wrong each, of the larger class
    assert telling_class(truth, truth, 4, True) == 2 and telling_class(truth * 0, truth, 4, True) == 0
    assert telling_class(truth * 0 + 3, truth, 4, True) == 3


def test_questions_ask_the_worst_images_first():
    dataset = load_scene_masks(DataConfig(name="shapes", size=64, shapes=ShapesConfig(count=10)))
    task = Segmentation(PLAIN, dataset.classes)
    model, rows = task.build(ModelConfig("unet", width=0.25), SHAPE, MEAN, STD), np.arange(6)
    masks = dataset.targets.take(rows).ids.copy()
    masks[3] = np.where(masks[3] > 0, 1 + masks[3] % 5, 0)  # each class taken for the next
    masks[5, :8] = 1
    questions = task.questions(model, MaskPredictions(rows, masks), dataset, 3)
    assert [question.rows for question in questions[:2]] == [[3], [5]] and len(questions) == 3
    first = questions[1]
    pixels = first.images.float().requires_grad_()
    scores = first.model(pixels)
    assert scores.shape == (1, 6) and first.answers.tolist() == [1]
    logits = model(pixels)
    assert torch.allclose(scores[0, 1], logits[0, 1][torch.from_numpy(masks[5] == 1)].sum(), rtol=1e-4)
    scores[0, 1].backward()
    assert pixels.grad.abs().sum() > 0 and isinstance(first.model.get_submodule(first.layer), nn.Module)


# sentences

@pytest.mark.parametrize(("config", "sentence"), [
    (ModelConfig("resnet18"), "no network for segmentation 'resnet18'"),
    (ModelConfig("fcn_resnet50", backbone="lite0"), "brings its own trunk"),
    (ModelConfig(f"{__name__}:half_segmenter"), "makes 4x32x32 of each image, but 4x64x64 is needed"),
])
def test_what_does_not_fit_is_said(config, sentence):
    with pytest.raises(UsageError, match=sentence): Segmentation(PLAIN, CLASSES).build(config, SHAPE, MEAN, STD)


def half_segmenter(shape, outputs, config): return nn.Conv2d(shape[0], outputs, 3, 2, 1)


def test_classes_and_losses_that_do_not_fit():
    with pytest.raises(UsageError, match="between 2 and 254 classes"): Segmentation(PLAIN, ["one"])
    with pytest.raises(UsageError, match="cross_entropy"): Segmentation(replace(PLAIN, loss="cross_entropi"), CLASSES)


def test_a_column_of_a_users_own():
    ids = draw_ids(6).numpy()
    images = load_scene_masks(DataConfig(name="shapes", size=64, shapes=ShapesConfig(count=10))).images
    dataset = Dataset("own", images, MaskColumn(lambda rows: ids[np.asarray(rows) % 6], 10, 4), CLASSES)
    task, batch = Segmentation(PLAIN, CLASSES), plain_batch(dataset)(np.arange(4), 0)
    assert torch.isfinite(task.loss(make(OWN, task), batch, "model", 0)) and task.caption(ids[0]).count("%") >= 2


def test_a_validation_without_a_known_pixel_is_said():
    task = Segmentation(TaskConfig(name="segmentation"), ("background", "object"))
    model = task.build(ModelConfig("unet"), (3, 32, 32), (127,) * 3, (60,) * 3)
    unknown = Masks(torch.full((2, 32, 32), IGNORE, dtype=torch.uint8))
    with pytest.raises(UsageError, match="every pixel of the validation masks is left out"):
        task.validate(model, [Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), unknown, torch.arange(2))])
