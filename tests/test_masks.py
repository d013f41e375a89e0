"""Masks judged: overlap, borders and intervals against other libraries and values worked out by hand; sentences; what a report shows."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index
from torchmetrics.functional.segmentation import dice_score

from cnnbench.core import UsageError
from cnnbench.data import DataConfig, ShapesConfig
from cnnbench.masks import (
    border_of, boundary_scores, evaluate_masks, judge_masks, mask_class_figure, mask_confusion_figure, mask_image_figure, mask_intervals, overlaps,
    pixel_counts, share_near, worst_places,
)
from cnnbench.scenes import load_scene_masks
from cnnbench.segmentation import MaskPredictions
from cnnbench.targets import IGNORE

CLASSES = ("background", "a", "b", "c", "never")


def draw_masks(count: int = 12, seed: int = 0, ignored: float = 0.0, size: tuple[int, int] = (40, 30)) -> np.ndarray:
    "Masks of large random patches; the last class is never there."
    rng = np.random.default_rng(seed)
    ids = np.stack([cv2.resize(rng.integers(0, 4, (5, 5), np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) for _ in range(count)])
    ids[rng.random(ids.shape) < ignored] = IGNORE
    return ids


@pytest.fixture(scope="module")
def pair():
    "Masks that are partly right, and the truth, some of it unknown."
    truths, others = draw_masks(ignored=0.1), draw_masks(seed=1)
    masks = np.where(np.random.default_rng(2).random(truths.shape) < 0.6, np.where(truths == IGNORE, 0, truths), others).astype(np.uint8)
    return masks, truths


def test_overlap_equals_torchmetrics_and_scikit_learn(pair):
    masks, truths = pair
    counts, known = pixel_counts(*pair, 5), truths != IGNORE
    iou, dice = overlaps(counts.true.sum(0), counts.given.sum(0), counts.both.sum(0))
    flat = (truths[known], masks[known])
    assert counts.confusion.tolist() == confusion_matrix(*flat, labels=range(5)).tolist()
    assert iou[:4] == pytest.approx(jaccard_score(*flat, labels=range(4), average=None)) and np.isnan(iou[4])
    assert dice[:4] == pytest.approx(f1_score(*flat, labels=range(4), average=None)) and np.isnan(dice[4])
    figures = {name: held.value for name, held in evaluate_masks(*pair, CLASSES).figures.items()}
    guesses, truth = torch.from_numpy(masks).long(), torch.from_numpy(truths).long()
    assert figures["mean_iou"] == pytest.approx(float(multiclass_jaccard_index(guesses, truth, 5, ignore_index=IGNORE)), abs=1e-6)
    assert figures["accuracy"] == pytest.approx(float(multiclass_accuracy(guesses, truth, 5, average="micro", ignore_index=IGNORE)), abs=1e-6)
    pixels = [torch.from_numpy(held).long().view(1, -1) for held in flat[::-1]]
    assert figures["dice"] == pytest.approx(float(dice_score(*pixels, 4, average="macro", input_format="index").mean()), abs=1e-6)


def test_overlap_of_each_image_equals_scikit_learn(pair):
    found = evaluate_masks(*pair, CLASSES)
    for mask, truth, value in zip(*pair, found.image_iou, strict=True):
        seen = truth != IGNORE
        assert value == pytest.approx(jaccard_score(truth[seen], mask[seen], average="macro"), abs=1e-9)
    assert found.figures["image_iou"].value == pytest.approx(found.image_iou.mean())


def test_overlap_by_hand():
    truths, masks = np.array([[[0, 0, 1, 1, IGNORE]]], np.uint8), np.array([[[0, 1, 1, IGNORE, 1]]], np.uint8)
    counts = pixel_counts(masks, truths, 2)  # a pixel without a guess is a miss, and nobody's
    assert (counts.true.tolist(), counts.given.tolist(), counts.both.tolist()) == ([[2, 2]], [[1, 2]], [[1, 1]])
    iou, dice = overlaps(counts.true[0], counts.given[0], counts.both[0])
    assert iou.tolist() == [1 / 2, 1 / 3] and dice == pytest.approx([2 / 3, 1 / 2])
    assert evaluate_masks(masks, truths, ("no", "yes")).figures["accuracy"].value == 0.5


def test_ignored_pixels_change_nothing(pair):
    masks, truths = pair
    other = np.where(truths == IGNORE, 3 - masks, masks).astype(np.uint8)
    first, second = (evaluate_masks(held, truths, CLASSES) for held in (masks, other))
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize("tolerance", [1.0, 1.5, 3.0])
def test_borders_equal_a_plain_count(tolerance):
    masks, truths = draw_masks(4, seed=5), draw_masks(4, seed=6)
    scores = boundary_scores(masks, truths, 5, tolerance)

    def border(ids, number):  # pixels with a neighbour of another class, by looking at each
        found = np.zeros(ids.shape, bool)
        for y, x in np.ndindex(ids.shape):
            around = [(y + dy, x + dx) for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            near = [ids[place] for place in around if 0 <= place[0] < ids.shape[0] and 0 <= place[1] < ids.shape[1]]
            found[y, x] = ids[y, x] == number and any(other != number for other in near)
        return found

    for image, number in np.ndindex(4, 4):
        given, true = border(masks[image], number), border(truths[image], number)
        assert np.array_equal(border_of(truths[image], number), true)
        if not given.any() or not true.any(): continue
        precision, recall = ((distance_transform_edt(~other)[one] <= tolerance).mean() for one, other in ((given, true), (true, given)))
        assert share_near(given, true, tolerance) == pytest.approx(precision) and share_near(true, given, tolerance) == pytest.approx(recall)
        assert scores[image, number] == pytest.approx(2 * precision * recall / (precision + recall) if precision + recall else 0)
    assert np.isnan(scores[:, 4]).all()


def test_borders_at_the_edges_of_what_is_known():
    square = np.zeros((1, 12, 12), np.uint8)
    square[:, :, :4] = 1
    assert border_of(square[0], 1).sum() == 12  # one column: the image's edge is no border
    half = square.copy()
    half[:, :, 4:] = IGNORE
    assert not border_of(half[0], 1).any()
    assert np.isnan(boundary_scores(square, half, 2, 1)).all()
    missed = np.zeros_like(square)
    assert boundary_scores(missed, square, 2, 1).tolist() == [[0, 0]]
    assert share_near(missed[0] > 0, square[0] > 0, 1) == 0


def test_tolerance_follows_the_diagonal():
    small, large = draw_masks(2), draw_masks(2, size=(300, 400))
    assert evaluate_masks(small, small, CLASSES).tolerance == 1
    assert evaluate_masks(large, large, CLASSES).tolerance == 3.75


def test_intervals_cover_and_repeat(pair):
    found, same = (evaluate_masks(*pair, CLASSES).figures for _ in range(2))
    assert found == same != evaluate_masks(*pair, CLASSES, seed=1).figures
    assert all(0 <= held.low <= held.value <= held.high <= 1 for held in found.values())
    assert found["mean_iou"].low < found["mean_iou"].value < found["mean_iou"].high
    perfect = evaluate_masks(pair[1] * (pair[1] != IGNORE), pair[1], CLASSES).figures
    assert {held.value for held in perfect.values()} == {1}


def test_intervals_are_those_of_drawing_images_again(pair):
    masks, truths = pair
    counts, boundary = pixel_counts(masks, truths, 5), boundary_scores(masks, truths, 5, 1)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        rows = rng.integers(0, len(masks), len(masks))
        drawn.append(evaluate_masks(masks[rows], truths[rows], CLASSES, resamples=1).figures["mean_iou"].value)
    held = mask_intervals(counts, boundary)["mean_iou"]
    wanted = np.quantile(drawn, [0.025, 0.975]) - (np.mean(drawn) - held.value)
    assert [held.low, held.high] == pytest.approx(wanted, abs=0.2 * (wanted[1] - wanted[0]))


@pytest.mark.parametrize(("masks", "truths", "sentence"), [
    (draw_masks(2)[:, :4], draw_masks(2), "of one size"),
    (draw_masks(1)[:0], draw_masks(1)[:0], "split is empty"),
    (draw_masks(2) + 7, draw_masks(2), "predicted masks hold the id"),
    (draw_masks(2), draw_masks(2) + 7, "true masks hold the id"),
    (draw_masks(2), np.full_like(draw_masks(2), IGNORE), "every pixel"),
])
def test_what_does_not_fit_is_said(masks, truths, sentence):
    with pytest.raises(UsageError, match=sentence): evaluate_masks(masks, truths, CLASSES)


def test_an_image_of_which_nothing_is_known(pair):
    masks, truths = pair[0], pair[1].copy()
    truths[3] = IGNORE
    found = evaluate_masks(masks, truths, CLASSES)
    assert np.isnan(found.image_iou[3]) and found.to_dict()["by_image"]["iou"][3] is None and worst_places(found, 12)[-1] == 3
    json.dumps(found.to_dict(), allow_nan=False)
    truths[1:] = IGNORE  # resamples must not be of unknown images alone
    found = evaluate_masks(masks, truths, CLASSES)
    json.dumps(found.to_dict(), allow_nan=False)
    alone = evaluate_masks(masks[:1], truths[:1], CLASSES).figures
    assert {name: held.value for name, held in found.figures.items()} == {name: pytest.approx(held.value) for name, held in alone.items()}


def test_no_border_has_no_figure():
    plain = np.zeros((3, 16, 16), np.uint8)
    figures = evaluate_masks(plain, plain, ("background", "object")).figures
    assert "boundary_f" not in figures and figures["mean_iou"].value == 1


def test_what_a_report_shows():
    dataset = load_scene_masks(DataConfig(name="shapes", size=64, shapes=ShapesConfig(count=20)))
    rows = np.arange(4, 16)
    masks = np.roll(dataset.targets.take(rows).ids, 3, axis=2)
    masks[5] = 0
    found = judge_masks(MaskPredictions(rows, masks), SimpleNamespace(classes=dataset.classes), dataset)
    assert worst_places(found, 1).tolist() == [5] and found.rows[5] == 9
    plain = found.to_dict()
    assert plain["figures"]["mean_iou"]["value"] == found.figures["mean_iou"].value and plain["by_image"]["rows"] == rows.tolist()
    assert {row["class"] for row in plain["by_class"]} == set(dataset.classes)
    assert sum(pixels for *_, pixels in plain["confusion"]) == masks.size
    json.dumps(plain, allow_nan=False)
    text = found.table()
    assert "12 images, 6 classes" in text and "mean iou" in text and all(name in text for name in dataset.classes)
    sections = found.sections()
    assert [heading for heading, _ in sections] == ["By class", "", "By image", "The worst images", ""]
    assert sections[3][1].size[0] > 600
    shares = np.asarray(mask_confusion_figure(found).data[0].z)
    assert abs(shares).sum(1) == pytest.approx(np.ones(6)) and shares.argmax(1)[0] == 0
    assert (shares.diagonal() >= 0).all() and (shares[~np.eye(6, dtype=bool)] <= 0).all()  # right blue, wrong vermilion
    bars = mask_class_figure(found).data
    assert [bar.name for bar in bars] == ["IoU", "Dice", "boundary F-score"] and list(bars[0].y) == sorted(bars[0].y)
    assert sum(mask_image_figure(found).data[0].y) == 12


def test_many_classes_are_cut_short():
    truths = np.arange(60, dtype=np.uint8).reshape(1, 6, 10).repeat(2, 0)
    found = evaluate_masks(truths, truths, [f"class <{number}> with a rather long name" for number in range(60)])
    assert "… and 40 classes with a higher IoU" in found.table()
    assert len(mask_class_figure(found).data[0].x) == 40 and len(mask_confusion_figure(found).data[0].x) == 30
    assert all("<" not in name for name in mask_class_figure(found).data[0].x)
