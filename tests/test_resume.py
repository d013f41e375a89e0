"""A run that is killed, at any moment, ends as one that was not: the same weights and figures, to the bit."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import psutil
import pytest
import torch

from cnnbench import core
from cnnbench.augment import AugmentConfig
from cnnbench.config import replace_at
from cnnbench.core import UsageError, read_json, write_json
from cnnbench.data import DataConfig
from cnnbench.experiment import (
    Edited, EpochEnd, Experiment, StepEnd, checkpoint_files, create_run, first_difference, load_checkpoint, log_line, named_checkpoint, prepare,
    read_log, replay_run, request_edit, resolve, run_state, train_run,
)
from cnnbench.models import ModelConfig
from cnnbench.train import Diverged, TrainConfig

SMALL = Experiment(
    seed=4, threads=1, data=DataConfig(size=16), model=ModelConfig("lenet", dropout=0.1), augment=AugmentConfig(crop=2, mixup=0.2, noise=4),
    train=TrainConfig(epochs=3, batch_size=128, lr=0.01, precision="fp32", layout="contiguous", average=0.9, save_seconds=0.1),
)
TRAIN = "import sys; from cnnbench.experiment import train_run; [None for _ in train_run(sys.argv[1])]"


@pytest.fixture(scope="module")
def setup(): return resolve(prepare(SMALL))[0]


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
    "A run that nobody disturbed."
    folder = create_run(setup, tmp_path_factory.mktemp("runs") / "whole")
    for _ in train_run(folder, setup): pass
    return folder


def assert_same(one: Path, other: Path) -> None:
    assert first_difference(one, other) == ""
    first, second = (load_checkpoint(folder / "checkpoints" / (folder / "checkpoints" / "last").read_text()) for folder in (one, other))
    for part in ("model", "averaged"):
        for name, value in first[part].items(): assert torch.equal(value, second[part][name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kill_at_random_moments(setup, whole, tmp_path, precision):
    "kill -9 a process four times, wherever it is, saving included; what is left is always readable, and the end is the same."
    if precision != "fp32":
        setup = replace(setup, experiment=replace_at(setup.experiment, "train.precision", precision))
        whole = create_run(setup, tmp_path / "whole")
        for _ in train_run(whole, setup): pass
    folder, draw = create_run(setup, tmp_path / "killed"), random.Random(precision)
    for _ in range(4):
        before = len(read_log(folder))
        process = subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)])
        while process.poll() is None and len(read_log(folder)) <= before: time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (last := named_checkpoint(folder, "last")) is not None: load_checkpoint(last)
    for _ in train_run(folder, setup): pass
    assert_same(whole, folder)


@pytest.mark.parametrize("step", [1, 9, 10, 11, 17, 29])
def test_abandoned_at_a_step(setup, whole, tmp_path, step):
    "At the first step, before, at and after an epoch's end, and in the middle of one."
    folder = create_run(setup, tmp_path / "cut")
    training = train_run(folder, setup)
    for record in training:
        if isinstance(record, StepEnd) and record.step == step: break
    training.close()
    assert run_state(folder) == "cut"
    for _ in train_run(folder, setup): pass
    assert_same(whole, folder)


def test_loader_threads_do_not_matter(setup, whole, tmp_path):
    for threads in (1, 4):
        folder = create_run(replace(setup, experiment=replace(setup.experiment, loader_threads=threads)), tmp_path / str(threads))
        for _ in train_run(folder): pass
        assert_same(whole, folder)


def test_edits_survive_a_kill(setup, tmp_path):
    "Edits that were logged after the last checkpoint are made again at their steps; a replay makes them too."
    setup = replace(setup, experiment=replace_at(setup.experiment, "train.save_seconds", 1000))
    def edit_at(folder, stop_at):
        training = train_run(folder, setup)
        for record in training:
            if isinstance(record, StepEnd) and record.step == 13:
                request_edit(folder, "train.lr", 0.002)
                request_edit(folder, "augment.rotate", 40)
                request_edit(folder, "model.dropout", 0.4)
                request_edit(folder, "train.weight_decay", 0.2)
            if isinstance(record, StepEnd) and record.step == stop_at: break
        training.close()
        return folder
    whole, cut = edit_at(create_run(setup, tmp_path / "whole"), -1), edit_at(create_run(setup, tmp_path / "cut"), 18)
    for _ in train_run(cut, setup): pass
    # the augmentation edit may hold from another batch in each: how far the loader is ahead is a matter of timing, and is logged
    for folder in (whole, cut): assert replay_run(folder).same


def test_bad_edits_are_refused_and_logged(setup, tmp_path):
    folder = create_run(setup, tmp_path / "run")
    lines = ["nonsense", '{"setting": 3}', '{"setting": "train.lr", "value": -1}', '{"setting": "train.batch_size", "value": 8}', '[1]']
    (folder / "edits.jsonl").write_text("\n".join(lines) + "\n" + '{"setting": "stop"')  # the last line is not finished
    for _ in train_run(folder, setup): pass
    edits = [record for _, record in read_log(folder) if type(record).__name__ == "Edited"]
    assert len(edits) == len(lines) and all(edit.refused for edit in edits)
    assert run_state(folder) == "finished"


def test_pause_and_resume(setup, whole, tmp_path):
    "A pause changes nothing but the time; a stop ends it, as does an interrupt, and the run goes on from there."
    folder, stop, seen = create_run(setup, tmp_path / "paused"), Event(), []
    request_edit(folder, "pause")
    training = train_run(folder, setup, stop=stop.is_set)
    seen.append(next(training))
    assert (seen[0].setting, seen[0].step) == ("pause", 0)
    request_edit(folder, "resume")
    seen.append(next(training))
    assert seen[1].setting == "resume"
    request_edit(folder, "pause")
    for record in training:
        if getattr(record, "setting", "") == "pause": stop.set()  # an interrupt, while it stands still
        seen.append(record)
    assert seen[-1].reason == "stopped" and seen[-1].step < setup.experiment.train.epochs * 10
    for _ in train_run(folder, setup): pass
    assert_same(whole, folder)


def test_edits_are_made_in_the_order_of_their_steps(setup, tmp_path):
    "An edit that a cut log keeps may stand before one of an earlier step: both are made, each at its step."
    folder, late, early = create_run(setup, tmp_path / "mixed"), Edited(2, 25, "train.lr", 0.001), Edited(1, 12, "train.lr", 0.005)
    (folder / "log.jsonl").write_text(log_line(0.0, late) + log_line(0.0, early))
    rates = {record.step: record.lr for record in train_run(folder, setup) if isinstance(record, StepEnd)}
    plain = {record.step: record.lr for record in train_run(create_run(setup, tmp_path / "plain"), setup) if isinstance(record, StepEnd)}
    factors = [round(rates[step] / plain[step], 6) for step in (12, 13, 25, 26, 30)]
    assert factors == [1, 0.5, 0.5, 0.1, 0.1]


def test_more_memory_than_there_is(monkeypatch):
    "Refused before anything is made, with a batch size that fits."
    room = psutil.virtual_memory()._replace(total=20_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
    with pytest.raises(UsageError, match=r"try --train.batch_size \d+") as told: resolve(prepare(replace_at(SMALL, "train.batch_size", 65536)))
    fits = int(str(told.value).rpartition(" ")[2].rstrip("."))
    resolve(prepare(replace_at(SMALL, "train.batch_size", fits)))


def test_full_disk(setup, tmp_path, monkeypatch):
    "The older checkpoint stays whole, the run says what to do, and goes on when there is room."
    folder, real = create_run(setup, tmp_path / "full"), torch.save
    def full(*given, **named): raise OSError(errno.ENOSPC, "No space left on device")
    training = train_run(folder, setup)
    for record in training:
        if isinstance(record, EpochEnd): break
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UsageError, match="disk is full"):
        for _ in training: pass
    assert run_state(folder) == "failed"
    load_checkpoint(named_checkpoint(folder, "last"))
    assert not list(folder.rglob("*.part"))
    monkeypatch.setattr(torch, "save", real)
    for _ in train_run(folder, setup): pass
    assert run_state(folder) == "finished"


@pytest.mark.parametrize("step", [15, 20])  # in an epoch, where the next loss tells; and at its end, where only the weights to be saved do
def test_divergence_keeps_the_last_good_checkpoint(setup, tmp_path, step):
    setup = replace(setup, experiment=replace_at(setup.experiment, "train.save_seconds", 1000))
    folder = create_run(setup, tmp_path / "wild")
    training = train_run(folder, setup)
    for record in training:
        if isinstance(record, EpochEnd): break
    training.close()
    good = {path.name: path.read_bytes() for path in checkpoint_files(folder)}
    training = train_run(folder, setup)
    for record in training:
        if isinstance(record, StepEnd) and record.step == step: break
    held = training.gi_frame.f_locals["run"]
    with torch.no_grad(): next(held.model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="Likely causes: a learning rate"):
        for _ in training: pass
    assert run_state(folder) == "failed" and good == {path.name: path.read_bytes() for path in checkpoint_files(folder)}
    for path in checkpoint_files(folder): assert all(value.isfinite().all() for value in load_checkpoint(path)["model"].values())


def test_newer_run_and_damaged_files(setup, whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    facts = read_json(folder / "experiment.json")
    write_json(folder / "experiment.json", facts | {"format": 99, "version": "9.0"})
    with pytest.raises(UsageError, match="made by cnnbench 9.0, which is newer"): next(train_run(folder))
    write_json(folder / "experiment.json", facts | {"data": facts["data"] | {"fingerprint": "other"}})
    with pytest.raises(UsageError, match="not what this run was made with"): next(train_run(folder))
    write_json(folder / "experiment.json", facts)
    last = named_checkpoint(folder, "last")
    last.write_bytes(b"half a file")
    with pytest.raises(UsageError, match="not readable as a checkpoint"): next(train_run(folder))
    last.unlink()  # as the sentence says: an older one is used
    first = next(record for record in train_run(folder, setup) if isinstance(record, StepEnd))
    assert 1 < first.step == int(named_checkpoint(folder, "last").stem[5:]) + 1
    for _ in train_run(folder, setup): pass
    assert_same(whole, folder)
    (folder / "experiment.json").write_text("{")
    with pytest.raises(UsageError, match="not readable as JSON"): next(train_run(folder))


def test_same_seed_same_log(setup, whole, tmp_path):
    "Every figure of two runs of one seed, as written in the logs; another seed differs."
    folder = create_run(setup, tmp_path / "again")
    for _ in train_run(folder, setup): pass
    def timeless(run): return [json.loads(line) | {"seconds": 0} for line in (run / "log.jsonl").read_text().splitlines()]
    assert timeless(whole) == timeless(folder)
    other = resolve(prepare(replace(SMALL, seed=5)))[0]
    different = create_run(other, tmp_path / "other")
    for _ in train_run(different, other): pass
    assert first_difference(whole, different)


def test_checkpoints_fit_their_disk(setup, tmp_path):
    "Older ones are thinned; the last and the best stay."
    size = 1.6e6
    small = replace(setup, experiment=replace_at(replace_at(setup.experiment, "train.checkpoint_gb", size / 1e9 * 3), "train.epochs", 8))
    folder = create_run(small, tmp_path / "thin")
    for _ in train_run(folder, small): pass
    files = checkpoint_files(folder)
    assert sum(file.stat().st_size for file in files) <= size * 3
    assert named_checkpoint(folder, "last") in files and named_checkpoint(folder, "best") in files


def test_replacing_names_the_full_disk(tmp_path, monkeypatch):
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    core.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="disk is full"): core.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
