"Figures of detections against faster-coco-eval and values worked out by hand; errors in the manner of TIDE; odd and empty splits."

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbench.boxes import (
    FAULTS, THRESHOLDS, average_precisions, bootstrap_map, break_down, coco_figures, errors_figure, find_faults, judge_boxes, match_boxes, mean_known,
    named_means, pr_figure, precision_curves, take_objects,
)
from cnnbench.core import UsageError
from cnnbench.data import DataConfig, ShapesConfig
from cnnbench.detection import Detection, Detections
from cnnbench.scenes import load_scene_boxes
from cnnbench.tasks import TaskConfig

CLASSES = ("circle", "square", "triangle", "star", "ring")


def table(boxes, true_boxes, crowd=None, images=1):
    "Boxes as (owner, label, score, box), objects as (owner, label, box)."
    def column(rows, place, kind, shape=()): return np.array([row[place] for row in rows], kind).reshape(-1, *shape)
    return Detections(
        np.arange(images), column(boxes, 3, np.float32, (4,)), column(boxes, 2, np.float32), column(boxes, 1, np.int64), column(boxes, 0, np.int64),
        column(true_boxes, 2, np.float32, (4,)), column(true_boxes, 1, np.int64), column(true_boxes, 0, np.int64),
        np.array(crowd if crowd is not None else [False] * len(true_boxes), bool),
    )


@pytest.fixture(scope="module")
def scenes(): return load_scene_boxes(DataConfig(name="shapes", shapes=ShapesConfig(count=12)))


@pytest.fixture(scope="module")
def task(): return Detection(TaskConfig(name="detection"), CLASSES)


@st.composite
def splits(draw):
    "Objects, some of them crowds, and boxes near them and elsewhere."
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    images, classes, there, true_boxes, boxes = draw(st.integers(1, 6)), draw(st.integers(1, 4)), [], [], []
    for image in range(images):
        for _ in range(random.integers(0, 6)):
            corner, side, name = random.uniform(0, 60, 2), random.uniform(4, 40, 2), int(random.integers(0, classes))
            true_boxes.append((image, name, [*corner, *(corner + side)]))
            there.append(bool(random.random() < draw(st.sampled_from([0, 0.2]))))
            for _ in range(random.integers(0, 3)):
                moved = np.array([*corner, *(corner + side)]) + random.normal(0, 2, 4)
                moved = np.concatenate([np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])])  # its corners may have changed places
                boxes.append((image, name if random.random() < 0.8 else int(random.integers(0, classes)), random.random(), moved.tolist()))
        for _ in range(random.integers(0, 3)):
            corner = random.uniform(0, 60, 2)
            boxes.append((image, int(random.integers(0, classes)), random.random(), [*corner, *(corner + random.uniform(4, 40, 2))]))
    return table(boxes, true_boxes, there, images), classes


@pytest.mark.parametrize("second", [[0, 0, 10, 10], [2, 0, 12, 10]])
def test_of_two_objects_as_near_the_last_is_taken_as_coco_does(second):
    found = table([(0, 0, 0.9, [1, 0, 11, 10]), (0, 0, 0.8, second)], [(0, 0, [0, 0, 10, 10]), (0, 0, [2, 0, 12, 10])])
    ours, official = named_means(average_precisions(match_boxes(found, 1))), coco_figures(found)
    assert ours["map"] == pytest.approx(official["map"], abs=1e-6) and ours["map_75"] == pytest.approx(official["map_75"], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(splits())
def test_ours_equals_the_official_code(case):
    found, classes = case
    ours, official = named_means(average_precisions(match_boxes(found, classes))), coco_figures(found)
    if found.true_crowd.all(): return  # nothing to find
    for name, value in ours.items(): assert value == pytest.approx(official[name], abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(splits())
def test_errors_account_for_every_box_and_object(case):
    found, classes = case
    hits = match_boxes(found, classes)
    faults, broken = find_faults(found, hits), break_down(found, hits)
    assert ((faults.kind == -1) == (hits.taken[0] >= 0)).all()
    assert sum(count for name, (count, _) in broken.items() if name != "missed") == (hits.taken[0] == -1).sum()
    assert not set(faults.missed) & set(hits.taken[0][hits.taken[0] >= 0])
    assert all(0 <= gain <= 1 for _, gain in broken.values())


def test_a_box_takes_the_object_it_overlaps_most():
    shares = np.array([[0.6, 0.7], [0.9, 0.8], [0.9, 0.9]])
    taken = take_objects(shares, np.array([False, False]), np.array([0.5, 0.75]))
    assert taken.tolist() == [[1, 0, -1], [-1, 0, 1]]


def test_precision_and_ap_by_hand():
    "Hit, miss, hit; four objects: recall 1/4 at precision 1, 1/2 at 2/3, no more."
    far = [200, 200, 210, 210]
    found = table([(0, 0, 0.9, [0, 0, 10, 10]), (0, 0, 0.8, far), (0, 0, 0.7, [20, 0, 30, 10])],
                  [(0, 0, [20 * place, 0, 20 * place + 10, 10]) for place in range(4)])
    curve = precision_curves(match_boxes(found, 1), 0)[0]
    np.testing.assert_allclose(curve[:26], 1)
    np.testing.assert_allclose(curve[26:51], 2 / 3)
    np.testing.assert_allclose(curve[51:], 0)
    assert coco_figures(found)["map_50"] == pytest.approx((26 + 25 * 2 / 3) / 101)
    assert coco_figures(found)["mar_100"] == pytest.approx(0.5)


def test_sizes_are_told_apart():
    small, large = [0, 0, 10, 10], [0, 0, 200, 200]
    found = table([(0, 0, 0.9, small)], [(0, 0, small), (1, 0, large)], images=2)
    figures = coco_figures(found)
    assert figures["map_small"] == pytest.approx(1) and figures["map_large"] == 0 and "map_medium" not in figures


@pytest.mark.parametrize(("fault", "box", "label"), [
    ("localisation", [0, 0, 10, 4], 0), ("class", [0, 0, 10, 10], 1), ("duplicate", [0, 0, 10, 9], 0), ("background", [50, 50, 60, 60], 0),
    ("both", [0, 0, 10, 4], 1),
])
def test_each_fault_by_hand(fault, box, label):
    surer = [(0, 0, 0.9, [0, 0, 10, 10])] if fault == "duplicate" else []
    found = table([*surer, (0, label, 0.5, box)], [(0, 0, [0, 0, 10, 10]), (1, 1, [0, 0, 10, 10])], images=2)
    faults = find_faults(found, match_boxes(found, 2))
    assert FAULTS[faults.kind[-1]] == fault
    assert (0 in faults.missed) == (fault in ("background", "both")) and 1 in faults.missed


def test_what_mending_brings_by_hand():
    "One object is found by a box of the wrong class: mended, its class goes from an AP of 0 to 1, and the other class has a wrong box less."
    found = table([(0, 1, 0.9, [0, 0, 10, 10]), (1, 1, 0.8, [0, 0, 10, 10])], [(0, 0, [0, 0, 10, 10]), (1, 1, [0, 0, 10, 10])], images=2)
    hits = match_boxes(found, 2)
    assert mean_known(average_precisions(hits)[:, 0]) == pytest.approx(0.25)
    assert break_down(found, hits)["class"] == (1, pytest.approx(0.75))


def test_only_one_of_two_mended_boxes_finds_an_object():
    found = table([(0, 0, 0.9, [0, 0, 10, 4]), (0, 0, 0.8, [0, 0, 10, 3])], [(0, 0, [0, 0, 10, 10])])
    assert break_down(found, match_boxes(found, 1))["localisation"] == (2, pytest.approx(1.0))


def test_intervals_hold_the_value_and_do_not_depend_on_chance(scenes, task):
    random = np.random.default_rng(0)
    corners = random.uniform(0, 50, (40, 2))
    true = [(image, 0, [*corner, *(corner + 20)]) for image, corner in enumerate(corners)]
    boxes = [(image, 0, random.random(), (np.array(box) + random.normal(0, 2, 4)).tolist()) for image, _, box in true]
    hits = match_boxes(table(boxes, true, images=40), 1)
    bounds = bootstrap_map(hits, seed=1)
    for name, value in named_means(average_precisions(hits)).items(): assert bounds[name][0] < value < bounds[name][1]
    assert bounds == bootstrap_map(hits, seed=1) != bootstrap_map(hits, seed=2)
    assert bootstrap_map(match_boxes(table([], [(0, 0, [0, 0, 5, 5])]), 1)) == {}


def test_weights_count_images_again():
    found = table([(0, 0, 0.9, [0, 0, 10, 10]), (1, 0, 0.8, [50, 50, 60, 60])], [(0, 0, [0, 0, 10, 10]), (1, 0, [0, 0, 10, 10])], images=2)
    hits = match_boxes(found, 1)
    assert average_precisions(hits, np.array([2.0, 0]))[0, 0] == pytest.approx(1)
    assert average_precisions(hits, np.array([0.0, 2]))[0, 0] == 0
    assert average_precisions(hits, np.array([1.0, 1]))[0, 0] == pytest.approx(51 / 101)


@pytest.mark.parametrize("empty", ["boxes", "objects", "both"])
def test_nothing_found_or_nothing_there(empty, scenes, task):
    boxes = [] if empty in ("boxes", "both") else [(0, 0, 0.9, [0, 0, 10, 10])]
    true = [] if empty in ("objects", "both") else [(0, 0, [0, 0, 10, 10])]
    evaluation = judge_boxes(table(boxes, true, images=2), task, scenes)
    assert evaluation.figures["map"].value == 0 and evaluation.errors["missed"][0] == len(true)
    json.dumps(evaluation.to_dict(), allow_nan=False)
    assert "nan" not in evaluation.table().lower()
    for _, shown in evaluation.sections(): assert shown is not None


def test_evaluation_of_perfect_boxes(scenes, task):
    told = scenes.targets.take(np.arange(12))
    scores = np.full(len(told.labels), 0.9, np.float32)
    found = Detections(np.arange(12), told.boxes, scores, told.labels, told.owner, told.boxes, told.labels, told.owner, told.crowd)
    evaluation = judge_boxes(found, task, scenes)
    assert evaluation.figures["map"].value == pytest.approx(1) and evaluation.figures["map"].high == 1
    assert {name: count for name, (count, _) in evaluation.errors.items()} == dict.fromkeys(FAULTS, 0)
    written = evaluation.to_dict()
    assert written["figures"]["map"]["value"] == pytest.approx(1) and len(written["by_class"]) == 5
    assert evaluation.curves.shape == (5, 2, 101) and evaluation.precisions.shape == (5, len(THRESHOLDS))
    assert len(pr_figure(evaluation).data) == 10 and errors_figure(evaluation).data[0].type == "bar"
    assert evaluation.examples.size[0] > 1000


def test_bad_detections_are_refused(scenes, task):
    good = table([(0, 0, 0.9, [0, 0, 10, 10])], [(0, 0, [0, 0, 10, 10])])
    with pytest.raises(UsageError, match="not all finite"): judge_boxes(replace(good, scores=good.scores * np.nan), task, scenes)
    with pytest.raises(UsageError, match="only 5 classes"): judge_boxes(replace(good, labels=good.labels + 5), task, scenes)
    with pytest.raises(UsageError, match="nothing to evaluate"): judge_boxes(replace(good, rows=good.rows[:0]), task, scenes)
