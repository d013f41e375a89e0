"Every figure against scikit-learn, torchmetrics or a value worked out by hand; intervals against simulated truth."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cnnbench.core import UsageError
from cnnbench.evaluate import (
    calibration, calibration_figure, class_figures, confused_pairs, confusion_figure, confusion_matrix, evaluate, evaluation_table, intervals,
    per_class_figure, score_items, weighted_figures, worst_errors,
)


def stored(logits, labels):
    return SimpleNamespace(rows=np.arange(len(labels)) * 3, outputs=np.asarray(logits, np.float32), targets=np.asarray(labels))


@st.composite
def outcomes(draw):
    "Random logits and labels; often with classes that never occur, sometimes with logits that are equal."
    classes, items = draw(st.integers(2, 9)), draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = random.normal(0, draw(st.sampled_from([0.5, 3.0, 30.0])), (items, classes)).astype(np.float32)
    if draw(st.booleans()): logits = logits.round()
    labels = random.integers(0, draw(st.integers(1, classes)), items)
    return logits, labels


@settings(max_examples=60, deadline=None)
@given(outcomes())
def test_figures_equal_scikit_learn(case):
    logits, labels = case
    classes = logits.shape[1]
    guesses, chances = logits.argmax(1), torch.from_numpy(logits).double().softmax(1).numpy()
    result = evaluate(stored(logits, labels), [f"class {index}" for index in range(classes)], resamples=10)
    value = {name: interval.value for name, interval in result.figures.items()}
    assert value["accuracy"] == pytest.approx(metrics.accuracy_score(labels, guesses))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, guesses, average="macro", zero_division=0)
    assert (value["precision"], value["recall"], value["f1"]) == pytest.approx((precision, recall, f1))
    assert value["nll"] == pytest.approx(-np.log(np.maximum(chances[np.arange(len(labels)), labels], 1e-300)).mean(), rel=1e-6, abs=1e-12)
    assert value["brier"] == pytest.approx(((chances - np.eye(classes)[labels]) ** 2).sum(1).mean(), abs=1e-12)
    every = np.arange(classes)
    assert (result.confusion == metrics.confusion_matrix(labels, guesses, labels=every)).all()
    expected = metrics.precision_recall_fscore_support(labels, guesses, labels=every, zero_division=0)
    for mine, theirs in zip((result.by_class.precision, result.by_class.recall, result.by_class.f1, result.by_class.support), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert set(result.absent) == {f"class {index}" for index in range(classes) if index not in labels}
    if classes > 5:
        order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        assert value["top5_accuracy"] == pytest.approx((order == labels[:, None]).any(1).mean())
    else: assert "top5_accuracy" not in value
    for interval in result.figures.values(): assert interval.low <= interval.value <= interval.high
    json.dumps(result.to_dict(), allow_nan=False)
    assert "nan" not in evaluation_table(result)


@settings(max_examples=40, deadline=None)
@given(outcomes(), st.integers(2, 20))
def test_calibration_equals_the_definition_and_torchmetrics(case, bins):
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = case
    result = calibration(logits, labels, bins)
    chances = torch.from_numpy(logits).double().softmax(1).numpy()
    sure, hit = chances.max(1), logits.argmax(1) == labels
    error = 0.0
    for place in range(bins):
        inside = np.minimum((sure * bins).astype(int), bins - 1) == place
        assert result.count[place] == inside.sum()
        if not inside.any(): continue
        assert result.accuracy[place] == pytest.approx(hit[inside].mean())
        assert result.confidence[place] == pytest.approx(sure[inside].mean())
        error += inside.mean() * abs(hit[inside].mean() - sure[inside].mean())
    assert result.error == pytest.approx(error, abs=1e-12)
    ordered = np.sort(chances, 1)
    clear = (np.abs(sure * bins - np.round(sure * bins)) > 1e-4).all() and (ordered[:, -1] > ordered[:, -2]).all()
    if clear:  # no confidence on a bin's edge, no ties: the conventions there differ
        theirs = multiclass_calibration_error(torch.from_numpy(chances), torch.from_numpy(labels), logits.shape[1], n_bins=bins)
        assert result.error == pytest.approx(float(theirs), abs=1e-5)


def test_macro_average_equals_torchmetrics():
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    random = np.random.default_rng(3)
    logits, labels = random.normal(size=(200, 12)), random.integers(0, 9, 200)
    value = weighted_figures(score_items(logits, labels), torch.ones(1, 200).double())
    guesses, truth = torch.from_numpy(logits.argmax(1)), torch.from_numpy(labels)
    for name, theirs in (("precision", multiclass_precision), ("recall", multiclass_recall), ("f1", multiclass_f1_score)):
        assert float(value[name]) == pytest.approx(float(theirs(guesses, truth, 12, average="macro")), abs=1e-6)


def test_a_weight_is_a_repetition():
    random = np.random.default_rng(1)
    logits, labels, times = random.normal(size=(30, 7)), random.integers(0, 7, 30), random.integers(0, 4, 30)
    weighted = weighted_figures(score_items(logits, labels), torch.from_numpy(times)[None].double())
    repeated = weighted_figures(score_items(logits.repeat(times, 0), labels.repeat(times)), torch.ones(1, times.sum()).double())
    for name, value in repeated.items(): assert float(weighted[name]) == pytest.approx(float(value), abs=1e-12)


def test_interval_equals_a_plain_bootstrap():
    random = np.random.default_rng(5)
    logits, labels = 2 * np.eye(4)[random.integers(0, 4, 150)] + random.normal(size=(150, 4)), random.integers(0, 4, 150)
    labels = np.where(random.random(150) < 0.7, logits.argmax(1), labels)
    mine = intervals(score_items(logits, labels), seed=1, resamples=2000)
    guesses, figures = logits.argmax(1), []
    for _ in range(2000):
        rows = random.integers(0, 150, 150)
        figures.append((np.mean(guesses[rows] == labels[rows]), metrics.f1_score(labels[rows], guesses[rows], average="macro")))
    for name, drawn in zip(("accuracy", "f1"), np.array(figures).T, strict=True):
        assert (mine[name].low, mine[name].high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.015)


def test_intervals_cover_the_truth():
    "A classifier right with probability 0.8, calibrated by construction: about 95 of 100 intervals hold the true figure."
    chance, held = 0.8, {"accuracy": 0, "nll": 0}
    logit = np.log(chance / ((1 - chance) / 3))
    entropy = -chance * np.log(chance) - (1 - chance) * np.log((1 - chance) / 3)
    for trial in range(150):
        random = np.random.default_rng(trial)
        guesses = random.integers(0, 4, 200)
        labels = np.where(random.random(200) < chance, guesses, (guesses + random.integers(1, 4, 200)) % 4)
        found = intervals(score_items(logit * np.eye(4)[guesses], labels), seed=trial, resamples=300)
        held["accuracy"] += found["accuracy"].low <= chance <= found["accuracy"].high
        held["nll"] += found["nll"].low <= entropy <= found["nll"].high
    for count in held.values(): assert 0.88 <= count / 150 <= 0.995


def test_seed_decides_the_intervals():
    random = np.random.default_rng(2)
    scores = score_items(random.normal(size=(80, 3)), random.integers(0, 3, 80))
    assert intervals(scores, seed=4) == intervals(scores, seed=4) != intervals(scores, seed=5)


def test_no_errors_still_leave_doubt():
    labels = np.arange(100) % 10
    found = evaluate(stored(20 * np.eye(10)[labels], labels), [str(index) for index in range(10)]).figures
    for name in ("accuracy", "top5_accuracy", "f1"):
        assert found[name].value == found[name].high == 1
        assert found[name].low == pytest.approx(0.025 ** (1 / 100))
    assert intervals(score_items(np.eye(3)[[0, 1]], [1, 0]))["accuracy"].high == pytest.approx(1 - 0.025 ** 0.5)


def test_many_classes():
    "A thousand classes, some never seen, some never guessed."
    random = np.random.default_rng(0)
    labels = random.integers(0, 900, 3000)
    logits = random.normal(size=(3000, 1000)) + 4 * np.eye(1000)[labels]
    result = evaluate(stored(logits, labels), [f"class {index}" for index in range(1000)], resamples=1000)
    assert len(result.absent) == 1000 - len(np.unique(labels))
    assert result.figures["f1"].value == pytest.approx(metrics.f1_score(labels, logits.astype(np.float32).argmax(1), average="macro"))
    assert len(json.dumps(result.to_dict(), allow_nan=False)) < 400_000
    assert len(evaluation_table(result).splitlines()) < 45
    for drawn in (confusion_figure(result), per_class_figure(result)): assert len(drawn.to_json()) < 400_000


def test_worst_errors_are_the_surest():
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    found = worst_errors(stored(logits, [1, 0, 1, 1]), count=2)
    assert found.items.tolist() == [0, 1] and found.rows.tolist() == [0, 3]
    assert found.labels.tolist() == [1, 0] and found.predictions.tolist() == [0, 1]
    assert found.confidence == pytest.approx([0.9, 0.8])
    assert len(worst_errors(stored(logits, [1, 0, 1, 1]), count=9)) == 3


def test_confused_pairs_leave_out_what_is_right():
    assert confused_pairs(np.array([[9, 1, 0], [0, 9, 0], [4, 2, 9]]), 2) == [(2, 0, 4), (2, 1, 2)]
    assert confused_pairs(np.eye(3, dtype=int)) == []


def test_figures_show_hostile_names_as_they_are():
    names = ["</script><img src=x onerror=alert(1)>", "a" * 300, "b\nc\x00", "ok"]
    result = evaluate(stored(np.eye(4)[[0, 1, 2, 3, 0]], [0, 1, 2, 3, 1]), names)
    for drawn in (confusion_figure(result), per_class_figure(result), calibration_figure(result.calibration)):
        words = json.dumps(drawn.to_plotly_json(), default=lambda value: value.tolist())
        assert "<img" not in words and "</script" not in words and "a" * 100 not in words
    assert "\x00" not in evaluation_table(result)


@pytest.mark.parametrize(("logits", "labels", "says"), [
    (np.zeros((0, 3)), np.zeros(0, int), "empty"), (np.full((2, 3), np.inf), [0, 1], "diverged"), (np.zeros((2, 3)), [0, 3], "has 3 outputs"),
    (np.zeros((2, 3)), [0, -1], "go from -1"), (np.zeros((2, 3)), [0], "item"), (np.zeros((2, 3)), np.ones((2, 3)) / 3, "whole labels"),
])
def test_bad_input_is_named(logits, labels, says):
    with pytest.raises(UsageError, match=says): evaluate(stored(logits, labels), ["a", "b", "c"])


def test_wrong_number_of_names():
    with pytest.raises(UsageError, match="there are 2 classes"): evaluate(stored(np.eye(3), [0, 1, 2]), ["a", "b"])


def test_confusion_and_class_figures_by_hand():
    truth, guess = [0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 2, 2]
    assert confusion_matrix(guess, truth, 3).tolist() == [[1, 1, 0], [0, 2, 1], [0, 0, 1]]
    rates = class_figures(guess, truth, 3)
    assert rates.precision == pytest.approx([1, 2 / 3, 1 / 2]) and rates.recall == pytest.approx([1 / 2, 2 / 3, 1])
    assert rates.support.tolist() == [2, 3, 1] and rates.predicted.tolist() == [1, 3, 2]
