"""Training against a plain loop with a DataLoader, Lightning and fastai: images a second for the same work.

LeNet at 32 px (batch 64, crop and flip, SGD with momentum), and ResNet-18 at 32 px with the peers at their defaults, then set to the
precision and layout that we chose. Random uint8 images lie in memory; peers read them as their users would, with two worker processes,
each in what proved its fastest way. Every contender is a process of its own that trains one epoch when told to and sleeps in between:
rounds are interleaved, the first one warms up, and each ratio is the median over rounds, so that a busy machine slows all alike.
`make bench` runs it in an environment of its own; by hand: `.bench/bin/python tests/benchmarks/train.py`."""
import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # threads that spin while they wait starve the other processes
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from cnnbench.augment import Augmenter  # noqa: E402
from cnnbench.core import describe_machine  # noqa: E402
from cnnbench.data import ArrayImages, Dataset, Loader  # noqa: E402
from cnnbench.models import ModelConfig, build_model  # noqa: E402
from cnnbench.recipes import NONE  # noqa: E402
from cnnbench.tasks import TaskConfig, make_task  # noqa: E402
from cnnbench.train import EpochEnd, TrainConfig, choose_speed, start_run, train  # noqa: E402

WORK = {"lenet": ("lenet", 4096), "resnet18": ("resnet18", 512)}
PEERS = ("plain loop", "Lightning", "fastai", "fastai with torchvision's transforms")
BATCH, CLASSES, LR, MOMENTUM, MEAN, STD, WORKERS = 64, 10, 0.001, 0.9, 127.5, 127.5, 2


def data(count: int) -> tuple[np.ndarray, np.ndarray]:
    "Random images uint8 (count, 32, 32, 3) and labels."
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, 32, 32, 3), np.uint8), draw.integers(0, CLASSES, count)


def whole_model(work: str) -> nn.Sequential: return build_model(ModelConfig(WORK[work][0]), (3, 32, 32), CLASSES, [MEAN] * 3, [STD] * 3)


# ---- contenders: each yields after every epoch


def cnnbench(work: str, images: np.ndarray, labels: np.ndarray, speed: tuple[str, str]) -> Iterator[None]:
    "Our own loader, augmentation and trainer, in the precision and layout of `speed`."
    dataset = Dataset("random", ArrayImages(images), labels, tuple("abcdefghij"))
    config = replace(train_config(), precision=speed[0], layout=speed[1])
    loader = Loader(dataset, np.arange(len(images)), BATCH, seed=0, make=Augmenter(replace(NONE, crop=4, flip=0.5), dataset, seed=0))
    run = start_run(config, whole_model(work), make_task(TaskConfig(), dataset.classes), len(loader))
    for record in train(run, loader, lambda model: {"val_loss": 0.0}):
        if isinstance(record, EpochEnd): yield


def train_config() -> TrainConfig:
    return TrainConfig(
        epochs=100_000, batch_size=BATCH, optimizer="momentum", lr=LR, momentum=MOMENTUM, schedule="constant", warmup=0, weight_decay=0,
    )


def chosen(work: str, images: np.ndarray, labels: np.ndarray) -> tuple[str, str]:
    "The precision and layout that `auto` chooses here."
    dataset = Dataset("random", ArrayImages(images), labels, tuple("abcdefghij"))
    batch = next(iter(Loader(dataset, np.arange(len(images)), BATCH, seed=0)(0)))
    speed = choose_speed(train_config(), whole_model(work), make_task(TaskConfig(), dataset.classes), batch)
    return speed.precision, speed.layout


class Transformed(torch.utils.data.Dataset):
    "Images and labels, each image put through `transform`."

    def __init__(self, images, labels, transform: Callable): self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int: return len(self.images)

    def __getitem__(self, row: int): return self.transform(self.images[row]), self.labels[row]


def torch_loader(images: np.ndarray, labels: np.ndarray) -> torch.utils.data.DataLoader:
    "A DataLoader with two workers and torchvision's v2 transforms on tensors (on PIL images they were slower)."
    transform = v2.Compose([
        v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([MEAN / 255] * 3, [STD / 255] * 3),
    ])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    held = Transformed(tensors, torch.from_numpy(labels), transform)
    return torch.utils.data.DataLoader(held, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)


def sgd(parameters) -> torch.optim.Optimizer: return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)


def network(work: str, speed: tuple[str, str]) -> nn.Module:
    "What the peers train: the same network without its normalisation, in the layout of `speed`."
    held = whole_model(work)[1]
    return held.to(memory_format=torch.channels_last) if speed[1] == "channels_last" else held  # type: ignore[call-overload]


class Autocast(nn.Module):
    "`inside`, its forward in bf16 and channels_last: what a user of fastai writes, whose own bf16 is for CUDA alone."

    def __init__(self, inside: nn.Module):
        super().__init__()
        self.inside = inside

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        plain = images.as_subclass(torch.Tensor).contiguous(memory_format=torch.channels_last)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16): return self.inside(plain).float()


def plain_loop(work: str, images: np.ndarray, labels: np.ndarray, speed: tuple[str, str]) -> Iterator[None]:
    "The loop of PyTorch's own tutorial."
    model, loader = network(work, speed), torch_loader(images, labels)
    optimizer, criterion, memory = sgd(model.parameters()), nn.CrossEntropyLoss(), torch.channels_last if speed[1] == "channels_last" else None
    while True:
        total = 0.0
        for inputs, targets in loader:
            if memory: inputs = inputs.to(memory_format=memory)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=speed[0] == "bf16"): loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            total += loss.item()
        yield


def lightning(work: str, images: np.ndarray, labels: np.ndarray, speed: tuple[str, str], wait: Callable[[], None]) -> None:
    "Lightning's Trainer over the same DataLoader; `wait` is called after each epoch."
    from lightning import pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network(work, speed)

        def training_step(self, batch, index):
            inputs = batch[0].to(memory_format=torch.channels_last) if speed[1] == "channels_last" else batch[0]
            return nn.functional.cross_entropy(self.model(inputs), batch[1])

        def configure_optimizers(self): return sgd(self.parameters())

        def on_train_epoch_end(self): wait()

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"): logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    precision = "bf16-mixed" if speed[0] == "bf16" else "32-true"
    pl.Trainer(accelerator="cpu", max_epochs=100_000, precision=precision, **quiet).fit(Module(), torch_loader(images, labels))  # type: ignore[arg-type]


def fastai(work: str, images: np.ndarray, labels: np.ndarray, speed: tuple[str, str], wait: Callable[[], None], own: bool) -> None:
    "fastai's Learner, over its own image transforms or over the same DataLoader; `wait` is called after each epoch."
    from fastai.callback.core import Callback, CancelValidException
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders, Datasets
    from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import SGD
    from fastai.vision.augment import CropPad, Flip, PadMode, RandomCrop
    from fastai.vision.core import PILImage

    class Wait(Callback):
        def before_validate(self): raise CancelValidException
        def after_epoch(self): wait()

    if own:
        tfms = [[lambda row: PILImage.create(images[row])], [lambda row: torch.tensor(labels[row])]]
        held = Datasets(range(len(images)), tfms, splits=[list(range(len(images))), [0]])
        crop = [CropPad(40, pad_mode=PadMode.Reflection), RandomCrop(32), ToTensor()]
        finish = [IntToFloatTensor(), Flip(), Normalize.from_stats([MEAN / 255] * 3, [STD / 255] * 3, cuda=False)]
        loaders = held.dataloaders(bs=BATCH, num_workers=WORKERS, after_item=crop, after_batch=finish, device="cpu")
    else: loaders = DataLoaders(torch_loader(images, labels), torch_loader(images[:1], labels[:1]), device="cpu")
    model = network(work, speed)
    if speed[0] == "bf16": model = Autocast(model)
    learner = Learner(loaders, model, CrossEntropyLossFlat(), opt_func=SGD, lr=LR, moms=(MOMENTUM,) * 3, cbs=[Wait()])
    learner.remove_cbs([ProgressCallback])
    with learner.no_logging(): learner.fit(100_000)


# ---- one process each, told when to train an epoch


def contend(name: str, work: str, count: int, speed: tuple[str, str]) -> None:
    "Train epoch after epoch, each when a line comes in; say how many seconds it took."
    images, labels = data(count)
    answers, begin = sys.stdout, 0.0
    sys.stdout = sys.stderr

    def wait() -> None:
        nonlocal begin
        print(json.dumps(time.perf_counter() - begin), file=answers, flush=True)
        if not sys.stdin.readline(): os._exit(0)
        begin = time.perf_counter()

    begin = time.perf_counter()
    if name == "Lightning": lightning(work, images, labels, speed, wait)
    elif name.startswith("fastai"): fastai(work, images, labels, speed, wait, own=name == "fastai")
    else:
        for _ in (cnnbench if name == "cnnbench" else plain_loop)(work, images, labels, speed): wait()


def measure(work: str, contenders: list[tuple[str, tuple[str, str]]], count: int, rounds: int) -> list[list[float]]:
    "Images a second of each contender in each round."
    def start(name: str, speed: tuple[str, str]) -> subprocess.Popen:
        command = [sys.executable, __file__, "--contend", name, "--work", work, "--images", str(count), "--speed", *speed]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    processes, speeds = [], []
    try:
        for contender in contenders:  # one after the other: nobody starts while another warms up
            processes.append(start(*contender))
            if not answer(processes[-1]): raise SystemExit(f"{contender[0]} did not get through its first epoch.")
        for _ in range(rounds):
            speeds.append([count / answer(process, tell=True) for process in processes])
    finally:
        for process in processes:
            if process.stdin: process.stdin.close()
        for process in processes: process.wait(60)
    return [list(column) for column in zip(*speeds, strict=True)]


def answer(process: subprocess.Popen, tell: bool = False) -> float:
    "The seconds of the epoch that a contender trains now."
    assert process.stdin and process.stdout
    if tell:
        process.stdin.write("go\n")
        process.stdin.flush()
    line = process.stdout.readline()
    return float(line) if line else 0.0


def report(title: str, names: list[str], speeds: list[list[float]], targets: dict[str, float]) -> None:
    "Print medians, and how many times as fast as each peer we are: the median over rounds."
    print(title)
    for name, values in zip(names, speeds, strict=True):
        line = f"  {name:57} {statistics.median(values):8,.0f} images/s"
        if name in targets:
            ratio, target = statistics.median(own / other for own, other in zip(speeds[0], values, strict=True)), targets[name]
            line += f"   {ratio:6.2f} times (at least {target:g} wanted: {'reached' if ratio >= target else 'MISSED'})"
        print(line, flush=True)


def has_bf16() -> bool:
    "Whether this CPU has bf16 instructions."
    if sys.platform != "linux": return False
    with open("/proc/cpuinfo") as file: return "bf16" in file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--work", choices=WORK, help="one of the two alone")
    parser.add_argument("--images", type=int, help="images in an epoch")
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    parser.add_argument("--speed", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend: return contend(options.contend, options.work, options.images, tuple(options.speed))
    print(f"{describe_machine()['processor']}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
          + ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "lightning", "fastai")))
    plain, factor = ("fp32", "contiguous"), 1.8 if has_bf16() else 1.0
    for work in [options.work] if options.work else WORK:
        count = options.images or WORK[work][1]
        speed = chosen(work, *data(count))
        contenders = [("cnnbench", speed), *((peer, plain) for peer in PEERS)]
        names = [f"cnnbench ({speed[0]}, {speed[1]})", *(f"{peer}, at its defaults" for peer in PEERS)]
        targets = dict.fromkeys(names[1:], 3.0 if work == "lenet" else factor)
        if speed != plain and work == "resnet18":
            contenders += [(peer, speed) for peer in PEERS]
            names += [f"{peer}, in our precision and layout" for peer in PEERS]
            targets |= dict.fromkeys(names[len(PEERS) + 1:], 1.0)
        speeds = measure(work, contenders, count, options.rounds)
        report(f"{work} at 32 px, batch {BATCH}, crop and flip, {count} images an epoch, {options.rounds} rounds", names, speeds, targets)


if __name__ == "__main__": main()
