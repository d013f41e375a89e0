"""The studio without a browser: every panel for every task, what is kept between openings, training by its buttons."""

import json
import time

import pytest

from cnnbench.config import replace_all
from cnnbench.control import prepare_again, tickets
from cnnbench.experiment import Edited, Experiment, StepEnd, experiment_for, load_experiment, read_log
from cnnbench.monitor import training_panel
from cnnbench.studio import KEPT_FILE, STAGES, kept_desk, studio_panel
from cnnbench.ui import Desk

FEW = {"data.shapes.count": 40}
TASKS = {"classification": {}, "multilabel": FEW, "detection": FEW, "segmentation": FEW, "generation": {}, "video": FEW}
QUICK = {"model.name": "lenet", "train.epochs": 2, "train.batch_size": 256, "train.precision": "fp32", "train.layout": "contiguous", "threads": 1}


def until(told, seconds=240):
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("task", TASKS)
def test_every_panel_opens_for_every_task(task, tmp_path):
    studio = studio_panel(tmp_path, experiment_for(task, TASKS[task]))
    assert studio.desk.wait(240) and studio.desk.problem == ""
    for place, name in enumerate(STAGES):
        studio.tabs.selected_index = place
        panel = studio.tabs.panels.get(name)
        assert panel is not None, studio.tabs.children[place].children[0].value
        compile(panel.code(), name, "exec")


def test_what_was_on_the_desk_is_there_again_and_a_damaged_file_is_passed_over(tmp_path):
    first = studio_panel(tmp_path, experiment_for("detection", FEW))
    first.of["name"].value = "kept"
    again = studio_panel(tmp_path)
    assert (again.desk.store.config.name, again.desk.store.config.task.name, again.of["task.name"].value) == ("kept", "detection", "detection")
    (tmp_path / KEPT_FILE).write_text("{")
    assert kept_desk(tmp_path) == (None, None)
    assert studio_panel(tmp_path).desk.store.config == Experiment()
    (tmp_path / KEPT_FILE).write_text(json.dumps({"experiment": {"nothing": 1}, "run": str(tmp_path / "gone")}))
    assert kept_desk(tmp_path) == (None, None)


def test_a_wrong_setting_leaves_what_could_be_made_and_is_told_at_the_foot(tmp_path):
    studio = studio_panel(tmp_path)
    assert studio.desk.wait(240)
    studio.of["data.name"].value = str(tmp_path / "nowhere")
    assert studio.desk.wait(60) and "nowhere" in studio.desk.problem and studio.desk.setup.dataset.name == "digits"
    assert "nowhere" in studio.of["words"].value
    studio.of["path"].value = str(tmp_path / "none.json")
    studio.of["load"].click()
    assert "none.json cannot be read" in studio.of["notice"].value


def test_the_buttons_start_edit_pause_and_stop_a_run(tmp_path):
    desk = Desk(replace_all(Experiment(), QUICK | {"name": "pressed", "train.epochs": 3000}), prepare_again, tmp_path)
    panel = training_panel(desk)
    assert desk.wait(240)
    panel.of["Start"].click()
    assert panel.of["line"].value == ""
    until(lambda: panel.view.standing is not None and panel.view.standing.state == "running" and panel.view.view.live is not None)
    desk.store.set("train.clip", 1.0)
    until(lambda: "when nothing trains" in panel.of["cost"].value)
    panel.of["edits"]["train.lr"].value = 1e-3
    until(lambda: [record for _, record in read_log(desk.run) if isinstance(record, Edited)])
    panel.of["Pause"].click()
    until(lambda: panel.view.standing.state == "paused")
    assert panel.of["Pause"].disabled and not panel.of["Resume"].disabled
    panel.of["Resume"].click()
    until(lambda: panel.view.standing.state == "running")
    panel.of["Stop"].click()
    until(lambda: panel.view.standing.state == "stopped" and not any(ticket.alive for ticket in tickets(tmp_path)))
    steps = [record for _, record in read_log(desk.run) if isinstance(record, StepEnd)]
    edits = [(record.setting, record.refused) for _, record in read_log(desk.run) if isinstance(record, Edited)]
    assert steps and edits == [("train.lr", ""), ("pause", ""), ("resume", ""), ("stop", "")]
    assert load_experiment(desk.run) == replace_all(Experiment(), QUICK | {"name": "pressed", "train.epochs": 3000, "device": "cpu"})
    until(lambda: "about" in panel.of["cost"].value)  # what waited until nothing trains
    panel.of["Start"].click()
    assert "there already" in panel.of["line"].value
    panel.view.watcher.close()
