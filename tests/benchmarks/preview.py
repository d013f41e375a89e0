"""The augmentation preview: from a slider's new value to the JPEG, for an original and 15 draws at 224 px, beside composing that grid alone.

What a person waits for is drawing (recipes, OpenCV, reading), composing and JPEG; the browser comes on top. Rounds are interleaved and
medians printed, so that a busy machine slows all alike. By hand: `python tests/benchmarks/preview.py`."""
import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
from augment import SIZE, photos

from cnnbench.core import describe_machine
from cnnbench.data import ArrayImages, Dataset
from cnnbench.experiment import experiment_for, prepare
from cnnbench.plot import image_grid, to_jpeg
from cnnbench.preview import RowAugmenter, draw_variations, remembering, variations_picture
from cnnbench.recipes import PRESETS

DRAWS = 15


def cases() -> dict[str, tuple[Dataset, object]]:
    "What is previewed: name → (data set, task)."
    plain = Dataset("photos", ArrayImages(photos(64)), np.zeros(64, np.int64), ("photo", "none"))
    held: dict[str, tuple[Dataset, object]] = {"photographs": (plain, prepare(experiment_for()).task)}
    for task in ("detection", "segmentation"):
        setup = prepare(experiment_for(task, {"data.shapes.count": 64, "data.size": SIZE}))
        held[task] = (setup.dataset, setup.task)
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(", ".join(describe_machine().values()))
    print(f"{'':30}{'draw':>8}{'compose':>9}{'JPEG':>7}{'all':>8}{'grid alone':>12}{'ratio':>7}   (ms, medians of {rounds})")
    for name, (dataset, task) in cases().items():
        data = remembering(dataset)
        for preset, settings in (PRESETS | {"strong, mosaic": replace(PRESETS["strong"], mosaic=0.5)}).items():
            config, times, augmenter = settings, [], None
            for number in range(rounds):
                moved, start = replace(config, rotate=config.rotate + 0.01 * number), time.perf_counter()
                augmenter = RowAugmenter(moved, data, 0, np.arange(len(data)), like=augmenter)
                drawn = draw_variations(augmenter, row=3, count=DRAWS)
                made = time.perf_counter()
                picture = variations_picture(drawn, task)
                composed = time.perf_counter()
                to_jpeg(picture)
                coded = time.perf_counter()
                to_jpeg(image_grid([drawn.original, *drawn.images], ["photo"] * (DRAWS + 1), cell=140))
                times.append((made - start, composed - made, coded - composed, coded - start, time.perf_counter() - coded))
            draw, compose, code, total, alone = (1000 * statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name + ', ' + preset:30}{draw:8.1f}{compose:9.1f}{code:7.1f}{total:8.1f}{alone:12.1f}{total / alone:7.2f}")


if __name__ == "__main__": main()
