"""Generation: losses and penalty worked out by hand, noise that belongs to a row, steps that can be cut up and resumed, one ONNX file."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnbench.core import UsageError, torch_seed
from cnnbench.data import Batch
from cnnbench.export import Form, export_checked, open_session
from cnnbench.generation import (
    R1_EVERY, Adversaries, Generation, cloud_figures, dcgan, distances, frechet_distance, generate, hinge, levels_apart, look_at, make_noise,
    non_saturating, radii,
)
from cnnbench.geometry import Variation
from cnnbench.layers import Normalize
from cnnbench.models import ModelConfig
from cnnbench.tasks import GenerationConfig, TaskConfig
from cnnbench.train import Run, TrainConfig, optimizer_step, restore, start_run, state_of

TRAIN = TrainConfig(epochs=4, optimizer="cnnbench.generation:duel_adam", lr=1e-3, weight_decay=0, average=0.9, precision="fp32", layout="contiguous")


def make_task(loss: str = "auto", **changes: Any) -> Generation:
    settings = GenerationConfig(**{"latent": 8, "spectral": True, "r1": 0.1} | changes)
    return Generation(TaskConfig(name="generation", loss=loss, generation=settings), ["one", "two", "three"], 3)


def build(task: Generation, side: int = 8, name: str = "dcgan") -> Any:
    return task.build(ModelConfig(name=name, width=0.25), (1, side, side), [100.0], [50.0], 0)


def make_batch(count: int = 16, side: int = 8, moved: bool = True) -> Batch:
    draw = np.random.default_rng(0)
    images, labels = torch.from_numpy(draw.integers(0, 256, (count, 1, side, side), np.uint8)), torch.from_numpy(draw.integers(0, 3, count))
    shift = torch.eye(3).repeat(count, 1, 1)
    shift[:, :2, 2] = torch.from_numpy(draw.integers(-2, 3, (count, 2))).float()
    return Batch(images, labels, torch.from_numpy(draw.permutation(count)), None, Variation(shift, True) if moved else None)


def some_of(batch: Batch, items: torch.Tensor) -> Batch:
    moved = None if batch.variation is None else Variation(batch.variation.geometry[items], batch.variation.exact)
    return Batch(batch.images[items], batch.targets[items], batch.rows[items], None, moved)


class Plain(nn.Module):
    "A discriminator that is linear in the pixels."

    def __init__(self, pixels: int, outputs: int):
        super().__init__()
        self.line = nn.Linear(pixels, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor: return self.line(images.flatten(1))


def line_pair(shape: tuple[int, int, int], classes: int, config: ModelConfig, latent: int, spectral: bool) -> tuple[nn.Module, nn.Module]:
    return dcgan(shape, classes, config, latent, spectral)[0], Plain(shape[1] * shape[2], max(1, classes))


def no_pair(shape: Any, classes: int, config: ModelConfig, latent: int, spectral: bool) -> nn.Module: return nn.Identity()


# Losses

def test_losses_by_hand():
    generated, real = torch.tensor([-1.5, 0.25, 2.0]), torch.tensor([0.5, 1.5, -1.0])
    assert hinge(generated, real).item() == pytest.approx((0.5 + 0 + 2) + (0 + 1.25 + 3))
    assert hinge(generated, None).item() == pytest.approx(-0.75)
    assert non_saturating(generated, real).item() == pytest.approx(sum(np.log1p(np.exp(v)) for v in (-0.5, -1.5, 1.0, -1.5, 0.25, 2.0)), rel=1e-6)
    assert non_saturating(generated, None).item() == pytest.approx(sum(np.log1p(np.exp(v)) for v in (1.5, -0.25, -2.0)), rel=1e-6)


@pytest.mark.parametrize("conditional", [True, False])
def test_penalty_by_hand(conditional):
    "A linear score's gradient is its weights w, at every image: the penalty adds γ/2 |w|² an image, R1_EVERY times as much every R1_EVERY steps."
    batch, strength = make_batch(moved=False), 0.5
    task, free = make_task(conditional=conditional, r1=strength), make_task(conditional=conditional, r1=0.0)
    model = build(task, name=f"{__name__}:line_pair")
    norms = model.discriminator.line.weight.detach().square().sum(1)
    wanted = strength * R1_EVERY / 2 * norms[batch.targets if conditional else torch.zeros(len(batch), dtype=torch.int64)].sum()
    for step in (0, R1_EVERY):
        gap = task.loss(model, batch, "discriminator", step) - free.loss(model, batch, "discriminator", step)
        torch.testing.assert_close(gap, wanted)
    for step in (1, R1_EVERY - 1): assert torch.equal(task.loss(model, batch, "discriminator", step), free.loss(model, batch, "discriminator", step))
    first, second = (torch.autograd.grad(held.loss(model, batch, "discriminator", 0), model.discriminator.line.weight)[0] for held in (task, free))
    counts = torch.bincount(batch.targets, minlength=3) if conditional else torch.tensor([len(batch)])
    torch.testing.assert_close(first - second, strength * R1_EVERY * counts[:, None] * model.discriminator.line.weight.detach())


def test_each_image_is_asked_for_its_class():
    "The hinge loss of a linear discriminator, worked out from its weights."
    task, batch = make_task("hinge", r1=0.0), make_batch(moved=False)
    model = build(task, name=f"{__name__}:line_pair")
    noise = make_noise(3, "discriminator", 2, batch.rows.tolist(), 8)
    weights, bias = model.discriminator.line.weight.detach()[batch.targets], model.discriminator.line.bias.detach()[batch.targets]
    def score(images: torch.Tensor) -> torch.Tensor: return (((images.float() - 100) / 50).flatten(1) * weights).sum(1) + bias
    with torch.no_grad(): made = model.generator(noise, batch.targets)
    wanted = (1 - score(batch.images)).clamp(min=0).sum() + (1 + score(made)).clamp(min=0).sum()
    torch.testing.assert_close(task.loss(model, batch, "discriminator", 2), wanted)


def test_real_and_generated_images_are_moved_alike():
    "A discriminator that looks at one pixel sees what the shift brought there."
    task, batch = make_task("hinge", r1=0.0), make_batch()
    model = build(task, name=f"{__name__}:line_pair")
    with torch.no_grad():
        model.discriminator.line.weight.zero_()
        model.discriminator.line.bias.zero_()
        model.discriminator.line.weight[:, 4 * 8 + 3] = 0.01  # the pixel in row 4, column 3
        made = model.generator(make_noise(3, "generator", 0, batch.rows.tolist(), 8), batch.targets)
    right, down = batch.variation.geometry[:, 0, 2].long(), batch.variation.geometry[:, 1, 2].long()
    seen = made[torch.arange(len(batch)), 0, 4 + down, 3 + right]
    torch.testing.assert_close(task.loss(model, batch, "generator", 0), -0.01 * ((seen - 100) / 50).sum(), rtol=1e-4, atol=1e-5)


# Noise and steps

def test_noise_belongs_to_its_row():
    whole = make_noise(0, "generator", 7, [4, 0, 9, 2], 16)
    assert torch.equal(make_noise(0, "generator", 7, [9, 4], 16), whole[[2, 0]])
    others = [make_noise(1, "generator", 7, [4], 16), make_noise(0, "discriminator", 7, [4], 16), make_noise(0, "generator", 8, [4], 16)]
    assert not any(torch.equal(other[0], whole[0]) for other in others)
    assert make_noise(0, "generator", 7, [], 16).shape == (0, 16)


def begin(task: Generation) -> Run: return start_run(TRAIN, build(task), task, 1)


def follow(run: Run, batches: Sequence[Batch], cut: int = 1) -> list[dict[str, float]]:
    losses = []
    for batch in batches:
        run.objective.train()
        losses.append(optimizer_step(run, [some_of(batch, items) for items in torch.arange(len(batch)).chunk(cut)]).losses)
    return losses


def weights(run: Run) -> torch.Tensor: return torch.cat([value.detach().flatten() for value in run.model.state_dict().values()])


@pytest.mark.parametrize("changes", [{}, {"spectral": False, "r1": 1.0}, {"conditional": False}])
def test_eight_parts_are_one_batch(changes):
    whole, parts = begin(make_task(**changes)), begin(make_task(**changes))
    batches = [make_batch()] * 2
    for one, other in zip(follow(whole, batches), follow(parts, batches, 8), strict=True): assert one == pytest.approx(other, rel=1e-4)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-3, atol=1e-4)  # Adam without momentum takes signs at first


def test_resumed_to_the_bit(tmp_path):
    batches = [make_batch()] * 10  # the penalty comes at steps 0 and 8
    whole = begin(make_task())
    losses = follow(whole, batches)
    cut = begin(make_task())
    follow(cut, batches[:3])
    torch.save(state_of(cut), tmp_path / "state.pt")
    for steps in (1, 3, 4, 5):  # wherever it was, at the step that comes next too
        again = begin(make_task())
        follow(again, batches[:steps])
        restore(again, torch.load(tmp_path / "state.pt", weights_only=True))
        assert follow(again, batches[3:]) == losses[3:]
        assert torch.equal(weights(whole), weights(again))
        assert all(torch.equal(value, again.deployed.state_dict()[name]) for name, value in whole.deployed.state_dict().items())


def test_looking_changes_nothing():
    "Validation between two steps leaves spectral norms, modes and gradients as they were."
    task = make_task()
    task.use(nn.Sequential(Normalize([100], [50]), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)))
    run = begin(task)
    follow(run, [make_batch()])
    before = copy.deepcopy(run.model.state_dict())
    figures = task.validate(run.model, [make_batch()])
    assert set(figures) == {f"val_{name}" for name in ("frechet_distance", "precision", "recall", "density", "coverage")}
    assert figures == task.validate(run.model, [make_batch()]) and run.model.training
    run.model(make_batch().images)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(value.requires_grad for value in run.model.parameters()) and not any(module._forward_pre_hooks for module in task.classifier.modules())  # type: ignore[union-attr]


def test_a_player_moves_its_own_part():
    task = make_task()
    run = begin(task)
    before = copy.deepcopy(run.model.state_dict())
    run.model.requires_grad_(False)
    run.model.discriminator.requires_grad_(True)
    task.loss(run.model, make_batch(), "discriminator", 0).backward()
    assert all(value.grad is None for value in run.model.generator.parameters())
    assert all(value.grad.abs().sum() > 0 for name, value in run.model.discriminator.named_parameters() if "bias" not in name)
    follow(run, [make_batch()])
    assert all(not torch.equal(value, before[name]) for name, value in run.model.named_parameters())


def test_spectral_norm_is_that_of_the_matrix():
    task = make_task()
    model = build(task)
    for step in range(1000): model.discriminator.settle(step)
    held = [module for module in model.discriminator.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(held) >= 4
    for layer in held: assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    before = model.discriminator.state_dict()
    once = {name: value.clone() for name, value in before.items()}
    model.discriminator.settle(999)  # done already
    assert all(torch.equal(value, once[name]) for name, value in model.discriminator.state_dict().items())


# What is deployed

@pytest.mark.parametrize("conditional", [True, False])
def test_onnx_makes_the_same_images(conditional, tmp_path):
    task = make_task(conditional=conditional)
    model = build(task, 16)
    form = Form(task.input_names, task.output_names, task.apart)
    inputs = task.inputs(torch.zeros(9, 1, 16, 16, dtype=torch.uint8))
    parity = export_checked(task.deployed(model), tmp_path / "model.onnx", inputs, form=form)
    assert parity.passed and parity.decisions_equal > 0.99
    session = open_session(tmp_path / "model.onnx", form=form)
    assert [item.name for item in session.get_inputs()] == (["noise", "labels"] if conditional else ["noise"])
    for count in (1, 5):
        made = session.run(None, {name: value[:count].numpy() for name, value in zip(task.input_names, inputs, strict=True)})[0]
        assert made.dtype == np.uint8 and made.shape == (count, 1, 16, 16)
        assert levels_apart(made, generate(task.deployed(model), inputs[0], inputs[1] if conditional else None)[:count].numpy()).largest == 0
    names = {item.name for item in __import__("onnx").load(str(tmp_path / "model.onnx")).graph.initializer}
    assert not any("discriminator" in name for name in names)


def test_rounding_is_forgiven_and_nothing_else():
    wanted = np.full((1, 1, 20, 20), 100, np.uint8)
    one, many, far = wanted.copy(), wanted.copy(), wanted.copy()
    one[0, 0, 0, :4] = 101
    many[0, 0, 0, :5] = 99
    far[0, 0, 0, 0] = 103
    assert levels_apart(one, wanted).largest == 0 and levels_apart(one, wanted).mean == 0.01
    assert levels_apart(many, wanted).largest == 1 and levels_apart(far, wanted).largest == 2 and levels_apart(far, wanted).scale == 255


# Networks

@pytest.mark.parametrize(("side", "channels", "conditional"), [(8, 1, True), (28, 3, False), (64, 3, True)])
def test_sizes(side, channels, conditional):
    task = make_task(conditional=conditional)
    model = task.build(ModelConfig(name="dcgan", width=0.25), (channels, side, side), [100.0] * channels, [50.0] * channels)
    made = task.deployed(model)(*task.inputs(torch.zeros(3, 1)))
    assert made.shape == (3, channels, side, side) and made.dtype == torch.uint8
    assert model(made).shape == (3, 3 if conditional else 1) and isinstance(model, Adversaries)
    twin = task.build(ModelConfig(name="dcgan", width=0.25), (channels, side, side), [100.0] * channels, [50.0] * channels)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    alone = task.deployed(model)(*(value[1:2] for value in task.inputs(torch.zeros(3, 1))))  # no image minds its neighbours
    assert levels_apart(alone.numpy(), made[1:2].numpy()).largest == 0


def test_what_does_not_fit_is_said():
    task = make_task()
    for shape, said in (((1, 30, 30), "steps of 4"), ((1, 32, 36), "square"), ((1, 256, 256), "8 to 128")):
        with pytest.raises(UsageError, match=said): task.build(ModelConfig(name="dcgan"), shape, [0], [1])
    with pytest.raises(UsageError, match="network for classification"): task.build(ModelConfig(), (1, 32, 32), [0], [1])
    with pytest.raises(UsageError, match="two modules"): task.build(ModelConfig(name=f"{__name__}:no_pair"), (1, 32, 32), [0], [1])
    with pytest.raises(UsageError, match="There is no loss"): Generation(TaskConfig(name="generation", loss="hing"), ["a"])
    with pytest.raises(UsageError, match="nothing to compare"): make_judged().predict(build(task), [])
    with pytest.raises(UsageError, match="task.helper"): task.predict(build(task), [make_batch()])
    blended = Batch(make_batch().images, torch.rand(16, 3), make_batch().rows)
    with pytest.raises(UsageError, match="mixup"): task.loss(build(task), blended, "generator", 0)


def make_judged() -> Generation:
    task = make_task()
    with torch_seed(0): task.use(nn.Sequential(Normalize([100], [50]), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)))
    return task


def test_predictions_hold_what_the_judge_needs():
    task, batch = make_judged(), make_batch()
    model = build(task)
    found = task.predict(model, [some_of(batch, items) for items in torch.arange(16).chunk(3)])
    features, chances = look_at(task.classifier, batch.images)  # type: ignore[arg-type]
    assert np.array_equal(found.rows, batch.rows.numpy()) and np.allclose(found.features, features, atol=1e-5) and chances.shape == (16, 3)
    assert found.images.shape == (16, 8, 8, 1) and found.labels.tolist() == [place % 3 for place in range(16)]
    assert np.array_equal(found.images, generate(task.deployed(model), *task.codes(16)).movedim(1, -1).numpy())
    assert found.between.shape == (5, 8, 8, 8, 1) and np.abs(found.between[0, 0].astype(int) - found.images[0]).max() <= 1
    raw = look_at(task.classifier, batch.images, root=False)[0]  # type: ignore[arg-type]
    assert np.allclose(features**2, raw, atol=1e-4)


# Figures, against other people's code

def test_frechet_distance_is_scipys():
    from scipy.linalg import sqrtm

    draw = np.random.default_rng(0)
    for one, two in (((200, 6), (150, 6)), ((30, 40), (20, 40))):  # more features than images too
        first, second = draw.normal(size=one) @ draw.normal(size=(one[1], one[1])), draw.normal(size=two) + 0.5
        sides = np.cov(first.T), np.cov(second.T)
        root = sqrtm(sides[0] @ sides[1]).real.trace()
        wanted = np.square(first.mean(0) - second.mean(0)).sum() + sides[0].trace() + sides[1].trace() - 2 * root
        assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-3)


def test_cloud_figures_are_those_of_neighbours():
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    draw = np.random.default_rng(0)
    real, made = draw.normal(size=(80, 5)), draw.normal(size=(70, 5)) * 0.8 + 0.3
    around, own = (NearestNeighbors(n_neighbors=4).fit(points).kneighbors(points)[0][:, 3] for points in (real, made))
    assert np.allclose(radii(real), around) and np.allclose(radii(made), own)
    apart = pairwise_distances(real, made)
    assert np.allclose(distances(real, made), apart)
    wanted = {"precision": 0, "recall": 0, "density": 0.0, "coverage": 0}
    for j in range(70): wanted["precision"] += any(apart[i, j] <= around[i] for i in range(80)) / 70
    for i in range(80):
        wanted["recall"] += any(apart[i, j] <= own[j] for j in range(70)) / 80
        wanted["coverage"] += (apart[i].min() <= around[i]) / 80
        wanted["density"] += sum(apart[i] <= around[i]) / (3 * 70)
    assert cloud_figures(real, made) == pytest.approx(wanted)
    assert cloud_figures(real, real) == {"precision": 1, "recall": 1, "density": pytest.approx(cloud_figures(real, real)["density"]), "coverage": 1}
    with pytest.raises(UsageError, match="needs 4"): cloud_figures(real[:3], made)


def test_what_a_gan_does_not_take_is_said():
    with pytest.raises(UsageError, match="backbone is 'resnet50', but dcgan starts from random weights"): ModelConfig("dcgan", backbone="resnet50")
    with pytest.raises(UsageError, match="dcgan has none, leave it at 0"):
        make_task().build(ModelConfig("dcgan", dropout=0.5), (1, 8, 8), [100.0], [50.0], 0)
