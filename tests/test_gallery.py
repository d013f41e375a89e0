"Counts of boxes against torchmetrics and values worked out by hand; masks against torchmetrics; latents; the three panels, driven without a page."

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_boxes import table

from cnnbench.boxes import FAULTS, average_precisions, break_down, find_faults, image_dicts, match_boxes, precision_curves
from cnnbench.core import UsageError
from cnnbench.detection import Detections
from cnnbench.experiment import create_run, experiment_for, load_model, prepare, train_run
from cnnbench.gallery import (
    KINDS, OVERLAPS, box_counts, box_lines, boxes_panel, draw_samples, error_map, error_places, faults_figure, interpolated_latents,
    latent_between, mask_review, masks_panel, match_overlaps, nearest_training, operating_curve, rates, samples_panel, verdict_picture, verdicts,
    worst_first,
)
from cnnbench.plot import grid_place, image_grid
from cnnbench.segmentation import MaskPredictions
from cnnbench.ui import Desk

SMALL = {
    "threads": 1, "data.shapes.count": 40, "data.size": 64, "train.batch_size": 16, "train.epochs": 1, "train.precision": "fp32",
    "train.layout": "contiguous",
}
GREY = SMALL | {"data.size": 16, "train.batch_size": 128}


def random_boxes(seed, images=6, classes=3, crowds=0.0):
    "Objects, and boxes near them and elsewhere; some are equally sure."
    random, true_boxes, boxes, crowd = np.random.default_rng(seed), [], [], []
    for image in range(images):
        for _ in range(random.integers(0, 6)):
            corner, name = random.uniform(0, 60, 2), int(random.integers(0, classes))
            box = np.concatenate([corner, corner + random.uniform(6, 40, 2)])
            true_boxes.append((image, name, box))
            crowd.append(bool(random.random() < crowds))
            for _ in range(random.integers(0, 3)):
                moved = box + random.normal(0, 3, 4)
                moved = np.concatenate([np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])])
                boxes.append((image, name if random.random() < 0.8 else int(random.integers(0, classes)), round(random.random(), 2), moved))
        for _ in range(random.integers(0, 3)):
            corner = random.uniform(0, 60, 2)
            box = np.concatenate([corner, corner + random.uniform(4, 40, 2)])
            boxes.append((image, int(random.integers(0, classes)), round(random.random(), 2), box))
    return table(boxes, true_boxes, crowd, images)


def only(found, kept):
    "Detections without the other boxes."
    kept = np.asarray(kept, bool if len(kept) else int)
    return Detections(found.rows, found.boxes[kept], found.scores[kept], found.labels[kept], found.owner[kept], found.true_boxes, found.true_labels,
                      found.true_owner, found.true_crowd)


def judged_of(setup, predictions, folder="runs/none", model=None, part="val"):
    return SimpleNamespace(folder=folder, setup=setup, model=model, predictions=predictions, evaluation=None, part=part)


def desk_of(setup): return Desk(setup.experiment, lambda experiment, before: setup)


def settled(panel):
    assert panel.wait(60)
    return panel


def click(picture, x, y): picture._handle_custom_msg({"x": x, "y": y}, [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "The folder and setup of a run of one epoch; each is made once."
    root, made = tmp_path_factory.mktemp("runs"), {}

    def get(task, **changes):
        if task not in made:
            setup = prepare(experiment_for(task, changes))
            folder = create_run(setup, root / task)
            for _ in train_run(folder, setup): pass
            made[task] = folder, setup
        return made[task]
    return get


# Boxes


@pytest.mark.parametrize(("fault", "box", "label", "overlap"), [
    ("localisation", [0, 0, 10, 4], 0, 0.5), ("localisation", [0, 0, 10, 7], 0, 0.75), ("class", [0, 0, 10, 10], 1, 0.5),
    ("duplicate", [0, 0, 10, 9], 0, 0.5), ("background", [50, 50, 60, 60], 0, 0.5), ("both", [0, 0, 10, 4], 1, 0.5), ("both", [0, 0, 10, 7], 1, 0.75),
])
def test_each_fault_by_hand(fault, box, label, overlap):
    surer = [(0, 0, 0.9, [0, 0, 10, 10])] if fault == "duplicate" else []
    matches = match_overlaps(table([*surer, (0, label, 0.5, box)], [(0, 0, [0, 0, 10, 10]), (1, 1, [0, 0, 10, 10])], images=2), 2)
    counts = box_counts(matches, 0.3, overlap)
    found, near = len(surer), fault in ("localisation", "class", "duplicate")
    assert FAULTS[counts.fault[-1]] == fault and counts.total() == (found, 1, 2 - found)
    assert counts.faults() == dict.fromkeys(FAULTS, 0) | {fault: 1, "missed": 1 + (not near)}
    assert box_counts(matches, 0.95, overlap).total() == (0, 0, 2)  # what is not sure enough is neither right nor wrong


def test_a_box_is_right_at_one_overlap_and_wrong_at_another():
    matches = match_overlaps(table([(0, 0, 0.9, [0, 0, 10, 7])], [(0, 0, [0, 0, 10, 10])]), 1)
    assert [box_counts(matches, 0, overlap).total() for overlap in (0.5, 0.65, 0.71, 0.75)] == [(1, 0, 0), (1, 0, 0), (0, 1, 1), (0, 1, 1)]
    assert 0.71 not in OVERLAPS  # and one that was not matched before
    assert rates(*box_counts(matches, 0, 0.5).total()) == (1, 1, 1)


def test_of_two_boxes_on_an_object_the_surer_one_is_right():
    found = table([(0, 0, 0.6, [0, 0, 10, 10]), (0, 0, 0.8, [0, 0, 10, 9])], [(0, 0, [0, 0, 10, 10])])
    counts = box_counts(match_overlaps(found, 1), 0, 0.5)
    assert counts.fault.tolist() == [FAULTS.index("duplicate"), -1] and counts.object.tolist() == [-1, 0]


def test_a_crowd_is_neither_missed_nor_wrong():
    found = table([(0, 0, 0.9, [0, 0, 10, 10])], [(0, 0, [0, 0, 40, 40])], [True])
    counts = box_counts(match_overlaps(found, 1), 0, 0.5)
    assert counts.total() == (0, 0, 0) and counts.fault.tolist() == [-2] and all(map(math.isnan, rates(*counts.total())))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_without_sliders_the_errors_are_those_of_the_evaluation(seed):
    found = random_boxes(seed, crowds=0.2)
    hits, counts = match_boxes(found, 3), box_counts(match_overlaps(found, 3), 0, 0.5)
    assert counts.faults() == {name: count for name, (count, _) in break_down(found, hits).items()}
    faults = find_faults(found, hits)
    assert np.array_equal(counts.fault[hits.order], faults.kind) and np.array_equal(counts.unmeant, faults.missed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.5, 0.8]), st.sampled_from([0.1, 0.5, 0.62, 0.75, 0.95]))
def test_leaving_unsure_boxes_out_first_or_last_is_the_same(seed, confidence, overlap):
    found = random_boxes(seed, crowds=0.1)
    kept = found.scores >= confidence
    counts, alone = box_counts(match_overlaps(found, 3), confidence, overlap), box_counts(match_overlaps(only(found, kept), 3), 0, overlap)
    assert counts.total() == alone.total() and np.array_equal(counts.fault[kept], alone.fault) and np.array_equal(counts.lost, alone.lost)
    right, false, missed = counts.total()
    assert right + missed == (~found.true_crowd).sum() and right + false == (counts.fault[kept] != -2).sum()
    assert sum(count for name, count in counts.faults().items() if name != "missed") == false


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_recall_is_that_of_torchmetrics(seed, confidence):
    from torchmetrics.detection import MeanAveragePrecision

    found = random_boxes(seed, images=12)
    kept = only(found, found.scores >= confidence)
    metric = MeanAveragePrecision(iou_thresholds=[0.5, 0.75, 0.9], extended_summary=True, backend="faster_coco_eval")
    metric.update(*image_dicts(kept))
    told, matches = metric.compute(), match_overlaps(found, 3)
    for place, overlap in enumerate((0.5, 0.75, 0.9)):
        counts = box_counts(matches, confidence, overlap)
        assert told["recall"][place, :, 0, -1].numpy() == pytest.approx(counts.right / (counts.right + counts.missed), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_gives_the_average_precision(seed):
    "COCO's AP is the mean, over 101 recalls, of the highest precision at that recall or more."
    found = random_boxes(seed, images=20)
    found.scores[:] = np.random.default_rng(seed).permutation(len(found.scores)) / len(found.scores)  # no two are equally sure
    hits, matches = match_boxes(found, 3), match_overlaps(found, 3)
    for which in range(3):
        for place, overlap in ((0, 0.5), (5, 0.75)):
            curve = operating_curve(matches, overlap, which)
            highest = [curve.precision[curve.recall >= recall - 1e-7].max(initial=0) for recall in np.linspace(0, 1, 101)]
            assert highest == pytest.approx(precision_curves(hits, which)[place], abs=1e-9)
            assert np.mean(highest) == pytest.approx(average_precisions(hits)[which, place])


def test_nothing_found_and_nothing_there():
    for boxes, there in (([], [(0, 0, [0, 0, 10, 10])]), ([(0, 0, 0.9, [0, 0, 10, 10])], []), ([], [])):
        matches = match_overlaps(table(boxes, there), 2)
        counts, curve = box_counts(matches), operating_curve(matches)
        assert counts.total() == (0, len(boxes), len(there)) and all(map(math.isnan, curve.best())) == (not (boxes and there))
        assert len(faults_figure(counts).data[0].x) == len(FAULTS)
        for kind in KINDS: assert len(error_places(matches, counts, kind)) in (0, 1)


def test_boxes_of_one_image():
    found = table([(0, 0, 0.9, [0, 0, 30, 30]), (0, 1, 0.8, [40, 40, 60, 60]), (0, 0, 0.1, [0, 0, 5, 5])],
                  [(0, 0, [0, 0, 30, 30]), (0, 0, [40, 40, 60, 60])])
    matches = match_overlaps(found, 2)
    counts = box_counts(matches, 0.3, 0.5)
    own, lost = verdicts(matches, counts, 0)
    assert own.tolist() == [0, 1] and lost.tolist() == [1]
    assert box_lines(matches, counts, ("dog", "cat"), 0) == [
        ["right", "dog", "0.90", "1.00", "dog"], ["class", "cat", "0.80", "1.00", "dog"], ["missed", "dog", "–", "–", "–"]]
    image = SimpleNamespace(read=lambda rows: np.full((1, 100, 100, 1), 90, np.uint8))
    drawn = verdict_picture(SimpleNamespace(images=image, classes=("dog", "cat")), matches, counts, 0, 400)
    assert drawn.shape == (400, 400, 3) and len(np.unique(drawn.reshape(-1, 3), axis=0)) >= 4  # image, rim, and a colour for each look


def test_a_click_finds_its_image():
    for count, columns in ((8, 4), (7, 4), (1, 4), (3, 3)):
        sheet = image_grid(np.zeros((count, 30, 20), np.uint8), ["a\nb"] * count, columns, 60)
        tall, wide = (sheet.height - 8) / math.ceil(count / min(columns, count)), (sheet.width - 8) / min(columns, count)
        for place in range(count):
            x, y = 8 + (place % columns + 0.4) * wide, 8 + (place // columns + 0.4) * tall
            assert grid_place(sheet.size, count, columns, x / sheet.width, y / sheet.height) == place
    assert grid_place(image_grid(np.zeros((7, 9, 9), np.uint8), columns=4).size, 7, 4, 0.9, 0.9) is None


# Masks


@pytest.mark.parametrize("seed", range(3))
def test_error_map_pixel_by_pixel(seed):
    random = np.random.default_rng(seed)
    guess, truth = random.integers(0, 3, (9, 7), np.uint8), random.choice(np.array([0, 1, 2, 255], np.uint8), (9, 7))
    made = error_map(guess, truth)
    for at in np.ndindex(9, 7): assert made[at] == (255 if truth[at] == 255 else int(guess[at] != truth[at]))


@pytest.mark.parametrize("seed", range(3))
def test_ious_are_those_of_torchmetrics(seed):
    from torchmetrics.functional.classification import multiclass_jaccard_index

    random = np.random.default_rng(seed)
    guess, truth = random.integers(0, 4, (5, 12, 10), np.uint8), random.choice(np.array([0, 1, 2, 3, 255], np.uint8), (5, 12, 10))
    review = mask_review(MaskPredictions(np.arange(5), guess), truth, 4)
    def official(made, there):
        return multiclass_jaccard_index(torch.from_numpy(made).long(), torch.from_numpy(there).long(), 4, average="none", ignore_index=255).numpy()
    assert review.overall == pytest.approx(official(guess, truth), abs=1e-6)
    for place in range(5): assert review.ious[place] == pytest.approx(official(guess[place], truth[place]), abs=1e-6)
    assert np.all(np.diff(review.means[worst_first(review)]) >= 0) and np.all(np.diff(review.ious[worst_first(review, 2), 2]) >= 0)


def test_an_image_without_a_known_pixel_comes_last():
    truth = np.array([[[255, 255]], [[0, 1]]], np.uint8)
    review = mask_review(MaskPredictions(np.arange(2), np.zeros((2, 1, 2), np.uint8)), truth, 2)
    assert worst_first(review).tolist() == [1, 0] and worst_first(review, 1).tolist() == [1]


# Latents


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 64), st.integers(2, 12))
def test_the_way_keeps_to_the_sphere(seed, latent, steps):
    draw = torch.Generator().manual_seed(seed)
    first, second = torch.randn(latent, generator=draw), 3 * torch.randn(latent, generator=draw)
    way = interpolated_latents(first, second, steps)
    low, high = sorted((float(first.norm()), float(second.norm())))
    assert torch.equal(way[0], first) and torch.equal(way[-1], second) and way.shape == (steps, latent)
    assert all(low * (1 - 1e-4) <= float(held.norm()) <= high * (1 + 1e-4) for held in way)
    turns = [torch.cosine_similarity(one.double(), two.double(), 0).clamp(-1, 1).arccos() for one, two in zip(way, way[1:], strict=False)]
    assert torch.stack(turns).std(correction=0) < 1e-3
    assert torch.allclose(way.flip(0), interpolated_latents(second, first, steps), atol=1e-4)


def test_codes_that_lie_on_a_line():
    one = torch.tensor([3.0, 4.0])
    assert latent_between(one, one, 0.5).tolist() == pytest.approx([3, 4])
    middle = latent_between(one, -one, 0.5)
    assert float(middle.norm()) == pytest.approx(5) and float(middle @ one) == pytest.approx(0, abs=1e-5)
    with pytest.raises(UsageError, match="one length"): interpolated_latents(one, torch.ones(3))


# Panels


def test_boxes_panel_follows_its_sliders(trained):
    folder, setup = trained("detection", **SMALL, **{"task.detection.score": 0.001, "task.detection.most": 20})
    model = load_model(folder, setup)
    found = setup.task.predict(model, setup.loader(setup.split.val)(0))
    assert len(found.boxes)
    panel = settled(boxes_panel(desk_of(setup), judged_of(setup, found, folder)))
    panel.of["confidence"].value, panel.of["overlap"].value, panel.of["kind"].value = float(np.median(found.scores)), 0.1, "errors"
    settled(panel)
    names: dict = {}
    exec(panel.code(), names)
    matches = match_overlaps(found, 5)
    counts = box_counts(matches, panel.of["confidence"].value, 0.1)
    assert names["result"].total() == counts.total() and np.array_equal(names["result"].fault, counts.fault) and counts.total()[0] + counts.total()[1]
    assert panel.of["message"].value == "" and all(f">{number}<" in panel.of["figures"].value for number in counts.total())
    places = error_places(matches, counts, "errors")
    assert names["places"].tolist() == places[:8].tolist()
    click(panel.of["grid"], 0.01, 0.02)
    settled(panel)
    assert panel.of["chosen"].value == places[0] and panel.of["large"].data and "verdict" in panel.of["lines"].value


def test_boxes_panel_filters_pages_and_finds_the_best(trained):
    setup = prepare(experiment_for("detection", SMALL))
    told = setup.dataset.targets.take(setup.split.train)
    random = np.random.default_rng(0)
    scores, away = random.uniform(0.1, 1, len(told.labels)).astype(np.float32), (random.random((len(told.labels), 1)) < 0.4) * 30
    there = told.boxes, told.labels, told.owner, told.crowd
    found = Detections(setup.split.train, (told.boxes + away).astype(np.float32), scores, told.labels, told.owner, *there)
    panel, matches = settled(boxes_panel(desk_of(setup), judged_of(setup, found, part="train"))), match_overlaps(found, 5)
    panel.of["page"].value = 2
    panel.of["best"].click()
    best = panel.of["confidence"].value
    f1 = [rates(*box_counts(matches, score, 0.5).total())[2] for score in scores]
    assert rates(*box_counts(matches, best, 0.5).total())[2] == pytest.approx(max(f1))
    panel.of["faults"]._handle_custom_msg({"kind": "click", "points": [{"curve": 0, "point": 0, "x": 3, "y": "localisation"}]}, [])
    settled(panel)
    places = error_places(matches, box_counts(matches, best, 0.5), "localisation")
    assert (panel.of["kind"].value, panel.of["page"].value) == ("localisation", 1) and panel.of["page"].max == max(1, math.ceil(len(places) / 8))
    panel.of["which"].value = 2
    settled(panel)
    assert panel.of["message"].value == "" and setup.task.classes[2] in panel.of["curve"].figure
    panel.of["confidence"].value = 1.0
    settled(panel)
    assert panel.of["grid"].data == b"" and "No image shows this" in panel.of["legend"].value


def test_boxes_panel_where_nothing_was_found():
    setup = prepare(experiment_for("detection", SMALL))
    told = setup.dataset.targets.take(setup.split.val)
    found = only(Detections(setup.split.val, told.boxes, told.share, told.labels, told.owner, told.boxes, told.labels, told.owner, told.crowd), [])
    panel = settled(boxes_panel(desk_of(setup), judged_of(setup, found)))
    panel.of["best"].click()
    assert settled(panel).of["message"].value == "" and panel.of["grid"].data and f">{len(told.labels)}<" in panel.of["figures"].value


def test_masks_panel_follows_its_controls(trained):
    folder, setup = trained("segmentation", **SMALL)
    made = setup.task.predict(load_model(folder, setup), setup.loader(setup.split.val)(0))
    panel = settled(masks_panel(desk_of(setup), judged_of(setup, made, folder)))
    review, seen = mask_review(made, setup.dataset.targets.take(made.rows).ids, 6), set()
    for what in ("truth", "prediction", "errors"):
        panel.of["what"].value = what
        settled(panel)
        seen.add(panel.of["grid"].data)
    panel.of["opacity"].value = 0.9
    seen.add(settled(panel).of["grid"].data)
    assert len(seen) == 4 and panel.of["message"].value == ""
    panel.of["classes"]._handle_custom_msg({"kind": "click", "points": [{"curve": 0, "point": 0, "x": "?", "y": 0}]}, [])
    which = int(np.nanargmin(review.overall))
    assert panel.of["which"].value == which
    names: dict = {}
    exec(panel.code(), names)
    assert np.array_equal(names["result"].ious, review.ious, equal_nan=True) and names["places"].tolist() == worst_first(review, which)[:8].tolist()
    click(settled(panel).of["grid"], 0.01, 0.02)
    settled(panel)
    assert panel.of["chosen"].value == worst_first(review, which)[0] and panel.of["large"].data and "true pixels" in panel.of["lines"].value


def test_what_cannot_be_shown_is_said():
    setup = prepare(experiment_for("segmentation", SMALL))
    odd = MaskPredictions(setup.split.val, np.full((len(setup.split.val), 64, 64), 9, np.uint8))
    panel = settled(masks_panel(desk_of(setup), judged_of(setup, odd)))
    assert "ids go from 0 to 5" in panel.of["message"].value and "Traceback" not in panel.of["message"].value


def test_samples_panel_follows_its_controls(trained):
    helper, _ = trained("classification", **GREY)
    folder, setup = trained("generation", **GREY, **{"task.helper": str(helper)})
    model = load_model(folder, setup)
    samples = setup.task.predict(model, setup.loader(setup.split.val)(0))
    panel = settled(samples_panel(desk_of(setup), judged_of(setup, samples, folder, model)))
    before = [panel.of[name].data for name in ("grid", "way", "near")]
    panel.of["seed"].value, panel.of["which"].value, panel.of["breadth"].value, panel.of["share"].value = 5, 3, 0.7, 0.25
    settled(panel)
    assert panel.of["message"].value == "" and all(panel.of[name].data != held for name, held in zip(("grid", "way", "near"), before, strict=True))
    names: dict = {}
    exec(panel.code(), names)
    drawn = draw_samples(setup.task, model, 5, which=3, breadth=0.7)
    assert np.array_equal(names["result"].images, drawn.images) and set(drawn.labels) == {3} and 0 <= names["near"].copies <= 1
    near, way = panel.of["near"].data, panel.of["way"].data
    panel.of["share"].value = 0.9
    settled(panel)
    assert panel.of["way"].data != way and panel.of["near"].data == near
    click(panel.of["grid"], 0.01, 0.02)
    settled(panel)
    assert panel.of["chosen"].value == 0 and panel.of["near"].data != near and "Neighbours of sample 1" in panel.of["copies"].value


def test_samples_without_classes_and_without_a_judge():
    setup = prepare(experiment_for("generation", GREY | {"task.generation.conditional": False}))
    panel = settled(samples_panel(desk_of(setup), judged_of(setup, None, model=setup.build())))
    assert "which" not in panel.of and panel.of["message"].value == "" and panel.of["grid"].data and panel.of["way"].data
    assert "task.helper" in panel.of["copies"].value


def test_a_copy_is_seen():
    random = np.random.default_rng(0)
    known, real, fresh = (random.normal(0, 1, (count, 16)).astype(np.float32) for count in (200, 100, 50))
    held = SimpleNamespace(rows=np.arange(200) + 1000, features=known)
    near = nearest_training(np.concatenate([known[:25], fresh[:25]]), held, real)
    assert near.rows[:25, 0].tolist() == list(range(1000, 1025)) and near.copies == pytest.approx(0.5, abs=0.05)
    assert (near.apart[:25, 0] < near.limit).all() and np.all(np.diff(near.apart, axis=1) >= 0)
