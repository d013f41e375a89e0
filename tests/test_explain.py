"Every explainer against a direct Captum call on a plain model; and the model that is explained never notices."
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion, Saliency
from torch import nn

from cnnbench.core import UsageError
from cnnbench.explain import (
    EXPLAINERS, ExplainConfig, baseline, completeness_gap, explain, explanation_copy, explanation_grid, last_conv, randomised_copy, sanity_check,
)
from cnnbench.models import ModelConfig, build_model

MEANS = (90.0, 120.0, 140.0)


class Centre(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEANS[:channels]).view(-1, 1, 1))

    def forward(self, images): return (images.float() - self.mean) / 64


class Small(nn.Module):
    "A plain network: a ReLU each, nothing in place."

    def __init__(self, channels=3):
        super().__init__()
        self.normalize = Centre(channels)
        self.first, self.relu, self.second, self.last = nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        maps = self.last(self.second(self.relu(self.first(self.normalize(images)))))
        return self.head(maps.mean((2, 3)))


class Tricky(Small):
    "The same function of the same weights, with one shared ReLU that works in place, and dropout."

    def __init__(self, channels=3):
        super().__init__(channels)
        self.relu = self.last = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        maps = self.last(self.second(self.relu(self.first(self.normalize(images)))))
        return self.head(self.drop(maps).mean((2, 3)))


def pair(channels):
    "A plain model for Captum, and its tricky twin in training mode for us."
    plain, tricky = Small(channels).eval(), Tricky(channels)
    tricky.load_state_dict(plain.state_dict())
    return plain, tricky.train()


def pictures(count=5, channels=3, height=12, width=10):
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def direct(method, plain, images, targets, config):
    images, mean = images.float().requires_grad_(), torch.tensor(MEANS[: images.shape[1]]).view(1, -1, 1, 1).expand(1, *images.shape[1:])
    if method == "saliency": return Saliency(plain).attribute(images, targets).amax(1)
    if method == "integrated_gradients": return IntegratedGradients(plain).attribute(images, mean, targets, n_steps=config.steps).sum(1)
    if method == "grad_cam":
        maps = LayerGradCam(plain, plain.last).attribute(images, targets, relu_attributions=True)
        return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return Occlusion(plain).attribute(images, (images.shape[1], 3, 2), (images.shape[1], 2, 1), mean, targets)[:, 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [2, 64])
@pytest.mark.parametrize("method", EXPLAINERS)
def test_equals_a_direct_captum_call(method, batch, channels):
    plain, tricky = pair(channels)
    images, targets = pictures(channels=channels), torch.tensor([0, 1, 2, 3, 0])
    config = ExplainConfig(steps=16, window=0.25, stride=0.125, batch=batch)
    found = explain(tricky, images, targets, method, config)
    assert found.maps.dtype == np.float32 and found.maps.shape == (5, 12, 10)
    assert np.abs(found.maps).max() > 0
    np.testing.assert_allclose(found.maps, direct(method, plain, images, targets, config).detach().numpy(), rtol=1e-3, atol=1e-6)


def test_saliency_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 2, bias=False))
    model[1].weight.data = torch.arange(16.0).view(2, 8) - 8
    found = explain(model, torch.zeros(1, 2, 2, 2, dtype=torch.uint8), [0])
    assert found.maps[0].tolist() == [[8, 7], [6, 5]]  # the larger of both channels' sizes


def custom(model, images, targets, config): return model(images).gather(1, targets[:, None])[:, :, None].expand(-1, *images.shape[2:]) * 1.0


def raising(model, images, targets, config):
    model.train().requires_grad_(True)
    model.first.register_forward_hook(lambda *_: None)
    raise KeyboardInterrupt


def state_of(model):
    return (
        [(module.training, dict(module._forward_hooks), getattr(module, "inplace", None)) for module in model.modules()],
        [(parameter.requires_grad, parameter.grad is None or parameter.grad.sum().item()) for parameter in model.parameters()],
        {name: value.clone() for name, value in model.state_dict().items()},
    )


def assert_untouched(model, before):
    after = state_of(model)
    assert after[:2] == before[:2]
    for name, value in after[2].items(): assert torch.equal(value, before[2][name])


@pytest.mark.parametrize("method", [*EXPLAINERS, "test_explain:custom"])
@pytest.mark.parametrize("kind", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_model_is_untouched(method, kind):
    _, model = pair(3)
    model.first.eval().weight.requires_grad_(False)
    model.first.register_forward_hook(lambda *_: None)
    model(pictures()).sum().backward()
    before = state_of(model)
    with kind():
        images = pictures()
        random = torch.get_rng_state()
        found = explain(model, images, method=method)
    assert np.isfinite(found.maps).all() and torch.get_rng_state().equal(random)
    assert found.targets.tolist() == explanation_copy(model)(images.clone()).argmax(1).tolist()
    assert_untouched(model, before)
    assert torch.is_grad_enabled()


class Failing(Small):
    "Fails at the n-th call, also in its copy."

    calls = [0]

    def __init__(self, error, after):
        super().__init__()
        self.error, self.after = error, after

    def forward(self, images):
        self.calls[0] += 1
        if self.calls[0] > self.after: raise self.error
        return super().forward(images)


@pytest.mark.parametrize("error", [RuntimeError("inside the model"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("method", EXPLAINERS)
def test_model_is_untouched_after_a_failure(method, error, after):
    model = Failing(error, after).train()
    before = state_of(model)
    Failing.calls[0] = 0
    if method == "saliency" and after == 2:  # it needs no third call
        explain(model, pictures(), method=method)
        Failing.calls[0] = 3
    with pytest.raises(type(error)): explain(model, pictures(), method=method)
    assert_untouched(model, before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    Failing.calls[0] = 99
    with pytest.raises(type(error)): last_conv(model, pictures())
    assert_untouched(model, before)


def test_model_is_untouched_when_the_explainer_is_interrupted():
    _, model = pair(3)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt): explain(model, pictures(), method="test_explain:raising")
    assert_untouched(model, before)


def test_copy_is_eager_float32_and_not_in_place():
    plain, tricky = pair(3)
    images = pictures()
    for model in (tricky, torch.compile(tricky), nn.DataParallel(tricky), nn.Sequential(torch.compile(tricky))):
        twin = explanation_copy(model)
        assert not any(hasattr(module, "_orig_mod") or module.training or getattr(module, "inplace", False) for module in twin.modules())
        assert torch.equal(twin(images), plain(images))
    twin = explanation_copy(tricky)
    assert twin.relu is not twin.last and tricky.relu is tricky.last and tricky.relu.inplace
    half = explanation_copy(copy.deepcopy(tricky).bfloat16())
    assert {value.dtype for value in half.state_dict().values()} == {torch.float32}


def test_copy_keeps_tied_weights_tied():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    twin = explanation_copy(nn.Sequential(shared, nn.ReLU(), shared))
    assert twin[0] is twin[2]


def test_half_precision_models_are_explained_in_full():
    _, model = pair(3)
    half, images = copy.deepcopy(model).bfloat16(), pictures()
    widened = copy.deepcopy(half).float()
    assert np.array_equal(explain(half, images, [0] * 5).maps, explain(widened, images, [0] * 5).maps)


def test_integrated_gradients_are_complete():
    _, model = pair(3)
    images = pictures()
    coarse, fine = (explain(model, images, method="integrated_gradients", config=ExplainConfig(steps=steps)) for steps in (2, 512))
    gap = np.abs(completeness_gap(model, images, fine))
    assert gap.max() < 2e-3 and gap.mean() < np.abs(completeness_gap(model, images, coarse)).mean()
    twin, by_captum = explanation_copy(model), IntegratedGradients(explanation_copy(model))
    goals, mean = torch.from_numpy(coarse.targets), baseline(twin, images.float())
    _, delta = by_captum.attribute(images.float(), mean, goals, n_steps=2, return_convergence_delta=True)
    np.testing.assert_allclose(completeness_gap(model, images, coarse), delta.numpy(), atol=1e-4)


def test_baseline_is_the_training_mean():
    images = pictures().float()
    assert torch.equal(baseline(Small(), images)[0, :, 3, 4], torch.tensor(MEANS))
    assert not Small().normalize(baseline(Small(), images)).any()
    assert (baseline(nn.Flatten(), images) == 127.5).all()


def test_occlusion_finds_the_one_pixel_that_counts():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    model[1].weight.data.zero_()[1, 3 * 8 + 5] = 1
    image = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    found = explain(model, image, [1], "occlusion", ExplainConfig(window=0.125, stride=0.125)).maps[0]
    assert np.argwhere(found).tolist() == [[3, 5]] and found[3, 5] == pytest.approx(255 - 127.5)


@pytest.mark.parametrize("method", EXPLAINERS)
@pytest.mark.parametrize(("name", "shape"), [("lenet", (1, 28, 28)), ("lenet", (3, 32, 32)), ("resnet9", (1, 8, 8)), ("resnet9", (3, 32, 32)),
                                             ("resnet18", (3, 32, 32))])
def test_our_models(name, shape, method):
    model = build_model(ModelConfig(name=name, width=0.25 if name == "resnet9" else 1.0), shape, 5, (100.0,) * shape[0], (50.0,) * shape[0])
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    found = explain(model, images, method=method, config=ExplainConfig(steps=4, window=0.5, stride=0.5))
    assert found.maps.shape == (2, *shape[1:]) and np.isfinite(found.maps).all()
    assert bool(found.layer) == (method == "grad_cam")
    if method != "grad_cam": assert np.abs(found.maps).max() > 0


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer4.1"), ("mobilenet_v2", "features.18.2"),
                                             ("densenet121", "features.norm5"), ("squeezenet1_1", "classifier.2")])
def test_last_conv_of_torchvision(name, layer):
    from torchvision import models

    model = explanation_copy(models.get_model(name, num_classes=4))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8).float()
    assert last_conv(model, images) == layer
    found = explain(model, images, [0, 3], "grad_cam")
    maps = LayerGradCam(model, model.get_submodule(layer)).attribute(images.requires_grad_(), torch.tensor([0, 3]), relu_attributions=True)
    np.testing.assert_allclose(found.maps, F.interpolate(maps, (64, 64), mode="bilinear")[:, 0].detach().numpy(), rtol=1e-4, atol=1e-6)


def test_named_layer():
    plain, model = pair(3)
    images = pictures()
    found = explain(model, images, [1] * 5, "grad_cam", ExplainConfig(layer="first"))
    maps = LayerGradCam(plain, plain.first).attribute(images.float().requires_grad_(), [1] * 5, relu_attributions=True)
    assert found.layer == "first"
    np.testing.assert_allclose(found.maps, maps[:, 0].detach().numpy(), atol=1e-6)
    with pytest.raises(UsageError, match="Did you mean second"): explain(model, images, method="grad_cam", config=ExplainConfig(layer="secnd"))
    with pytest.raises(UsageError, match="layer that gives maps"): explain(model, images, method="grad_cam", config=ExplainConfig(layer="head"))


def test_sanity_check():
    _, model = pair(3)
    images = pictures()
    assert not torch.equal(randomised_copy(model).first.weight, model.first.weight)
    assert torch.equal(randomised_copy(model, 3).first.weight, randomised_copy(model, 3).first.weight)
    found = explain(model, images)
    assert sanity_check(model, images, found).shape == (5,)
    assert np.abs(sanity_check(model, images, found)).max() < 1
    blind = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad(): blind[1].weight.copy_(randomised_copy(blind)[1].weight)
    small = pictures(3, 1, 2, 2)
    assert sanity_check(blind, small, explain(blind, small)) == pytest.approx([1, 1, 1])  # the same weights, drawn anew: the same map


@pytest.mark.parametrize("channels", [1, 3])
def test_grid(channels):
    images = pictures(3, channels)
    found = [explain(Small(channels), images, method=method) for method in ("saliency", "grad_cam")]
    picture = explanation_grid(images, found, ["<b>one</b>", "two\x00", "три"], cell=60)
    assert picture.mode == "RGB" and picture.width == 8 + 3 * (64 + 8)


@pytest.mark.parametrize(("images", "targets", "says"), [
    (torch.zeros(3, 8, 8), None, "batch, channel"), (torch.zeros(0, 3, 8, 8), None, "batch, channel"),
    (torch.zeros(2, 3, 8, 8), [0], "2 whole numbers"),
    (torch.zeros(2, 3, 8, 8), [0, 4], "has 4 classes"), (torch.zeros(2, 3, 8, 8), [0.0, 1.0], "whole numbers"),
    (torch.full((2, 3, 8, 8), float("nan")), None, "not all finite"),
])
def test_bad_input_is_named(images, targets, says):
    with pytest.raises(UsageError, match=says): explain(Small(), images, targets)


def test_only_classifiers():
    with pytest.raises(UsageError, match="Only classifiers"): explain(nn.Conv2d(3, 2, 3), pictures())
    with pytest.raises(UsageError, match="Did you mean saliency"): explain(Small(), pictures(), method="salience")
