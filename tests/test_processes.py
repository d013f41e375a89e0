"""Two processes that share the work take the steps that one takes alone (torch's own DDP over gloo, on this machine)."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from conftest import in_two_processes

from cnnbench.data import Batch
from cnnbench.models import ModelConfig, build_model
from cnnbench.tasks import TaskConfig, make_task
from cnnbench.train import EpochEnd, TrainConfig, start_run, train

CONFIG = TrainConfig(epochs=2, batch_size=8, optimizer="momentum", lr=0.05, accumulate=2, clip=1.0, l1=1e-5, precision="fp32", layout="contiguous")


def batches() -> list[Batch]:
    "Five batches of 8 and a ragged one of 6; lenet has no batch norm, whose figures would differ by process."
    draw = np.random.default_rng(0)
    images, labels = torch.from_numpy(draw.integers(0, 256, (46, 1, 32, 32), np.uint8)), torch.from_numpy(draw.integers(0, 3, 46))
    return [Batch(images[i : i + 8], labels[i : i + 8], torch.arange(46)[i : i + 8]) for i in range(0, 46, 8)]


def share(batch: Batch, rank: int, ranks: int) -> Batch:
    "Every `ranks`-th image, unequal in number: one in three to the first process of two, the others to the second."
    mine = (torch.arange(len(batch)) % 3 == 0) == (rank == 0) if ranks == 2 else torch.ones(len(batch), dtype=torch.bool)
    return replace(batch, images=batch.images[mine], targets=batch.targets[mine], rows=batch.rows[mine])


def trained(rank: int, ranks: int) -> tuple[torch.Tensor, list[float]]:
    torch.set_num_threads(1)
    model = build_model(ModelConfig("lenet"), (1, 32, 32), 3, [127.5], [70.0])
    mine = [share(batch, rank, ranks) for batch in batches()]
    run, losses = start_run(CONFIG, model, make_task(TaskConfig(), "abc"), len(mine)), []
    for record in train(run, lambda epoch, start: mine[start:], lambda model: {}):
        if not isinstance(record, EpochEnd): losses.append(record.losses["model"])
    return torch.cat([value.detach().flatten() for value in run.model.parameters()]), losses


def test_two_processes_equal_one(tmp_path):
    (first, shares), (second, others) = in_two_processes(partial(trained, ranks=2), tmp_path)
    alone, losses = trained(0, 1)
    assert torch.equal(first, second)  # the processes agree to the bit
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)  # and with one process but for the order of sums
    assert all(math.isclose(a + b, whole, rel_tol=1e-4) for a, b, whole in zip(shares, others, losses, strict=True)), (shares, others, losses)
