"""The generator trainer against a bare PyTorch loop that takes the same steps: what records, checks and accumulation cost.

Both train one LeNet and one resnet9 on the same batches in the same process, epoch about, and end with the same weights. Prints the
median over rounds of (our seconds ÷ the bare loop's). Run it by `make bench`, or `.venv/bin/python tests/benchmarks/trainer.py`."""
import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # threads that spin while they wait starve the other processes

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from cnnbench.core import describe_machine, torch_seed  # noqa: E402
from cnnbench.data import ArrayImages, Batch, Dataset, Loader  # noqa: E402
from cnnbench.models import ModelConfig, build_model  # noqa: E402
from cnnbench.tasks import TaskConfig, make_task  # noqa: E402
from cnnbench.train import TrainConfig, start_run, train  # noqa: E402

BATCH, COUNT = 64, 2048


def make_batches() -> tuple[Dataset, list[Batch]]:
    "Random images in memory, cut into batches beforehand, so that both loops measure training alone."
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (COUNT, 32, 32, 3), np.uint8), draw.integers(0, 10, COUNT)
    dataset = Dataset("random", ArrayImages(images), labels, tuple("abcdefghij"))
    return dataset, list(Loader(dataset, np.arange(COUNT), BATCH, seed=0, threads=0)(0))


def make_model(name: str) -> nn.Module:
    with torch_seed(0): return build_model(ModelConfig(name), (3, 32, 32), 10, [127.5] * 3, [127.5] * 3)


def compare(name: str, rounds: int) -> tuple[float, bool]:
    "Our time over the bare loop's, the median over rounds; and whether the weights came out the same."
    dataset, batches = make_batches()
    plain: dict[str, Any] = {"optimizer": "momentum", "lr": 0.01, "schedule": "constant", "warmup": 0, "weight_decay": 0}
    config = TrainConfig(epochs=rounds, batch_size=BATCH, precision="fp32", layout="contiguous", **plain)
    run = start_run(config, make_model(name), make_task(TaskConfig(), dataset.classes), len(batches))
    ours = train(run, lambda epoch, start: iter(batches), lambda model: {})
    model = make_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(len(batches) + 1): next(ours)  # every step, and the epoch's end
        middle = time.perf_counter()
        for batch in batches:
            loss = nn.functional.cross_entropy(model(batch.images.contiguous()), batch.targets, reduction="sum") * (1 / len(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # as anyone does who shows the loss
        ratios.append((middle - start) / (time.perf_counter() - middle))
    same = all(torch.equal(one, other) for one, other in zip(run.model.parameters(), model.parameters(), strict=True))
    return statistics.median(ratios[1:]), same


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="epochs of each, in turn")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"{describe_machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in ("lenet", "resnet9"):
        ratio, same = compare(name, options.rounds)
        verdict, weights = "reached" if ratio <= 1.03 else "MISSED", "equal to the bit" if same else "DIFFER"
        print(f"  {name:8} ours / bare loop {ratio:.3f} (at most 1.03 wanted: {verdict}); weights {weights}", flush=True)


if __name__ == "__main__": main()
