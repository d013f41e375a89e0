"""Detection, segmentation, video and generation against a plain loop in the manner of torchvision's references: items a second for the same work.

Both train the same network from the same weights with the same loss, optimizer and precision, on the drawn data of the task at its default settings
(batch, augmentation, clipping, averaged weights). The plain loop reads single items through torchvision's v2 transforms in a DataLoader of two worker
processes or of none, whichever is faster, as references/detection/train.py does, logs the loss of every step, and keeps PyTorch's own memory layout;
in a second row it has ours. Ours takes its loader, its augmentation and its trainer. Generation is measured without augmentation, which a plain loop
of a GAN does not have. The row `no loading at all` trains on finished batches held in memory: what is left there is the network's own work, which the
plain loop has to do too, so no loader could do more. Rounds of an epoch are interleaved in one process, the first one warms up, and ratios are
medians over rounds, so that a busy machine slows all alike. By hand: `python tests/benchmarks/tasks.py --task detection`."""
import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # threads that spin while they wait starve the workers
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from cnnbench.core import describe_machine  # noqa: E402
from cnnbench.data import Batch  # noqa: E402
from cnnbench.experiment import Setup, experiment_for, prepare, resolve  # noqa: E402
from cnnbench.recipes import NONE, AugmentConfig  # noqa: E402
from cnnbench.targets import Boxes, Masks  # noqa: E402
from cnnbench.train import EpochEnd, autocast, make_optimizer, start_run, train  # noqa: E402

WANTED = {"detection": 1.5, "segmentation": 1.5, "video": 1.5, "generation": 1.0}
WORKERS = 2


def ours(setup: Setup, held: bool = False) -> Iterator[None]:
    "Our loader, augmentation and trainer; yields after every epoch. `held`: on one epoch's finished batches, so that loading costs nothing."
    e, loader = setup.experiment, setup.train_loader()
    made = list(loader(0, 0)) if held else []
    batches = (lambda epoch, start: iter(made)) if held else loader
    run = start_run(replace(e.train, epochs=100_000), setup.build(), setup.task, len(loader))
    for record in train(run, batches, lambda model: {"val_loss": 0.0}):
        if isinstance(record, EpochEnd): yield


# ---- the plain loop


def transforms(config: AugmentConfig) -> Callable[..., Any]:
    "Torchvision's transforms for the settings that the tasks begin with."
    slant, steps = (-config.shear, config.shear) * 2, list[Any]()
    moved = v2.RandomAffine(config.rotate, (config.translate,) * 2, (1 - config.scale, 1 + config.scale), slant, v2.InterpolationMode.BILINEAR)
    if any((config.rotate, config.translate, config.scale, config.shear)): steps.append(moved)
    if config.flip: steps.append(v2.RandomHorizontalFlip(config.flip))
    if config.flip_vertical: steps.append(v2.RandomVerticalFlip(config.flip_vertical))
    if config.brightness or config.contrast: steps.append(v2.ColorJitter(config.brightness, config.contrast))
    return v2.Compose([*steps, v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Video: torch.float32, "others": None})])


class Items(torch.utils.data.Dataset):
    "Single transformed items of a task's training rows."

    def __init__(self, setup: Setup):
        self.rows, self.task, self.size = setup.split.train, setup.experiment.task.name, setup.dataset.shape[-2:]
        self.images = torch.from_numpy(setup.dataset.images.read(self.rows)).movedim(-1, -3)
        self.targets = setup.dataset.column.take(self.rows)
        self.change = transforms(setup.experiment.augment)

    def __len__(self) -> int: return len(self.rows)

    def __getitem__(self, item: int) -> Any:
        if self.task == "video": return self.change(tv_tensors.Video(self.images[item])), int(self.targets.item(item))
        image = tv_tensors.Image(self.images[item])
        if self.task == "generation": return self.change(image), int(self.targets.item(item))
        target = self.targets.item(item)
        if self.task == "segmentation": return self.change(image, tv_tensors.Mask(torch.from_numpy(np.asarray(target))))
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(target.boxes), format="XYXY", canvas_size=self.size)  # type: ignore[call-overload]
        found, held = v2.SanitizeBoundingBoxes()(*self.change(image, {"boxes": boxes, "labels": torch.from_numpy(target.labels)}))
        return found, held


def batch_of(task: str, items: list[Any]) -> Batch:
    "Items put together as the task's loss takes them."
    images, rows = torch.stack([image.as_subclass(torch.Tensor) for image, _ in items]), torch.arange(len(items))
    targets = [target for _, target in items]
    if task in ("video", "generation"): return Batch(images, torch.tensor(targets), rows)
    if task == "segmentation": return Batch(images, Masks(torch.stack([mask.as_subclass(torch.Tensor) for mask in targets])), rows)
    boxes, labels = (torch.cat([held[name].as_subclass(torch.Tensor) for held in targets]) for name in ("boxes", "labels"))
    owner = torch.repeat_interleave(rows, torch.tensor([len(held["labels"]) for held in targets]))
    return Batch(images, Boxes(boxes, labels, owner, torch.zeros(len(owner), dtype=torch.bool), torch.ones(len(owner)), len(items)), rows)


class Collate:
    "Puts a task's items together, in the worker."

    def __init__(self, task: str): self.task = task

    def __call__(self, items: list[Any]) -> Batch: return batch_of(self.task, items)


def plain(setup: Setup, layout: str, workers: int) -> Iterator[None]:
    "A loop in the manner of torchvision's references; yields after every epoch."
    e, task, model = setup.experiment, setup.task, setup.build()
    if layout == "channels_last" and len(setup.dataset.shape) == 3: model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = torch.utils.data.DataLoader(
        Items(setup), e.train.batch_size, shuffle=True, num_workers=workers, collate_fn=Collate(e.task.name), persistent_workers=workers > 0
    )
    optimizers = {player: make_optimizer(e.train, task.part(model, player)) for player in task.players}
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(e.train.average), use_buffers=True) if e.train.average else None
    step, logged, device = 0, 0.0, torch.device("cpu")
    while True:
        model.train()
        for batch in loader:
            if layout == "channels_last" and batch.images.ndim == 4:
                batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
            for player, optimizer in optimizers.items():
                if len(optimizers) > 1:
                    model.requires_grad_(False)
                    task.part(model, player).requires_grad_(True)
                with autocast(e.train, device): loss = task.loss(model, batch, player, step) / task.weight(batch, player)
                optimizer.zero_grad()
                loss.backward()
                if e.train.clip: nn.utils.clip_grad_norm_(task.part(model, player).parameters(), e.train.clip)
                optimizer.step()
                logged += loss.item()
            if averaged is not None: averaged.update_parameters(model)
            step += 1
        yield


# ---- measuring


def measure(timed: dict[str, Iterator[None]], count: int, rounds: int) -> dict[str, list[float]]:
    "Items a second of each in each round."
    speeds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):  # the first round warms up
        for name, epochs in timed.items():
            start = time.perf_counter()
            next(epochs)
            if number: speeds[name].append(count / (time.perf_counter() - start))
    return speeds


def compare(task: str, count: int, rounds: int) -> None:
    "Print medians, and how many times as fast as the plain loop we are."
    settings: dict[str, Any] = {"data.shapes.count": count} if task != "generation" else {"augment": NONE}
    setup = resolve(prepare(experiment_for(task, settings)))[0]
    e, own = setup.experiment, "cnnbench"
    timed: dict[str, Iterator[None]] = {own: ours(setup), "no loading at all": ours(setup, held=True)}
    for layout in dict.fromkeys(("contiguous", e.train.layout)):
        for workers in (WORKERS, 0): timed[f"plain loop, {layout}, {workers} workers"] = plain(setup, layout, workers)
    speeds = measure(timed, len(setup.split.train), rounds)
    shape = "x".join(map(str, setup.dataset.shape))
    work = f"{e.model.name} on {shape}, {e.train.precision}, batch {e.train.batch_size}, {len(setup.split.train)} items an epoch"
    print(f"{task}: {work}, {rounds} rounds")
    best = max((name for name in speeds if "contiguous" in name), key=lambda name: statistics.median(speeds[name]))
    for name, values in speeds.items():
        shown = f"{own} ({e.train.layout})" if name == own else name
        line = f"  {shown:42} {statistics.median(values):8,.1f} a second"
        if name != own:
            ratio = statistics.median(mine / theirs for mine, theirs in zip(speeds[own], values, strict=True))
            line += f"   {ratio:6.2f} times"
            if name == best: line += f" (at least {WANTED[task]:g} wanted: {'reached' if ratio >= WANTED[task] else 'MISSED'})"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=WANTED, help="one of them alone")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--count", type=int, default=500, help="scenes drawn, of which seven tenths train")
    options = parser.parse_args()
    print(f"{describe_machine()['processor']}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}")
    for task in [options.task] if options.task else WANTED: compare(task, options.count, options.rounds)


if __name__ == "__main__": main()
