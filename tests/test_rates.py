"""The rate finder: it leaves everything as it was, works for every task, can be cancelled, and what it suggests trains."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import torch

from cnnbench.control import prepare_again
from cnnbench.core import UsageError
from cnnbench.data import Batch
from cnnbench.experiment import experiment_for, prepare
from cnnbench.rates import endless, find_rate, rate_curve_figure, rates_panel, smooth_losses, suggest_rate, sweep_losses
from cnnbench.train import EpochEnd, TrainConfig, optimizer_step, start_run, state_of, train
from cnnbench.ui import Cancelled, Desk

SMALL = {
    "classification": {"train.batch_size": 32}, "detection": {"data.shapes.count": 48, "data.size": 48, "train.batch_size": 4},
    "segmentation": {"data.shapes.count": 48, "data.size": 48, "train.batch_size": 8}, "generation": {"train.batch_size": 16},
    "video": {"data.shapes.count": 48, "data.size": 24, "train.batch_size": 16},
}


def leaves(held) -> Iterator[bytes]:
    "The bytes of nested tensors and values, one after the other."
    if isinstance(held, torch.Tensor): yield held.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(held, dict):
        for key, inner in held.items(): yield from (str(key).encode(), *leaves(inner))
    elif isinstance(held, list | tuple):
        for inner in held: yield from leaves(inner)
    else: yield repr(held).encode()


def bits(held) -> str: return hashlib.blake2b(b"|".join(leaves(held))).hexdigest()


class Slope:
    "A task whose loss is the square of one weight: gradient descent at a rate above 1 makes it grow without end."

    players = ("model",)

    def part(self, model, player): return model
    def weight(self, batch, player): return 1
    def loss(self, model, batch, player, step): return model.weight.square().sum()


def test_model_optimizer_data_and_random_state_stay_to_the_bit():
    setup = prepare(experiment_for("classification", SMALL["classification"] | {"model.dropout": 0.3}))
    run = start_run(setup.experiment.train, setup.build(), setup.task, 10)
    for _, batch in zip(range(3), endless(setup.train_loader()), strict=False): optimizer_step(run, [batch])
    run.model.eval()
    torch.manual_seed(5)
    pixels, every = setup.dataset.images.read(np.arange(len(setup.dataset))), np.arange(len(setup.dataset))
    before = bits(state_of(run))
    first = find_rate(setup, steps=12, model=run.model)
    assert bits(state_of(run)) == before  # weights, buffers, optimizer, torch's random state
    assert not run.model.training and all(p.grad is None and p.requires_grad for p in run.model.parameters())
    assert np.array_equal(setup.dataset.images.read(every), pixels)
    again = find_rate(setup, steps=12, model=run.model)
    assert np.array_equal(first.losses, again.losses) and first.suggestion == again.suggestion
    assert not np.array_equal(first.losses, find_rate(setup, steps=12).losses)  # a new network's are others


@pytest.mark.parametrize("task", SMALL)
def test_every_task_can_be_swept(task):
    setup = prepare(experiment_for(task, SMALL[task]))
    told: list[tuple[float, str]] = []
    curve = find_rate(setup, 1e-5, 1.0, 24, lambda fraction, words: told.append((fraction, words)))
    assert 10 < len(curve.rates) == len(curve.losses) == len(curve.smoothed) <= 24 and np.isfinite(curve.losses).all()
    assert curve.exploded == (len(curve.rates) < 24) and curve.rates[0] == pytest.approx(1e-5)
    assert curve.suggestion is None or curve.rates[0] <= curve.suggestion <= curve.rates[-1] * 1.05
    assert told[0] == (0.0, "rate 1e-05") and [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert len(rate_curve_figure(curve).layout.shapes) == (curve.suggestion is not None)


def test_several_players_are_swept_together():
    setup = prepare(experiment_for("generation", SMALL["generation"]))
    config = replace(setup.experiment.train, lr=1e-4, schedule="constant", warmup=0.0, average=0.0)
    curve = find_rate(setup, 1e-4, 1e-3, 10)
    torch.manual_seed(setup.experiment.seed)
    record = optimizer_step(start_run(config, setup.build(), setup.task, 1), [next(iter(setup.train_loader()(0)))])
    assert set(record.losses) == {"discriminator", "generator"}
    assert curve.losses[0] == pytest.approx(sum(record.losses.values()), rel=1e-5)


def test_the_suggested_rate_trains():
    setup = prepare(experiment_for("classification", {"train.epochs": 2}))
    curve = find_rate(setup, steps=60)
    assert curve.suggestion is not None and 1e-4 < curve.suggestion < 0.1
    def loss_at(rate: float) -> float:
        torch.manual_seed(0)
        loader = setup.train_loader()
        run = start_run(replace(setup.experiment.train, lr=rate), setup.build(), setup.task, len(loader))
        return [record.metrics["train_loss"] for record in train(run, loader, lambda model: {}) if isinstance(record, EpochEnd)][-1]
    assert loss_at(curve.suggestion) < 1.0 < loss_at(1e-5)  # ln 10 = 2.3 is chance


def test_a_sweep_stops_where_the_loss_explodes():
    model, batch = torch.nn.Linear(1, 1), Batch(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), None, torch.zeros(1, dtype=torch.int64))
    config = TrainConfig(optimizer="sgd", lr=0.01, schedule="constant", warmup=0.0, weight_decay=0.0)
    rates = np.geomspace(0.01, 100, 60)
    losses = sweep_losses(start_run(config, model, Slope(), 1), repeat(batch), rates, lambda fraction, words: None)
    lowest = int(np.argmin(losses))
    assert len(losses) < 60 and rates[lowest] < 1.0 < rates[len(losses) - 1] and losses[-1] > 10 * losses[0]


def test_a_sweep_can_be_cancelled():
    setup, seen = prepare(experiment_for("classification", SMALL["classification"])), []
    state = torch.get_rng_state()
    def tell(fraction: float, words: str) -> None:
        seen.append(fraction)
        if len(seen) == 4: raise Cancelled
    with pytest.raises(Cancelled): find_rate(setup, steps=50, tell=tell)
    assert len(seen) == 4 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("settings", "words"), [
    ({"low": 1, "high": 0.1}, "must rise"), ({"low": 0}, "within 1e-07"), ({"high": 1000}, "within 1e-07"), ({"steps": 5}, "10 or more"),
])
def test_a_range_that_is_none_is_refused(settings, words):
    setup = prepare(experiment_for("classification", SMALL["classification"]))
    with pytest.raises(UsageError, match=words): find_rate(setup, **settings)


def test_where_the_loss_does_not_fall_nothing_is_suggested():
    rates = np.geomspace(1e-5, 1, 50)
    for losses in (np.ones(50), np.linspace(1, 2, 50)):
        rate, how = suggest_rate(rates, losses, smooth_losses(losses, 1.5))
        assert rate is None and "no rate stands out" in how


def test_the_panel_finds_shows_and_sets_a_rate():
    desk = Desk(experiment_for("classification", SMALL["classification"] | {"threads": 1, "train.lr": 0.5}), prepare_again)
    panel = rates_panel(desk)
    assert desk.wait(60)
    panel.of["steps"].value, panel.of["low"].value = 30, 1e-4
    assert panel.of["use"].disabled and panel.of["chart"].figure == "{}"
    code = panel.code()
    panel.of["find"].click()
    assert desk.job.wait(120) == "done" and panel.of["chart"].figure != "{}"
    curve = desk.job.result
    assert f"{curve.suggestion:g}" in panel.of["words"].value
    scope: dict = {}
    exec(code, scope)
    assert np.array_equal(scope["result"].losses, curve.losses) and scope["result"].suggestion == curve.suggestion
    panel.of["use"].click()
    assert desk.store.config.train.lr == curve.suggestion == pytest.approx(panel.of["lr"].value)


def test_the_panel_says_why_it_cannot():
    desk = Desk(experiment_for("classification", SMALL["classification"]), prepare_again)
    panel = rates_panel(desk)
    assert desk.wait(60)
    panel.of["low"].value, panel.of["high"].value = 1.0, 0.01
    panel.of["find"].click()
    assert desk.job.wait(60) == "failed" and "must rise" in panel.of["words"].value and not panel.of["find"].disabled
    broken = Desk(experiment_for("classification", {"data.name": "no/such/folder"}), prepare_again)
    panel = rates_panel(broken)
    assert broken.wait(60)
    panel.of["find"].click()
    assert "no/such/folder" in panel.of["words"].value
