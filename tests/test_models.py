"Every model of the registry, a family each of torchvision's, and a user's own: forward, backward, seed, settings, costs, complaints, export."

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnnbench.config import from_json, to_code, to_json
from cnnbench.core import UsageError
from cnnbench.layers import BLOCKS, Normalize
from cnnbench.models import (
    MODELS,
    Block,
    ModelConfig,
    build_model,
    format_spec,
    make_network,
    parse_spec,
    set_dropout,
    shape_after,
    summarize,
    torchvision_models,
    widen,
)

SPEC = "conv 8 5x5 stride=2, norm, relu, residual(conv 12, norm, relu, conv 12, norm), relu, global, linear classes"
REGISTERED = [ModelConfig(name, spec=SPEC if name == "spec" else "") for name in MODELS]
FAMILIES = [ModelConfig(name) for name in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_0", "efficientnet_b0", "mnasnet0_5")]
OWN = ModelConfig(f"{__name__}:OwnNetwork", width=2)
LARGE = ("vgg11", "densenet121", "vit_b_16", "convnext_tiny", "swin_t", "regnet_y_400mf", "googlenet", "inception_v3", "alexnet")


class OwnNetwork(nn.Module):
    "What a user may bring: a function, or a class, of (shape, outputs, config)."

    def __init__(self, shape, outputs, config):
        super().__init__()
        width = round(4 * config.width)
        self.conv, self.head = nn.Conv2d(shape[0], width, 3, padding=1), nn.Linear(width, outputs)

    def forward(self, images): return self.head(torch.relu(self.conv(images)).mean((2, 3)))


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    "No more than the machine has, so that tests beside these go on."
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    sys.modules.setdefault(__name__, sys.modules[OwnNetwork.__module__])
    yield
    torch.set_num_threads(before)


def build(config, shape=(3, 32, 32), outputs=7, seed=0):
    return build_model(config, shape, outputs, mean=(120.0,) * shape[0], std=(60.0,) * shape[0], seed=seed)


def pixels(shape, batch=4, seed=0):
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", [*REGISTERED, *FAMILIES, OWN], ids=lambda config: config.name)
def test_contract(config):
    "Forward, backward, the same weights for the same seed, settings there and back, parameters counted once."
    state = torch.get_rng_state()
    model, again, other = build(config), build(config), build(config, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert [name for name, _ in model.named_children()] == ["normalize", "network"] and model.training
    for name, value in model.state_dict().items(): assert torch.equal(value, again.state_dict()[name])
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())

    logits = model(pixels((3, 32, 32)))
    assert logits.shape == (4, 7) and logits.dtype == torch.float32
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters(): assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    assert from_json(ModelConfig, to_json(config)) == config and eval(to_code(config)) == config
    summary = summarize(model, (3, 32, 32))
    assert summary.parameters == sum(value.numel() for value in model.parameters()) == sum(layer.parameters for layer in summary.layers)
    assert "(not used)" not in [layer.name for layer in summary.layers]
    assert summary.output == (7,) and summary.multiply_adds > 0 and "total" in str(summary)


@pytest.mark.parametrize("config", REGISTERED, ids=lambda config: config.name)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 48), (1, 64, 64)], ids=str)
def test_sizes(config, shape):
    assert build(config, shape, outputs=3)(pixels(shape, 2)).shape == (2, 3)


@pytest.mark.parametrize("name", LARGE)
def test_large_families(name):
    "Built and tried without numbers; what their weights are is torchvision's affair."
    summary = summarize(build(ModelConfig(name), (1, 64, 64)), (1, 64, 64))
    assert summary.output == (7,)
    assert summary.parameters == sum(layer.parameters for layer in summary.layers)


def test_every_torchvision_name_is_accepted():
    assert len(torchvision_models()) > 50
    for name in torchvision_models(): ModelConfig(name)


def test_small_images_keep_their_size():
    "A ResNet's stem at 32 px: 3x3 with stride 1, no pool; at 224 px as torchvision has it."
    small, large = build(ModelConfig("resnet18")).network, build(ModelConfig("resnet18"), (3, 224, 224)).network
    assert (small.conv1.kernel_size, small.conv1.stride, type(small.maxpool)) == ((3, 3), (1, 1), nn.Identity)
    assert (large.conv1.kernel_size, large.conv1.stride, type(large.maxpool)) == ((7, 7), (2, 2), nn.MaxPool2d)
    assert build(ModelConfig("resnet18"), (1, 224, 224)).network.conv1.weight.shape == (64, 1, 7, 7)


@pytest.mark.parametrize(
    "config, shape, words",
    [
        (ModelConfig("lenet"), (1, 8, 8), "lenet does not take images of 8x8; 16x16 works. Block 4, `conv 16 5x5 pad=0`, cannot take 6x2x2"),
        (ModelConfig("vgg11"), (3, 16, 16), "vgg11 does not take images of 16x16; 32x32 works. Layer network.features.20 (MaxPool2d) cannot take"),
        (ModelConfig("vit_b_16"), (3, 28, 28), "vit_b_16 does not take images of 28x28; 32x32 works. It cuts a square into patches of 16 px."),
        (ModelConfig("maxvit_t"), (3, 64, 64), "maxvit_t does not take images of 64x64; 224x224 works"),
        (ModelConfig("spec", "conv 8, relu, global, linear 5"), (3, 32, 32), "makes 5 of each image, but 7 logits are needed"),
        (ModelConfig("spec", "conv 8, relu, linear classes"), (3, 32, 32), "Block 3, `linear 7`, takes a row of numbers but gets an image"),
        (ModelConfig("math:prod"), (3, 32, 32), "math:prod is called with (shape, outputs, config), which it does not take"),
        (ModelConfig("no_such_module:net"), (3, 32, 32), "no module 'no_such_module'"),
        (ModelConfig("builtins:print"), (3, 32, 32), "must return an nn.Module"),
    ],
    ids=lambda value: str(getattr(value, "name", "")),
)
def test_complaints(config, shape, words):
    with pytest.raises(UsageError) as caught: build(config, shape)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings_, words",
    [
        ({"name": "resnet81"}, "Did you mean resnet18"),
        ({"name": "lenett"}, "Did you mean lenet"),
        ({"name": "spec"}, "spec is empty"),
        ({"name": "spec", "spec": "conv"}, "Block 1, `conv`: has missing a required argument: 'width'; it takes: conv WIDTH kernel=3x3"),
        ({"name": "resnet18", "width": 2}, "comes in one width"),
        ({"width": 100}, "ModelConfig.width is 100: it must be between"),
        ({"dropout": 1}, "ModelConfig.dropout is 1"),
        ({"spec": "relu"}, "set name to spec"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_refused(settings_, words):
    with pytest.raises(UsageError) as caught: ModelConfig(**settings_)
    assert words in str(caught.value)


# ---------------------------------------------------------------- specs

PLAIN = st.sampled_from(["relu", "norm", "max 2", "avg 3 stride=2 pad=1", "dropout 0.25", "conv 8 stride=2", "conv classes bias=no", "scale 1e-05"])
SPECS = st.recursive(PLAIN, lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda words: f"residual({', '.join(words)})"), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(SPECS, min_size=1, max_size=6), st.sampled_from([",", "\n", " ,\n  "]))
def test_spec_round_trip(words, separator):
    blocks = parse_spec(separator.join(words))
    assert format_spec(blocks) == ", ".join(words)
    assert parse_spec(format_spec(blocks)) == blocks
    assert widen(blocks, 1) == blocks


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("conv relu(),x=:5.\n-1e"), max_size=30))
def test_spec_is_read_or_refused_with_a_sentence(text):
    try: blocks = parse_spec(text)
    except UsageError as error: assert str(error)
    else: assert parse_spec(format_spec(blocks)) == blocks


def test_every_word_makes_a_layer():
    written = {"conv": "conv 4", "linear": "linear 5", "scale": "scale 2", "residual": "residual(relu)"}
    for word in BLOCKS:
        network = make_network(parse_spec(written.get(word, word)), (6,) if word == "linear" else (3, 8, 8))
        assert isinstance(network[0], nn.Module), word


def test_own_blocks():
    "A user's layer class goes in as module:attribute, and so does a function that is told the shape."
    network = make_network(parse_spec(f"conv 4, torch.nn:Hardswish, {__name__}:scaled 3, global, linear 2"), (1, 8, 8))
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 2)
    assert network[2].weight.shape == (4, 3)
    with pytest.raises(UsageError, match="Block 1, `torch.nn:Hardswih`: .*Did you mean Hardswish"):
        make_network(parse_spec("torch.nn:Hardswih"), (1, 8, 8))
    with pytest.raises(UsageError, match="Block 1, .*: has too many positional arguments; it takes"):
        make_network(parse_spec(f"{__name__}:scaled 3 4"), (1, 8, 8))


class Scaled(nn.Module):
    def __init__(self, channels, count):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, count))

    def forward(self, images): return images * self.weight.sum(1)[:, None, None]


def scaled(shape, count: int): return Scaled(shape[0], count)


def test_lenet_is_the_article_s():
    "conv 3→6 5x5, pool, conv 6→16 5x5, pool, 400→120→84→10, and no ReLU twice or in place."
    network = build(ModelConfig("lenet"), outputs=10).network
    weights = [tuple(layer.weight.shape) for layer in network if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert weights == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    for name in ("lenet", "resnet9"):
        relus = [layer for layer in build(ModelConfig(name)).network.modules() if isinstance(layer, nn.ReLU)]
        assert not any(layer.inplace for layer in relus) and len(set(map(id, relus))) == len(relus) > 3


def test_width_and_dropout():
    narrow, wide = (build(ModelConfig("resnet9", width=width)) for width in (0.5, 2))
    assert wide.network[0].out_channels == 4 * narrow.network[0].out_channels
    for name in ("lenet", "resnet9", "resnet18", "mobilenet_v3_small", OWN.name):
        model = build(ModelConfig(name, dropout=0.3))
        rates = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
        assert rates and set(rates) == {0.3}, name
        set_dropout(model, 0.1)
        assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.1}
    assert build(ModelConfig("vgg11"), outputs=2).network.classifier[2].p == 0.5  # its own
    assert build(ModelConfig("resnet18")).state_dict().keys() == build(ModelConfig("resnet18", dropout=0.5)).state_dict().keys()
    with pytest.raises(UsageError, match="has no dropout"): set_dropout(build(OWN), 0.1)


# ---------------------------------------------------------------- costs


def test_multiply_adds_by_hand():
    def count(layer, shape): return summarize(nn.Sequential(layer), shape).multiply_adds
    assert count(nn.Conv2d(3, 6, 5), (3, 32, 32)) == 28 * 28 * 6 * 5 * 5 * 3
    assert count(nn.Conv2d(8, 16, (3, 1), stride=2, padding=(1, 0)), (8, 9, 10)) == 5 * 5 * 16 * 3 * 1 * 8
    assert count(nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 16, 16)) == 16 * 16 * 8 * 9
    assert count(nn.Linear(400, 120), (400,)) == 400 * 120
    assert count(nn.ReLU(), (3, 8, 8)) == 0
    assert summarize(build(ModelConfig("resnet18"), (3, 224, 224), 1000), (3, 224, 224)).multiply_adds == 1_814_073_344  # the 1.8 G that papers state


def test_attention_is_counted():
    "In a ViT: the products of queries with keys, and of weights with values, besides the linear layers."
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    tokens, width = 10, 16
    by_hand = tokens * (3 * width * width + width * width + 2 * width * 32) + 2 * tokens * tokens * width
    assert summarize(layer, (tokens, width)).multiply_adds == by_hand


def field_by_gradient(network, shape):
    "The side of the smallest square that holds every pixel with a gradient, for a number in the middle of the output; weights are made positive."
    network = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for parameter in network.parameters(): parameter.abs_().add_(0.1)
    images = torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
    output = network(images)
    middle = [side // 2 for side in output.shape[2:]]
    output[(0, 0, *middle)].backward()
    touched = images.grad[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero().flatten(), touched.any(0).nonzero().flatten()
    return (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)


@pytest.mark.parametrize(
    "spec, field",
    [
        ("conv 2 3x3, conv 2 3x3", (5, 5)),
        ("conv 2 3x3 stride=2, conv 2 3x3 stride=2, conv 2 3x3", (15, 15)),
        ("conv 2 5x3, avg 2, conv 2 3x1 dilation=2", (14, 4)),
        ("conv 2 3x3, avg 3 stride=2 pad=1, residual(conv 2 3x3, relu, conv 2 3x3), conv 2 1x1", (13, 13)),
        ("conv 2 3x3, residual(avg 3 stride=1 pad=1), residual(conv 4 3x3 stride=2)", (7, 7)),
        ("torch.nn:ConvTranspose2d 1 2 4 stride=2 padding=1, conv 2 3x3", (3, 3)),
    ],
)
def test_receptive_field(spec, field):
    "By hand, as summed up, and as the gradient finds it."
    network = make_network(parse_spec(spec), (1, 48, 48))
    assert summarize(network, (1, 48, 48)).layers[-1].receptive_field == field
    found = field_by_gradient(network, (1, 48, 48))
    assert found == field or "Transpose" in spec and all(abs(a - b) <= 1 for a, b in zip(found, field, strict=True))


def test_receptive_field_of_whole_images():
    for spec in ("global", "flatten, linear 3", "conv 2 1x1, global max", "torch.nn:AdaptiveAvgPool2d 1"):
        assert summarize(make_network(parse_spec(spec), (1, 20, 30)), (1, 20, 30)).receptive_field == (20, 30), spec
    lenet = summarize(build(ModelConfig("lenet")), (3, 32, 32))
    assert [layer.receptive_field[0] for layer in lenet.layers] == [1, 5, 5, 6, 14, 14, 16, 16, 32, 32, 32, 32, 32, 32]
    places = summarize(nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.Flatten(2), Turned(), nn.Linear(4, 4)), (1, 16, 16))
    assert places.receptive_field == (4, 4)  # a linear layer on each patch sees that patch alone


class Turned(nn.Module):
    def forward(self, tokens): return tokens.transpose(1, 2)


def test_summary_leaves_the_model_alone():
    model = build(ModelConfig("resnet18"))
    model.network.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    summarize(model, (3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes and torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_estimate():
    "What back-propagation keeps, counted here from the tensors that a real forward saves; the estimate is of that order, and grows as it must."
    model, images = build(ModelConfig("resnet9"), (1, 32, 32)), pixels((1, 32, 32), 8)
    held, weights = {}, {value.data_ptr() for value in (*model.parameters(), *model.buffers())}
    def keep(value):
        if value.data_ptr() not in weights: held[value.untyped_storage().data_ptr()] = (value, value.untyped_storage().nbytes())
        return value
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value): model(images).sum()
    real, summary = sum(size for _, size in held.values()), summarize(model, (1, 32, 32))
    assert abs(summary.kept_bytes * 8 / real - 1) < 0.1
    assert summary.batch_bytes(8) > real + 8 * summary.parameters
    assert summary.batch_bytes(128) > 1.9 * summary.batch_bytes(64) - 16 * summary.parameters
    assert summary.batch_bytes(64, "bf16") < summary.batch_bytes(64) < summary.batch_bytes(64, states=2)


# ---------------------------------------------------------------- a user's mistakes


class Article(nn.Module):
    "The article's network, with a fault of one's choice."

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.conv1, self.conv2, self.pool = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(400, 120), nn.Linear(120, 10)

    def forward(self, images):
        if self.fault == "module in a layer": return self.pool(nn.ReLU(self.conv1(images)))
        if self.fault == "values" and images.max() > 1: return images
        if self.fault == "module in a function": return nn.functional.max_pool2d(nn.ReLU(self.conv1(images)), 2)
        if self.fault == "module in a method": return nn.ReLU(self.conv1(images)).flatten(1)
        if self.fault == "module in a sum": return nn.Sigmoid(self.conv1(images)) + 1
        features = self.pool(torch.relu(self.conv2(self.pool(torch.relu(self.conv1(images))))))
        features = features.view(-1, 400) if self.fault.startswith("view") else features.flatten(1)
        if self.fault == "module at the end": return nn.Softmax(self.fc1(features))
        if self.fault == "module for an answer": return nn.ReLU(self.fc1(features))
        return self.fc2(torch.relu(self.fc1(features)))


@pytest.mark.parametrize(
    "fault, side, words",
    [
        ("none", 224, "Layer fc1 (Linear) gets 16x53x53 = 44,944 numbers but takes 400."),
        ("view", 224, "after pool (MaxPool2d) gave 16x53x53: a view asks for 400 numbers of each image, which has 44,944 there"),
        ("view that mixes", 52, "The model makes (8, 10) of 2 images"),
        ("module in a layer", 32, "Layer pool (MaxPool2d) gets a layer, ReLU, and no tensor: nn.ReLU(x) only makes the layer; write nn.ReLU()(x)"),
        ("module in a function", 32, "The forward of Article uses a layer, ReLU, as a function"),
        ("module in a method", 32, "uses a layer, ReLU, as a function"),
        ("module in a sum", 32, "uses a layer, Sigmoid, as a function"),
        ("module at the end", 32, "uses a layer, Softmax, as a function"),
        ("module for an answer", 32, "The output of this model is a layer, ReLU, and no tensor: nn.ReLU(x) only makes the layer"),
        ("values", 32, "The forward of Article decides by the values of pixels"),
        ("none", 12, "Layer conv2 (Conv2d) cannot take 6x4x4"),
    ],
)
def test_faults_are_sentences(fault, side, words, capfd):
    "And nothing but the sentence: torch's own log of the error is kept quiet."
    with pytest.raises(UsageError) as caught: summarize(Article(fault), (3, side, side))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_wrong_channels():
    with pytest.raises(UsageError, match=r"Layer conv1 \(Conv2d\) gets 1 channel but takes 3"): summarize(Article("none"), (1, 32, 32))
    with pytest.raises(UsageError, match=r"Block 8, `linear 120` \(network.7\), gets 16x4x4 = 256 numbers but takes 400"):
        summarize(build(ModelConfig("lenet")), (3, 28, 28))
    nested = make_network(parse_spec("conv 4, residual(relu, conv 4)"), (3, 8, 8))
    nested[1].inside[1] = nn.Conv2d(5, 4, 3, padding=1)
    with pytest.raises(UsageError, match=r"Block 2.2, `conv 4` \(1.inside.1\), gets 4 channels but takes 5"): summarize(nested, (3, 8, 8))


# ---------------------------------------------------------------- pixels in, ONNX out


def test_normalize():
    normalize = Normalize((10, 20, 30), (2, 4, 0))
    images = pixels((3, 6, 5)).contiguous(memory_format=torch.channels_last)
    by_hand = (images.double() - torch.tensor([10, 20, 30.0]).view(3, 1, 1)) / torch.tensor([2, 4, 1.0]).view(3, 1, 1)
    assert torch.allclose(normalize(images).double(), by_hand)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last) and normalize(images).dtype == torch.float32
    assert torch.equal(normalize(images), normalize(images.float()))
    assert sorted(dict(normalize.named_buffers())) == ["mean", "std"]
    assert shape_after(normalize, (3, 6, 5)) == (3, 6, 5)


@pytest.mark.parametrize("config", [*REGISTERED, ModelConfig("resnet18")], ids=lambda config: config.name)
def test_onnx_takes_pixels(config, tmp_path):
    "uint8, any batch, the same logits."
    import onnxruntime

    model = build(config).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (pixels((3, 32, 32), 2),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = pixels((3, 32, 32), 5, seed=1)
    with torch.no_grad(): eager = model(images).numpy()
    assert session.get_inputs()[0].type == "tensor(uint8)"
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0], eager, atol=1e-4)


def test_block_text():
    assert str(Block("conv", (16, (5, 5)), (("pad", 0),))) == "conv 16 5x5 pad=0"
