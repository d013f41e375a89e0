"Thresholds and curves against scikit-learn; judged runs against the pipeline's files; the panel driven as a person would, its code executed."

import gc
import json
import os
import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cnnbench.control import prepare_again, stored_predictions
from cnnbench.core import UsageError, load_attribute, read_json, write_json
from cnnbench.experiment import create_run, experiment_for, list_runs, load_model, open_setup, prepare, resolve, train_run
from cnnbench.pipeline import evaluate_stage
from cnnbench.plot import grid_place
from cnnbench.review import (
    ClipScores, Comparison, ItemCount, best_threshold, calibration, cells_figure, chosen_items, class_probabilities, class_rates, clip_figure,
    clip_scores, compare_items, compare_with, count_looks, decisions, evaluation_panel, judge_run, label_rates, note_look,
    precision_recall, precision_recall_figure, rates_figure, same_data_runs, shown_classes, threshold_figures, wrong_items,
)
from cnnbench.tasks import TASKS, Predictions, load_predictions
from cnnbench.ui import Desk, Job

SMALL = {"threads": 1, "train.precision": "fp32", "train.layout": "contiguous", "train.batch_size": 64, "model.name": "lenet"}
RUNS = {
    "digits": ("classification", {"train.epochs": 3}),
    "short": ("classification", {"train.epochs": 1}),
    "labels": ("multilabel", {"data.shapes.count": 120, "data.size": 32, "train.epochs": 1}),
    "clips": ("video", {"data.shapes.count": 90, "data.size": 32, "data.frames": 4, "model.name": "difference", "train.epochs": 1}),
}


def made(root: Path, name: str, task: str, changes: dict) -> Path:
    folder = create_run(resolve(prepare(experiment_for(task, SMALL | changes)))[0], root / name)
    for _ in train_run(folder, open_setup(folder)): pass
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder of small runs; each test works on a copy."
    root = tmp_path_factory.mktemp("trained")
    for name, (task, changes) in RUNS.items(): made(root, name, task, changes)
    return root


@pytest.fixture
def root(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory):
    "The runs, judged by their validation split."
    root = Path(shutil.copytree(trained, tmp_path_factory.mktemp("judged") / "runs"))
    return {name: judge_run(root / name) for name in RUNS}


def opened(root: Path, run: Path | None = None):
    desk = Desk(experiment_for("classification"), prepare_again, root)
    desk.run = run
    panel = evaluation_panel(desk)
    assert panel.parts[0].read.wait(30)
    return desk, panel


def judge_now(desk, panel) -> str:
    panel.of["judge"].click()
    return desk.job.wait(120)


def view_of(panel, name: str):
    view = panel.of["view"].children[0].open(name)
    assert view.draw.wait(30)
    if "pages" in view.of: assert view.of["pages"].draw.wait(30)
    return view


def result_of(code: str):
    names: dict = {}
    exec(code, names)
    return names["result"]


@st.composite
def cases(draw, several=False):
    "Random probabilities and targets, often with ties."
    classes, items = draw(st.integers(2, 6)), draw(st.integers(1, 50))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    chances = random.random((items, classes)) if several else random.dirichlet(np.ones(classes), items)
    if draw(st.booleans()): chances = chances.round(1)
    targets = random.integers(0, 2, (items, classes)) if several else random.integers(0, classes, items)
    return chances, targets, draw(st.integers(0, classes - 1)), draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 1.0]))


def assert_same_curve(curve, truth, scores):
    precision, recall, thresholds = metrics.precision_recall_curve(truth, scores)
    np.testing.assert_allclose(curve.thresholds, thresholds, atol=1e-12)
    np.testing.assert_allclose(curve.precision, precision[:-1], atol=1e-12)
    np.testing.assert_allclose(curve.recall, recall[:-1], atol=1e-12)
    assert curve.average == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)
    np.testing.assert_allclose(curve.share, [(scores >= t).mean() for t in thresholds], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_one_class_against_the_rest_is_scikit_learns(case):
    chances, targets, which, threshold = case
    truth, said = targets == which, chances[:, which] >= threshold
    found = threshold_figures(chances, targets, threshold, which)
    if said.any(): assert found.precision == pytest.approx(metrics.precision_score(truth, said))
    else: assert np.isnan(found.precision)
    if truth.any(): assert found.recall == pytest.approx(metrics.recall_score(truth, said, zero_division=0))
    if truth.any() or said.any(): assert found.f1 == pytest.approx(metrics.f1_score(truth, said))
    assert found.share == pytest.approx(said.mean())
    curve = precision_recall(chances, targets, which)
    if not truth.any():
        assert np.isnan(curve.average) and np.isnan(curve.recall).all() and best_threshold(curve) == 0.5
        return
    assert_same_curve(curve, truth, chances[:, which])
    best = threshold_figures(chances, targets, best_threshold(curve), which)
    assert best.f1 == pytest.approx(max(metrics.f1_score(truth, chances[:, which] >= t) for t in chances[:, which]))
    assert set(wrong_items(chances, targets, threshold, which)) == set(np.flatnonzero(said != truth))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_answers_only_where_sure(case):
    chances, targets, _, threshold = case
    sure, right = chances.max(1) >= threshold, chances.argmax(1) == targets
    found = threshold_figures(chances, targets, threshold)
    assert (found.said, found.right, found.wanted, found.decisions) == (sure.sum(), (sure & right).sum(), len(targets), len(targets))
    wrong = wrong_items(chances, targets, threshold)
    assert set(wrong) == set(np.flatnonzero(sure & ~right)) and (np.diff(chances.max(1)[wrong]) <= 0).all()
    curve = precision_recall(chances, targets)
    assert (curve.precision[0], curve.recall[0], curve.share[0]) == pytest.approx((right.mean(), right.mean(), 1))
    for place, t in enumerate(curve.thresholds):
        at = threshold_figures(chances, targets, t)
        assert (curve.precision[place], curve.recall[place]) == pytest.approx((at.precision, at.recall))


@settings(max_examples=60, deadline=None)
@given(cases(several=True))
def test_several_labels_are_scikit_learns(case):
    chances, targets, which, threshold = case
    said = chances >= threshold
    one, every = threshold_figures(chances, targets, threshold, which), threshold_figures(chances, targets, threshold)
    if targets[:, which].any(): assert one.recall == pytest.approx(metrics.recall_score(targets[:, which], said[:, which], zero_division=0))
    assert every.f1 == pytest.approx(metrics.f1_score(targets, said, average="micro", zero_division=0)) or not (targets.any() or said.any())
    if targets.any(): assert_same_curve(precision_recall(chances, targets), targets.ravel(), chances.ravel())
    assert set(wrong_items(chances, targets, threshold)) == set(np.flatnonzero((said != (targets > 0)).any(1)))
    assert set(wrong_items(chances, targets, threshold, which)) == set(np.flatnonzero((said != (targets > 0))[:, which]))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_items_of_a_cell_row_column_or_all(case):
    chances, targets, which, _ = case
    guesses = chances.argmax(1)
    wanted = {
        (None, None): guesses != targets,
        (which, None): (targets == which) & (guesses != which), (None, which): (guesses == which) & (targets != which),
        (which, which): (targets == which) & (guesses == which), (0, which): (targets == 0) & (guesses == which),
    }
    for (truth, answer), there in wanted.items():
        items = chosen_items(chances, targets, truth, answer)
        assert set(items) == set(np.flatnonzero(there)) and (np.diff(chances.max(1)[items]) <= 0).all()


def test_what_does_not_fit_is_said():
    chances = np.full((3, 2), 0.5)
    for targets, which in ((np.zeros(2, int), None), (np.zeros((3, 3), int), None), (np.zeros(3, int), 2), (np.zeros(3, int), -1)):
        with pytest.raises(UsageError, match="do not fit|There is no class"): decisions(chances, targets, which)


def test_judging_agrees_with_the_pipeline(root):
    folder = root / "digits"
    run = judge_run(folder)
    own = load_predictions(folder / "predictions" / "val.npz")
    setup = open_setup(folder)
    evaluate_stage(folder, setup, say=lambda line: None)
    theirs = load_predictions(folder / "predictions" / "val.npz")
    for name in ("rows", "outputs", "targets"): np.testing.assert_array_equal(getattr(own, name), getattr(theirs, name))
    assert read_json(folder / "evaluation.json")["val"] == json.loads(json.dumps(run.evaluation.to_dict()))
    np.testing.assert_array_equal(run.predictions.rows, setup.split.val)
    assert count_looks(folder) == 1  # the pipeline's
    assert judge_run(folder, "test").evaluation.to_dict() == read_json(folder / "evaluation.json")["test"] and count_looks(folder) == 2


def test_looks_are_counted_and_only_those(root):
    folder = root / "short"
    assert count_looks(folder) == 0
    judge_run(folder)
    assert count_looks(folder) == 0
    def cancel(fraction, message):
        if fraction > 0.7: raise KeyError("cancelled")
    shutil.rmtree(folder / "predictions")
    with pytest.raises(KeyError): judge_run(folder, "test", cancel)
    assert count_looks(folder) == 0 and not (folder / "predictions").exists()
    note_look(folder)
    note_look(folder)
    assert count_looks(folder) == 2 and len(read_json(folder / "looks.json")["test"]) == 2
    assert [path.name for path in folder.glob("*looks*")] == ["looks.json"]
    write_json(folder / "evaluation.json", {"split": "val", "val": {}})
    assert count_looks(folder) == 2
    write_json(folder / "evaluation.json", {"split": "test", "test": {}})
    assert count_looks(folder) == 3
    (folder / "looks.json").write_text("{")
    with pytest.raises(UsageError, match="looks.json"): count_looks(folder)


def test_what_cannot_be_judged_is_said(root, tmp_path):
    bare = create_run(resolve(prepare(experiment_for("classification", SMALL)))[0], root / "bare")
    none = made(root, "none", "classification", {"train.epochs": 1, "data.val": 0.0})
    for folder, part, sentence in (
        (root / "digits", "train", "val or test"), (root / "digit", "val", "Did you mean digits"), (bare, "val", "no last checkpoint"),
        (none, "val", "no validation split"),
    ):
        with pytest.raises(UsageError, match=sentence): judge_run(folder, part)
    assert len(judge_run(none, "test").predictions) > 0


def test_predictions_older_than_the_checkpoint_are_not_used(root):
    run = judge_run(root / "digits")
    stored = stored_predictions(root / "digits", "val")
    np.testing.assert_array_equal(stored.outputs, run.predictions.outputs)
    assert stored_predictions(root / "digits", "test") is None and stored_predictions(root / "short", "val") is None
    path = root / "digits" / "predictions" / "val.npz"
    os.utime(path, (1, 1))
    assert stored_predictions(root / "digits", "val") is None


def test_runs_are_compared(root, judged):
    run, other = judge_run(root / "digits"), judge_run(root / "short")
    found = compare_with(run, root / "short")
    hits = [(held.predictions.outputs.argmax(1) == held.predictions.targets) for held in (run, other)]
    assert found.items == ItemCount((hits[0] & hits[1]).sum(), (hits[0] & ~hits[1]).sum(), (~hits[0] & hits[1]).sum(), (~hits[0] & ~hits[1]).sum())
    assert ("train.epochs", 3, 1) in found.rows and not found.lacks and found.note == ""
    with pytest.raises(UsageError, match="other data"): compare_with(run, root / "clips")
    assert same_data_runs(list_runs(root), root, root / "digits") == [root / "short"]
    assert compare_items(judged["digits"].predictions, judged["labels"].predictions) is None
    labels = judged["labels"].predictions
    right = ((labels.outputs > 0) == (labels.targets > 0.5)).all(1).sum()
    assert compare_items(labels, labels) == ItemCount(right, 0, 0, len(labels) - right)


def test_only_common_rows_are_compared():
    one = Predictions(np.array([1, 5, 9]), np.array([[2, 1], [1, 2], [2, 1]], np.float32), np.array([0, 0, 1]))
    other = Predictions(np.array([9, 3, 1]), np.array([[1, 2], [1, 2], [1, 2]], np.float32), np.array([1, 1, 0]))
    assert compare_items(one, other) == ItemCount(0, 1, 1, 0)
    apart = Predictions(np.array([2]), other.outputs[:1], other.targets[:1])
    assert compare_items(one, apart) is None and compare_items(one, Predictions(one.rows, one.outputs, 1 - one.targets)) is None
    assert ItemCount(9, 8, 2, 0).chance == pytest.approx(2 * (45 + 10 + 1) / 1024)


def test_scores_over_time(judged):
    run = judged["clips"]
    clip = run.setup.dataset.images.read(run.predictions.rows[:1])[0]
    run.model.train()
    scores = clip_scores(run.model, clip)
    assert run.model.training and not any(module._forward_pre_hooks for module in run.model.modules())
    run.model.eval()
    np.testing.assert_allclose(scores.answer, run.predictions.outputs[0], atol=1e-4)
    for frame in range(4):
        frozen = clip[np.minimum(np.arange(4), frame)]
        with torch.no_grad(): wanted = run.model(torch.from_numpy(frozen).movedim(-1, -3)[None])[0].numpy()
        np.testing.assert_allclose(scores.logits[frame], wanted, atol=1e-4)
    np.testing.assert_allclose(scores.probabilities.sum(1), 1)
    assert shown_classes(ClipScores("frozen", np.eye(3, dtype=np.float32), np.zeros(3)), 2, 2) == [2, 0]
    drawn = clip_figure(scores, run.setup.task.classes, 3, 2)
    assert drawn.data[0].name == f"{run.setup.task.classes[3]} (truth)" and drawn.layout.shapes[0].x0 == 3 and list(drawn.data[0].x) == [1, 2, 3, 4]


def test_networks_that_score_frames_or_stretches_say_so():
    for changes, kind in (({"model.name": "frames"}, "frames"), ({"task.video.clips": 2, "task.video.cut": "blocks"}, "parts"), ({}, "frozen")):
        data = {"data.shapes.count": 60, "data.size": 32, "data.frames": 4}
        setup = prepare(experiment_for("video", data | changes))
        model, clip = setup.build().eval(), setup.dataset.images.read(np.array([3]))[0]
        scores = clip_scores(model, clip, setup.task.parts, setup.task.cut)
        with torch.no_grad(): whole = model(torch.from_numpy(clip).movedim(-1, -3)[None])[0].numpy()
        assert scores.kind == kind
        np.testing.assert_allclose(scores.logits[-1] if kind == "frozen" else scores.logits.mean(0), whole, atol=1e-4)
        if kind == "parts": assert (scores.logits[0] == scores.logits[1]).all() and not (scores.logits[1] == scores.logits[2]).all()


def test_figures_show_what_they_are_given(judged):
    run = judged["digits"]
    chances, targets, evaluation = class_probabilities(run.predictions), run.predictions.targets, run.evaluation
    drawn = cells_figure(evaluation.confusion, evaluation.classes, shares=False, chosen=(8, None))
    numbers = [[int(word or 0) for word in row] for row in drawn.data[0].text]
    assert (np.array(numbers) == evaluation.confusion).all() and (drawn.layout.shapes[0].y0, drawn.layout.shapes[0].x1) == (7.5, 9.5)
    few = cells_figure(evaluation.confusion, evaluation.classes, most=3)
    assert few.data[0].z.shape == (3, 3) and "3 most confused of 10" in few.layout.title.text
    bars = rates_figure(evaluation.classes, class_rates(evaluation), evaluation.by_class.support, most=4)
    assert list(bars.data[2].x) == sorted(evaluation.by_class.f1)[:4] and [bar.name for bar in bars.data] == ["precision", "recall", "F1"]
    curve = precision_recall(chances, targets, 3)
    at = threshold_figures(chances, targets, 0.5, 3)
    assert (precision_recall_figure(curve, at).data[1].x[0], precision_recall_figure(curve, at).data[1].y[0]) == (at.recall, at.precision)
    absent = precision_recall(chances, np.zeros_like(targets), 1)
    assert len(precision_recall_figure(absent, threshold_figures(chances, np.zeros_like(targets), 0.5, 1)).data) == 1
    long = precision_recall(np.random.default_rng(0).random((5000, 2)), np.arange(5000) % 2, 1)
    assert len(precision_recall_figure(long).data[0].x) <= 1000
    labels = label_rates(judged["labels"].evaluation)
    assert list(labels) == ["average precision", "F1"] and len(labels["F1"]) == 5


def test_place_in_a_grid():
    for count, columns in ((1, 4), (3, 4), (12, 4), (7, 3)):
        across, rows = min(columns, count), -(-count // min(columns, count))
        centres = [((place % across + 0.5) / across, (place // across + 0.5) / rows) for place in range(count)]
        assert [grid_place((10**6, 10**6), count, columns, x, y) for x, y in centres] == list(range(count))
    assert grid_place((10**6, 10**6), 7, 3, 0.99, 0.99) is None and grid_place((1, 1), 0, 3, 0.5, 0.5) is None


def test_views_that_are_here_exist():
    ours = {name: load_attribute(held).review for name, held in TASKS.items() if load_attribute(held).review.startswith("cnnbench.review:")}
    assert set(ours) == {"classification", "multilabel", "video"} and all(callable(load_attribute(path)) for path in ours.values())
    assert all(load_attribute(held).review.startswith(("cnnbench.review:", "cnnbench.gallery:")) for held in TASKS.values())


def test_a_classifier_is_judged_on_screen(root):
    desk, panel = opened(root)
    assert [path for _, path in panel.of["run"].options] == ["", *(root / row.name for row in list_runs(root))]
    assert panel.of["judge"].disabled and panel.judged is None and "Choose a run" in panel.of["heading"].value
    panel.of["run"].value = root / "digits"
    assert desk.run == root / "digits" and not panel.of["judge"].disabled
    assert judge_now(desk, panel) == "done" and "digits" in panel.of["heading"].value and not panel.of["judge"].disabled
    run = panel.judged
    assert f"{100 * run.evaluation.figures['accuracy'].value:.1f} %" in panel.of["figures"].value
    assert result_of(panel.code()).evaluation.figures == run.evaluation.figures
    chances, targets = class_probabilities(run.predictions), run.predictions.targets

    view = view_of(panel, "Confusions")
    pages, k = view.of["pages"], int(run.evaluation.confusion.diagonal().argmax())
    np.testing.assert_array_equal(pages.items, chosen_items(chances, targets))
    view.of["chart"]._handle_custom_msg({"kind": "click", "points": [{"curve": 0, "point": [k, k], "x": k, "y": k}]}, [])
    assert view.draw.wait(30) and pages.draw.wait(30) and (view.of["truth"].value, view.of["answer"].value) == (k, k)
    np.testing.assert_array_equal(pages.items, np.array(result_of(view.code())))
    assert len(pages.items) == run.evaluation.confusion[k, k] and pages.of["picture"].data[:2] == b"\xff\xd8"
    assert json.loads(view.of["chart"].figure)["layout"]["shapes"][0]["x0"] == k - 0.5
    first, was = pages.of["picture"].data, len(pages.items)
    assert was > 12 and pages.of["page"].max == 2
    pages.of["page"].value = 2
    assert pages.draw.wait(30) and pages.of["picture"].data != first and f"13 to {was} of {was}" in pages.of["count"].value
    pages.of["picture"]._handle_custom_msg({"x": 0.01, "y": 0.01}, [])
    assert f"row {run.predictions.rows[pages.items[12]]}: {k}" in pages.of["line"].value
    view.of["every"].click()
    assert view.draw.wait(30) and (view.of["truth"].value, view.of["answer"].value) == (-1, -1)
    np.testing.assert_array_equal(pages.items, chosen_items(chances, targets))

    view = view_of(panel, "Classes")
    np.testing.assert_array_equal(result_of(view.code())["F1"], class_rates(run.evaluation)["F1"])
    assert len(json.loads(view.of["chart"].figure)["data"]) == 3
    view = view_of(panel, "Calibration")
    view.of["bins"].value = 7
    assert view.draw.wait(30)
    found = result_of(view.code())
    assert len(found.count) == 7 and found.error == calibration(run.predictions.outputs, targets, 7).error
    assert f"{100 * found.error:.1f} %" in json.loads(view.of["chart"].figure)["layout"]["title"]["text"]
    assert panel.of["view"].children[0].code() == view.code()


def test_a_threshold_is_moved_on_screen(root):
    desk, panel = opened(root, root / "digits")
    judge_now(desk, panel)
    view = view_of(panel, "Threshold")
    chances, targets = class_probabilities(panel.judged.predictions), panel.judged.predictions.targets
    for which, asked, threshold in ((-1, None, 0.8), (3, 3, 0.25)):
        view.of["which"].value, view.of["threshold"].value = which, threshold
        assert view.draw.wait(30) and view.of["pages"].draw.wait(30)
        found = result_of(view.code())
        assert found == threshold_figures(chances, targets, threshold, asked)
        point = json.loads(view.of["chart"].figure)["data"][1]
        assert (point["x"], point["y"]) == ([found.recall], [found.precision])
        assert f"{found.precision:.1%}" in view.of["numbers"].value and f"{found.recall:.1%}" in view.of["numbers"].value
        np.testing.assert_array_equal(view.of["pages"].items, wrong_items(chances, targets, threshold, asked))
    view.of["which"].value = -1
    assert view.of["threshold"].value == 0.8  # it remembers
    view.of["which"].value = 3
    assert view.of["threshold"].value == 0.25
    view.of["best"].click()
    assert view.draw.wait(30) and view.of["threshold"].value == best_threshold(precision_recall(chances, targets, 3))


def test_several_labels_are_judged_on_screen(root):
    desk, panel = opened(root, root / "labels")
    assert judge_now(desk, panel) == "done" and "mean average precision" in panel.of["figures"].value
    run, view = panel.judged, view_of(panel, "Threshold")
    chances, targets = class_probabilities(run.predictions), run.predictions.targets
    for which, asked in ((-1, None), (2, 2)):
        view.of["which"].value, view.of["threshold"].value = which, 0.45
        assert view.draw.wait(30) and view.of["pages"].draw.wait(30)
        assert result_of(view.code()) == threshold_figures(chances, targets, 0.45, asked)
        np.testing.assert_array_equal(view.of["pages"].items, wrong_items(chances, targets, 0.45, asked))
        assert view.of["line"].value == "" and len(view.of["pages"].items)
    np.testing.assert_array_equal(result_of(view_of(panel, "Classes").code())["F1"], label_rates(run.evaluation)["F1"])


def test_clips_are_played_on_screen(root):
    desk, panel = opened(root, root / "clips")
    assert judge_now(desk, panel) == "done"
    pages = view_of(panel, "Confusions").of["pages"]
    pages.of["picture"]._handle_custom_msg({"x": 0.5, "y": 0.3}, [])  # the second of up to five strips, one below the other
    player = view_of(panel, "Player")
    item = int(pages.items[1])
    assert panel.of["view"].children[0].of["view"].value == "Player" and player.of["clip"].value == item
    found, run = result_of(player.code()), panel.judged
    np.testing.assert_allclose(found.answer, run.predictions.outputs[item], atol=1e-4)
    shown = json.loads(player.of["chart"].figure)
    assert shown["layout"]["shapes"][0]["x0"] == 1 and "stood still" in player.of["words"].value
    picture = player.of["picture"].data
    player.of["frame"].value = 4
    assert player.draw.wait(30) and json.loads(player.of["chart"].figure)["layout"]["shapes"][0]["x0"] == 4
    assert player.of["picture"].data != picture and player.of["frame"].max == 4
    player.of["rate"].value = 10
    assert player.children[1].play.interval == 100
    assert player.of["line"].value == ""


def test_the_test_split_asks_first(root):
    desk, panel = opened(root, root / "short")
    assert panel.of["sure"].layout.display == "none"
    panel.of["split"].value = "test"
    assert panel.of["judge"].disabled and "not been looked at yet" in panel.of["looks"].value
    panel.of["judge"].click()  # a disabled button sends no clicks; by hand it has to do no harm
    desk.job.wait(60)
    assert count_looks(root / "short") == 0
    panel.of["sure"].value = True
    assert not panel.of["judge"].disabled and judge_now(desk, panel) == "done"
    assert panel.judged.part == "test" and "looked at once" in panel.of["looks"].value
    assert panel.of["judge"].disabled and not panel.of["sure"].value
    panel.of["split"].value = "val"
    assert panel.judged is None and panel.of["view"].children == () and not panel.of["judge"].disabled


def test_another_run_beside_it(root):
    desk, panel = opened(root, root / "digits")
    assert panel.parts[2].layout.display == "none"
    judge_now(desk, panel)
    other = panel.parts[2]
    assert [path for _, path in panel.of["other"].options] == ["", root / "short"]
    panel.of["other"].value = root / "short"
    assert other.draw.wait(30) and other.found.lacks and "train.epochs" in panel.of["table"].value and panel.of["also"].layout.display == ""
    panel.of["also"].click()
    assert desk.job.wait(60) == "done" and other.draw.wait(30)
    assert panel.of["also"].layout.display == "none" and "only short" in panel.of["table"].value
    found = result_of(panel.code())
    assert isinstance(found, Comparison) and found == other.found
    desk.run = root / "short"
    assert panel.judged is None and other.draw.wait(30) and other.found is None
    assert panel.of["run"].value == root / "short" and other.layout.display == "none"


def test_what_goes_wrong_is_said_in_the_panel(root, tmp_path):
    bare = create_run(resolve(prepare(experiment_for("classification", SMALL)))[0], root / "bare")
    desk, panel = opened(root, bare)
    assert judge_now(desk, panel) == "failed" and "checkpoint" in panel.of["line"].value and not panel.of["judge"].disabled
    desk.run = root / "digits"
    assert panel.of["line"].value == ""
    held = threading.Event()
    desk.job.start(lambda job: held.wait(30))
    panel.of["judge"].click()
    assert "still running" in panel.of["line"].value and not panel.of["judge"].disabled
    held.set()
    desk.job.wait(30)
    assert judge_now(desk, panel) == "done" and panel.of["line"].value == ""
    (root / "bare" / "experiment.json").write_text("{")
    panel.of["again"].click()
    assert panel.parts[0].read.wait(30) and "experiment.json" in panel.parts[0].children[1].value
    empty = opened(tmp_path / "nowhere")[1]
    assert "There are no runs" in empty.parts[0].children[1].value


def test_a_cancelled_judging_leaves_the_panel_ready(root, monkeypatch):
    desk, panel = opened(root, root / "digits")
    ask = Job.tell
    def cancel(self, fraction, message=""):
        if fraction > 0: self.cancel()
        ask(self, fraction, message)
    monkeypatch.setattr(Job, "tell", cancel)
    assert judge_now(desk, panel) == "cancelled"
    assert "Cancelled" in panel.of["line"].value and panel.judged is None and not panel.of["judge"].disabled
    monkeypatch.undo()
    assert judge_now(desk, panel) == "done" and panel.judged is not None


def test_a_run_from_elsewhere_and_a_view_that_is_missing(root, tmp_path, monkeypatch):
    far = Path(shutil.copytree(root / "short", tmp_path / "far" / "short"))
    desk, panel = opened(root, far)
    assert panel.of["run"].value == far and judge_now(desk, panel) == "done" and panel.judged.folder == far
    monkeypatch.setattr("cnnbench.tasks.Classification.review", "cnnbench.review:nothing_panel")
    assert judge_now(desk, panel) == "failed" and "nothing_panel" in panel.of["line"].value and "accuracy" in panel.of["figures"].value
    monkeypatch.setattr("cnnbench.tasks.Classification.review", "")
    assert judge_now(desk, panel) == "failed" and "names no view" in panel.of["line"].value


def test_nothing_holds_a_run_that_is_no_longer_shown(root):
    desk, panel = opened(root, root / "clips")
    judge_now(desk, panel)
    for name in ("Threshold", "Player", "Calibration", "Classes"): view_of(panel, name)
    there = weakref.ref(panel.judged)
    desk.run = root / "digits"
    assert judge_now(desk, panel) == "done"
    panel.parts[2].draw.wait(30)
    gc.collect()
    assert there() is None


def test_the_model_is_the_one_of_the_checkpoint(root):
    run = judge_run(root / "digits")
    other = load_model(root / "digits", run.setup)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in run.model.state_dict().items()) and not run.model.training
