"The data panel and what it stands on: counts, sizes, searches, pictures."

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from cnnbench import browse
from cnnbench.browse import (
    LISTED, MOST, NOTHING, PAGES, browse_picture, class_balance_figure, class_counts, class_notes, data_panel, image_sizes,
    index_classes, large_picture, matching_rows, measured, measures_of, original_sizes, size_words,
)
from cnnbench.control import prepare_again
from cnnbench.core import UsageError
from cnnbench.data import ArrayImages, Dataset, LazyImages, Split, pixel_statistics, split_dataset
from cnnbench.experiment import Experiment, experiment_for, prepare
from cnnbench.images import plan_fit
from cnnbench.plot import grid_place, image_grid, to_jpeg
from cnnbench.targets import BoxColumn, MaskColumn, make_boxes
from cnnbench.tasks import Classification, TaskConfig, make_task
from cnnbench.ui import Desk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

KINDS = ("classification", "multilabel", "detection", "segmentation", "generation", "video")


def experiment(kind, **more):
    drawn = {} if kind == "generation" else {"data.name": "shapes"}
    return experiment_for(kind, {**drawn, "data.shapes.count": 40, **more})


def numbered(classes=3, count=30, targets=None, names=None, **more):
    "A small data set in memory."
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    targets = np.arange(count) % classes if targets is None else targets
    return Dataset("numbered", ArrayImages(images), targets, names or tuple(f"c{number}" for number in range(classes)), **more)


def held(dataset, split=None, task=None):
    "What a desk needs of a setup."
    split = split or split_dataset(dataset, 0.2, 0.2)
    task = task or make_task(TaskConfig(), dataset.classes)
    statistics = pixel_statistics(dataset, split.train)
    return SimpleNamespace(experiment=Experiment(), dataset=dataset, split=split, statistics=statistics, task=task)


def shown(setup):
    "The panel of a setup that is there already."
    panel = data_panel(Desk(Experiment(), lambda config, before: setup))
    assert panel.settle()
    return panel


def run(text):
    there = {}
    exec(text, there)
    return there["result"]


# ---- counts

@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_each_row_alone(kind):
    setup = prepare(experiment(kind))
    counts, column = class_counts(setup.dataset, setup.split), setup.dataset.column
    for place, (name, rows) in enumerate(vars(setup.split).items()):
        each = np.stack([column.counts(np.array([row])) for row in rows])
        assert counts.parts[place] == name and counts.sizes[place] == len(rows)
        assert counts.amounts[place].tolist() == each.sum(0).tolist()
        assert counts.items[place].tolist() == (each > 0).sum(0).tolist()
        for number, label in enumerate(setup.dataset.classes):
            assert matching_rows(setup.dataset, setup.split, name, label).tolist() == rows[each[:, number] > 0].tolist()
        assert matching_rows(setup.dataset, setup.split, name, NOTHING).tolist() == rows[~each.any(1)].tolist()
    for measure in measures_of(counts): assert class_balance_figure(counts, measure).data[0].y.tolist() == measured(counts, measure)[0].tolist()


class OwnColumn:
    "Targets of a kind that nobody knows."

    def __init__(self, table): self.table = table
    def __len__(self): return len(self.table)
    def counts(self, rows): return self.table[rows].sum(0)


def test_a_column_of_ones_own_is_counted_by_its_method():
    table = np.random.default_rng(0).integers(0, 3, (150, 4))
    index = index_classes(numbered(4, 150, OwnColumn(table)))
    assert np.bincount(index.labels, index.amounts).astype(int).tolist() == table.sum(0).tolist()
    assert index.rows.tolist() == np.nonzero(table)[0].tolist() and index.unit == "images"


def test_counting_ends_where_what_hears_of_it_says_so():
    read = []
    def masks(rows):
        read.extend(rows.tolist())
        return np.zeros((len(rows), 8, 8), np.uint8)
    def enough(share): raise InterruptedError(share)
    with pytest.raises(InterruptedError): index_classes(numbered(2, 1000, MaskColumn(masks, 1000, 2)), enough)
    assert 0 < len(read) <= browse.CHUNK


def test_ignored_pixels_are_no_class_and_empty_parts_no_fault():
    ids = np.full((6, 8, 8), 255, np.uint8)
    ids[:, :2], ids[0] = 1, 255
    dataset = numbered(3, 6, MaskColumn(lambda rows: ids[rows], 6, 3))
    split = Split(np.arange(6), np.arange(0), np.arange(0))
    counts = class_counts(dataset, split)
    assert counts.amounts.tolist() == [[0, 5 * 16, 0], [0] * 3, [0] * 3] and counts.items[0].tolist() == [0, 5, 0]
    assert measured(counts, "share of pixels").tolist() == [[0, 100, 0], [0] * 3, [0] * 3]
    assert matching_rows(dataset, split, "", NOTHING).tolist() == [0] and matching_rows(dataset, split, "val").tolist() == []
    assert sum("is empty" in sentence for sentence in class_notes(counts)) == 2
    assert len(class_balance_figure(counts).data) == 1


def test_thousands_of_classes_are_counted_and_the_largest_drawn():
    targets = np.random.default_rng(0).integers(0, 1000, 50_000) ** 2 // 1000
    images = LazyImages((50_000, 8, 8, 1), lambda row: np.zeros((8, 8, 1), np.uint8))
    dataset = Dataset("many", images, targets, tuple(f"class {number}" for number in range(1000)))
    split = Split(np.arange(0, 50_000, 2), np.arange(1, 50_000, 4), np.arange(3, 50_000, 4))
    counts = class_counts(dataset, split)
    assert counts.items.sum() == 50_000 and counts.items.sum(0).tolist() == np.bincount(targets, minlength=1000).tolist()
    drawn = class_balance_figure(counts)
    assert len(drawn.data[0].y) == MOST and "of 1,000 classes" in drawn.layout.title.text
    total = counts.items.sum(0)
    assert min(sum(bars.y[place] for bars in drawn.data) for place in range(MOST)) >= np.sort(total)[-MOST]
    assert all(len(sentence) < 200 for sentence in class_notes(counts))


def test_names_that_begin_alike_have_bars_of_their_own():
    counts = class_counts(dataset := numbered(2, names=("a" * 60 + "1", "a" * 60 + "2")), split_dataset(dataset))
    assert len(set(class_balance_figure(counts).data[0].x)) == 2


# ---- sizes

@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(8, 3000), st.integers(8, 3000)), min_size=1, max_size=8), st.sampled_from(("crop", "pad", "stretch")))
def test_the_size_of_an_original_is_told_by_its_matrix(shapes, fit):
    geometry = np.stack([plan_fit(shape, (48, 64), fit).matrix() for shape in shapes])
    images = np.zeros((len(shapes), 48, 64, 1), np.uint8)
    dataset = Dataset("sized", ArrayImages(images), np.zeros(len(shapes), np.int64), ("a",), geometry=geometry, fit=fit)
    for (height, width), told, matrix in zip(shapes, original_sizes(dataset).tolist(), geometry, strict=True):
        within = {"stretch": 0, "crop": 1, "pad": max(matrix[0, 0], matrix[1, 1]) + 1}[fit]  # padding is known to one working pixel
        assert abs(told[0] - height) <= within and abs(told[1] - width) <= within
    assert image_sizes(dataset).counts.sum() == len(shapes)


def test_sizes_in_words():
    assert size_words(image_sizes(numbered())) == "All images are 8 × 8 px, as they are used."


# ---- pictures

def test_a_click_means_the_item_that_is_drawn_there():
    colours = np.random.default_rng(0).integers(0, 250, (23, 3)).astype(np.uint8)
    for columns in (1, 4, 30):
        grid = image_grid([np.tile(colour, (10, 10, 1)) for colour in colours], list(range(23)), columns, 64, colours=[None] * 23)
        pixels = np.asarray(grid)
        for number, colour in enumerate(colours):
            at_y, at_x = (places.mean() for places in np.nonzero((pixels == colour).all(-1)))
            assert grid_place(grid.size, 23, columns, at_x / grid.width, at_y / grid.height) == number
    assert grid_place(grid.size, 23, 30, 1.0, 0.5) in (22, None) and grid_place(grid.size, 23, 30, 0.0, 0.5) in (0, None)


def test_a_small_image_is_enlarged_and_a_huge_one_shrunk():
    assert large_picture(np.zeros((32, 16, 1), np.uint8), 320).size == (160, 320)
    assert large_picture(np.zeros((400, 300, 3), np.uint8), 320).size == (300, 400)
    assert large_picture(np.zeros((2000, 1000, 3), np.uint8), 320).size == (320, 640)


# ---- the panel

@pytest.mark.parametrize("kind", KINDS)
def test_the_panel_shows_what_its_code_gives(kind):
    panel = data_panel(Desk(experiment(kind), prepare_again))
    assert panel.settle()
    of = panel.of
    of["count"].value, of["part"].value = 12, "train"
    of["forth"].click()
    assert panel.settle() and "13 to 2" in of["where"].value
    assert to_jpeg(run(panel.code())) == of["grid"].data
    of["label"].value = of["label"].options[-2]  # the last class
    assert panel.settle() and to_jpeg(run(panel.code())) == of["grid"].data
    of["view"].value = "Classes"
    for measure in of["measure"].options:
        of["measure"].value = measure
        assert panel.settle() and run(panel.code()).to_json() == of["balance"].figure
    of["view"].value = "Facts"
    assert panel.settle() and "fingerprint" in of["facts"].value and run(panel.code()) is not None


def test_a_click_shows_the_item_large():
    setup = held(numbered(3, 30))
    panel = shown(setup)
    before = panel.of["item"].data
    panel.of["grid"]._handle_custom_msg({"x": 0.25, "y": 0.1}, [])
    assert panel.settle()
    rows = matching_rows(setup.dataset, setup.split)
    width = PAGES[24]
    grid = browse_picture(setup.dataset, rows[:24], setup.task, width, browse.WIDTH // width - browse.GAP, 1)
    assert panel.of["grid"].data == to_jpeg(grid) and panel.of["item"].data != before
    assert "<td style='overflow-wrap:anywhere'>1</td>" in panel.of["known"].value


def test_filters_pages_and_sentences():
    panel = shown(held(numbered(3, 90)))
    of = panel.of
    assert of["back"].disabled and not of["forth"].disabled
    for _ in range(9): of["forth"].click()
    assert panel.settle() and "73 to 90 of 90" in of["where"].value and of["forth"].disabled
    of["label"].value = "c1"
    assert panel.settle() and "1 to 24 of 30" in of["where"].value
    of["label"].value = "c9"
    assert panel.settle() and "There is no class" in of["where"].value and of["grid"].data == b""
    of["label"].value = NOTHING
    assert panel.settle() and "Nothing matches" in of["where"].value
    of["clear"].click()
    assert panel.settle() and "of 90" in of["where"].value


def test_a_bar_that_is_clicked_is_looked_for():
    dataset = numbered(3, 90)
    split = Split(np.arange(40), np.arange(0), np.arange(40, 90))
    panel = shown(held(dataset, split))
    panel.of["view"].value = "Classes"
    assert panel.settle()
    panel.of["balance"]._handle_custom_msg({"kind": "click", "points": [{"curve": 1, "point": 2, "x": 2.0, "y": 1}]}, [])
    assert panel.settle()
    assert (panel.of["part"].value, panel.of["label"].value, panel.of["view"].value) == ("test", "c2", "Images")
    assert f"of {len(matching_rows(dataset, split, 'test', 'c2'))}<" in panel.of["where"].value


def test_a_clip_is_shown_frame_by_frame():
    panel = data_panel(Desk(experiment("video"), prepare_again))
    assert panel.settle() and panel.of["frame"].max == 7
    first = panel.of["item"].data
    panel.of["frame"].value = 5
    assert panel.settle() and panel.of["item"].data != first
    panel.of["frame"].value = 0
    assert panel.settle() and panel.of["item"].data == first


def test_the_data_set_is_chosen_by_name_or_path(tmp_path):
    for name, count in (("cat", 12), ("dog", 3)):
        (tmp_path / name).mkdir()
        for number in range(count): Image.new("RGB", (20 + number, 16), (number, 9, 9)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cat" / "bad.png").write_bytes(b"no image")
    desk = Desk(experiment_for("classification", {"data.bad_share": 0.5}), prepare_again)
    panel = data_panel(desk)
    assert panel.settle() and {"digits", "shapes", "mnist", "imagenet", ""} <= {name for _, name in panel.of["source"].options}
    panel.of["source"].value = ""
    assert desk.store.config.data.name == "digits" and panel.of["path"].layout.display == ""  # nothing is asked for yet
    panel.of["path"].value = str(tmp_path / "nowhere")
    assert panel.settle()
    assert "There is no data set, folder or file" in panel.of["head"].value and "Still on show: digits" in panel.of["head"].value
    panel.of["path"].value = str(tmp_path)
    assert panel.settle() and "15 images, 2 classes" in panel.of["head"].value
    assert "Fewer than 10 images to train on" in panel.of["notes"].value and "1 was left out" in panel.of["notes"].value
    panel.of["view"].value = "Facts"
    assert panel.settle()
    assert [row[0] for row in panel.of["skipped"].rows] == ["cat/bad.png"] and '"type":"scatter"' in panel.of["sizes"].figure
    panel.of["source"].value = "shapes"
    desk.store.set("data.shapes.count", 50)
    assert panel.settle() and "shapes: 50 images" in panel.of["head"].value and panel.of["path"].layout.display == "none"
    assert panel.of["sizes"].figure == "{}" and panel.of["notes"].value.count("⚠") == 1


def test_nothing_to_show_yet_is_said():
    ready = threading.Event()
    def slow(config, before):
        ready.wait(20)
        raise UsageError("The disk is on fire: put it out.")
    panel = data_panel(desk := Desk(Experiment(), slow))
    assert "Reading the data" in panel.of["head"].value and panel.code().startswith("#")
    ready.set()
    assert desk.wait(20) and panel.settle()
    assert "put it out" in panel.of["head"].value and panel.of["grid"].data == b""
    for view in ("Classes", "Facts"):
        panel.of["view"].value = view
        assert panel.settle()


def test_other_settings_do_not_count_anew(monkeypatch):
    counted = []
    monkeypatch.setattr(browse, "index_classes", lambda dataset, tell=None, count=index_classes: counted.append(1) or count(dataset))
    desk = Desk(experiment("detection"), prepare_again)
    panel = data_panel(desk)
    assert panel.settle() and len(counted) == 1
    desk.store.set("train.epochs", 3)
    assert panel.settle() and len(counted) == 1
    desk.store.set("data.val", 0.3)
    assert panel.settle() and len(counted) == 2


def test_newer_data_ends_the_count_of_older():
    begun, go = threading.Event(), threading.Event()
    def masks(rows):
        begun.set()
        go.wait(20)
        return np.zeros((len(rows), 8, 8), np.uint8)
    slow = held(numbered(2, 300, MaskColumn(masks, 300, 2)), Split(np.arange(100), np.arange(100, 200), np.arange(200, 300)))
    slow.task = SimpleNamespace(target="masks", caption=lambda target: "", draw=lambda image, target: image, classes=("c0", "c1"))
    setups = [held(numbered(4, 40)), slow]
    desk = Desk(Experiment(), lambda config, before: setups.pop())
    panel = data_panel(desk)
    assert begun.wait(20)
    desk.refresh()
    assert desk.wait(20)
    go.set()
    assert panel.settle() and "40 images, 4 classes" in panel.of["head"].value
    panel.of["view"].value = "Classes"
    assert panel.settle() and '"c3"' in panel.of["balance"].figure


@pytest.mark.parametrize("dataset", [
    numbered(1, 12, BoxColumn(make_boxes([[[1, 1, 5, 5]]] * 6 + [[]] * 6, [[0]] * 6 + [[]] * 6), 1)),
    numbered(600, 700, names=tuple(f"<b>{number}</b>" for number in range(600))),
], ids=["one class", "hundreds of classes"])
def test_odd_data_is_shown(dataset):
    from cnnbench.detection import Detection

    task = (Detection if isinstance(dataset.targets, BoxColumn) else Classification)(TaskConfig(), dataset.classes)
    panel = shown(held(dataset, Split(np.arange(len(dataset)), np.arange(0), np.arange(0)), task))
    for view in ("Images", "Classes", "Facts"):
        panel.of["view"].value = view
        assert panel.settle()
    assert panel.of["notes"].value.count("is empty") == 2 and panel.of["balance"].figure != "{}" and panel.of["grid"].data
    assert "<b>" not in panel.of["notes"].value + panel.of["facts"].value + panel.of["known"].value
    panel.of["part"].value = "val"
    panel.of["view"].value = "Images"
    assert panel.settle() and "Nothing matches" in panel.of["where"].value and panel.of["item"].data == b""


def test_an_image_that_is_gone_is_said_and_a_long_list_cut():
    def gone(row): raise UsageError("photo.png cannot be read: it is gone.")
    setup = held(numbered(2, 20))
    bad = Dataset("gone", LazyImages((20, 8, 8, 3), gone), setup.dataset.targets, setup.dataset.classes, skipped=(("file", "why"),) * (2 * LISTED))
    setup.dataset = bad
    panel = shown(setup)
    assert "it is gone" in panel.of["where"].value and "it is gone" in panel.of["notes"].value
    panel.of["view"].value = "Facts"
    assert panel.settle() and len(panel.of["skipped"].rows) == LISTED


def test_sliders_stand_where_their_settings_are():
    "A slider snaps to its steps, and the page writes that back: a setting's own value must lie on one."
    panel = data_panel(Desk(Experiment(), prepare_again))
    sliders = {name: held for name, held in panel.of.items() if "Float" in type(held).__name__}
    assert set(browse.STEPS) <= set(sliders)
    for name, slider in sliders.items():
        steps = (slider.value - slider.min) / slider.step
        assert abs(steps - round(steps)) < 1e-6, name


def test_a_list_that_is_shown_asks_for_nothing():
    "Settings that change in several threads at once: no list writes its first name back."
    desk = Desk(experiment("segmentation"), prepare_again)
    data_panel(desk)
    for number in range(10):
        desk.store.set("data.name", "nowhere" if number % 2 == 0 else "shapes")
        time.sleep(0.01 * (number % 3))
    assert desk.wait(30) and desk.store.config.data.name == "shapes"
