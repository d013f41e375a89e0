"""Augmentation at 224 px against torchvision v2, Albumentations and Kornia: images a second for the same work on two cores.

Rotate, scale, translate, flip, brightness, contrast, noise; all bilinear. Each peer runs in several ways (threads, worker processes,
its own batches) and the best of them counts. Rounds are interleaved, medians are printed, so that a busy machine slows all alike.
`make bench` runs it in an environment of its own; by hand: `.bench/bin/python tests/benchmarks/augment.py`."""
import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # no question to the network at import
warnings.filterwarnings("ignore")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from cnnbench.augment import Augmenter  # noqa: E402
from cnnbench.core import describe_machine  # noqa: E402
from cnnbench.data import ArrayImages, Dataset, Loader  # noqa: E402
from cnnbench.recipes import NONE  # noqa: E402

SIZE, BATCH, CORES = 224, 64, 2
ROTATE, SCALE, TRANSLATE, FLIP, BRIGHTNESS, CONTRAST, NOISE = 30, 0.2, 0.1, 0.5, 0.2, 0.2, 25


def photos(count: int) -> np.ndarray:
    "Random parts of scikit-learn's two photographs, uint8 (count, 224, 224, 3)."
    draw, sources = np.random.default_rng(0), load_sample_images().images
    def one(source: np.ndarray) -> np.ndarray:
        side = int(draw.integers(SIZE, 400))
        top, left = (int(draw.integers(0, most - side + 1)) for most in source.shape[:2])
        return cv2.resize(source[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.stack([one(sources[number % 2]) for number in range(count)])


def cnnbench_epochs(images: np.ndarray) -> Iterator[int]:
    "Our own: one matrix, in the loader's two threads."
    data = Dataset("photos", ArrayImages(images), np.zeros(len(images), np.int64), ("photo",))
    config = replace(NONE, rotate=ROTATE, scale=SCALE, translate=TRANSLATE, flip=FLIP, brightness=BRIGHTNESS, contrast=CONTRAST, noise=NOISE)
    loader = Loader(data, np.arange(len(images)), BATCH, seed=0, make=Augmenter(config, data, seed=0), threads=CORES)
    epoch = 0
    while True:
        yield sum(len(batch) for batch in loader(epoch))
        epoch += 1


class Transformed(torch.utils.data.Dataset):
    "Images, each put through `transform`: what a DataLoader takes."

    def __init__(self, images, transform: Callable): self.images, self.transform = images, transform

    def __len__(self) -> int: return len(self.images)

    def __getitem__(self, row: int): return self.transform(self.images[row])


def quiet_worker(_: int) -> None:
    "Each worker process computes in one thread."
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def worker_epochs(images, transform: Callable) -> Iterator[int]:
    "A DataLoader with two worker processes, kept alive between epochs."
    loader = DataLoader(Transformed(images, transform), BATCH, num_workers=CORES, persistent_workers=True, worker_init_fn=quiet_worker)
    while True: yield sum(len(batch) for batch in loader)


def thread_epochs(images, transform: Callable) -> Iterator[int]:
    "Two threads, an image or a batch at a time."
    with ThreadPoolExecutor(CORES) as pool:
        while True: yield sum(made.shape[0] if made.ndim == 4 else 1 for made in pool.map(transform, images))


def plain_epochs(images, transform: Callable) -> Iterator[int]:
    "One thread after the other; the library's own threads use the cores."
    while True: yield sum(made.shape[0] if made.ndim == 4 else 1 for made in map(transform, images))


def torchvision_transform(noise_on: str) -> Callable:
    "torchvision v2, per image, on uint8 tensors, or on PIL images up to the noise."
    return v2.Compose([
        v2.RandomAffine(ROTATE, (TRANSLATE, TRANSLATE), (1 - SCALE, 1 + SCALE), interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomHorizontalFlip(FLIP), v2.ColorJitter(brightness=BRIGHTNESS, contrast=CONTRAST),
        *([v2.PILToTensor()] if noise_on == "pil" else []),
        v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(sigma=NOISE / 255 / 2), v2.ToDtype(torch.uint8, scale=True),
    ])


def albumentations_transform() -> Callable:
    "Albumentations, per image, uint8 arrays."
    import albumentations as A

    pipeline = A.Compose([
        A.Affine(scale=(1 - SCALE, 1 + SCALE), translate_percent=(-TRANSLATE, TRANSLATE), rotate=(-ROTATE, ROTATE), interpolation=cv2.INTER_LINEAR,
                 border_mode=cv2.BORDER_REFLECT_101, p=1),
        A.HorizontalFlip(p=FLIP), A.RandomBrightnessContrast(BRIGHTNESS, CONTRAST, p=1), A.GaussNoise(std_range=(0, NOISE / 255), p=1),
    ])
    return lambda image: pipeline(image=image)["image"]


def kornia_transform() -> Callable:
    "Kornia, a batch of uint8 tensors at a time."
    import kornia.augmentation as K

    pipeline = K.AugmentationSequential(
        K.RandomAffine(ROTATE, (TRANSLATE, TRANSLATE), (1 - SCALE, 1 + SCALE), resample="bilinear", padding_mode="reflection", p=1.0),
        K.RandomHorizontalFlip(p=FLIP), K.RandomBrightness((1 - BRIGHTNESS, 1 + BRIGHTNESS), p=1.0),
        K.RandomContrast((1 - CONTRAST, 1 + CONTRAST), p=1.0), K.RandomGaussianNoise(std=NOISE / 255 / 2, p=1.0), data_keys=["input"],
    )
    def run(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(): return (pipeline(batch.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)
    return run


def ways(images: np.ndarray) -> dict[tuple[str, str], tuple[Iterator[int], int, int]]:
    "Everything that is timed: (library, way) → epochs, torch's threads, OpenCV's threads."
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    few, pictures, vision = tensors[:BATCH], [Image.fromarray(image) for image in images[: 4 * BATCH]], torchvision_transform("tensor")
    album, kornia, batches = albumentations_transform(), kornia_transform(), list(tensors.split(BATCH))[:4]
    halves = [half for batch in batches for half in batch.split(BATCH // 2)]
    pil = torchvision_transform("pil")
    def kornia_image(image: np.ndarray) -> torch.Tensor: return kornia(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    return {
        ("cnnbench", "two threads of the loader"): (cnnbench_epochs(images), CORES, CORES),
        ("torchvision v2 tensors", "two worker processes"): (worker_epochs(few, vision), 1, 1),
        ("torchvision v2 tensors", "two threads"): (thread_epochs(few, vision), 1, 1),
        ("torchvision v2 tensors", "torch's own threads"): (plain_epochs(few, vision), CORES, 1),
        ("torchvision v2 on PIL", "two worker processes"): (worker_epochs(pictures, pil), 1, 1),
        ("torchvision v2 on PIL", "two threads"): (thread_epochs(pictures, pil), 1, 1),
        ("Albumentations", "two worker processes"): (worker_epochs(images, album), 1, 0),
        ("Albumentations", "two threads"): (thread_epochs(images, album), 1, 0),
        ("Albumentations", "OpenCV's own threads"): (plain_epochs(images, album), 1, CORES),
        ("Kornia", "torch's own threads"): (plain_epochs(batches, kornia), CORES, 1),
        ("Kornia", "two threads, half batches"): (thread_epochs(halves, kornia), 1, 1),
        ("Kornia", "two worker processes"): (worker_epochs(images[: 2 * BATCH], kornia_image), 1, 1),
    }


def measure(rounds: int, images: np.ndarray) -> dict[tuple[str, str], list[float]]:
    "Images a second of each way in each round."
    timed = ways(images)
    speeds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):  # the first round warms up
        for name, (epochs, torch_threads, opencv_threads) in timed.items():
            torch.set_num_threads(torch_threads)
            cv2.setNumThreads(opencv_threads)
            begin = time.perf_counter()
            count = next(epochs)
            if number: speeds.setdefault(name, []).append(count / (time.perf_counter() - begin))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed")
    parser.add_argument("--images", type=int, default=1024, help="photographs")
    options = parser.parse_args()
    print(f"{describe_machine()['processor']}, {CORES} of {os.cpu_count()} cores; "
          + ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "albumentations", "kornia", "opencv-python-headless")))
    medians = {name: statistics.median(values) for name, values in measure(options.rounds, photos(options.images)).items()}
    for (library, way), speed in medians.items(): print(f"  {library:24} {way:28} {speed:9,.0f} images/s")
    ours = medians.pop(("cnnbench", "two threads of the loader"))
    print(f"rotate, scale, translate, flip, brightness, contrast, noise at {SIZE} px: cnnbench {ours:,.0f} images/s")
    for library, target in (("torchvision v2 tensors", 20.0), ("torchvision v2 on PIL", None), ("Albumentations", 1.8), ("Kornia", 10.0)):
        best, way = max((speed, way) for (name, way), speed in medians.items() if name == library)
        wanted = "" if target is None else f" (at least {target:g} wanted: {'reached' if ours >= target * best else 'MISSED'})"
        print(f"  {ours / best:6.1f} times {library}, best with {way}{wanted}")


if __name__ == "__main__": main()
