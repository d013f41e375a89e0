"""Every kind of work goes through the same pipeline: trained, resumed, judged, explained, exported, used; in steps that can be cut up and shared."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_two_processes
from PIL import Image
from torch import nn

from cnnbench.artefact import load_artefact, predictions_table, write_predictions_csv
from cnnbench.cli import main
from cnnbench.config import from_json, to_code, to_json
from cnnbench.core import UsageError
from cnnbench.data import Batch
from cnnbench.experiment import (
    Experiment, Setup, StepEnd, create_run, experiment_for, first_difference, load_checkpoint, load_experiment, named_checkpoint, prepare, resolve,
    run_state, train_run,
)
from cnnbench.export import form_of, open_session
from cnnbench.frames import write_clip
from cnnbench.control import code_for
from cnnbench.pipeline import flags_for, run_pipeline
from cnnbench.targets import Boxes, Masks
from cnnbench.tasks import TASKS
from cnnbench.train import TrainConfig, optimizer_step, start_run

SMALL = {
    "threads": 1, "data.shapes.count": 80, "data.size": 64, "train.batch_size": 16, "train.epochs": 2, "train.precision": "fp32",
    "train.layout": "channels_last",
}
SETTINGS = {
    "classification": SMALL | {"data.size": 16, "train.batch_size": 256},
    "multilabel": SMALL | {"data.size": 32, "model.name": "lenet"},
    "detection": SMALL,
    "segmentation": SMALL,
    "generation": SMALL | {"data.size": 16, "train.batch_size": 256},
    "video": SMALL | {"data.size": 32, "data.frames": 4},
}
METRICS = {
    "classification": "accuracy", "multilabel": "map", "detection": "map", "segmentation": "mean_iou", "generation": "frechet_distance",
    "video": "accuracy",
}
EVERY = pytest.mark.parametrize("task", list(SETTINGS))


def small(task: str, **changes) -> Experiment: return experiment_for(task, SETTINGS[task] | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The run of a task, whole; each is made once."
    root, made = tmp_path_factory.mktemp("runs"), {}

    def get(task: str) -> Path:
        if task not in made: made[task] = run_pipeline(small(task), root / task, say=lambda line: None, watch=lambda record: None)
        return made[task]
    return get


def test_every_task_is_tried(): assert set(SETTINGS) == set(TASKS)


@EVERY
def test_settings_come_back(task):
    experiment = experiment_for(task)
    assert experiment.task.name == task and from_json(Experiment, to_json(experiment)) == experiment
    names: dict = {}
    exec(code_for(experiment).rpartition("result = ")[0], names)
    assert names["experiment"] == experiment and to_code(names["experiment"]) == to_code(experiment)
    assert flags_for(experiment).strip() == ("" if task == "classification" else f"--task {task}")  # the task's own defaults need no flag


@EVERY
def test_a_run_is_whole(task, finished):
    folder = finished(task)
    summary, evaluation = (json.loads((folder / name).read_text("utf-8")) for name in ("summary.json", "evaluation.json"))
    assert summary["task"] == task and summary["main_metric"] == METRICS[task] and math.isfinite(summary["main_value"])
    assert summary["main_value"] == evaluation[evaluation["split"]]["figures"][METRICS[task]]["value"] == summary["figures"][METRICS[task]]
    assert len(summary["figures"]) > 1 and all(math.isfinite(value) for value in summary["figures"].values())
    page = re.sub("<script.*?</script>", "", (folder / "report.html").read_text("utf-8"), flags=re.DOTALL)
    assert "What it looked at" in page and "http" not in page  # it asks nothing of the network
    assert min(Image.open(folder / "explanations.jpg").size) > 50
    explained = json.loads((folder / "explanations.json").read_text("utf-8"))
    assert len({fact["method"] for fact in explained["methods"]}) + len(explained["left_out"]) == 4 and len(explained["left_out"]) <= 1
    assert run_state(folder) == "finished"


@EVERY
def test_what_is_exported_is_used(task, finished, tmp_path, capsys):
    artefact = load_artefact(finished(task) / "artefact")
    session = open_session(artefact.folder / "model.onnx", form=form_of(artefact))
    assert tuple(item.name for item in session.get_outputs()) == artefact.task.output_names
    if task == "generation":
        assert main(["sample", str(artefact.folder), str(tmp_path), "--count", "3", "--seed", "5"]) == 0
        assert len(list(tmp_path.glob("*.png"))) == 3 and np.array_equal(artefact.sample(3, 5), artefact.sample(3, 5))
        assert not np.array_equal(artefact.sample(3, 5), artefact.sample(3, 6))
        with pytest.raises(UsageError, match="it makes them"): artefact.predict(np.zeros((16, 16), np.uint8))
        return
    draw = np.random.default_rng(0)
    if task == "video": write_clip(tmp_path / "one.gif", draw.integers(0, 256, (6, 40, 50, 3), np.uint8))
    else: Image.fromarray(draw.integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "one.png")
    (tmp_path / ("bad.mp4" if task == "video" else "bad.png")).write_bytes(b"nothing of the kind")
    rows = artefact.predict(tmp_path)
    assert sorted(bool(row.error) for row in rows) == [False, True]
    assert next(row for row in rows if not row.error).answer.words() and len(predictions_table(rows).splitlines()) == 3
    write_predictions_csv(tmp_path / "table.csv", rows)
    assert (tmp_path / "table.csv").read_text("utf-8").startswith('"file"')
    assert main(["predict", str(artefact.folder), str(tmp_path)]) == 0 and "one." in capsys.readouterr().out


def test_a_large_image_is_segmented_in_tiles(finished, tmp_path, capsys):
    artefact, pixels = finished("segmentation") / "artefact", np.random.default_rng(0).integers(0, 256, (150, 90, 3), np.uint8)
    (tmp_path / "more").mkdir()
    for place in ("large.png", "more/large.png"): Image.fromarray(pixels).save(tmp_path / place)
    masks, clips = tmp_path / "masks", finished("video") / "artefact"
    assert main(["predict", str(artefact), str(tmp_path / "large.png"), str(tmp_path / "more"), "--tiled", "--masks", str(masks)]) == 0
    (alone,) = load_artefact(artefact).predict(pixels, tiled=True)
    written = [np.asarray(Image.open(masks / name)) for name in ("large.png", "large-2.png")]
    assert all(np.array_equal(mask, alone.answer.mask) for mask in written) and written[0].shape == (150, 90)
    kept = (tmp_path / "large.png").read_bytes()
    assert main(["predict", str(artefact), str(tmp_path / "large.png"), "--masks", str(tmp_path)]) == 1  # would be written over the image
    assert "is there already: name a new folder" in capsys.readouterr().err and (tmp_path / "large.png").read_bytes() == kept
    assert not np.array_equal(alone.answer.mask, load_artefact(artefact).predict(pixels)[0].answer.mask)  # that one saw the image made small
    assert main(["predict", str(clips), str(tmp_path), "--tiled"]) == 1 and "tile by tile" in capsys.readouterr().err


@EVERY
def test_resumed_to_the_bit(task, finished, tmp_path):
    changes = {"train.save_seconds": 0.1, "train.average": 0.9}
    if task == "generation": changes["task.helper"] = load_experiment(finished(task)).task.helper
    setup = resolve(prepare(small(task, **changes)))[0]
    whole, cut = (create_run(setup, tmp_path / name) for name in ("whole", "cut"))
    steps = [record.step for record in train_run(whole, setup) if isinstance(record, StepEnd)]
    for stop in (1, steps[-1] // 2 + 1):
        training = train_run(cut, setup)
        for record in training:
            if isinstance(record, StepEnd) and record.step >= stop: break
        training.close()
    for _ in train_run(cut, setup): pass
    assert first_difference(whole, cut) == ""
    first, second = (load_checkpoint(named_checkpoint(folder, "last")) for folder in (whole, cut))  # type: ignore[arg-type]
    for part in ("model", "averaged"): assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())


@pytest.mark.parametrize(("task", "data", "sentence"), [
    ("detect", "shapes", "Did you mean detection"), ("detection", "digits", "boxes"), ("segmentation", "digits", "masks"),
    ("video", "digits", "clips"),
])
def test_what_does_not_fit_is_said(task, data, sentence, capsys, tmp_path):
    assert main(["run", "--task", task, "--data", data, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said and not (tmp_path / "run").exists()


def test_a_helper_of_other_classes_is_refused(finished, tmp_path):
    helper = load_experiment(finished("generation")).task.helper
    facts = json.loads((Path(helper) / "experiment.json").read_text("utf-8"))
    other = tmp_path / "helper"
    shutil.copytree(helper, other)
    lines = (other / "log.jsonl").read_text("utf-8").splitlines()
    (other / "log.jsonl").write_text("\n".join(line for line in lines if '"kind": "end"' not in line) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="is not trained to its end"): prepare(small("generation", **{"task.helper": str(other)}))
    with pytest.raises(UsageError, match="takes images of"): prepare(small("generation", **{"task.helper": helper, "data.size": 32}))
    shapes = {"data.name": "shapes", "data.size": facts["experiment"]["data"]["size"], "data.channels": "grey"}
    with pytest.raises(UsageError, match="knows the classes 0, 1, 2"): prepare(small("generation", **{"task.helper": helper} | shapes))


def without_norms(module: nn.Module) -> nn.Module:
    "The network with its batch norms taken out: their figures are those of a micro-batch."
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)): setattr(module, name, nn.Identity())
        else: without_norms(child)
    return module


def some_of(batch: Batch, items: torch.Tensor) -> Batch:
    "The items of a batch, with what belongs to them."
    targets, variation = batch.targets, batch.variation
    if isinstance(targets, Boxes):
        kept, places = torch.isin(targets.owner, items), torch.full((len(batch),), -1)
        places[items] = torch.arange(len(items))
        targets = replace(targets.keep(kept), owner=places[targets.owner[kept]], images=len(items))
    elif isinstance(targets, Masks): targets = Masks(*(None if held is None else held[items] for held in vars(targets).values()))
    else: targets = targets[items]
    if variation is not None:
        held = {name: value[items] for name, value in vars(variation).items() if isinstance(value, torch.Tensor)}
        variation = replace(variation, **held)
    return Batch(batch.images[items], targets, batch.rows[items], None if batch.geometry is None else batch.geometry[items], variation)


def plain_setup(task: str) -> Setup:
    "Sixteen items a batch; the task needs no helper to train."
    return prepare(small(task, **{"train.batch_size": 16}))


PLAIN = TrainConfig(epochs=1, optimizer="momentum", lr=0.01, momentum=0.5, weight_decay=0, precision="fp32", layout="contiguous")


def steps_of(task: str, cut: list[list[torch.Tensor]]) -> tuple[torch.Tensor, list[dict[str, float]]]:
    "The weights after two steps over the items that `cut` names for each, and the steps' losses."
    torch.manual_seed(0)
    setup = plain_setup(task)
    batches = list(setup.train_loader()(0))[:2]
    run = start_run(PLAIN, without_norms(setup.build()), setup.task, 2)
    run.objective.train()
    records = [optimizer_step(run, [some_of(batch, items) for items in parts if len(items)]) for batch, parts in zip(batches, cut, strict=False)]
    return torch.cat([value.detach().flatten() for value in run.model.parameters()]), [record.losses for record in records]


def assert_same_steps(one: tuple[torch.Tensor, list], other: tuple[torch.Tensor, list]) -> None:
    for first, second in zip(one[1], other[1], strict=True): assert first == pytest.approx(second, rel=2e-4)
    torch.testing.assert_close(one[0], other[0], rtol=2e-3, atol=2e-5)


@EVERY
def test_eight_small_batches_are_one_large(task):
    every = torch.arange(16)
    ragged = [every[:1], every[1:4], every[4:5], every[5:8], every[8:10], every[10:12], every[12:15], every[15:]]
    assert_same_steps(steps_of(task, [[every]] * 2), steps_of(task, [ragged] * 2))


def work(rank: int) -> dict[str, tuple[torch.Tensor, list[dict[str, float]]]]:
    "Train every task on this process's share, unequal in number."
    mine = torch.arange(16)[(torch.arange(16) % 3 == 0) == (rank == 0)]
    return {task: steps_of(task, [[mine]] * 2) for task in SETTINGS}


def test_two_processes_are_one(tmp_path):
    first, second = in_two_processes(work, tmp_path)
    for task in SETTINGS:
        alone = steps_of(task, [[torch.arange(16)]] * 2)
        assert torch.equal(first[task][0], second[task][0]), task
        shared = [{p: one[p] + two[p] for p in one} for one, two in zip(first[task][1], second[task][1], strict=True)]
        assert_same_steps((first[task][0], shared), alone)
