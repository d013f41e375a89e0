"Detectors: assignment and losses by hand, sums that add up, decoding, export, torchvision's networks, answers and questions."

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnbench.core import UsageError
from cnnbench.data import Batch, DataConfig, Dataset, ShapesConfig
from cnnbench.detection import (
    DETECTORS, Detection, Raw, aligned_loss, boxes_apart, decode, detect, doubts, draw_boxes, in_crowds, kept_boxes, list_objects, match_objects,
    pair_up, quality_focal, target_list,
)
from cnnbench.explain import ExplainConfig, explain
from cnnbench.models import ModelConfig
from cnnbench.scenes import load_scene_boxes
from cnnbench.targets import Boxes, make_boxes
from cnnbench.tasks import DetectionConfig, Place, TaskConfig
from cnnbench.train import TrainConfig, optimizer_step, start_run

SHAPE, MEAN, STD = (3, 64, 64), (120.0, 115.0, 105.0), (60.0, 61.0, 62.0)
SMALL = ModelConfig(name="centre", width=0.25)
TORCHVISION = [name for name in DETECTORS if name != "centre"]


@pytest.fixture(scope="module")
def scenes() -> Dataset: return load_scene_boxes(DataConfig(name="shapes", size=64, shapes=ShapesConfig(count=16)))


@pytest.fixture(scope="module")
def task(scenes) -> Detection: return Detection(TaskConfig(name="detection"), scenes.classes)


def batch_of(scenes: Dataset, rows) -> Batch:
    rows = np.asarray(rows)
    images = torch.from_numpy(scenes.images.read(rows)).permute(0, 3, 1, 2).contiguous()
    return Batch(images, scenes.targets.take(rows).tensors(), torch.from_numpy(rows))


def without_boxes(batch: Batch) -> Batch: return replace(batch, targets=batch.targets.keep(batch.targets.owner < 0))


@pytest.fixture(scope="module")
def learned(scenes, task):
    "A small detector that knows six pictures by heart, and their batch."
    least = [np.ptp(scenes.targets.take(np.array([row])).boxes.reshape(-1, 2, 2), 1).min() for row in range(16)]
    batch, model = batch_of(scenes, np.sort(np.argsort(least)[-6:])), task.build(SMALL, SHAPE, MEAN, STD)  # without the tiniest objects
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for maps so small, a second one costs more than it brings
    run = start_run(TrainConfig(lr=0.01, epochs=120, warmup=0.1, clip=30, weight_decay=0), model, task, 1)
    model.train()
    for _ in range(120): optimizer_step(run, [batch])
    return model, batch


def test_it_learns_six_pictures_by_heart(learned, task):
    model, batch = learned
    figures = task.validate(model, [batch])
    assert figures["val_map"] > 0.9 and figures["val_map_50"] > 0.98 and figures["val_loss"] < 1
    assert model.training  # left in its mode


# Assignment and losses


def raw_of(logits, boxes, points): return Raw(torch.tensor(logits), torch.tensor(boxes), torch.tensor(points))


def test_a_position_that_two_objects_want_goes_to_the_better_overlap():
    raw = raw_of([[[0.0], [0.0]]], [[[0.0, 0, 10, 10], [0, 0, 10, 6]]], [[4.0, 3], [6, 3]])
    objects = list_objects(make_boxes([[[0, 0, 10, 10], [0, 0, 10, 6]]], [[0, 0]]).tensors())
    matches = match_objects(raw, objects)
    assert (matches.position.tolist(), matches.object.tolist()) == ([0, 1], [0, 1])
    torch.testing.assert_close(matches.quality, torch.ones(2))


def test_only_the_best_positions_inside_an_object_answer_for_it():
    points = torch.stack([torch.arange(20.0) + 0.5, torch.full((20,), 5.0)], 1)
    raw = Raw(torch.linspace(-3, 3, 20)[None, :, None], torch.tensor([0.0, 0, 16, 10]).expand(1, 20, 4), points)
    matches = match_objects(raw, list_objects(make_boxes([[[0, 0, 16, 10]]], [[0]]).tensors()))
    assert matches.position.tolist() == list(range(6, 16))  # ten, and none of the four beyond its edge
    torch.testing.assert_close(matches.quality, raw.logits[0, 6:16, 0].sigmoid() / raw.logits[0, 15, 0].sigmoid())


def test_loss_by_hand():
    "One position inside the object, with an IoU of 0.5 and a GIoU of 0.5; one outside."
    raw = raw_of([[[1.0, -2.0], [-3.0, 0.5]]], [[[0.0, 0, 10, 5], [20, 0, 30, 10]]], [[5.0, 5], [25, 5]])
    targets = make_boxes([[[0, 0, 10, 10]]], [[0]]).tensors()
    scores, quality = raw.logits.sigmoid().double(), 0.5
    wanted = torch.tensor([[[quality, 0], [0, 0]]], dtype=torch.float64)
    entropy = -(wanted * scores.log() + (1 - wanted) * (1 - scores).log())
    expected = (entropy * (scores - wanted) ** 2).sum() + 2 * quality * (1 - 0.5)
    assert float(aligned_loss(raw, targets)) == pytest.approx(float(expected), rel=1e-5)
    half = replace(targets, share=torch.tensor([0.5]))  # half of a blended image
    outside = quality_focal(raw.logits[0, 1], torch.zeros(2)).sum()
    assert float(aligned_loss(raw, half)) == pytest.approx(float((expected - outside) / 2 + outside), rel=1e-5)


def test_an_object_far_larger_than_the_boxes_at_first_is_learned():
    image = torch.zeros(1, 3, 192, 192, dtype=torch.uint8)
    image[:, :, 11:181, 11:181] = 255
    batch = Batch(image, make_boxes([[[11, 11, 181, 181]]], [[0]]).tensors(), torch.arange(1))
    task, config = Detection(TaskConfig(name="detection"), ["square"]), TrainConfig(lr=0.005, clip=30, weight_decay=0, schedule="constant", warmup=0)
    run = start_run(config, task.build(SMALL, (3, 192, 192), MEAN, STD), task, 30)
    def fit() -> float:
        with torch.no_grad(): return float(match_objects(run.model.network(run.model.normalize(image)), list_objects(batch.targets)).quality.max())
    first = fit()
    for _ in range(30): optimizer_step(run, [batch])
    assert first < 0.01 and fit() > 0.6


def test_what_is_found_does_not_depend_on_the_place_in_the_batch():
    draw = torch.Generator().manual_seed(0)
    corner, labels = torch.rand(600, 2, generator=draw) * 600, torch.randint(0, 3, (600,), generator=draw)
    boxes, scores = torch.cat([corner, corner + 4 + 16 * torch.rand(600, 2, generator=draw)], 1), torch.rand(600, generator=draw)
    places = (0, 0), (15, 0), (15, 362)  # of the image among 16 of 640 px, and of the classes among 365
    found = [kept_boxes(boxes, scores, torch.full((600,), image), labels + first, 0.1, 640.0) for image, first in places]
    assert all(torch.equal(found[0], held) for held in found[1:]) and len(found[0]) < 600


def test_torchvision_is_shown_what_shows_by_half_at_least():
    told = make_boxes([[[0, 0, 8, 8], [2, 2, 9, 9]]], [[0, 1]]).tensors()
    told = replace(told, share=torch.tensor([0.7, 0.3]))
    assert target_list(told, background=True)[0]["labels"].tolist() == [1]


def test_nothing_is_learned_in_a_crowd():
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]]])
    raw = Raw(logits, boxes, torch.tensor([[5.0, 5], [15, 5], [25, 5]]))
    targets = make_boxes([[[8, 0, 32, 10], [20, 0, 30, 10]]], [[0, 1]], [[True, False]]).tensors()
    assert in_crowds(raw.points, list_objects(targets)).tolist() == [[False, True, True]]
    aligned_loss(raw, targets).backward()
    told = logits.grad.abs().sum(2)[0] > 0
    assert told.tolist() == [True, False, True]  # outside; in the crowd; an object within it


def test_empty_boxes_count_for_nothing():
    raw = raw_of([[[0.0]]], [[[0.0, 0, 10, 10]]], [[5.0, 5]])
    flat = make_boxes([[[5, 0, 5, 10]]], [[0]]).tensors()
    assert float(aligned_loss(raw, flat)) == pytest.approx(float(aligned_loss(raw, make_boxes([[]], [[]]).tensors())))


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4]])
def test_losses_are_sums_over_images(scenes, task, rows):
    model = task.build(SMALL, SHAPE, MEAN, STD).eval()
    whole, parts = batch_of(scenes, rows), [batch_of(scenes, [row]) for row in rows]
    parts.append(without_boxes(batch_of(scenes, [5])))
    both = task.loss(model, whole, "model", 0) + task.loss(model, parts[-1], "model", 0)
    each = sum(task.loss(model, part, "model", 0) for part in parts)
    torch.testing.assert_close(both, each, rtol=1e-5, atol=1e-5)
    assert sum(task.weight(part, "model") for part in parts) == len(rows) + 1


def test_accumulation_changes_nothing_without_batch_norm(scenes, task):
    "Eight micro-batches, one of them without an object, against one batch of eight; batch norm in inference mode."
    ends = []
    whole = batch_of(scenes, range(8))
    bare = whole.targets.keep(whole.targets.owner != 3)
    each = [batch_of(scenes, [row]) for row in range(8)]
    each[3] = without_boxes(each[3])
    for windows in ([replace(whole, targets=bare)], each):
        model = task.build(SMALL, SHAPE, MEAN, STD).eval()
        run = start_run(TrainConfig(optimizer="sgd", lr=0.01, accumulate=len(windows), weight_decay=0), model, task, len(windows))
        run.objective.eval()
        for _ in range(2): optimizer_step(run, windows)
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
    assert not torch.equal(ends[0], nn.utils.parameters_to_vector(task.build(SMALL, SHAPE, MEAN, STD).parameters()))


def test_weights_are_a_function_of_the_seed(task):
    first, again, other = (nn.utils.parameters_to_vector(task.build(SMALL, SHAPE, MEAN, STD, seed).parameters()) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_parameter_has_a_gradient_even_without_objects(scenes, task):
    "Else data-parallel training would wait for it."
    model = task.build(SMALL, SHAPE, MEAN, STD).train()
    task.loss(model, without_boxes(batch_of(scenes, [0, 1])), "model", 0).backward()
    assert [name for name, held in model.named_parameters() if held.grad is None] == []


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 50, 70), (3, 24, 24)])
def test_any_size_and_grey_images(task, shape):
    model = task.build(SMALL, shape, (100,) * shape[0], (50,) * shape[0]).eval()
    raw = model(torch.zeros(2, *shape, dtype=torch.uint8))
    down, across = -(-shape[1] // 4), -(-shape[2] // 4)
    assert raw.boxes.shape == (2, down * across, 4) and raw.points[-1].tolist() == [4 * across - 2, 4 * down - 2]


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_other_backbones(scenes, task, backbone):
    model = task.build(ModelConfig(name="centre", backbone=backbone), SHAPE, MEAN, STD).train()
    task.loss(model, batch_of(scenes, [0, 1]), "model", 0).backward()
    assert all(held.grad is not None for held in model.parameters())
    assert any(name.startswith("network.backbone.") for name in model.state_dict())


# Decoding


def test_boxes_of_other_images_and_classes_do_not_suppress_each_other():
    box = [[0.0, 0, 10, 10]] * 2
    raw = raw_of([[[2.0, 1.0], [1.5, -9]], [[1.8, -9.0], [-9, -9]]], [box, box], [[0.0, 0], [0, 0]])
    boxes, scores, labels, owner = decode(raw, (16, 16), DetectionConfig())
    assert (labels.tolist(), owner.tolist()) == ([0, 1, 0], [0, 0, 1])
    torch.testing.assert_close(scores.logit(), torch.tensor([2.0, 1.0, 1.8]))


def test_limits_hold_image_by_image():
    torch.manual_seed(0)
    corners = torch.rand(3, 50, 2) * 200
    raw = Raw(torch.randn(3, 50, 4), torch.cat([corners, corners + 10], 2), corners)
    boxes, scores, labels, owner = decode(raw, (128, 128), DetectionConfig(score=0.3, most=7, overlap=0.4))
    assert torch.bincount(owner).tolist() == [7, 7, 7] and (scores > 0.3).all() and boxes.min() >= 0 and boxes.max() <= 128
    assert owner.tolist() == sorted(owner.tolist())
    for image in range(3): assert scores[owner == image].tolist() == sorted(scores[owner == image].tolist(), reverse=True)


def test_an_exported_detector_finds_the_same(learned, scenes, tmp_path):
    import onnxruntime

    model, batch = learned
    task = Detection(TaskConfig(name="detection", detection=DetectionConfig(score=0.5)), scenes.classes)
    module = task.deployed(model).eval()
    program = torch.onnx.export(module, (batch.images[:2],), dynamo=True, opset_version=18, verbose=False, input_names=list(task.input_names),
                                output_names=list(task.output_names), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.save(str(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        images = batch.images[torch.arange(count) % 6]
        made = session.run(list(task.output_names), {"images": images.numpy()})
        with torch.no_grad(): wanted = [held.numpy() for held in module(*task.inputs(images))]
        apart = task.apart(made, wanted)
        assert apart.equal == 1 and apart.largest < 1e-3 and len(wanted[1]) >= count
        assert [held.dtype for held in made] == [np.float32, np.float32, np.int64, np.int64]
    plain = [torch.full((2, *SHAPE), level, dtype=torch.uint8) for level in range(0, 256, 15)]
    with torch.no_grad(): blank = next(images for images in plain if not len(module(images)[1]))
    assert [held.shape for held in session.run(None, {"images": blank.numpy()})] == [(0, 4), (0,), (0,), (0,)]


def test_differences_of_detections():
    boxes, scores = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]], np.float32), np.array([0.9, 0.8, 0.051], np.float32)
    first = [boxes, scores, np.zeros(3, np.int64), np.array([0, 0, 1])]
    order = [2, 1, 0]
    assert boxes_apart([held[order] for held in first], first, 0.05).largest == 0
    other_class = [boxes, scores, np.array([0, 1, 0]), first[3]]
    apart = boxes_apart(other_class, first, 0.05)
    assert apart.largest == pytest.approx(0.75) and apart.equal == pytest.approx(2 / 3)
    assert boxes_apart([held[:2] for held in first], first, 0.05).largest == pytest.approx(0.001, abs=1e-6)
    assert boxes_apart([boxes, scores + np.float32(0.01), *first[2:]], first, 0.05).equal == 0


# torchvision's detectors


@pytest.fixture(scope="module")
def foreign(scenes):
    "Each of torchvision's detectors, built once."
    built: dict[str, Any] = {}

    def give(name: str) -> tuple[Detection, Any]:
        task = Detection(TaskConfig(name="detection", detection=DetectionConfig(score=0.001, most=20)), scenes.classes)
        if name not in built:
            model: Any = task.build(ModelConfig(name=name), SHAPE, MEAN, STD).train()
            built[name] = model
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
            for norm in norms: norm.momentum = 1.0  # statistics of these images: with fresh ones all positions look much the same
            with torch.no_grad(): model.network.detector.backbone(model.normalize(batch_of(scenes, range(8)).images))
            for norm in norms: norm.momentum = 0.1
        return task, built[name]

    return give


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_detectors_learn_and_detect(foreign, scenes, name):
    task, model = foreign(name)
    batch = batch_of(scenes, [0, 1])
    model.train()
    loss = task.loss(model, batch, "model", 0)
    loss.backward()
    assert loss.item() > 0 and all(held.grad is not None for held in model.parameters() if held.requires_grad)
    model.zero_grad()
    assert torch.isfinite(task.loss(model, without_boxes(batch), "model", 0))
    figures = task.validate(model, [batch])
    assert np.isfinite(list(figures.values())).all() and model.training and model.network.detector.training
    with torch.no_grad(): boxes, scores, labels, owner = task.deployed(model).eval()(batch.images)
    assert len(scores) and boxes.max() <= 64 and boxes.min() >= 0 and labels.max() < 5 and (scores > 0.001).all() and owner.max() <= 1
    model.train()


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_raw_scores_are_torchvision_s_own(foreign, scenes, name):
    "The surest box of each class that torchvision's own decoding gives is among ours, with its score."
    task, model = foreign(name)
    model.eval()
    detector, images = model.network.detector, model.normalize(batch_of(scenes, [0, 2]).images)
    detector.score_thresh, detector.nms_thresh, detector.detections_per_img, detector.topk_candidates = 0.001, 0.6, 200, 200
    with torch.no_grad(): own, (boxes, scores, labels, owner) = detector(list(images)), detect(model.network, images, task.settings)
    for image, found in enumerate(own):
        real = (found["boxes"][:, 2:] - found["boxes"][:, :2] > 0.01).all(1)  # FCOS gives boxes without an area, too: ours leaves them out
        torch.testing.assert_close(scores[owner == image][:10], found["scores"][real][:10], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(boxes[owner == image][0], found["boxes"][real][0], rtol=1e-3, atol=1e-2)
        assert int(labels[owner == image][0]) == int(found["labels"][real][0]) - int(model.network.background)
    model.train()


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_two_stages_find_what_torchvision_finds(foreign, scenes, name):
    task, model = foreign(name)
    model.eval()
    detector, images = model.network.detector, model.normalize(batch_of(scenes, [0, 2]).images)
    random = torch.Generator().manual_seed(0)
    for layer in (detector.rpn.head.cls_logits, detector.roi_heads.box_predictor.cls_score):  # fresh ones give all regions much the same score
        layer.weight.data = torch.randn(layer.weight.shape, generator=random) / layer.weight[0].numel() ** 0.5
    detector.roi_heads.score_thresh, detector.roi_heads.nms_thresh, detector.roi_heads.detections_per_img = 0.001, 0.6, 20
    with torch.no_grad(): own, (boxes, scores, _, owner) = detector(list(images)), detect(model.network, images, task.settings)
    for image, found in enumerate(own):
        torch.testing.assert_close(scores[owner == image][:10], found["scores"][:10], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(boxes[owner == image][0], found["boxes"][0], rtol=1e-3, atol=1e-2)
    model.train()


def test_torchvision_detectors_take_grey_images(scenes):
    task = Detection(TaskConfig(name="detection"), scenes.classes)
    model = task.build(ModelConfig(name="ssdlite320_mobilenet_v3_large"), (1, 64, 64), (100,), (50,)).train()
    batch = batch_of(scenes, [0, 1])
    assert torch.isfinite(task.loss(model, replace(batch, images=batch.images[:, :1]), "model", 0))


@pytest.mark.parametrize(("config", "shape", "words"), [
    (ModelConfig(name="fcos_resnet50_fpn", weights="imagenet"), SHAPE, "weights is for centre"),
    (ModelConfig(name="fcos_resnet50_fpn"), (4, 64, 64), "these have 4 channels"),
    (ModelConfig(name="resnet18"), SHAPE, "no detector 'resnet18'"),
    (SMALL, (8, 3, 64, 64), "takes images"),
])
def test_what_does_not_fit_is_refused(task, config, shape, words):
    with pytest.raises(UsageError, match=words): task.build(config, shape, MEAN[: shape[0]], STD[: shape[0]])


def test_a_loss_is_refused_where_the_network_has_its_own(scenes):
    task = Detection(TaskConfig(name="detection", loss="aligned"), scenes.classes)
    with pytest.raises(UsageError, match="losses of its own"): task.build(ModelConfig(name="ssdlite320_mobilenet_v3_large"), SHAPE, MEAN, STD)
    with pytest.raises(UsageError, match="no loss 'focal'"): Detection(TaskConfig(name="detection", loss="focal"), scenes.classes)


# What is shown and said


def test_answers_lie_in_the_original(task):
    boxes = np.array([[0, 0, 10, 10], [40, 40, 64, 64], [5, 60, 9, 64], [5, 5, 6, 6]], np.float32)
    outputs = [boxes, np.array([0.9, 0.7, 0.65, 0.6]), np.array([0, 4, 4, 1]), np.array([0, 0, 0, 2])]
    double = Place(np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]), (100, 120))
    same = Place(np.eye(3), (64, 64))
    answers = task.answers(outputs, [double, same, same])
    assert answers[0].boxes == ((0.0, 0.0, 20.0, 20.0), (80.0, 80.0, 120.0, 100.0)) and answers[0].words() == "circle 90%, ring 70%"
    assert answers[1].words() == "nothing" and answers[1].records() == []
    assert answers[2].records() == [{"label": "square", "confidence": 0.6, "left": 5.0, "top": 5.0, "right": 6.0, "bottom": 6.0}]


def test_pictures_are_enlarged_and_show_the_boxes(scenes, task):
    target = scenes.targets.take(np.array([2])).of(0)
    image = scenes.images.read(np.array([2]))[0]
    picture = task.draw(image, target)
    assert picture.shape == (384, 384, 3) and picture.dtype == np.uint8
    assert (task.draw(image, target.tensors() if isinstance(target, Boxes) else target) == picture).all()
    plain = draw_boxes(image, np.zeros((0, 4), np.float32), [], [])
    assert (plain == np.repeat(np.repeat(image, 6, 0), 6, 1)).all() and (picture != plain).any()
    assert draw_boxes(image[..., :1], target.boxes, ["a<b>\n"] * len(target.labels), target.labels).shape == (384, 384, 3)
    assert task.caption(make_boxes([[[0, 0, 1, 1]] * 3], [[3, 0, 3]]).of(0)) == "circle, 2 star" and task.caption(make_boxes([[]], [[]])) == "nothing"


def test_pairs_of_boxes_and_objects(scenes, task, learned):
    model, batch = learned
    found = task.predict(model, [batch, without_boxes(batch)])
    assert len(found) == 12 and found.owner.max() <= 11 and len(found.true_labels) == len(batch.targets.labels)
    pairs = pair_up(found)
    assert (pairs[found.owner >= 6] == -1).all()  # nothing is there
    right = pairs[pairs >= 0]
    assert len(np.unique(right)) == len(right) and (found.true_labels[right] == found.labels[pairs >= 0]).all()
    with pytest.raises(UsageError, match="nothing to predict"): task.predict(model, [])


def test_questions_ask_first_about_errors(learned, scenes, task):
    model, batch = learned
    seen = task.predict(model, [batch, batch_of(scenes, [8, 9, 10])])
    told = doubts(seen, task.classes, 6)
    assert len(told) == 6 and told[0].words.startswith("wrong") and any(doubt.words.startswith("missed") for doubt in told)
    (question,) = task.questions(model, seen, scenes, 6)
    scores = question.model(question.images)
    assert scores.shape == (6, 256 * 5) and len(question.rows) == len(question.captions) == len(question.answers) == 6
    assert ((question.answers % 5) == [doubt.label for doubt in told]).all()
    assert question.model.get_submodule(question.layer) is model.network.neck
    for method in ("saliency", "grad_cam"):
        found = explain(question.model, question.images, torch.from_numpy(question.answers), method, ExplainConfig(layer=question.layer))
        assert found.maps.shape == (6, 64, 64) and np.isfinite(found.maps).all() and (found.maps != 0).any()
    nothing = replace(seen, **{name: held[:0] for name, held in vars(seen).items() if name != "rows"})
    assert task.questions(model, nothing, scenes, 6) == []


def test_questions_to_two_stages_look_at_the_box_again(foreign, scenes):
    task, model = foreign("fasterrcnn_mobilenet_v3_large_320_fpn")
    model.eval()
    batch = batch_of(scenes, [0, 1])
    questions = task.questions(model, task.predict(model, [batch]), scenes, 2)
    assert len(questions) == 2
    scores = questions[0].model(questions[0].images.float().requires_grad_())
    assert scores.shape == (1, 5) and scores.requires_grad
    assert isinstance(questions[0].model.get_submodule(questions[0].layer), nn.Module)


class Own(nn.Module):
    "A detector of one's own: a box around each quarter of the image."

    explained = "conv"

    def __init__(self, shape, classes):
        super().__init__()
        self.conv, self.classes, self.side = nn.Conv2d(shape[0], classes, 3, padding=1), classes, shape[1] // 2

    def forward(self, images):
        logits = nn.functional.adaptive_avg_pool2d(self.conv(images), 2).flatten(2).transpose(1, 2)
        corners = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]) * self.side
        return Raw(logits, torch.cat([corners, corners + self.side], 1).expand(len(images), -1, -1), corners + self.side / 2)


def own_detector(shape, classes, config): return Own(shape, classes)


def test_a_detector_of_one_s_own(scenes, task):
    model = task.build(ModelConfig(name=f"{__name__}:own_detector"), SHAPE, MEAN, STD)
    batch = batch_of(scenes, [0, 1, 2])
    task.loss(model, batch, "model", 0).backward()
    figures = task.validate(model, [batch])
    assert 0 <= figures["val_map"] <= 1 and model.network.conv.weight.grad is not None
    assert len(task.questions(model, task.predict(model, [batch]), scenes, 3)[0].rows) == 3

