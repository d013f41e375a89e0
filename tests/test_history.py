"Checkpoints gone through: what they hold, what they answer, and a panel that keeps up with a run."
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnbench.control import prepare_again
from cnnbench.core import UsageError
from cnnbench.data import Batch
from cnnbench.experiment import checkpoint_files, create_run, experiment_for, load_model, open_setup, prepare, resolve, train_run
from cnnbench.history import (
    Kept, activations, answer_at, answer_history, asked_at, checkpoints_of, drawn_answer, filters_picture, first_filters, history_panel, inputs_of,
    model_at,
)
from cnnbench.insight import looked_at, questions_of
from cnnbench.train import EpochEnd
from cnnbench.ui import Desk

SMALL: dict[str, Any] = {"threads": 1, "train.precision": "fp32", "train.layout": "contiguous"}
SETTINGS: dict[str, dict[str, Any]] = {
    "classification": {"train.epochs": 3, "model.name": "lenet", "train.average": 0.9},
    "detection": {"train.epochs": 2, "data.shapes.count": 60, "data.size": 64},
    "segmentation": {"train.epochs": 2, "data.shapes.count": 60, "data.size": 64},
}
TASKS = pytest.mark.parametrize("task", list(SETTINGS))


def begun(task: str, folder: Path, **changes):
    setup, _ = resolve(prepare(experiment_for(task, SMALL | SETTINGS[task] | changes)))
    return setup, create_run(setup, folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    "A folder with a short run of three tasks."
    folder = tmp_path_factory.mktemp("runs")
    for task in SETTINGS:
        setup, run = begun(task, folder / task)
        for _ in train_run(run, setup): pass
    return folder


def panel_for(folder: Path):
    desk = Desk(experiment_for("classification", SMALL), prepare_again, folder.parent)
    assert desk.wait(120)
    desk.run = folder
    panel = history_panel(desk)
    assert panel.wait(120)
    return desk, panel


@TASKS
def test_a_panel_shows_what_its_code_makes(root, task):
    _, panel = panel_for(root / task)
    assert panel.of["epoch"].value == panel.of["epoch"].max == SETTINGS[task]["train.epochs"] - 1
    last = panel.of["answer"].data, panel.of["filters"].data, panel.of["maps"].data
    panel.of["epoch"].value, panel.of["row"].value = 0, 1
    assert panel.wait(120)
    names: dict = {}
    exec(panel.code(), names)
    result, row = names["result"], int(looked_at(panel.state.setup)[1])
    assert [moment.checkpoint for moment in result] == checkpoints_of(root / task)
    assert result[0].answer.words() in panel.of["words"].value and panel.state.row == row
    assert [held[:2] for held in last] == [b"\xff\xd8"] * 3 and panel.of["answer"].data != last[0] and panel.of["maps"].data != last[2]
    assert np.asarray(names["filters"]).ndim == 3 and names["maps"].ndim == 4
    if task == "classification":
        drawn = json.loads(panel.of["chart"].figure)["data"]
        chances = {panel.state.setup.task.classes[place]: [moment.outputs[0][0, place] for moment in result] for place in range(10)}
        assert panel.of["strip"].data == b"" and len(drawn) == 5
        for trace in drawn: assert trace["y"] == pytest.approx(chances[trace["name"]], abs=1e-5)
    else: assert panel.of["chart"].figure == "{}" and panel.of["strip"].data[:2] == b"\xff\xd8"


def test_a_click_leads_to_the_epoch(root):
    _, panel = panel_for(root / "classification")
    panel.of["chart"]._handle_custom_msg({"kind": "click", "points": [{"curve": 0, "point": 0, "x": 1.9, "y": 0.5}]}, [])
    assert panel.wait(60) and panel.of["epoch"].value == 1 and "Epoch 2" in panel.of["at"].value
    _, pictures = panel_for(root / "detection")
    pictures.of["strip"]._handle_custom_msg({"x": 0.2, "y": 0.5}, [])
    assert pictures.wait(60) and pictures.of["epoch"].value == 0


def test_a_run_is_followed_while_it_trains(root, tmp_path):
    setup, folder = begun("classification", tmp_path / "young")
    desk, panel = panel_for(folder)
    assert "has no checkpoint yet" in panel.of["words"].value
    training = train_run(folder, setup)
    for count in (1, 2):
        next(record for record in training if isinstance(record, EpochEnd))
        panel.of["run"].again.click()
        assert panel.wait(60) and len(panel.state.checkpoints) == count and panel.of["epoch"].value == count - 1
        assert len(json.loads(panel.of["chart"].figure)["data"][0]["x"]) == count
    panel.of["epoch"].value = 0
    for _ in training: pass
    panel.of["run"].again.click()
    assert panel.wait(60) and panel.of["epoch"].max == 2 and panel.of["epoch"].value == 0  # who looks back is left there


def test_a_checkpoint_that_is_gone_is_said(root, tmp_path):
    shutil.copytree(root / "classification", tmp_path / "thinned")
    _, panel = panel_for(tmp_path / "thinned")
    checkpoint_files(tmp_path / "thinned")[0].unlink()
    panel.of["row"].value = 3
    panel.state.models = Kept(0)
    panel.of["epoch"].value = 0
    assert panel.wait(60) and "is gone" in panel.of["words"].value
    panel.of["run"].again.click()
    assert panel.wait(60) and len(panel.state.checkpoints) == 2 and "Epoch 2" in panel.of["words"].value


def test_another_run_and_none(root):
    desk, panel = panel_for(root / "detection")
    desk.run = root / "segmentation"
    assert panel.wait(120) and panel.state.setup.experiment.task.name == "segmentation"
    desk.run = None
    assert panel.wait(60) and "Choose a run" in panel.of["words"].value and panel.of["answer"].data == b"" and panel.code().startswith("#")


def test_epochs_of_checkpoints(root, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(root / "classification", folder)
    steps = [each.step for each in checkpoints_of(folder)]
    assert [each.epoch for each in checkpoints_of(folder)] == [1, 2, 3] and steps == [steps[0], 2 * steps[0], 3 * steps[0]]
    for step in (steps[0] // 2, steps[0] + steps[0] // 4, 4 * steps[0]):
        shutil.copy(checkpoint_files(folder)[0], folder / "checkpoints" / f"step-{step:08}.pt")
    assert [each.epoch for each in checkpoints_of(folder)] == [0.5, 1, 1.25, 2, 3, 4]


def test_networks_are_those_that_are_used(root):
    setup = open_setup(root / "classification")
    files = checkpoint_files(root / "classification")
    wanted, found = load_model(root / "classification", setup, "last").state_dict(), model_at(setup, files[-1])
    assert not found.training and all(torch.equal(held, wanted[name]) for name, held in found.state_dict().items())
    with pytest.raises(UsageError, match="holds other weights"): model_at(open_setup(root / "detection"), files[0])


@TASKS
def test_answers_are_those_of_the_task(root, task):
    setup = open_setup(root / task)
    row, model = int(looked_at(setup)[2]), load_model(root / task, setup, "last")
    moment = answer_history(setup, checkpoints_of(root / task), row)[-1]
    batch: Batch = next(iter(setup.loader(np.array([row]))(0)))
    with torch.no_grad(): made = setup.task.deployed(model).eval()(batch.images)
    made = made if isinstance(made, tuple) else (made,)
    for one, other in zip(moment.outputs, made, strict=True): np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
    drawn = drawn_answer(setup, row, moment)
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3


def test_made_images_differ_by_their_number():
    setup = prepare(experiment_for("generation", SMALL | {"data.size": 16}))
    model = setup.build()
    (first,), answer = answer_at(setup, model, 0)
    (second,), _ = answer_at(setup, model, 5)
    assert first.shape == second.shape == (1, 1, 16, 16) and not np.array_equal(first, second) and "16x16" in answer.words()
    assert torch.equal(inputs_of(setup, 5)[0], setup.task.inputs(torch.zeros(6, 1, 16, 16))[0][5:])


def test_a_question_stays_the_same(root):
    folder = root / "segmentation"
    setup = open_setup(folder)
    model, early = load_model(folder, setup, "last"), model_at(setup, checkpoint_files(folder)[0])
    question = questions_of(folder, setup, model, int(looked_at(setup)[0]))[0]
    then = asked_at(question, model, early)
    assert torch.equal(then.model.regions, question.model.regions) and then.model.model is early and question.model.model is model
    plain = open_setup(root / "classification")
    reader = load_model(root / "classification", plain)
    assert asked_at(questions_of(root / "classification", plain, reader, 0)[0], reader, early).model is early


def test_filters_and_maps_by_hand():
    conv = nn.Conv3d(1, 2, (2, 1, 1), bias=False)
    conv.weight.data = torch.tensor([1.0, -2.0, 0.0, 4.0]).view(2, 1, 2, 1, 1)
    name, weights = first_filters(nn.Sequential(conv))
    assert name == "0" and weights.tolist() == [[[[1, -2]]], [[[0, 4]]]]
    picture = np.asarray(filters_picture(nn.Sequential(conv), cell=2))
    assert picture[8, [8, 9, 18, 19], 0].tolist() == [191, 0, 128, 255]
    frames = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(1, 1, 1, bias=False), nn.Unflatten(0, (1, -1)))
    frames[1].weight.data.fill_(2)
    clip = torch.arange(12.0).view(1, 3, 1, 2, 2)
    assert activations(frames, "1", clip)[0, 0].tolist() == [[0, 2, 8, 10, 16, 18], [4, 6, 12, 14, 20, 22]]


def test_what_is_held_is_bounded():
    kept, made = Kept(10), []
    def get(key, size): return kept(key, lambda: made.append(key) or key, lambda value: size)
    assert [get("a", 6), get("b", 4), get("a", 6), get("c", 4), get("b", 4)] == ["a", "b", "a", "c", "b"]
    assert made == ["a", "b", "c", "b"] and kept.bytes == 8 and "a" not in kept
    assert get("huge", 99) == "huge" and kept.bytes == 99


def test_pictures_are_pictures(root):
    _, panel = panel_for(root / "classification")
    assert min(Image.open(io.BytesIO(panel.of["maps"].data)).size) > 60
