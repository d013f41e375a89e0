"""Runs from outside: processes with tickets, a queue, logs that grow and are cut back, forks."""

import os
import time

import pytest

from cnnbench.config import replace_all
from cnnbench.control import LogReader, drop_ticket, fork_run, last_words, resume_run_process, standing, start_run_process, ticket_state, tickets
from cnnbench.core import UsageError
from cnnbench.experiment import Edited, EpochEnd, Experiment, RunEnd, StepEnd, checkpoint_files, create_run, load_experiment, log_line, prepare
from cnnbench.experiment import read_log, read_run, replay_run, request_edit, resolve, run_state, train_run

SMALL = {"model.name": "lenet", "train.epochs": 2, "train.batch_size": 256, "train.precision": "fp32", "train.layout": "contiguous", "threads": 1}


def until(told, what, seconds=240):
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


def make(folder, **changes):
    setup, _ = resolve(prepare(replace_all(Experiment(), SMALL | changes)))
    return create_run(setup, folder)


def test_processes_train_one_after_the_other_and_are_told_apart(tmp_path):
    first = start_run_process(replace_all(Experiment(), SMALL | {"name": "one", "train.epochs": 400}), tmp_path)
    second = start_run_process(replace_all(Experiment(), SMALL | {"name": "two"}), tmp_path)
    until(lambda: ticket_state(first) == "running", lambda: last_words(first))
    assert ticket_state(second) == "waiting" and not second.folder.exists()
    assert [ticket.name for ticket in tickets(tmp_path)] == ["one", "two"]
    request_edit(first.folder, "stop")
    until(lambda: ticket_state(first) == "stopped", lambda: last_words(first))
    until(lambda: (second.folder / "report.html").exists() and not second.alive, lambda: last_words(second))
    assert (tickets(tmp_path), run_state(second.folder)) == ([], "finished")
    again = resume_run_process(first.folder)
    until(lambda: ticket_state(again) == "running", lambda: last_words(again))
    with pytest.raises(UsageError, match="trained already"): resume_run_process(first.folder)
    drop_ticket(again)
    until(lambda: not again.alive, lambda: last_words(again))
    assert run_state(first.folder) == "stopped"


def test_a_run_that_cannot_begin_says_why_and_a_waiting_one_can_be_taken_back(tmp_path):
    lost = start_run_process(replace_all(Experiment(), SMALL | {"name": "lost", "data.name": str(tmp_path / "nothing")}), tmp_path)
    until(lambda: not lost.alive, lambda: last_words(lost))
    assert ticket_state(lost) == "failed" and "nothing" in last_words(lost) and not lost.folder.exists()
    drop_ticket(lost)
    assert tickets(tmp_path) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there already"): start_run_process(replace_all(Experiment(), {"name": "there"}), tmp_path)


def test_the_process_trains_as_the_command_line_does(tmp_path):
    experiment = replace_all(Experiment(), SMALL | {"name": "same"})
    ticket = start_run_process(experiment, tmp_path / "a")
    until(lambda: not ticket.alive, lambda: last_words(ticket))
    folder = make(tmp_path / "b", name="same")
    for _ in train_run(folder): pass
    logs = [[record for _, record in read_log(path) if isinstance(record, StepEnd | EpochEnd)] for path in (ticket.folder, folder)]
    assert logs[0] == logs[1]


def test_a_reader_gives_each_line_once_whole_and_begins_anew_when_the_log_is_cut(tmp_path):
    log, reader = tmp_path / "log.jsonl", LogReader(tmp_path)
    assert reader() == (False, [])
    lines = [log_line(float(step), StepEnd(0, step, {"model": 1.0}, 0.1, None, 8)) for step in range(1, 5)]
    log.write_text(lines[0] + lines[1][:10])
    assert [record.step for _, record in reader()[1]] == [1]
    log.write_text(lines[0] + lines[1])
    assert [record.step for _, record in reader()[1]] == [2]
    aside = tmp_path / "aside"
    aside.write_text(lines[0])
    os.replace(aside, log)
    anew, found = reader()
    assert anew and [record.step for _, record in found] == [1]


def test_standing_takes_the_speed_of_late(tmp_path):
    steps = [(float(i), StepEnd(0, i, {"model": 1.0}, 0.1, None, 32)) for i in range(1, 11)]
    assert standing(steps, 4, "running").speed == 32.0 and standing(steps, 4, "running").left == 0.0
    now = standing([*steps, (10.5, EpochEnd(0, 10, {"train_loss": 1.0}))], 4, "running")
    assert (now.steps, now.left, now.epoch) == (40, 30.0, 1) and "30 s left" in now.words()
    assert "no data" in standing([(0.0, RunEnd(0, 0, "failed", "no data"))], 4, "failed").words()
    assert standing([], 4, "new").words() == "new, 0 of 4 epochs"


def test_a_fork_goes_on_from_the_checkpoint_with_the_edits_until_there(tmp_path):
    folder = make(tmp_path / "first", **{"train.epochs": 3})
    request_edit(folder, "train.weight_decay", 0.1)
    for _ in train_run(folder): pass
    checkpoint = checkpoint_files(folder)[0]
    same = fork_run(folder, checkpoint, {}, "same")
    for _ in train_run(same): pass
    logs = [[record for _, record in read_log(path) if isinstance(record, StepEnd | EpochEnd)] for path in (folder, same)]
    assert logs[0] == logs[1]  # the same settings bring the same bits
    other = fork_run(folder, checkpoint, {"train.lr": 0.0005, "train.epochs": 4})
    request_edit(other, "train.weight_decay", 0.2)
    for _ in train_run(other): pass
    edits = [record.value for _, record in read_log(other) if isinstance(record, Edited)]
    assert (other.name, edits, load_experiment(other).train.lr, len(checkpoint_files(folder))) == ("first-fork", [0.1, 0.2], 0.0005, 3)
    assert read_run(other)["forked"] == {"run": "first", "step": int(checkpoint.stem[5:]), "changes": {
        "train.epochs": [3, 4], "train.lr": [0.003, 0.0005]}}
    with pytest.raises(UsageError, match="data.name cannot change"): fork_run(folder, checkpoint, {"data.name": "shapes"})
    with pytest.raises(UsageError, match="goes on from a checkpoint of first"): replay_run(other)
