"Explanations of runs: costs that are told and kept, work that can be cancelled, panels driven without a page, models left as they were."
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnbench import insight
from cnnbench.control import list_choices, prepare_again, stored_predictions
from cnnbench.core import UsageError, preserved
from cnnbench.experiment import create_run, experiment_for, load_model, open_setup, prepare, resolve, train_run
from cnnbench.explain import EXPLAINERS, Attribution, ExplainConfig, explain
from cnnbench.insight import (
    PASSES, Pace, SanityCheck, explain_told, explanation_panel, map_layers, measure_pace, open_near, predicted_cost, questions_of,
    sanity_maps, short_batches, target_names,
)
from cnnbench.tasks import save_predictions
from cnnbench.ui import Cancelled, Desk

SMALL: dict[str, Any] = {"threads": 1, "train.precision": "fp32", "train.layout": "contiguous"}
SETTINGS: dict[str, dict[str, Any]] = {
    "classification": {"train.epochs": 2, "model.name": "lenet"},
    "detection": {"train.epochs": 1, "data.shapes.count": 60, "data.size": 64},
    "segmentation": {"train.epochs": 1, "data.shapes.count": 60, "data.size": 64},
}
TASKS = pytest.mark.parametrize("task", list(SETTINGS))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    "A folder with a short run of three tasks."
    folder = tmp_path_factory.mktemp("runs")
    for task, changes in SETTINGS.items():
        setup, _ = resolve(prepare(experiment_for(task, SMALL | changes)))
        for _ in train_run(create_run(setup, folder / task), setup): pass
    return folder


def opened(root: Path, task: str):
    setup = open_setup(root / task)
    return setup, load_model(root / task, setup)


def panel_for(root: Path, task: str | None = None):
    "A desk and an explanation panel that shows the run of a task."
    desk = Desk(experiment_for("classification", SMALL), prepare_again, root)
    assert desk.wait(120)
    if task is not None: desk.run = root / task
    panel = explanation_panel(desk)
    assert panel.wait(120)
    return desk, panel


def tick(panel, *methods: str) -> None:
    for name, box in panel.of["methods"].items(): box.value = name in methods
    assert panel.wait(120)


def state_of(model: nn.Module):
    modes = [(module.training, dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()]
    return modes, [held.requires_grad for held in model.parameters()], {name: held.clone() for name, held in model.state_dict().items()}


def assert_same_state(model: nn.Module, before) -> None:
    now = state_of(model)
    assert now[:2] == before[:2] and all(torch.equal(held, now[2][name]) for name, held in before[2].items())


class Slices(nn.Module):
    "A tiny network of clips (batch, time, channel, height, width)."

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv3d(2, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, clips): return self.head(self.conv(clips.movedim(2, 1)).relu().mean((2, 3, 4)))


@pytest.mark.parametrize("images", [torch.zeros(2, 2, 9, 7, dtype=torch.uint8), torch.zeros(1, 3, 2, 8, 10, dtype=torch.uint8)])
@pytest.mark.parametrize("method", EXPLAINERS)
def test_passes_are_as_many_as_were_told(method, images):
    model, seen = Slices() if images.ndim == 5 else nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(105, 4)), list[int]()
    for config in (ExplainConfig(steps=5, window=0.4, stride=0.3), ExplainConfig(steps=8, window=1.0, stride=0.5, batch=3)):
        seen.clear()
        with preserved(model):
            model.register_forward_pre_hook(lambda module, given: seen.append((1 + torch.is_grad_enabled()) * len(given[0])))
            explain(model, images, None, method, config)
        assert sum(seen) == predicted_cost(method, model, images, config, Pace((0, 0), (0, 0))).passes


def test_costs_grow_with_what_is_asked(root):
    setup, model = opened(root, "classification")
    images = questions_of(root / "classification", setup, model, count=1)[0].images
    pace = measure_pace(model, images)
    def seconds(method, **changes): return predicted_cost(method, model, images, ExplainConfig(**changes), pace).seconds
    assert 0 < seconds("saliency") < seconds("integrated_gradients", steps=64) < seconds("integrated_gradients", steps=256)
    assert seconds("occlusion") < seconds("occlusion", stride=0.04)
    assert short_batches(ExplainConfig(batch=7), Pace((0, 1e-9), (0, 1e-9))).batch == 7
    assert predicted_cost("x:y", model, images).words() == "time not known"


@pytest.mark.parametrize("method", EXPLAINERS)
def test_what_is_cancelled_leaves_the_model_alone(root, method):
    setup, model = opened(root, "classification")
    question, calls = questions_of(root / "classification", setup, model, count=1)[0], []

    def tell(share: float) -> None:
        calls.append(share)
        if len(calls) > 1: raise Cancelled

    model.train()
    model.register_forward_hook(lambda module, given, output: None)
    before = state_of(model)
    with pytest.raises(Cancelled): explain_told(model, question.images, question.answers, method, ExplainConfig(batch=4), tell)
    assert len(calls) == 2
    assert_same_state(model, before)


@TASKS
def test_being_told_changes_nothing(root, task):
    setup, model = opened(root, task)
    question = questions_of(root / task, setup, model, count=1)[0]
    config, shares = ExplainConfig(batch=8, layer=question.layer), list[float]()
    for method in EXPLAINERS:
        shares.clear()
        found = explain_told(question.model, question.images, question.answers, method, config, shares.append)
        np.testing.assert_array_equal(found.maps, explain(question.model, question.images, question.answers, method, config).maps)
        assert shares == sorted(shares) and 0 == shares[0] and shares[-1] < 1


@TASKS
def test_a_panel_shows_what_its_code_makes(root, task):
    desk, panel = panel_for(root, task)
    assert panel.of["run"].runs.value == root / task
    tick(panel, "saliency", "grad_cam")
    if not panel.of["start"].disabled:  # a slow machine does not make them by itself
        panel.of["start"].click()
        assert desk.job.wait(120) == "done" and panel.wait(120)
    names: dict = {}
    exec(panel.code(), names)
    made = [panel.state.maps[each] for each in panel.state.wanted]
    assert [found.method for found in names["result"]] == ["saliency", "grad_cam"]
    for one, other in zip(names["result"], made, strict=True): np.testing.assert_allclose(one.maps, other.maps, rtol=1e-3, atol=1e-5)
    assert panel.of["picture"].data[:2] == b"\xff\xd8" and "orange" in panel.of["words"].value
    assert " s" in panel.of["methods"]["occlusion"].description and "51 images" in panel.of["methods"]["occlusion"].tooltip


def test_sliders_of_the_picture_make_no_map(root, monkeypatch):
    _, panel = panel_for(root, "classification")
    calls = list[str]()
    monkeypatch.setattr(insight, "explain_told", lambda *given: calls.append(given[3]) or explain(*given[:5]))
    pictures = [panel.of["picture"].data]
    for name, value in (("opacity", 0.2), ("view", "map"), ("view", "image")):
        panel.of[name].value = value
        assert panel.wait(60)
        pictures.append(panel.of["picture"].data)
    assert len(set(pictures)) == 4 and not calls
    panel.of["target"].value = next(place for _, place in panel.state.targets if place != panel.of["target"].value)
    assert panel.wait(60) and calls == ["saliency"]
    panel.of["target"].value = int(panel.state.questions[0].answers[0])
    assert panel.wait(60) and calls == ["saliency"]  # it was there
    panel.of["settings"].of["steps"].value = 40
    assert panel.wait(60) and calls == ["saliency"]  # does not concern it
    panel.of["image"].value = 1
    assert panel.wait(60) and calls == ["saliency"] * 2


def test_one_row_is_asked_about(root):
    _, panel = panel_for(root, "classification")
    panel.of["source"].value, panel.of["row"].value = "row", 5
    assert panel.wait(60)
    row = int(panel.state.setup.split.val[5])
    assert [question.rows for question in panel.state.questions] == [[row]] and f"row={row}" in panel.code()
    truth = panel.state.setup.task.caption(panel.state.setup.dataset.targets[row])
    assert [name.split(" (")[0] for name, _ in panel.state.targets if "true" in name] == [truth]


def test_a_click_on_a_small_picture_chooses_it(root):
    _, panel = panel_for(root, "classification")
    panel.of["thumbs"]._handle_custom_msg({"x": 0.4, "y": 0.9}, [])
    assert panel.wait(60) and panel.of["image"].value == 8  # third of six in the second row


def test_what_takes_long_waits_and_is_cancelled(root, monkeypatch):
    monkeypatch.setattr(insight, "LIVE", 0.0)
    desk, panel = panel_for(root, "detection")
    panel.of["settings"].of["stride"].value, panel.of["settings"].of["window"].value = 0.01, 0.1
    tick(panel, "occlusion")
    assert "Not made yet: occlusion" in panel.of["words"].value and not panel.state.maps and not panel.of["start"].disabled
    before, started = state_of(panel.state.model), threading.Event()
    desk.job.observe(lambda change: started.set() if change.new > 0 else None, "fraction")
    panel.of["start"].click()
    assert started.wait(60) and panel.wait(60) and panel.of["start"].description == "Cancel"
    panel.of["start"].click()
    assert desk.job.wait(60) == "cancelled" and panel.wait(60)
    assert panel.of["start"].description == "Explain" and "Cancelled" in panel.of["words"].value and not panel.state.maps
    assert_same_state(panel.state.model, before)


def test_the_sanity_check_shows_both(root):
    desk, panel = panel_for(root, "classification")
    tick(panel, "saliency", "grad_cam")
    plain = panel.of["picture"].data
    panel.of["check"].click()
    assert desk.job.wait(120) == "done" and panel.wait(60)
    checks = [panel.state.checks[each] for each in panel.state.wanted]
    for check, each in zip(checks, panel.state.wanted, strict=True):
        direct = sanity_maps(panel.state.model, panel.state.questions[0].images, panel.state.maps[each], each.config)
        assert direct.correlation == pytest.approx(check.correlation, abs=1e-6) and check.words() in panel.of["checks"].value
    assert panel.of["picture"].data != plain and panel.of["check"].disabled


def test_other_work_is_not_disturbed(root, monkeypatch):
    monkeypatch.setattr(insight, "LIVE", 0.0)
    desk, panel = panel_for(root, "classification")
    go = threading.Event()
    desk.job.start(lambda job: go.wait(60))
    panel.of["start"].click()
    assert panel.wait(60) and "still running" in panel.of["words"].value and panel.of["start"].description == "Explain"
    go.set()
    assert desk.job.wait(60) == "done"
    panel.of["start"].click()
    assert desk.job.wait(60) == "done" and panel.wait(60) and len(panel.state.maps) == 1


def own(model, images, targets, config): return images.detach().mean(1)
def broken(model, images, targets, config): raise RuntimeError("no such luck\nat all")


def test_a_method_of_ones_own(root):
    desk, panel = panel_for(root, "classification")
    for name, words in (("test_insight:own", "orange"), ("test_insight:broken", "no such luck"), ("test_insight:owm", "Did you mean own")):
        panel.of["own"].value = name
        assert panel.wait(60) and "time not known" in panel.of["words"].value
        panel.of["start"].click()
        assert desk.job.wait(60) == "done" and panel.wait(60)
        assert words in panel.of["words"].value and "at all" not in panel.of["words"].value
    assert sum(isinstance(found, Attribution) for found in panel.state.maps.values()) == 2


def test_another_run_another_task(root):
    desk, panel = panel_for(root)
    assert "Choose a run" in panel.of["words"].value and panel.of["run"].runs.value == "" and panel.code().startswith("#")
    assert panel.of["run"].read.wait(60)
    for task in ("segmentation", "classification"):
        panel.of["run"].runs.value = root / task
        assert panel.wait(120) and desk.run == root / task and panel.state.setup.experiment.task.name == task
        assert all(each.image == 0 for each in panel.state.maps) and len(panel.state.questions) > 3
    desk.run = None
    assert panel.wait(60) and "Choose a run" in panel.of["words"].value and panel.of["picture"].data == b""


def test_what_cannot_be_shown_is_said(root, tmp_path):
    setup, _ = resolve(prepare(experiment_for("classification", SMALL | SETTINGS["classification"])))
    untrained = create_run(setup, tmp_path / "new")
    desk, panel = panel_for(root)
    for folder, words in ((untrained, "has no last checkpoint yet"), (tmp_path / "nowhere", "There is no run in")):
        desk.run = folder
        assert panel.wait(60) and words in panel.of["words"].value and panel.of["run"].runs.value == folder
    for _ in train_run(untrained, setup): pass
    desk.run = untrained
    assert panel.wait(60)
    panel.of["run"].again.click()
    assert panel.wait(60) and "orange" in panel.of["words"].value


def test_a_damaged_run_does_not_hide_the_others(root, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.json").write_text("{" if name == "two" else (root / "classification/experiment.json").read_text("utf-8"))
    rows, listed, problem = list_choices(tmp_path)
    assert (rows, {words for words, _ in listed}, bool(problem)) == ([], {"one", "two"}, True)


def test_data_at_hand_is_not_read_again(root):
    setup, _ = opened(root, "classification")
    near = open_near(root / "classification", setup)
    assert near.dataset is setup.dataset and [rows.tolist() for rows in vars(near.split).values()] == [r.tolist() for r in vars(setup.split).values()]
    other = open_near(root / "detection", setup)
    assert other.task.target == "boxes" and other.dataset is not setup.dataset


def test_stored_predictions_are_used_while_they_are_new(root):
    folder = root / "classification"
    setup, model = opened(root, "classification")
    path = folder / "predictions" / "val.npz"
    assert stored_predictions(folder, "val") is None
    save_predictions(path, setup.task.predict(model, setup.loader(setup.split.val[:7])(0)))
    held = stored_predictions(folder, "val")
    assert held.rows.tolist() == setup.split.val[:7].tolist()
    assert len(questions_of(folder, setup, model)) == 7
    late = time.time() + 60
    for file in (folder / "checkpoints").glob("*.pt"): os.utime(file, (late, late))
    assert stored_predictions(folder, "val") is None
    path.unlink()


def test_layers_with_maps(root):
    setup, model = opened(root, "classification")
    image = questions_of(root / "classification", setup, model, count=1)[0].images
    twice = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), twice, nn.Conv2d(2, 2, 3), twice, nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    assert map_layers(net, torch.zeros(1, 1, 8, 8)) == ["0", "2", "4"]  # dropout, idle, names the map of the second use
    for layer in map_layers(model, image):
        assert explain(model, image, None, "grad_cam", ExplainConfig(layer=layer)).layer == layer


def test_a_layer_beside_the_way_is_said(root):
    setup, model = opened(root, "detection")
    question = questions_of(root / "detection", setup, model, count=1)[0]
    beside = map_layers(question.model, question.images.float())[-1]
    with pytest.raises(UsageError, match=f"does not depend on the layer {beside}"):
        explain_told(question.model, question.images, question.answers, "grad_cam", ExplainConfig(layer=beside), lambda share: None)


def test_a_check_says_what_it_means():
    found = Attribution(np.ones((1, 2, 2), np.float32), "x:my_way", np.zeros(1, np.int64), "", 0.0)
    said = [SanityCheck(found, found, np.array([value])).words() for value in (0.9, 0.5, -0.1)]
    assert [words.split(":")[0] for words in said] == ["My way (0.90)", "My way (0.50)", "My way (-0.10)"] and len(set(said)) == 3


def test_scores_have_names(root):
    setup, model = opened(root, "segmentation")
    question = questions_of(root / "segmentation", setup, model, count=1)[0]
    names = target_names(question, setup.task, setup.dataset)
    assert names[0][1] == int(question.answers[0]) and "in question" in names[0][0]
    assert {name.split(",")[0].split(" (")[0] for name, _ in names} == set(setup.task.classes)


def test_methods_of_all_explainers_have_a_cost(): assert set(PASSES) == set(EXPLAINERS) == set(insight.CONCERNS)


def test_bad_settings_are_said_beside_them(root):
    _, panel = panel_for(root, "classification")
    panel.of["settings"].of["stride"].value = 0.5
    assert panel.wait(60) and panel.state.wanted[0].config.stride == ExplainConfig().stride
    with pytest.raises(UsageError, match="above window"): ExplainConfig(stride=0.5)
