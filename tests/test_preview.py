"""The augmentation preview: its draws are training's, and the panel, driven headless, shows what its code makes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ipywidgets import Button

from cnnbench.augment import NOT_LATE, Augmenter
from cnnbench.control import prepare_again
from cnnbench.core import UsageError
from cnnbench.data import ArrayImages, Dataset, LazyImages
from cnnbench.experiment import experiment_for, prepare
from cnnbench.plot import to_jpeg
from cnnbench.preview import RowAugmenter, augment_panel, changed_share, draw_variations, finished_batch, first_item, preset_name, remembering
from cnnbench.preview import preset_config, task_defaults, unused_settings, variations_picture
from cnnbench.recipes import NONE, PRESETS, AugmentConfig
from cnnbench.targets import Boxes
from cnnbench.ui import Desk

SMALL = {
    "classification": {}, "multilabel": {"data.shapes.count": 20, "data.size": 32}, "detection": {"data.shapes.count": 20, "data.size": 64},
    "segmentation": {"data.shapes.count": 20, "data.size": 64}, "generation": {}, "video": {"data.shapes.count": 24, "data.size": 24},
}


def config_of(setup) -> AugmentConfig:
    "Everything at once that the task allows."
    if setup.task.late: return preset_config("strong", late=True)
    return replace(PRESETS["strong"], mosaic=0.4, crop=3)


def same(one, other) -> bool:
    if isinstance(one, Boxes): return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "labels", "share"))
    return bool(np.array_equal(one, other))


@pytest.mark.parametrize("task", SMALL)
def test_draws_are_what_training_sees_and_can_be_drawn(task):
    setup = prepare(experiment_for(task, SMALL[task]))
    config, rows = config_of(setup), setup.split.train
    row = int(rows[3])
    shown = draw_variations(RowAugmenter(config, setup.dataset, setup.experiment.seed, rows, setup.task.late), row, count=6)
    assert np.array_equal(shown.original, setup.dataset.images.read(np.array([row]))[0])
    augmenter = setup.augmenter(config)
    for epoch in range(6):
        batch = finished_batch(augmenter, rows[2:5], epoch)
        assert np.array_equal(shown.images[epoch], batch.images[1].movedim(-3, -1))
        alone = batch.targets[1:2] if isinstance(batch.targets, torch.Tensor) else batch.targets.each(np.asarray).pick(np.array([1])).tensors()
        assert same(shown.targets[epoch], first_item(alone))
    for frame in (None, 2):
        picture = variations_picture(shown, setup.task, frame, width=700)
        assert picture.width <= 700 and picture.height > 100


def test_settings_that_do_nothing_leave_every_draw_unchanged():
    setup = prepare(experiment_for("segmentation", SMALL["segmentation"]))
    shown = draw_variations(setup.augmenter(NONE), 4, 3)
    assert shown.notes == ("unchanged",) * 3
    assert all(np.array_equal(image, shown.original) for image in shown.images)
    assert all(np.array_equal(target, shown.target) for target in shown.targets)
    assert draw_variations(setup.augmenter(replace(NONE, rotate=30)), 4, 3).notes == ("",) * 3


@pytest.mark.parametrize("config", [
    NONE, replace(NONE, flip=0.3), replace(NONE, erase=0.6), replace(NONE, mixup=1.0, mix_chance=0.4), replace(NONE, blur=0.3), PRESETS["light"],
])
def test_the_share_of_changed_images_is_that_of_a_real_epoch(config):
    pixels = np.random.default_rng(0).integers(0, 256, (500, 16, 16, 3), np.uint8)
    dataset = Dataset("noise", ArrayImages(pixels), np.zeros(500, np.int64), ("one", "two"))
    batch = Augmenter(config, dataset, 0, rows=np.arange(500))(np.arange(500), 0)
    real = (batch.images.movedim(1, -1).numpy() != pixels).any((1, 2, 3)).mean()
    assert changed_share(config, dataset.shape, 0, 500) == pytest.approx(real, abs=0.02)


def test_images_are_read_once_while_a_slider_moves():
    read: list[int] = []
    def image_at(row: int) -> np.ndarray:
        read.append(row)
        return np.full((12, 12, 3), row, np.uint8)
    dataset = Dataset("slow", LazyImages((30, 12, 12, 3), image_at), np.arange(30) % 2, ("a", "b"))
    kept = remembering(dataset)
    for rotate in (1, 2, 3): draw_variations(RowAugmenter(replace(NONE, rotate=rotate, mixup=0.5), kept, 0, np.arange(30)), 7, 8)
    assert len(read) == len(set(read)) and 7 in read


def test_noise_is_taken_over_only_where_it_is_the_same():
    setup = prepare(experiment_for("classification"))
    first = RowAugmenter(replace(NONE, noise=10), setup.dataset, 0)
    assert RowAugmenter(replace(NONE, noise=10, rotate=5), setup.dataset, 0, like=first).strips is first.strips
    for noise, seed in ((11, 0), (10, 1)):
        other = RowAugmenter(replace(NONE, noise=noise), setup.dataset, seed, like=first)
        assert other.strips is not first.strips and not torch.equal(other.strips, first.strips)
    fresh = Augmenter(replace(NONE, noise=11), setup.dataset, 0)
    assert torch.equal(fresh.strips, RowAugmenter(replace(NONE, noise=11), setup.dataset, 0, like=first).strips)


def opened(task: str, **settings):
    desk = Desk(experiment_for(task, SMALL[task] | settings), prepare_again)
    panel = augment_panel(desk)
    assert desk.wait(120) and panel.wait(120)
    return desk, panel


@pytest.mark.parametrize("task", SMALL)
def test_the_code_makes_what_the_panel_shows(task):
    desk, panel = opened(task)
    panel.of["rotate"].value, panel.of["brightness"].value = 33, 0.2
    panel.of["row"].value, panel.of["seed"].value, panel.of["draws"].value = 5, 9, 4
    assert desk.wait(60) and panel.wait(60) and panel.of["words"].value == ""
    scope: dict = {}
    exec(panel.code(), scope)
    assert (len(scope["result"]), scope["result"].row) == (4, desk.setup.split.train[5])
    assert to_jpeg(scope["picture"]) == panel.of["picture"].data
    assert "experiment_for" in panel.code() and f"'{task}'" in panel.code()


def test_switches_presets_and_reset():
    desk, panel = opened("classification")
    def now() -> AugmentConfig: return desk.store.config.augment
    assert panel.of["presets"].value == "light" and panel.of["rotate on"].value and not panel.of["flip on"].value
    panel.of["rotate"].value = 25
    assert panel.of["presets"].value is None
    panel.of["rotate on"].value = False
    assert now().rotate == 0 and panel.of["rotate"].value == 0
    panel.of["rotate on"].value = True
    assert now().rotate == 25 and panel.of["rotate"].value == 25  # back to what it was
    panel.of["flip on"].value = panel.of["blur on"].value = panel.of["mosaic on"].value = True
    assert (now().flip, now().blur, now().mosaic) == (PRESETS["standard"].flip, PRESETS["strong"].blur, 0.5)
    for name in PRESETS:
        panel.of["presets"].value = name
        assert now() == PRESETS[name] and preset_name(now()) == name
    panel.of["reset"].click()
    assert now() == AugmentConfig() and panel.of["presets"].value == "light"
    assert panel.of["saturation"].disabled and panel.of["saturation on"].disabled and not panel.of["contrast"].disabled


def test_next_and_previous_go_round():
    desk, panel = opened("classification")
    last = len(desk.setup.split.train) - 1
    for button, wanted in (("previous", last), ("next", 0), ("next", 1)):
        assert isinstance(panel.of[button], Button)
        panel.of[button].click()
        assert panel.of["row"].value == wanted
    assert panel.wait(60)
    first = panel.of["picture"].data
    panel.of["next"].click()
    assert panel.wait(60) and panel.of["picture"].data != first


def test_generation_takes_geometry_and_colour_only_and_says_so():
    desk, panel = opened("generation")
    assert panel.of["blur"].disabled and panel.of["mixup on"].disabled and not panel.of["rotate"].disabled
    assert desk.store.config.augment == task_defaults(desk.setup.task)
    panel.of["presets"].value = "strong"
    assert desk.wait(60) and panel.wait(60)
    assert panel.of["words"].value == "" and panel.of["presets"].value == "strong"
    assert not any(getattr(desk.store.config.augment, name) for name in NOT_LATE)
    desk.store.set("augment.blur", 1.0)  # from elsewhere
    assert panel.wait(60) and "geometry and colour only" in panel.of["words"].value and panel.of["picture"].data == b""
    assert not panel.of["blur on"].disabled  # so that it can be switched off
    panel.of["blur on"].value = False
    assert panel.wait(60) and panel.of["words"].value == "" and panel.of["picture"].data != b""


def test_a_transform_that_is_not_there_is_said_in_a_sentence():
    desk, panel = opened("classification")
    panel.of["before"].value = "torchvision.transforms.v2:NoSuchThing"
    assert desk.wait(60) and panel.wait(60) and "NoSuchThing" in panel.of["words"].value and panel.of["picture"].data == b""
    panel.of["before"].value = "torchvision.transforms.v2:RandomHorizontalFlip"
    assert panel.wait(60) and panel.of["words"].value == "" and "not counted" in panel.of["facts"].value


def test_the_panel_follows_the_task_and_says_what_is_wrong_with_the_data():
    desk, panel = opened("video")
    assert panel.of["frame"].max == 7 and panel.of["play"].max == 7
    grid = panel.of["picture"].data
    panel.of["frame"].value = 0
    assert panel.wait(60) and panel.of["picture"].data != grid
    panel.of["strips"].value = True
    assert panel.wait(60) and "frame=" not in panel.code()
    desk.store.set("data.name", "no/such/folder")
    assert desk.wait(60) and panel.wait(60) and "no/such/folder" in panel.of["words"].value
    desk.store.config = experiment_for("detection", SMALL["detection"])
    assert desk.wait(120) and panel.wait(60) and panel.of["words"].value == ""
    assert panel.of["frame"].max == 0 and panel.of["row"].max == len(desk.setup.split.train) - 1


def test_without_data_the_panel_says_so():
    desk = Desk(experiment_for("classification", {"data.name": "no/such/folder"}), prepare_again)
    panel = augment_panel(desk)
    assert desk.wait(60) and panel.wait(60)
    assert "no/such/folder" in panel.of["words"].value and panel.of["reset"].disabled and panel.of["picture"].data == b""
    assert panel.code().startswith("#")


def test_what_cannot_be_done_is_refused():
    setup = prepare(experiment_for("classification"))
    with pytest.raises(UsageError, match="There is no row -1"): draw_variations(setup.augmenter(NONE), -1)
    with pytest.raises(UsageError, match="one at least"): draw_variations(setup.augmenter(NONE), 1, 0)
    assert "hue" in unused_settings(NONE, setup.dataset) and "flip" not in unused_settings(NONE, setup.dataset, late=True)
