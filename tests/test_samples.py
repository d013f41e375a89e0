"""The evaluation of generated images: what tells them from noise, collapse of a generator made to collapse, copies, Inception's weights."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnbench.core import UsageError, torch_seed
from cnnbench.data import ArrayImages, Batch, DataConfig, Dataset, load_digits
from cnnbench.generation import Generation, Samples, look_at, make_noise
from cnnbench.layers import Normalize
from cnnbench.models import ModelConfig
from cnnbench.samples import (
    INCEPTION, SampleEvaluation, collapse_signs, copied, inception_file, inception_network, item_figures, judge_samples, nearest_images, other_rows,
    share_interval, tells, variety,
)
from cnnbench.tasks import TaskConfig, load_predictions, save_predictions

SIDE, TEST = 16, np.arange(0, 1797, 5)


@pytest.fixture(scope="module")
def digits() -> Dataset: return load_digits(DataConfig(size=SIDE))


def pixels(digits: Dataset, rows: np.ndarray) -> torch.Tensor: return torch.from_numpy(digits.images.read(rows)).movedim(-1, 1)


@pytest.fixture(scope="module")
def classifier(digits) -> nn.Module:
    "A small network, taught the digits in a second."
    with torch_seed(0):
        convs = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten())
        model = nn.Sequential(Normalize([78], [82]), convs, nn.Linear(288, 48), nn.ReLU(), nn.Linear(48, 10))
    rows = np.setdiff1d(np.arange(len(digits)), TEST)
    optimizer, labels = torch.optim.Adam(model.parameters(), 3e-3), torch.from_numpy(digits.targets)
    draw = np.random.default_rng(0)
    for _ in range(150):
        some = draw.choice(rows, 96)
        nn.functional.cross_entropy(model(pixels(digits, some)), labels[some]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (look_at(model, pixels(digits, TEST))[1].argmax(1) == digits.targets[TEST]).mean() > 0.9
    return model


class Shown(nn.Module):
    "A generator on purpose: the images that `pick` names for the noise and the label."

    def __init__(self, images: torch.Tensor, pick: Any):
        super().__init__()
        self.images, self.pick, self.weight = images, pick, nn.Parameter(torch.zeros(1))

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.images[self.pick(noise, labels)].float() + 0 * self.weight


def evaluated(digits: Dataset, classifier: nn.Module, images: torch.Tensor, pick: Any) -> tuple[Samples, SampleEvaluation]:
    task = Generation(TaskConfig(name="generation"), digits.classes)
    task.use(classifier)
    model = task.build(ModelConfig(name="dcgan", width=0.25), (1, SIDE, SIDE), [78.0], [82.0])
    model.generator = Shown(images, pick)  # type: ignore[assignment]
    parts = (TEST[:200], TEST[200:])
    found = task.predict(model, [Batch(pixels(digits, part), torch.from_numpy(digits.targets[part]), torch.from_numpy(part)) for part in parts])
    return found, judge_samples(found, task, digits)


def of_class(digits: Dataset, rows: np.ndarray, kinds: int) -> Any:
    "A picker: the label's first `kinds` images among `rows`, in turn from sample to sample."
    known = TaskConfig().generation.breadth * make_noise(0, "samples", 0, range(len(TEST)), 64)[:, 0]
    table = torch.stack([torch.from_numpy(np.resize(np.flatnonzero(digits.targets[rows] == label)[:kinds], kinds)) for label in range(10)])
    return lambda noise, labels: table[labels, (known - noise[:, :1]).abs().argmin(1) // 10 % kinds]


@pytest.fixture(scope="module")
def halves(digits) -> tuple[np.ndarray, np.ndarray]:
    rest = np.setdiff1d(np.arange(len(digits)), TEST)
    return rest[::2], rest[1::2]


def test_a_faithful_generator_has_nothing_against_it(digits, classifier, halves):
    "It shows real images that nobody else has; the data set the judge looks at holds the other half."
    known = replace_rows(digits, np.sort(np.concatenate([TEST, halves[1]])))
    pick = of_class(digits, halves[0], 50)
    task = Generation(TaskConfig(name="generation"), digits.classes)
    task.use(classifier)
    model = task.build(ModelConfig(name="dcgan", width=0.25), (1, SIDE, SIDE), [78.0], [82.0])
    model.generator = Shown(pixels(digits, halves[0]), pick)  # type: ignore[assignment]
    rows = np.searchsorted(np.sort(np.concatenate([TEST, halves[1]])), TEST)
    batch = Batch(pixels(digits, TEST), torch.from_numpy(digits.targets[TEST]), torch.from_numpy(rows))
    judged = judge_samples(task.predict(model, [batch]), task, known)
    assert not any("COLLAPSE" in said or "copies" in said for said in judged.remarks), judged.remarks
    values = {name: held.value for name, held in judged.figures.items()}
    assert values["precision"] > 0.8 and values["coverage"] > 0.6 and values["agreement"] > 0.9 and values["copies"] < 0.1
    assert 0.07 <= values["least_class_share"] <= 0.1 <= values["largest_class_share"] <= 0.13


def replace_rows(digits: Dataset, rows: np.ndarray) -> Dataset:
    return Dataset("half", ArrayImages(digits.images.read(rows)), digits.targets[rows], digits.classes)


def test_rows_stand_in_their_order(digits, classifier, halves):
    "Real images are best, those with noise worse, noise worst, in every figure that is shown."
    _, judged = evaluated(digits, classifier, pixels(digits, halves[0]), of_class(digits, halves[0], 50))
    assert list(judged.rows) == ["generated", "real images", "real with noise", "pure noise"]
    for name in ("frechet_distance", "precision", "coverage"):
        real, noisy, noise = (judged.rows[kind][name] for kind in ("real images", "real with noise", "pure noise"))
        assert (real < noisy < noise) if name == "frechet_distance" else (real > noisy >= noise), name
        assert name in judged.figures
    assert "confidence" in judged.rows["generated"] and "confidence" not in judged.figures
    assert any("No measure of quality here" in said and "confidence" in said for said in judged.remarks)


@pytest.mark.parametrize(("kinds", "sign"), [(1, "more than once"), (3, "more than once")])
def test_collapse_is_noticed(digits, classifier, halves, kinds, sign):
    "One to three images a class, over and over: each passes for real, and precision alone would praise it."
    found, judged = evaluated(digits, classifier, pixels(digits, halves[0]), of_class(digits, halves[0], kinds))
    said = next(remark for remark in judged.remarks if remark.startswith("MODE COLLAPSE"))
    assert sign in said and said in judged.table() and judged.figures["duplicates"].value > 0.9
    assert any(heading == "Remarks" and [said] in content[1] for heading, content in judged.sections() if isinstance(content, tuple))
    assert found.probabilities.max(1).mean() > 0.8  # and a sure classifier says nothing of it


def test_a_left_out_class_is_noticed(digits, classifier, halves):
    seven_as_one = of_class(digits, halves[0], 50)
    def pick(noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor: return seven_as_one(noise, torch.where(labels == 7, 1, labels))
    _, judged = evaluated(digits, classifier, pixels(digits, halves[0]), pick)
    assert any("hardly any sample is taken for 7" in said for said in judged.remarks)
    assert judged.figures["least_class_share"].value < 0.02


def test_one_image_is_noticed_by_its_spread(digits, classifier):
    _, judged = evaluated(digits, classifier, pixels(digits, TEST[:1]), lambda noise, labels: torch.zeros_like(labels))
    said = next(remark for remark in judged.remarks if remark.startswith("MODE COLLAPSE"))
    assert "0.00 times as far apart" in said and judged.figures["spread"].value == pytest.approx(0, abs=1e-4)


def test_noise_is_neither_good_nor_called_collapse(digits, classifier):
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, 1, SIDE, SIDE), np.uint8))
    _, judged = evaluated(digits, classifier, noise, lambda code, labels: (code[:, 0].abs() * 1e6).long() % 400)
    assert judged.figures["coverage"].value < 0.1 and judged.figures["frechet_distance"].value > 5 * judged.rows["real images"]["frechet_distance"]


def test_learned_by_heart_is_noticed(digits, classifier, halves):
    "Training images again: not one image over and over, but copies; the samples nearest to them are shown."
    _, judged = evaluated(digits, classifier, pixels(digits, halves[0]), of_class(digits, halves[0], 50))
    assert judged.figures["copies"].value > 0.9 and any("copies of images" in said for said in judged.remarks)


def test_signs_by_hand():
    even, healthy = np.full(10, 0.1), {"spread": 1.0, "duplicates": 0.01, "coverage": 0.7, "precision": 0.8}
    best = {"coverage": 0.86, "precision": 0.94}
    def signs(shares: np.ndarray = even, samples: int = 360, **changes: float) -> int:
        return len(collapse_signs(healthy | changes, best, shares, even, samples, "0123456789"))
    assert signs() == 0 and signs(spread=0.59) == 1 and signs(duplicates=0.11) == 1
    assert signs(coverage=0.42) == 1 and signs(coverage=0.42, precision=0.3) == 0  # bad images, not few
    lacking = np.array([0.019, *[0.109] * 9])
    assert signs(lacking) == 1 and signs(lacking, samples=40) == 0  # four were to be expected: chance
    assert collapse_signs(healthy, {}, even, even, 360, "0123456789") == []


def test_variety_and_copies_by_hand():
    real = np.array([[0.0], [1.0], [3.0]])
    assert variety(real, 2 * real) == {"spread": pytest.approx(2), "duplicates": 0.0}
    assert variety(real, np.array([[0.0], [0.5], [9.0]]))["duplicates"] == pytest.approx(2 / 3)  # real fellows are 1 apart, or more
    assert nearest_images(np.array([[0.9], [2.2]]), real)[0].tolist() == [1, 2]
    assert copied(np.array([[0.1], [2.0]]), np.array([[0.5], [1.5]]), real) == 0.5  # new real images are 0.5 away
    with pytest.raises(UsageError, match="two images"): variety(real[:1], real)


def test_what_tells():
    assert tells("precision", 0.9, 0.8, 0.45) and not tells("precision", 0.9, 0.82, 0.1) and not tells("precision", 0.9, 0.1, 0.46)
    assert tells("frechet_distance", 2, 2.2, 4) and not tells("frechet_distance", 2, 2.1, 40) and not tells("frechet_distance", 2, 3, 3.9)
    chances = np.array([[0.9, 0.1], [0.3, 0.7]], np.float32)
    assert item_figures(np.eye(3), np.eye(3)[:2], chances).keys() == {"frechet_distance", "confidence"}  # too few for neighbourhoods
    assert item_figures(np.eye(3), np.eye(3)[:2], chances)["confidence"] == pytest.approx(0.8)


def test_interval_of_a_share():
    found = share_interval(0.9, 50)
    assert (found.value, found.low, found.high) == (0.9, pytest.approx(0.7864, abs=1e-4), pytest.approx(0.9565, abs=1e-4))
    assert share_interval(0.0, 10).low == 0 and share_interval(1.0, 10).high == 1


def test_other_rows_are_outside_the_split():
    assert other_rows(np.array([1, 3]), 5, 0).tolist() == [0, 2, 4]
    many = other_rows(np.arange(10), 20_000, 0)
    assert len(many) == 5000 and many.min() >= 10 and (np.diff(many) > 0).all() and np.array_equal(many, other_rows(np.arange(10), 20_000, 0))


def test_stored_and_judged_again(digits, classifier, halves, tmp_path):
    "What is stored gives the same evaluation; without the classifier there is one too, and it says what it lacks."
    found, judged = evaluated(digits, classifier, pixels(digits, halves[0]), of_class(digits, halves[0], 50))
    save_predictions(tmp_path / "predictions.npz", found)
    again, task = load_predictions(tmp_path / "predictions.npz", Samples), Generation(TaskConfig(name="generation"), digits.classes)
    bare = judge_samples(again, task, digits)
    assert bare.figures["frechet_distance"] == judged.figures["frechet_distance"] and list(bare.rows) == ["generated"]
    assert any("Without the classifier" in said for said in bare.remarks)
    task.use(classifier)
    assert judge_samples(again, task, digits).to_dict() == judged.to_dict()
    plain = json.loads(json.dumps(judged.to_dict(), allow_nan=False))
    assert plain["figures"]["frechet_distance"]["value"] == judged.figures["frechet_distance"].value
    assert all(math.isfinite(held.value) for held in judged.figures.values())
    headings = [heading for heading, _ in judged.sections()]
    assert headings[0] == "Generated images" and "Classes" in headings and isinstance(judged.sections()[0][1], Image.Image)


def test_without_classes(digits, classifier, halves):
    found, judged = evaluated(digits, classifier, pixels(digits, halves[0]), of_class(digits, halves[0], 50))
    task = Generation(TaskConfig(name="generation"), digits.classes)
    task.use(classifier)
    free = judge_samples(replace(found, labels=np.full(len(found), -1)), task, digits)
    assert "agreement" in judged.figures and "agreement" not in free.figures
    assert free.figures["coverage"] == judged.figures["coverage"]


def test_inception_only_where_its_weights_are(tmp_path):
    assert inception_file(tmp_path) is None
    (tmp_path / INCEPTION).write_bytes(b"nothing of the kind")
    assert inception_file(tmp_path) == tmp_path / INCEPTION
    with pytest.raises(UsageError, match="does not hold the weights"): inception_network(tmp_path / INCEPTION)


def test_inception_gives_features(tmp_path):
    from torchvision.models import inception_v3

    with torch_seed(0): torch.save(inception_v3(weights=None, aux_logits=True, init_weights=False).state_dict(), tmp_path / INCEPTION)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 24, 24), np.uint8))
    features, chances = look_at(inception_network(tmp_path / INCEPTION), images, root=False)
    assert features.shape == (2, 2048) and chances.shape == (2, 1000) and np.isfinite(features).all()


def test_more_samples_than_images_are_no_duplicates():
    "The nearest fellow of a larger set is nearer: sets of one size are compared."
    draw = np.random.default_rng(0)
    real, made = draw.normal(size=(100, 8)), draw.normal(size=(4000, 8))
    assert variety(real, made)["duplicates"] < 0.1
    assert variety(real, np.repeat(made[:1000], 4, axis=0))["duplicates"] > 0.9
