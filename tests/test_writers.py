"What is written comes back: boxes, masks, labels, parts, names and pixels; or nothing is written."

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from cnnbench import writers
from cnnbench.coco import compress, read_runs, run_lengths, uncompress
from cnnbench.core import UsageError, look_up
from cnnbench.data import OPEN, TEST, TRAIN, VAL, ArrayImages, DataConfig, Dataset, ShapesConfig, split_dataset
from cnnbench.formats import kind_of, load_data, open_dataset
from cnnbench.targets import BoxColumn, MaskColumn, make_boxes
from cnnbench.writers import WRITERS, row_names, row_parts, write_coco, write_csv, write_dataset, write_masks, write_voc, write_yolo
from hypothesis import given, settings
from hypothesis import strategies as st

SIDE = 24
HELD = {"coco": ("boxes", "masks"), "voc": ("boxes", "masks"), "yolo": ("boxes",), "csv": ("boxes", "label", "labels"), "masks": ("masks",)}
PAIRS = [(format, kind) for format, kinds in HELD.items() for kind in kinds]
NAMES = ("background", "Straße & <co>", "a, b; c", 'say "no"', "7", "日本", "null")
FEW = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "Each test has a cache folder of its own."
    monkeypatch.setenv("CNNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def random_set(kind, seed=0, rows=5, channels=3, classes=NAMES, parts=None, files=(), whole=False, crowds=True):
    "A data set with random targets of a kind."
    rng = np.random.default_rng(seed)
    images = ArrayImages(rng.integers(0, 256, (rows, SIDE, SIDE + 8, channels), np.uint8))
    if kind == "label": return Dataset("random", images, np.arange(rows) // 2 % 2, classes, files, parts)
    if kind == "labels": return Dataset("random", images, rng.integers(0, 2, (rows, len(classes))).astype(np.uint8), classes, files, parts)
    if kind == "masks":
        masks = rng.choice([*range(len(classes)), 255], (rows, SIDE, SIDE + 8)).astype(np.uint8)
        return Dataset("random", images, MaskColumn(lambda chosen: masks[chosen], rows, len(classes)), classes, files, parts)
    counts = rng.integers(0, 4, rows)
    def draw(count):
        ends = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (SIDE + 8, SIDE)
        return (np.stack([np.floor(ends[:, 0]), np.ceil(ends[:, 1] + 0.01)], 1) if whole else ends).reshape(-1, 4).astype(np.float32)
    labels, crowd = [rng.integers(0, len(classes), n) for n in counts], [crowds & (rng.random(n) < 0.3) for n in counts]
    return Dataset("random", images, BoxColumn(make_boxes([draw(n) for n in counts], labels, crowd), len(classes)), classes, files, parts)


def check_same(one, other, exact=True):
    "Two data sets agree, in the order of their rows' names."
    first, second = np.argsort(row_names(one)), np.argsort([Path(file).stem for file in other.files])
    assert one.classes == other.classes and kind_of(one) == kind_of(other) and len(one) == len(other)
    assert (one.images.read(first) == other.images.read(second)).all() and one.shape == other.shape
    assert [row_parts(one)[row] for row in first] == [row_parts(other)[row] for row in second]
    before, after = one.column.take(first), other.column.take(second)
    if kind_of(one) == "masks": assert (before.ids == after.ids).all()
    elif kind_of(one) != "boxes": assert (before.values == after.values).all()
    else:
        assert (before.boxes == after.boxes).all() if exact else np.abs(before.boxes - after.boxes).max(initial=0) < 1e-5
        assert all((getattr(before, name) == getattr(after, name)).all() for name in ("labels", "owner", "crowd"))


def test_every_writer_is_in_the_table():
    assert set(WRITERS) == set(HELD)
    assert all(callable(look_up(name, WRITERS, "format")) for name in WRITERS)


@pytest.mark.parametrize(("format", "kind"), PAIRS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("parts", [None, np.array([TRAIN, VAL, TRAIN, TEST, TRAIN], np.uint8)])
def test_what_is_written_comes_back(tmp_path, format, kind, channels, parts):
    written = random_set(kind, channels=channels, parts=parts, crowds=format != "yolo")
    folder = write_dataset(written, tmp_path / "set", format)
    check_same(written, open_dataset(folder, target=kind), exact=format != "yolo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize(("format", "kind"), PAIRS)
def test_drawn_shapes_come_back(tmp_path, format, kind):
    config = DataConfig(name="shapes", size=48, shapes=ShapesConfig(count=12))
    written = load_data(config, kind)
    check_same(written, open_dataset(write_dataset(written, tmp_path / "set", format), target=kind))


@FEW
@given(st.integers(0, 10**6), st.sampled_from(["coco", "voc", "csv", "yolo"]))
def test_random_boxes_come_back(seed, format):
    with tempfile.TemporaryDirectory() as folder:
        written = random_set("boxes", seed, rows=3, whole=format == "yolo", crowds=format != "yolo")
        check_same(written, open_dataset(write_dataset(written, Path(folder, "set"), format), format, "boxes"))


@FEW
@given(st.integers(0, 10**6))
def test_boxes_of_yolo_come_back_nearly(seed):
    with tempfile.TemporaryDirectory() as folder:
        written = random_set("boxes", seed, rows=3, crowds=False)
        check_same(written, open_dataset(write_yolo(written, Path(folder, "set"))), exact=False)


@FEW
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6), st.floats(0, 1))
def test_run_lengths_are_those_of_coco(height, width, seed, share):
    from faster_coco_eval.core import mask as theirs

    mask = np.random.default_rng(seed).random((height, width)) < share
    held = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = held["counts"].decode() if isinstance(held["counts"], bytes) else held["counts"]
    assert compress(run_lengths(mask)) == text
    assert read_runs({"counts": text, "size": [height, width]})[0] == uncompress(text) == run_lengths(mask)


def test_long_runs_survive():
    counts = [0, 2**25, 1, 5, 2**20, 3, 1]
    assert uncompress(compress(counts)) == counts


# Names


def test_names_of_files_are_kept(tmp_path):
    written = random_set("boxes", files=("a/1.jpg", "a/2.jpg", "b/1.jpg", "3_mask.tif", "x.y.png"))
    found = open_dataset(write_coco(written, tmp_path / "set"))
    assert sorted(found.files) == sorted(f"images/{name}.png" for name in ("a_1", "a_2", "b_1", "3_mask", "x.y"))
    clash = random_set("masks", files=("a/1.jpg", "a_1.jpg", "b/1.jpg", "c.png", "c.jpg"))
    check_same(clash, open_dataset(write_masks(clash, tmp_path / "clash")))
    odd = random_set("masks", files=("1_mask.jpg", "mask.png", "img 3.jpg", "labels.png", "seg.png"))
    check_same(odd, open_dataset(write_masks(odd, tmp_path / "odd")))


@pytest.mark.parametrize("format", ["coco", "voc", "yolo", "csv"])
def test_names_of_classes_that_cannot_be_written(tmp_path, format):
    for names, sentence in ((("a", "a "), "has a space at an end"), (("a", "b\nc"), "a sign that cannot be printed"), (("a", "a"), "is there twice")):
        with pytest.raises(UsageError, match=sentence): write_dataset(random_set("boxes", classes=names), tmp_path / "set", format)
    assert list(tmp_path.iterdir()) == []


def test_classes_that_cannot_head_a_column(tmp_path):
    for names in (("cat", "label"), ("cat", "split"), ("xmin", "b"), ("file", "b"), ("image", "b"), ("a b", "a_b"), (";;;", ";;"), ("part", "b")):
        with pytest.raises(UsageError, match="cannot all head a column"): write_csv(random_set("labels", classes=names), tmp_path / "set")


def test_masks_without_a_background(tmp_path):
    written = random_set("masks", classes=("sky", "ground"))
    check_same(written, open_dataset(write_masks(written, tmp_path / "set")))
    for write in (write_coco, write_voc):
        with pytest.raises(UsageError, match="class 0 of a mask for background, but data set random calls it sky"): write(written, tmp_path / "no")


def test_rows_without_a_part_beside_others_train(tmp_path):
    found = open_dataset(write_coco(random_set("boxes", parts=np.array([OPEN, TEST, OPEN, OPEN, TEST], np.uint8)), tmp_path / "set"))
    assert np.bincount(found.parts).tolist() == [3, 0, 2] and len(split_dataset(found, val=0).train) == 3


def test_yolo_leaves_crowds_out(tmp_path):
    written = random_set("boxes", seed=3, rows=8)
    table = open_dataset(write_yolo(written, tmp_path / "set")).targets.table
    assert written.targets.table.crowd.any() and not table.crowd.any() and len(table.boxes) == (~written.targets.table.crowd).sum()


# Whole or not at all


def test_a_folder_is_never_overwritten(tmp_path):
    (tmp_path / "there").mkdir()
    write_coco(random_set("boxes"), tmp_path / "there")  # empty: it may be used
    before = sorted(path.name for path in (tmp_path / "there").rglob("*"))
    with pytest.raises(UsageError, match="there is there already: remove it"): write_voc(random_set("boxes"), tmp_path / "there")
    assert sorted(path.name for path in (tmp_path / "there").rglob("*")) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is there already"): write_voc(random_set("boxes"), tmp_path / "file")


@pytest.mark.parametrize("format", list(WRITERS))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_broken_write_leaves_nothing(tmp_path, format, error, monkeypatch):
    made = []
    def break_off(pixels):
        made.append(1)
        if len(made) > 2: raise error
        return np.zeros((2, 2))
    monkeypatch.setattr(writers, "to_picture", break_off)
    monkeypatch.setattr(writers, "ThreadPoolExecutor", OneByOne)
    made.extend([1, 1])
    wanted = UsageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted): write_dataset(random_set(HELD[format][0]), tmp_path / "set", format)
    assert list(tmp_path.iterdir()) == []


class OneByOne:
    "A pool without threads: an interrupt reaches the main thread, as it does in life."

    def __init__(self, *_): pass
    def __enter__(self): return self
    def __exit__(self, *_): return False
    def map(self, function, *items): return map(function, *items)


def test_sentences(tmp_path):
    with pytest.raises(UsageError, match="YOLO holds boxes, but data set random has masks"): write_yolo(random_set("masks"), tmp_path / "set")
    with pytest.raises(UsageError, match="There is no format 'cooc'. Did you mean coco"): write_dataset(random_set("boxes"), tmp_path / "set", "cooc")
    with pytest.raises(UsageError, match="cannot be written"): write_coco(random_set("boxes"), "/proc/none/set")


def own_writer(dataset, folder): return Path(folder).with_suffix(".own")


def test_a_writer_of_the_users_own(tmp_path):
    assert write_dataset(random_set("boxes"), tmp_path / "set", f"{__name__}:own_writer") == tmp_path / "set.own"


def test_coco_has_what_others_ask_for(tmp_path):
    held = json.loads((write_coco(random_set("masks"), tmp_path / "set") / "annotations" / "instances.json").read_text())
    assert {"id", "file_name", "height", "width"} <= set(held["images"][0]) and {"id", "name"} <= set(held["categories"][0])
    assert {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"} <= set(held["annotations"][0])
    assert len({item["id"] for item in held["annotations"]}) == len(held["annotations"]) and min(item["id"] for item in held["annotations"]) == 1
