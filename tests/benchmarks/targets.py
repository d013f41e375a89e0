"""What boxes and masks cost beside their images, and clips of 16 frames at 112 px against torchvision v2, on two cores.

The same drawn scenes as plain images, with boxes and with masks, through the same settings and the loader's two threads. The seconds of processor
time are printed too: they hardly depend on neighbours. Clips: the work that `augment.py` measures on images (turn, scale, shift, mirror, brightness,
contrast, noise; bilinear; one draw a clip), and parts of it; uint8 comes in and goes out, in batches. Torchvision runs in several ways (worker
processes, threads, its own threads; on uint8, and on float tensors in between) and the best of them counts. Rounds are interleaved and medians are
printed, so that a busy machine slows all alike. By hand: `python tests/benchmarks/targets.py --rounds 5`."""
import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cnnbench.augment import Augmenter
from cnnbench.core import describe_machine
from cnnbench.data import ArrayImages, DataConfig, Dataset, Loader
from cnnbench.recipes import NONE, PRESETS, AugmentConfig
from cnnbench.scenes import load_scene_boxes, load_scene_masks

CORES, BATCH, CLIP_BATCH, FRAMES, SIDE = 2, 64, 8, 16, 112
STANDARD = PRESETS["standard"]
SETTINGS = {
    "light": AugmentConfig(), "standard": STANDARD, "strong": PRESETS["strong"], "standard with mosaics": replace(STANDARD, mosaic=0.5),
    "crop and flip only": replace(NONE, crop=8, flip=0.5),
}
ROTATE, SCALE, TRANSLATE, FLIP, BRIGHTNESS, CONTRAST, NOISE = 30, 0.2, 0.1, 0.5, 0.2, 0.2, 25
MOVED = replace(NONE, rotate=ROTATE, scale=SCALE, translate=TRANSLATE, flip=FLIP)
COLOURED = replace(MOVED, brightness=BRIGHTNESS, contrast=CONTRAST)
CLIP_SETTINGS = {"moved only": MOVED, "moved and coloured": COLOURED, "moved, coloured, noise": replace(COLOURED, noise=NOISE)}


def epochs_of(data: Dataset, config: AugmentConfig, batch: int) -> Iterator[int]:
    "Epochs through the loader's two threads; each gives how many items it made."
    rows = np.arange(len(data))
    loader = Loader(data, rows, batch, seed=0, make=Augmenter(config, data, seed=0, rows=rows), threads=CORES)
    epoch = 0
    while True:
        yield sum(len(made) for made in loader(epoch))
        epoch += 1


def measure(timed: dict[str, tuple[Iterator[int], int, int]], rounds: int) -> dict[str, tuple[float, float]]:
    "Median wall and processor seconds an item of each way: name → (epochs, torch's threads, OpenCV's threads)."
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    for number in range(rounds + 1):  # the first round warms up
        for name, (epochs, torch_threads, opencv_threads) in timed.items():
            torch.set_num_threads(torch_threads)
            cv2.setNumThreads(opencv_threads)
            wall, processor = time.perf_counter(), time.process_time()
            count = next(epochs)
            if number: spent[name].append(((time.perf_counter() - wall) / count, (time.process_time() - processor) / count))
    return {name: (statistics.median(wall for wall, _ in times), statistics.median(used for _, used in times)) for name, times in spent.items()}


def targets(rounds: int, count: int) -> None:
    "Boxes and masks beside plain images."
    config = DataConfig(name="shapes", shapes=replace(DataConfig().shapes, count=count))
    boxes, masks = load_scene_boxes(config), load_scene_masks(config)
    kinds = {"images": Dataset("images", boxes.images, np.arange(count) % 2, ("a", "b")), "boxes": boxes, "masks": masks}
    for setting, augment in SETTINGS.items():
        found = measure({kind: (epochs_of(data, augment, BATCH), CORES, CORES) for kind, data in kinds.items()}, rounds)
        (wall, used) = found["images"]
        print(f"  {setting:22} images alone {wall * 1e6:6.0f} µs ({used * 1e6:.0f} of a processor)", end="")
        for kind in ("boxes", "masks"): print(f"; with {kind} {found[kind][0] / wall:.2f} times that ({found[kind][1] / used:.2f})", end="")
        print()


class Clips(torch.utils.data.Dataset):
    "Clips, each put through `transform`."

    def __init__(self, clips: torch.Tensor, transform: Callable): self.clips, self.transform = clips, transform
    def __len__(self) -> int: return len(self.clips)
    def __getitem__(self, row: int): return self.transform(self.clips[row])


def one_thread(_: int) -> None:
    "Each worker process computes in one thread."
    torch.set_num_threads(1)


def worker_epochs(clips: torch.Tensor, transform: Callable) -> Iterator[int]:
    "Batches of two worker processes, kept alive between epochs."
    loader = DataLoader(Clips(clips, transform), CLIP_BATCH, num_workers=CORES, persistent_workers=True, worker_init_fn=one_thread)
    while True: yield sum(len(batch) for batch in loader)


def thread_epochs(clips: torch.Tensor, transform: Callable) -> Iterator[int]:
    "Two threads, a clip at a time, stacked to batches."
    with ThreadPoolExecutor(CORES) as pool:
        while True: yield sum(len(torch.stack(list(pool.map(transform, some)))) for some in clips.split(CLIP_BATCH))


def plain_epochs(clips: torch.Tensor, transform: Callable) -> Iterator[int]:
    "One clip after the other, stacked to batches; torch's own threads use the cores."
    while True: yield sum(len(torch.stack([transform(clip) for clip in some])) for some in clips.split(CLIP_BATCH))


def torchvision_transform(config: AugmentConfig, floats: bool) -> Callable:
    "The same work, uint8 in and out, in between on uint8 or on floats; noise needs floats."
    affine = v2.RandomAffine(ROTATE, (TRANSLATE, TRANSLATE), (1 - SCALE, 1 + SCALE), interpolation=v2.InterpolationMode.BILINEAR)
    jitter = [v2.ColorJitter(brightness=BRIGHTNESS, contrast=CONTRAST)] if config.brightness else []
    noise = [v2.GaussianNoise(sigma=NOISE / 255 / 2)] if config.noise else []
    first, then = [affine, v2.RandomHorizontalFlip(FLIP), *jitter], v2.ToDtype(torch.float32, scale=True)
    if not floats and not noise: return v2.Compose(first)
    return v2.Compose([*([then, *first] if floats else [*first, then]), *noise, v2.ToDtype(torch.uint8, scale=True)])


def clips(rounds: int, count: int) -> None:
    "Clips against torchvision v2, which draws once a clip as well."
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (count * FRAMES * SIDE, SIDE, 3), dtype=np.uint8), (9, 9), 3)
    ours = Dataset("clips", ArrayImages(pixels.reshape(count, FRAMES, SIDE, SIDE, 3)), np.arange(count) % 2, ("a", "b"))
    tensors = torch.from_numpy(ours.images.read(np.arange(count))).movedim(-1, -3).contiguous()
    few = tensors[: 2 * CLIP_BATCH]
    for setting, config in CLIP_SETTINGS.items():
        timed = {"cnnbench": (epochs_of(ours, config, CLIP_BATCH), CORES, CORES)}
        for kind in ("uint8", "float"):
            theirs = torchvision_transform(config, kind == "float")
            timed[f"{kind}, two worker processes"] = (worker_epochs(tensors, theirs), 1, 1)
            timed[f"{kind}, two threads"] = (thread_epochs(few, theirs), 1, 1)
            timed[f"{kind}, torch's own threads"] = (plain_epochs(few, theirs), CORES, 1)
        found = {name: wall for name, (wall, _) in measure(timed, rounds).items()}
        mine = found.pop("cnnbench")
        best = min(found, key=lambda name: found[name])
        wanted = f" (at least 5 wanted: {'reached' if found[best] >= 5 * mine else 'MISSED'})" if config.noise else ""
        print(f"  {setting:24} cnnbench {mine * 1e3:.2f} ms a clip, {found[best] / mine:.1f} times torchvision's best{wanted}")
        print(f"  {'':24} torchvision: " + ", ".join(f"{wall * 1e3:.1f} {name}" for name, wall in found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed")
    parser.add_argument("--images", type=int, default=1024, help="drawn scenes")
    parser.add_argument("--clips", type=int, default=64, help="clips")
    options = parser.parse_args()
    print(f"{describe_machine()['processor']}, {CORES} of {os.cpu_count()} cores; "
          + ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "opencv-python-headless")))
    print("Targets beside images at 128 px (at most 1.5 wanted):")
    if options.images: targets(options.rounds, options.images)
    print(f"Clips of {FRAMES} frames at {SIDE} px:")
    clips(options.rounds, options.clips)


if __name__ == "__main__": main()
