"Annotations of every format: recognised, read, moved with their images; damaged ones are an error or a counted skip, never a wrong label."

import csv
import json
import os
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cnnbench.core import UsageError, load_attribute, look_up
from cnnbench.data import OPEN, TEST, TRAIN, VAL, ArrayImages, DataConfig, Dataset, ShapesConfig, split_dataset
from cnnbench.formats import FORMATS, KINDS, LAYOUTS, SOURCES, TARGETS, Annotations, Entry, Faults, Thing, kind_of, load_data, open_dataset, recognise
from cnnbench.images import plan_fit
from cnnbench.shapes import SHAPES, draw_shapes
from cnnbench.targets import BoxColumn, MaskColumn, make_boxes
from cnnbench.writers import write_coco, write_csv, write_dataset, write_masks, write_voc, write_yolo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

SIDE, ROWS = 32, 6
SCENES = [draw_shapes(5, row, SIDE, (1, 3)) for row in range(ROWS)]
IMAGES = ArrayImages(np.stack([scene.image for scene in SCENES]))
MASKS = np.stack([scene.mask for scene in SCENES])
PLACES = np.array([TRAIN, TRAIN, TRAIN, TRAIN, VAL, TEST], np.uint8)
AS_IS = DataConfig(size=0)
LENIENT = DataConfig(size=0, skip_bad=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "Each test has a cache folder of its own."
    monkeypatch.setenv("CNNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def scenes(kind="boxes", parts=None):
    "The scenes as a data set with such targets."
    boxes = BoxColumn(make_boxes([scene.boxes for scene in SCENES], [scene.labels for scene in SCENES]), len(SHAPES))
    masks = MaskColumn(lambda rows: MASKS[rows], ROWS, len(SHAPES) + 1)
    labels = np.array([scene.labels[0] for scene in SCENES])
    several = np.array([np.isin(np.arange(len(SHAPES)), scene.labels) for scene in SCENES]).astype(np.uint8)
    targets = {"boxes": boxes, "masks": masks, "label": labels, "labels": several}[kind]
    return Dataset("scenes", IMAGES, targets, ("background", *SHAPES) if kind == "masks" else SHAPES, parts=parts)


def tree(root, count=4):
    "A folder with `count` images for each of two classes."
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for index in range(count): Image.fromarray(np.roll(SCENES[number].image, index, 0)).save(root / name / f"{index}.png")
    return root


def written(format, folder, kind=None, parts=None):
    "A folder in a format, with the kind of target that it gives first."
    if format == "folders": return tree(folder)
    return write_dataset(scenes(kind or KINDS[format].gives[0], parts), folder, format)


def seen(dataset):
    "What a data set with boxes says: (file's name, class, box, crowd), in order."
    table = dataset.targets.table
    names = [Path(dataset.files[row]).name for row in table.owner]
    return sorted(zip(names, [dataset.classes[label] for label in table.labels], map(tuple, table.boxes.tolist()), table.crowd.tolist(), strict=True))


# Registries


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_reader(name):
    assert callable(look_up(name, FORMATS, "format"))
    if name in KINDS:
        assert callable(load_attribute(KINDS[name].sign)) and set(KINDS[name].gives) <= set(TARGETS)


def test_registries_agree():
    assert set(KINDS) == set(FORMATS) - {"instances"}
    assert set(SOURCES) == set(TARGETS)
    assert all(layout.format in FORMATS and set(layout.gives) <= set(KINDS[layout.format].gives) for layout in LAYOUTS.values())
    for names in SOURCES.values(): assert all(callable(look_up(name, names, "data set")) for name in names)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo", "csv", "masks", "folders"])
@pytest.mark.parametrize("parts", [None, PLACES])
def test_a_format_is_recognised_by_itself_and_by_name(tmp_path, format, parts):
    folder = written(format, tmp_path / "set", parts=parts)
    found, why = recognise(folder)
    assert found == format and why
    one, other = open_dataset(folder), open_dataset(folder, format)
    assert one.note.startswith(f"Read as {format}: {why}")
    assert one.files == other.files and (one.images.read(np.arange(len(one))) == other.images.read(np.arange(len(one)))).all()
    assert kind_of(one) == KINDS[format].gives[0]
    if format != "folders" and parts is not None: assert np.bincount(one.parts).tolist() == [4, 1, 1]
    assert len(split_dataset(one).train)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo", "csv"])
def test_boxes_serve_labels_too(tmp_path, format):
    found = open_dataset(written(format, tmp_path / "set"), target="labels")
    assert (found.targets == scenes("labels").targets).all()


def own_reader(path, target, config):
    things = tuple(Thing(int(label), tuple(box.tolist()), "own") for label, box in zip(SCENES[0].labels, SCENES[0].boxes, strict=True))
    return Annotations(path, "boxes", SHAPES, [Entry("cat/0.png", "own", things=things)], Faults(config.skip_bad))


def own_dataset(path, target, config): return replace(scenes(), note="made by hand")
def own_nonsense(path, target, config): return [1, 2]


def test_a_reader_of_the_users_own(tmp_path):
    found = open_dataset(tree(tmp_path / "set"), f"{__name__}:own_reader", "boxes", AS_IS)
    assert len(found) == 1 and (found.targets.table.boxes == SCENES[0].boxes).all()
    assert open_dataset(tmp_path / "set", f"{__name__}:own_dataset", "boxes").note == f"Read as {__name__}:own_dataset: as told. made by hand"
    with pytest.raises(UsageError, match="gives a list: it must give Annotations or a Dataset"): open_dataset(tmp_path, f"{__name__}:own_nonsense")
    with pytest.raises(UsageError, match="has boxes, but masks are needed"): open_dataset(tmp_path, f"{__name__}:own_dataset", "masks")


# Names and near misses


@pytest.mark.parametrize("target", ["label", "labels", "boxes", "masks", "clips"])
def test_shapes_for_every_target(target):
    found = load_data(DataConfig(name="shapes", size=32, shapes=ShapesConfig(count=10)), target)
    assert kind_of(found) == target and len(found) == 10


def test_labels_of_scenes_are_what_their_boxes_show():
    config = DataConfig(name="shapes", size=32, shapes=ShapesConfig(count=10))
    table = load_data(config, "boxes").targets.table
    expected = [[int((table.labels[table.owner == row] == label).any()) for label in range(5)] for row in range(10)]
    assert load_data(config, "labels").targets.tolist() == expected


@pytest.mark.parametrize(("name", "target", "sentence"), [
    ("digits", "boxes", "digits has one class for each image, but boxes are needed. There are: shapes, cocodetection, vocdetection, or a folder"),
    ("shaps", "boxes", "with boxes. Did you mean shapes"),
    ("vocdetection", "label", "has several classes for each image or boxes, but one class for each image are needed"),
    ("kinetics", "clips", "kinetics is too large to be fetched for you. Put train/ and val/, each with a sub-folder of clips"),
    ("cocodetection", "masks", "Put train2017/ and val2017/ with the images, annotations/instances_"),
    ("imagenet", "label", "imagenet is too large"),
    ("shapes", "box", "There is no kind of target 'box'. Did you mean boxes"),
])
def test_sentences_for_names(name, target, sentence):
    with pytest.raises(UsageError) as caught: load_data(DataConfig(name=name), target)
    assert sentence in str(caught.value)


def test_sentences_for_folders(tmp_path):
    with pytest.raises(UsageError, match="which gives boxes or masks or labels"): open_dataset(write_coco(scenes(), tmp_path / "a"), target="label")
    write_csv(scenes(), tmp_path / "two")
    (tmp_path / "two" / "more.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(UsageError, match=r"can be read as coco \(.*\) and csv \(.*\): say which"): open_dataset(tmp_path / "two")
    assert len(open_dataset(tmp_path / "two", "csv")) == ROWS
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.doc").write_text("x")
    with pytest.raises(UsageError, match="is not recognised. It holds notes.doc. What is looked for: coco"): open_dataset(tmp_path / "other")
    with pytest.raises(UsageError, match="There is no folder or file .* Did you mean other"): open_dataset(tmp_path / "othe")


def test_a_plain_tree_is_what_it_was(tmp_path):
    found = load_data(DataConfig(name=str(tree(tmp_path / "animals"))), "label")
    assert (found.name, found.classes, len(found)) == ("animals", ("cat", "dog"), 8)
    (tmp_path / "loose").mkdir()
    Image.fromarray(SCENES[0].image).save(tmp_path / "loose" / "a.png")
    with pytest.raises(UsageError, match="holds images, but not in sub-folders"): load_data(DataConfig(name=str(tmp_path / "loose")), "label")


# Size and fit


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(48, 96), (96, 40), (64, 64)])
def test_boxes_and_masks_move_with_their_images(tmp_path, fit, shape):
    rows, columns = shape
    picture, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    top, left, bottom, right = rows // 3, columns // 3, rows // 2 + 6, columns // 2 + 8
    picture[top:bottom, left:right], mask[top:bottom, left:right] = 255, 1
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    (tmp_path / "b.csv").write_text(f"image,xmin,ymin,xmax,ymax,label\nimages/a.png,{left},{top},{right},{bottom},thing\n")
    config = DataConfig(size=32, fit=fit)
    boxed, masked = open_dataset(tmp_path / "b.csv", config=config), open_dataset(tmp_path, "masks", config=config)
    image, ids = boxed.images.read(np.array([0]))[0, ..., 0], masked.targets.read(np.array([0]))[0]
    assert (image == masked.images.read(np.array([0]))[0, ..., 0]).all()
    y, x = np.nonzero(image > 160)
    assert np.abs(boxed.targets.table.boxes[0] - (x.min(), y.min(), x.max() + 1, y.max() + 1)).max() <= 1
    sure = (image < 60) | (image > 200)
    inside = ids != 255
    assert ((ids == 1) == (image > 128))[sure & inside].all()
    assert (image[~inside] == 128).all() and (inside.all() or fit == "pad")
    plan = plan_fit(shape, (32, 32), fit)
    matrix = np.eye(3) if boxed.geometry is None else boxed.geometry[0]
    assert np.allclose(matrix, plan.matrix())
    corner = matrix @ [*(boxed.targets.table.boxes[0, :2] - 0.5), 1]
    assert np.allclose(corner[:2] + 0.5 * matrix.diagonal()[:2] - (left, top), 0.5 * (matrix.diagonal()[:2] - 1), atol=0.51)


def test_boxes_outside_of_a_crop_are_dropped_and_said(tmp_path):
    Image.fromarray(np.zeros((32, 96), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.csv").write_text("image,xmin,ymin,xmax,ymax,label\na.png,0,0,20,20,x\na.png,40,4,60,20,y\na.png,20,0,36,20,y\n")
    found = open_dataset(tmp_path / "b.csv", config=DataConfig(size=32))
    assert found.targets.table.boxes.tolist() == [[8, 4, 28, 20], [0, 0, 4, 20]]
    assert "1 boxes are hardly in the picture" in found.note and found.classes == ("x", "y")


@pytest.mark.parametrize("memory_and_disk", [(1.0, 20.0), (0.0, 20.0), (0.0, 0.0)])
def test_masks_wherever_they_are_held(tmp_path, memory_and_disk):
    folder = write_masks(scenes("masks"), tmp_path / "set")
    (folder / "masks" / "000002.png").write_bytes(b"\x89PNG damaged")
    config = replace(LENIENT, memory=memory_and_disk[0], disk=memory_and_disk[1])
    for _ in range(2):  # the second time out of the cache
        found = open_dataset(folder, config=config)
        good = np.array([0, 1, 3, 4, 5])
        assert (found.targets.read(np.array([4, 1])) == MASKS[good[[4, 1]]]).all()
        assert (found.images.read(np.array([4, 2])) == IMAGES.read(good[[4, 2]])).all()
        assert [where for where, _ in found.skipped] == ["masks/000002.png"]


def test_an_image_that_cannot_be_read_takes_its_mask_along(tmp_path):
    folder = write_masks(scenes("masks"), tmp_path / "set")
    path = folder / "images" / "000001.png"
    path.write_bytes(path.read_bytes()[:400])
    found = open_dataset(folder, config=replace(AS_IS, bad_share=0.5))
    assert (found.targets.read(np.arange(5)) == MASKS[[0, 2, 3, 4, 5]]).all() and [file for file, _ in found.skipped] == ["images/000001.png"]
    with pytest.raises(UsageError, match="1 of 6 images .* cannot be read"): open_dataset(folder)


# What other programs write


def test_torchvision_reads_the_same_voc(tmp_path):
    from torchvision.datasets import VOCDetection, VOCSegmentation

    root = tmp_path / "VOCdevkit"
    root.mkdir()
    write_voc(scenes(parts=PLACES), root / "VOC2012")
    masks = write_voc(scenes("masks", PLACES), tmp_path / "masks")
    for folder in ("SegmentationClass", "ImageSets/Segmentation"): os.replace(masks / folder, root / "VOC2012" / folder)
    for path in (root / "VOC2012" / "JPEGImages").iterdir(): Image.open(path).save(path.with_suffix(".jpg"))
    boxed = load_data(DataConfig(name="vocdetection", root=str(tmp_path), size=0), "boxes")
    masked = load_data(DataConfig(name="vocsegmentation", root=str(tmp_path), size=0), "masks")
    theirs, their_masks = VOCDetection(str(tmp_path), image_set="train"), VOCSegmentation(str(tmp_path), image_set="train")
    assert len(theirs) == len(their_masks) == (boxed.parts == TRAIN).sum() == (masked.parts == TRAIN).sum() == 4
    for row, (_, target) in enumerate(theirs):
        held, mine = target["annotation"]["object"], boxed.targets.take(np.flatnonzero(boxed.parts == TRAIN)[[row]])
        assert [boxed.classes[label] for label in mine.labels] == [item["name"] for item in held]
        assert (mine.boxes + (1, 1, 0, 0)).tolist() == [[float(item["bndbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax")] for item in held]
        ids = masked.targets.take(np.flatnonzero(masked.parts == TRAIN)[[row]]).ids[0]
        assert (ids == np.asarray(their_masks[row][1])).all()


def test_faster_coco_eval_reads_the_same_coco(tmp_path):
    from faster_coco_eval import COCO

    boxed, masked = write_coco(scenes(), tmp_path / "boxes"), write_coco(scenes("masks"), tmp_path / "masks")
    theirs, mine = COCO(str(boxed / "annotations" / "instances.json")), open_dataset(boxed)
    for row, key in enumerate(sorted(theirs.imgs)):
        held = theirs.loadAnns(theirs.getAnnIds(imgIds=[key]))
        boxes = np.array([item["bbox"] for item in held], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert (mine.targets.take(np.array([row])).boxes == boxes).all()
        names = [mine.classes[label] for label in mine.targets.take(np.array([row])).labels]
        assert [theirs.cats[item["category_id"]]["name"] for item in held] == names
    theirs, mine = COCO(str(masked / "annotations" / "instances.json")), open_dataset(masked, target="masks")
    for row, key in enumerate(sorted(theirs.imgs)):
        ids = np.zeros((SIDE, SIDE), np.uint8)
        for item in theirs.loadAnns(theirs.getAnnIds(imgIds=[key])): ids[theirs.annToMask(item) == 1] = item["category_id"]
        assert (ids == mine.targets.read(np.array([row]))[0]).all()


def test_torchvision_wants_coco_where_we_find_it(tmp_path):
    folder = write_coco(scenes(parts=PLACES), tmp_path / "coco")
    for name in ("train", "val"):
        held = json.loads((folder / "annotations" / f"instances_{name}.json").read_text())
        (folder / f"{name}2017").mkdir()
        for item in held["images"]: os.replace(folder / "images" / item["file_name"], folder / f"{name}2017" / item["file_name"])
        os.replace(folder / "annotations" / f"instances_{name}.json", folder / "annotations" / f"instances_{name}2017.json")
        (folder / "annotations" / f"person_keypoints_{name}2017.json").write_text(json.dumps(held))
    os.remove(folder / "annotations" / "instances_test.json")
    found = load_data(DataConfig(name="cocodetection", root=str(tmp_path), size=0), "boxes")
    assert found.files == tuple(f"{'train' if row < 4 else 'val'}2017/{row:06}.png" for row in range(5)) and found.name == "cocodetection"


def test_imagenet_and_kinetics_by_name(tmp_path):
    for part in ("train", "val"): tree(tmp_path / "imagenet" / part)
    found = load_data(DataConfig(name="imagenet", root=str(tmp_path)), "label")
    assert (found.classes, np.bincount(found.parts).tolist(), found.name) == (("cat", "dog"), [8, 8], "imagenet")
    for part in ("train", "val"):
        for name in ("left", "right"):
            folder = tmp_path / "kinetics" / part / name
            folder.mkdir(parents=True)
            for index in range(2):
                frames = [Image.fromarray(np.roll(SCENES[index].image, step, 1)) for step in range(9)]
                frames[0].save(folder / f"{index}.gif", save_all=True, append_images=frames[1:])
    clips = load_data(DataConfig(name="kinetics", root=str(tmp_path), size=32), "clips")
    assert kind_of(clips) == "clips" and clips.classes == ("left", "right") and np.bincount(clips.parts).tolist() == [4, 4]
    assert len(load_data(DataConfig(name=str(tmp_path / "kinetics"), size=32), "clips")) == 8


def test_the_trees_of_deepforest():
    folder = Path(find_spec("deepforest").submodule_search_locations[0]) / "data"
    trees = open_dataset(folder / "OSBS_029.csv", config=AS_IS)
    assert (trees.shape, trees.classes, len(trees.targets.table.boxes)) == ((3, 400, 400), ("Tree",), 61)
    assert trees.targets.table.boxes[0].tolist() == [203, 67, 227, 90]
    soap = open_dataset(folder / "SOAP_061.xml", config=AS_IS)
    assert (soap.classes, np.bincount(soap.targets.table.labels).tolist()) == (("Alive", "Dead"), [9, 28])
    with pytest.raises(UsageError, match="can be read as voc .* and csv .*: say which"): open_dataset(folder)
    with pytest.raises(UsageError, match="holds the tables .*: name the one file that is meant"): open_dataset(folder, "csv")


def test_the_nuclei_of_stardist():
    folder = Path(find_spec("stardist").submodule_search_locations[0]) / "data" / "images"
    with pytest.raises(UsageError, match="histo.jpg: it has no mask"): open_dataset(folder)
    found = open_dataset(folder, config=DataConfig(size=512, skip_bad=True, channels="grey"))
    assert (len(found), found.classes) == (1, ("background", "object")) and "a number for each object" in found.note
    assert {where for where, _ in found.skipped} == {"histo.jpg", "mask3d.tif"}
    import tifffile

    assert (found.targets.read(np.array([0]))[0] == (tifffile.imread(folder / "mask2d.tif") > 0)).all()


def test_yolo_as_others_lay_it_out(tmp_path):
    folder = write_yolo(scenes(parts=PLACES), tmp_path / "set")
    expected = seen(open_dataset(folder))
    numbered = ", ".join(f"{number}: {name}" for number, name in enumerate(SHAPES))
    for text in (
        f"train: ../images/train\nval: ../images/val\ntest: ../images/test\nnc: 5\nnames: {list(SHAPES)}\n",  # Roboflow's
        f"path: nowhere/else\ntrain: images/train\nvalid: images/val\ntest: images/test\nnames: {{{numbered}}}\n",
        f"path: .\ntrain: train.txt\nval: [images/val]\ntest: images/test\nnames: {list(SHAPES)}\n",
    ):
        (folder / "train.txt").write_text("".join(f"./images/train/{row:06}.png\n" for row in range(4)))
        (folder / "data.yaml").write_text(text)
        found = open_dataset(folder)
        assert seen(found) == expected and np.bincount(found.parts).tolist() == [4, 1, 1]
    os.remove(folder / "data.yaml")
    with pytest.raises(UsageError, match="name the classes in data.yaml or classes.txt"): open_dataset(folder)
    (folder / "classes.txt").write_text("\n".join(SHAPES))
    assert seen(open_dataset(folder)) == expected and np.bincount(open_dataset(folder).parts).tolist() == [4, 1, 1]
    for text, sentence in (
        ("names: [a", "data.yaml is not readable as YAML"), ("names: [a, a]", "the class 'a' is there twice"), ("names: {1: a}", "numbered from 0"),
        ("names: [a, b]\nnc: 3", "nc is 3, but there are 2 names"), ("names: [a]\ntrain: gone", "train is 'gone', which is not in"),
        ("names: [a]\ntrain: 3", "data.yaml: train is 3: it must be a folder"), ("[1, 2]", "it must have names"),
    ):
        (folder / "data.yaml").write_text(text)
        with pytest.raises(UsageError, match=sentence): open_dataset(folder, "yolo")


def test_outlines_of_yolo(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.fromarray(SCENES[0].image).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    masked, boxed = open_dataset(tmp_path, target="masks"), open_dataset(tmp_path)
    assert masked.classes == ("background", "cat", "dog") and boxed.targets.table.boxes.tolist() == [[8, 8, 24, 16]]
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[8:16, 8:24] = 2
    assert (masked.targets.read(np.array([0]))[0] == expected).all()


def test_coco_as_others_lay_it_out(tmp_path):
    folder, expected = write_coco(scenes(parts=PLACES), tmp_path / "set"), seen(open_dataset(write_coco(scenes(), tmp_path / "plain")))
    for name in ("train", "val", "test"):  # Roboflow's
        held = json.loads((folder / "annotations" / f"instances_{name}.json").read_text())
        (folder / name).mkdir()
        for item in held["images"]: os.replace(folder / "images" / item["file_name"], folder / name / item["file_name"])
        os.replace(folder / "annotations" / f"instances_{name}.json", folder / name / "_annotations.coco.json")
    found = open_dataset(folder)
    assert seen(found) == expected and np.bincount(found.parts).tolist() == [4, 1, 1]
    assert open_dataset(folder / "val" / "_annotations.coco.json").files == ("val/000004.png",)
    held["categories"][0]["name"] = "disc"
    (folder / "test" / "_annotations.coco.json").write_text(json.dumps(held))
    with pytest.raises(UsageError, match="differ in their categories"): open_dataset(folder)


def test_coco_crowds_and_missing_boxes(tmp_path):
    folder = write_coco(scenes("masks"), tmp_path / "set")
    path = folder / "annotations" / "instances.json"
    held, expected = json.loads(path.read_text()), seen(open_dataset(folder))
    for item in held["annotations"]: del item["bbox"]
    path.write_text(json.dumps(held))
    assert seen(open_dataset(folder)) == expected
    held["annotations"][0] |= {"iscrowd": 1}
    path.write_text(json.dumps(held))
    masks = open_dataset(folder, target="masks").targets.read(np.arange(ROWS))
    assert (masks[0] == 255).sum() == (MASKS[0] == held["annotations"][0]["category_id"]).sum() and (masks[1:] == MASKS[1:]).all()


def test_tables_as_others_write_them(tmp_path):
    expected = seen(open_dataset(write_csv(scenes(), tmp_path / "set")))
    lines = list(csv.reader((tmp_path / "set" / "annotations.csv").read_text().splitlines()))
    def sides(row): return [*row[:3], float(row[3]) - float(row[1]), float(row[4]) - float(row[2]), row[5]]
    for headings, order, separator in (
        (["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"], lambda row: [row[0], SIDE, SIDE, row[5], *row[1:5]], ","),
        (["Image Name", "X1", "Y1", "X2", "Y2", "Category"], lambda row: row, ";"),
        (["img", "x", "y", "w", "h", "name"], sides, "\t"),
        (["label", "image_path", "xmin", "ymin", "xmax", "ymax", "split"], lambda row: [row[5], *row[:5], "Train"], ","),
    ):
        text = "\n".join(separator.join(map(str, row)) for row in (headings, *map(order, lines[1:])))
        (tmp_path / "set" / "annotations.csv").write_text("\ufeff" + text + "\r\n\r\n")
        assert seen(open_dataset(tmp_path / "set")) == expected
    write_csv(scenes(parts=PLACES), tmp_path / "parts")
    rows = (tmp_path / "parts" / "annotations.csv").read_text().splitlines()
    for part in ("train", "val", "test"):
        held = [rows[0].removesuffix(",part"), *(row.removesuffix(f",{part}") for row in rows if row.endswith(f",{part}"))]
        (tmp_path / "parts" / f"{part}.csv").write_text("\n".join(held))
    os.remove(tmp_path / "parts" / "annotations.csv")
    assert seen(open_dataset(tmp_path / "parts")) == expected and np.bincount(open_dataset(tmp_path / "parts").parts).tolist() == [4, 1, 1]


def test_masks_of_other_kinds(tmp_path):
    for row in range(3):
        (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "masks").mkdir(exist_ok=True)
        Image.fromarray(SCENES[row].image).save(tmp_path / "set" / "images" / f"{row}.jpg")
    def save(make):
        for row in range(3): make(MASKS[row]).save(tmp_path / "set" / "masks" / f"{row}_mask.png")
    save(lambda mask: Image.fromarray(mask > 0))  # one bit
    assert open_dataset(tmp_path / "set").classes == ("background", "object")
    save(lambda mask: Image.fromarray(np.stack([(mask > 0) * np.uint8(255)] * 3, -1)))  # grey, saved as colours
    assert (open_dataset(tmp_path / "set").targets.read(np.arange(3)) == (MASKS[:3] > 0)).all()
    save(Image.fromarray)
    (tmp_path / "set" / "classes.txt").write_text("background\ncircle\nsquare\ntriangle\nstar\nring")
    assert (open_dataset(tmp_path / "set").targets.read(np.arange(3)) == MASKS[:3]).all()
    (tmp_path / "set" / "classes.txt").write_text("background\ncircle")
    with pytest.raises(UsageError, match="masks/0_mask.png: its mask .* holds the value ., which is no class"): open_dataset(tmp_path / "set")
    Image.fromarray(SCENES[0].image).save(tmp_path / "set" / "masks" / "0_mask.png")
    with pytest.raises(UsageError, match="it has colours"): open_dataset(tmp_path / "set")


# Folders as others lay them out, or leave them


def pictures(folder, *files, height=40, width=60):
    "The folder, with a picture in each of the files."
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), 20 * number, np.uint8)).save(folder / file)
    return folder


def put(path, text):
    "Write a file, making its folder."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def coco(path, names, annotations, **extra):
    "Write a COCO file with categories 1 cat and 2 dog; an annotation is (image, category, bbox or None, more keys)."
    items = [{"image_id": image, "category_id": category, "bbox": box, **more} for image, category, box, more in annotations]
    images = [{"id": number, "file_name": name, **extra} for number, name in enumerate(names)]
    put(path, json.dumps({"images": images, "annotations": items, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}))


def xml(name="cat", box=(11, 6, 30, 20), file="", difficult=0):
    "Text of a VOC file with one object."
    edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    item = f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"
    return f"<annotation><filename>{file}</filename>{item}</annotation>"


def refused(folder, format="auto", target="auto", config=AS_IS):
    "The words with which a folder is refused."
    with pytest.raises(UsageError) as caught: open_dataset(folder, format, target, config)
    return str(caught.value)


@pytest.mark.parametrize("format", ["coco", "yolo", "voc", "csv"])
def test_labels_never_lack_the_class_of_a_faulty_object(tmp_path, format):
    names = [f"{row}.jpg" for row in range(3)]
    folder = pictures(tmp_path, *(f"images/{name}" for name in names))
    boxes = [[(1, (6, 6, 12, 12)), (2, (6, 6, 100, 12))], [(1, (6, 6, 12, 12))], [(2, (6, 6, 12, 12)), (1, (6, 6, 12, 12))]]
    called = {1: "cat", 2: "dog"}
    if format == "coco":
        coco(folder / "held.json", names, [(row, label, [6, 6, box[2] - 6, 6], {}) for row, things in enumerate(boxes) for label, box in things])
    if format == "yolo":
        put(folder / "classes.txt", "cat\ndog")
        for row, things in enumerate(boxes):
            lines = [f"{label - 1} {0.95 if box[2] > 60 else 0.5} 0.5 0.2 0.2" for label, box in things]
            put(folder / f"labels/{row}.txt", "\n".join(lines))
    if format == "voc":
        for row, things in enumerate(boxes):
            whole = [xml(called[label], box).replace("</annotation>", "").partition("</filename>")[2] for label, box in things]
            put(folder / f"Annotations/{row}.xml", f"<annotation>{''.join(whole)}</annotation>")
    if format == "csv":
        lines = [f"{row}.jpg,{','.join(map(str, box))},{called[label]}" for row, things in enumerate(boxes) for label, box in things]
        put(folder / "boxes.csv", "file,xmin,ymin,xmax,ymax,label\n" + "\n".join(lines))
    found = open_dataset(folder, target="labels", config=LENIENT)
    assert found.targets.tolist() == [[1, 0], [1, 1]] and [Path(file).name for file in found.files] == names[1:] and len(found.skipped) == 1
    assert len(open_dataset(folder, config=LENIENT)) == 3  # of boxes the object alone is left out
    assert "lies outside of its image" in refused(folder, target="labels")


def test_labels_never_lack_a_class_that_is_not_known(tmp_path):
    folder = pictures(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    things = [(0, 1, [6, 6, 6, 6], {}), (0, 7, [6, 6, 6, 6], {}), (1, 1, [6, 6, 6, 6], {}), (2, 2, [6, 6, 6, 6], {})]
    coco(folder / "held.json", ["0.jpg", "1.jpg", "2.jpg"], things)
    assert open_dataset(folder, target="labels", config=LENIENT).files == ("1.jpg", "2.jpg")
    os.remove(folder / "held.json")
    table = "file,xmin,ymin,xmax,ymax,label\n0.jpg,1,1,9,9,cat\n0.jpg,1,1,9,9x,dog\n1.jpg,1,1,9,9,dog\n2.jpg,1,1,9,9,cat\n"
    put(folder / "boxes.csv", table)
    assert open_dataset(folder, target="labels", config=LENIENT).files == ("1.jpg", "2.jpg")
    put(folder / "boxes.csv", table.replace("9x", "9,9"))
    assert "boxes.csv, line 3: it has 7 cells" in refused(folder, target="labels", config=LENIENT)
    os.remove(folder / "boxes.csv")
    for row, text in enumerate((xml(difficult=1), xml(), xml("dog"))): put(folder / f"{row}.xml", text)
    assert open_dataset(folder, target="labels").targets.tolist() == [[1, 0], [1, 0], [0, 1]]  # what is hard to see is there all the same
    put(folder / "0.xml", xml(difficult=2).replace("</annotation>", xml().partition("</filename>")[2]))
    assert open_dataset(folder, target="labels", config=LENIENT).files == ("1.jpg", "2.jpg")
    assert refused(folder).startswith("0.xml, object 1: <difficult> is '2'") and refused(folder).count("Mend it") == 1


def test_boxes_in_shares_are_refused_where_pixels_are_meant(tmp_path):
    folder = pictures(tmp_path, "0.jpg", "1.jpg")
    put(folder / "boxes.csv", "file,xmin,ymin,xmax,ymax,label\n0.jpg,0.4,0.4,0.6,0.6,cat\n1.jpg,0,0,1,1,cat\n")
    assert "boxes.csv, line 2: as all boxes do, it lies in the first two pixels of its image" in refused(folder)
    os.remove(folder / "boxes.csv")
    coco(folder / "held.json", ["0.jpg", "1.jpg"], [(0, 1, [0.1, 0.1, 0.5, 0.5], {})])
    assert "multiply them by its width and height" in refused(folder)
    coco(folder / "held.json", ["0.jpg", "1.jpg"], [(0, 1, [0.1, 0.1, 0.5, 0.5], {}), (1, 1, [4, 4, 9, 9], {})])
    assert len(open_dataset(folder).targets.table.boxes) == 2


def test_key_points_are_no_corners(tmp_path):
    folder = pictures(tmp_path, "images/0.jpg", "images/1.jpg", height=100, width=100)
    for row in range(2): put(folder / f"labels/{row}.txt", "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.55\n")
    put(folder / "data.yaml", "kpt_shape: [2, 2]\nnames: [x]\n")
    assert np.allclose(open_dataset(folder).targets.table.boxes, [[40, 40, 60, 60]] * 2)
    put(folder / "labels/0.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    assert "labels/0.txt, line 1: it has 7 numbers: class x y width height, and 4 of key points" in refused(folder)
    put(folder / "data.yaml", "kpt_shape: 17\nnames: [x]\n")
    assert "data.yaml: kpt_shape is 17" in refused(folder)


def test_the_size_that_a_table_gives_is_compared(tmp_path):
    folder, lines = pictures(tmp_path, "0.jpg", "1.jpg"), "0.jpg,60,40,cat,1,2,30,20\n1.jpg,60,40,cat,1,2,30,20\n"
    headings = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    put(folder / "boxes.csv", headings + lines)
    assert len(open_dataset(folder)) == 2
    put(folder / "boxes.csv", headings + lines.replace("60,40", "120,80"))
    assert "boxes.csv, line 2: its image 0.jpg is 60 × 40 pixels, but annotated as 120 × 80" in refused(folder)
    put(folder / "boxes.csv", headings + lines + "1.jpg,61,40,cat,1,2,30,20\n")
    assert "boxes.csv, line 4: the size of the image 1.jpg is not the one in boxes.csv, line 3" in refused(folder)
    put(folder / "boxes.csv", headings.replace("xmin,ymin,xmax,ymax", "x,y") + "0.jpg,20,10,cat,1,2\n1.jpg,20,10,cat,1,2\n")
    assert open_dataset(folder).targets.table.boxes.tolist() == [[1, 2, 21, 12]] * 2


def test_masks_are_turned_as_their_exif_says(tmp_path):
    turned, mask = Image.Exif(), np.zeros((60, 40), np.uint8)
    turned[0x0112], mask[:20] = 6, 255
    for row in range(2):
        pictures(tmp_path, f"images/{row}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{row}.png", exif=turned)
    assert (open_dataset(tmp_path).targets.read(np.arange(2)) == np.rot90(mask, -1) // 255).all()


def test_several_masks_of_one_image_are_not_one_of_them(tmp_path):
    names = [f"benign/benign ({row})" for row in range(3)]
    pictures(tmp_path, *(f"{name}.png" for name in names))
    for name in (*(f"{name}_mask" for name in names), "benign/benign (1)_mask_1"):
        Image.fromarray(np.eye(40, 60, dtype=np.uint8) * 255).save(tmp_path / f"{name}.png")
    assert "benign/benign (1).png: it has more than one mask, benign/benign (1)_mask.png, benign/benign (1)_mask_1.png" in refused(tmp_path)
    assert open_dataset(tmp_path, config=LENIENT).files == ("benign/benign (0).png", "benign/benign (2).png")


def test_a_part_of_yolo_without_labels_is_no_background(tmp_path):
    pictures(tmp_path, *(f"{part}/images/{row}.jpg" for part in ("train", "valid") for row in range(3)))
    for row in range(2): put(tmp_path / f"train/labels/{row}.txt", "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [x]\n")
    assert "valid/images/0.jpg: none of the 3 images of its part has a label file, such as valid/labels/0.txt" in refused(tmp_path)
    found = open_dataset(tmp_path, config=LENIENT)
    assert len(found) == 3 and found.parts.tolist() == [TRAIN] * 3 and "1 of 3 images have no label file" in found.note
    put(tmp_path / "train/labels/2.TXT", "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path / "valid/labels/0.txt", "")
    assert "train/labels/2.TXT: its name must end in .txt" in refused(tmp_path)


def test_voc_with_trainval_keeps_its_training_images(tmp_path):
    pictures(tmp_path, *(f"JPEGImages/{row}.jpg" for row in range(4)))
    for row in range(4): put(tmp_path / f"Annotations/{row}.xml", xml())
    put(tmp_path / "ImageSets/Main/trainval.txt", "0\n1\n")
    put(tmp_path / "ImageSets/Main/test.txt", "2\n")
    found = open_dataset(tmp_path)
    assert [Path(file).stem for file in found.files] == ["0", "1", "2"] and found.parts.tolist() == [OPEN, OPEN, TEST]
    assert "1 of 4 files are in no list of ImageSets/Main" in found.note
    put(tmp_path / "ImageSets/Main/test.txt", "1\n")
    assert "ImageSets/Main has 1 in two parts" in refused(tmp_path)


def test_masks_of_voc_are_not_called_what_they_are_not(tmp_path):
    def fill(root):
        pictures(root, "JPEGImages/0.jpg", "JPEGImages/1.jpg")
        (root / "SegmentationClass").mkdir()
        for row in range(2): Image.fromarray(np.arange(40 * 60).reshape(40, 60).astype(np.uint8) % 3).save(root / f"SegmentationClass/{row}.png")
        return root
    own, devkit = fill(tmp_path / "own"), fill(tmp_path / "VOCdevkit" / "VOC2012")
    assert open_dataset(own).classes == ("background", "class 1", "class 2")
    assert open_dataset(devkit).classes[:3] == ("background", "aeroplane", "bicycle")
    put(own / "class_names.txt", "_background_\nscratch\ndent\n")
    assert open_dataset(own).classes == ("background", "scratch", "dent")


def test_a_part_of_coco_finds_its_own_images(tmp_path):
    pictures(tmp_path, "images/1.jpg", "train2017/1.jpg", "val2017/1.jpg")
    for part in ("train", "val"): coco(tmp_path / f"annotations/instances_{part}2017.json", ["1.jpg"], [(0, 1, [4, 4, 9, 9], {})])
    assert sorted(open_dataset(tmp_path).files) == ["train2017/1.jpg", "val2017/1.jpg"]
    os.remove(tmp_path / "annotations/instances_train2017.json")
    assert "All images are for val" in open_dataset(tmp_path).note


def test_huge_run_lengths_are_never_painted(tmp_path):
    pictures(tmp_path, "0.jpg", "1.jpg")
    runs = {"counts": [0, 2**36], "size": [2**18, 2**18]}
    for size in ({}, {"height": 40, "width": 60}):
        coco(tmp_path / "held.json", ["0.jpg", "1.jpg"], [(0, 1, None, {"segmentation": runs}), (1, 1, [4, 4, 9, 9], {})], **size)
        assert len(open_dataset(tmp_path, config=LENIENT).targets.table.boxes) == 1
        assert "held.json, annotations[0]: its" in refused(tmp_path)
    coco(tmp_path / "held.json", ["0.jpg", "1.jpg"], [(0, 1, None, {"segmentation": {"counts": [41, 5, 2354], "size": [40, 60]}})])
    assert open_dataset(tmp_path).targets.table.boxes.tolist() == [[1, 1, 2, 6]]


def test_outlines_without_a_pixel_paint_nothing(tmp_path):  # COCO has some
    pictures(tmp_path, "0.jpg", "1.jpg")
    good = {"segmentation": [[5, 5, 20, 5, 20, 20]]}
    for bad in ([[5, 5, 5, 5, 5, 5]], {"counts": [2400], "size": [40, 60]}):
        coco(tmp_path / "held.json", ["0.jpg", "1.jpg"], [(0, 1, None, {"segmentation": bad}), (1, 1, None, good)])
        masks = open_dataset(tmp_path, target="masks").targets.read(np.arange(2))
        assert not masks[0].any() and masks[1].any()


def test_boxes_that_are_there_twice_are_said(tmp_path):
    coco(pictures(tmp_path, "0.jpg", "1.jpg") / "held.json", ["0.jpg", "1.jpg"], [(0, 1, [4, 4, 9, 9], {})] * 2 + [(0, 2, [4, 4, 9, 9], {})])
    assert "1 boxes are there more than once" in open_dataset(tmp_path).note


def test_masks_that_cannot_be_read_are_said_with_the_reason(tmp_path):
    pictures(tmp_path, "images/0.png", "images/1.png", "masks/0.jpg", "masks/1.jpg")
    assert "None of the masks can be read. masks/0.jpg: a JPEG mask has no exact values" in refused(tmp_path)


def test_a_table_that_is_not_understood_is_said(tmp_path):
    pictures(tmp_path, *(f"{part}_images/{row}.jpg" for part in ("a", "b") for row in range(2)))
    for text, why in (
        ("id,breed\n0,x\n1,y\n", "labels.csv: its first line must name the columns, and it lacks label. It has: id, breed"),
        ("file,label\n0.jpg,é\n".encode("latin-1"), "labels.csv is no UTF-8 text"),
        ("file,cat,dog\n0.jpg,1,-1\n", "labels.csv: beside the image's, each column must be a class with 0 or 1"),
    ):
        put(tmp_path / "labels.csv", text)
        assert why in refused(tmp_path) and "DataConfig.format folders" in refused(tmp_path)
        assert why in refused(tmp_path, "csv") and why in refused(tmp_path / "labels.csv") and why in refused(tmp_path, target="labels")
        with pytest.raises(UsageError, match="labels.csv"): load_data(DataConfig(name=str(tmp_path)), "label")
        assert open_dataset(tmp_path, "folders").classes == ("a_images", "b_images")
    put(tmp_path / "labels.csv", "epoch,loss\n1,0.5\n")
    assert open_dataset(tmp_path).classes == ("a_images", "b_images")
    assert "holds no .csv file. It holds" in refused(tmp_path / "a_images", "csv")


def test_voc_as_others_lay_it_out(tmp_path):
    def fill(root, images, files):
        pictures(root, *images)
        for image, file in zip(images, files, strict=True): put(root / file, xml(file=Path(image).name))
        return open_dataset(root)
    lower = fill(tmp_path / "lower", ["images/0.png", "images/1.png"], ["annotations/0.xml", "annotations/1.xml"])
    assert lower.files == ("images/0.png", "images/1.png") and lower.parts is None
    parts = fill(tmp_path / "parts", ["train/a.jpg", "valid/a.jpg", "test/a.jpg"], ["train/a.xml", "valid/a.xml", "test/a.xml"])
    assert sorted(zip(parts.files, parts.parts, strict=True)) == [("test/a.jpg", TEST), ("train/a.jpg", TRAIN), ("valid/a.jpg", VAL)]


@pytest.mark.parametrize("named", ["r 0", "C:\\data\\r 0.jpg", "/data/r 0.jpg", "r 0.png"])
def test_an_image_of_voc_named_as_elsewhere_is_found_by_its_own_name(tmp_path, named):
    pictures(tmp_path, "JPEGImages/r 0.jpg", "JPEGImages/1.jpg")
    put(tmp_path / "Annotations/r 0.xml", xml(file=named))
    put(tmp_path / "Annotations/1.xml", xml(file="1.jpg"))
    assert sorted(open_dataset(tmp_path).files) == ["JPEGImages/1.jpg", "JPEGImages/r 0.jpg"]
    put(tmp_path / "Annotations/1.xml", xml(file="other.jpg"))
    assert "Annotations/1.xml: there is no image JPEGImages/other.jpg" in refused(tmp_path)


def test_tables_in_the_parts(tmp_path):
    for part in ("train", "valid"):
        pictures(tmp_path, f"{part}/a.jpg", f"{part}/b.jpg")
        lines = "".join(f"{name}.jpg,60,40,sign,1,2,30,20\n" for name in "ab")
        put(tmp_path / part / "_annotations.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n" + lines)
    found = open_dataset(tmp_path)
    assert found.files == ("train/a.jpg", "train/b.jpg", "valid/a.jpg", "valid/b.jpg") and found.parts.tolist() == [TRAIN, TRAIN, VAL, VAL]


def test_yolo_as_cvat_lays_it_out(tmp_path):
    pictures(tmp_path, "obj_train_data/0.jpg", "obj_train_data/1.jpg", "obj_valid_data/2.jpg")
    for file in ("obj_train_data/0", "obj_train_data/1", "obj_valid_data/2"): put(tmp_path / f"{file}.txt", "1 0.5 0.5 0.2 0.2\n")
    put(tmp_path / "obj.names", "cat\ndog\n")
    put(tmp_path / "train.txt", "data/obj_train_data/0.jpg\n")
    found = open_dataset(tmp_path)
    assert found.classes == ("cat", "dog") and found.parts.tolist() == [TRAIN, TRAIN, VAL] and found.targets.table.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("image, mask", [("images/image_00{}.png", "masks/mask_00{}.png"), ("train/c{}.jpg", "train_masks/c{}_mask.gif")])
def test_pairs_as_others_call_them(tmp_path, image, mask):
    pictures(tmp_path, *(image.format(row) for row in range(3)))
    (tmp_path / mask).parent.mkdir()
    for row in range(3): Image.fromarray(np.eye(40, 60, row, dtype=np.uint8) * 255).save(tmp_path / mask.format(row))
    found = open_dataset(tmp_path)
    assert found.files == tuple(image.format(row) for row in range(3))
    assert (found.targets.read(np.arange(3)) == [np.eye(40, 60, row) for row in range(3)]).all()


def test_classes_of_masks_listed_in_the_parts(tmp_path):
    for part in ("train", "valid"):
        pictures(tmp_path, f"{part}/a.jpg", f"{part}/b.jpg")
        for name in "ab": Image.fromarray(np.eye(40, 60, dtype=np.uint8)).save(tmp_path / part / f"{name}_mask.png")
        put(tmp_path / part / "_classes.csv", "Pixel Value, Class\n0, background\n1, car\n2, road\n")
    assert open_dataset(tmp_path).classes == ("background", "car", "road")
    put(tmp_path / "valid" / "_classes.csv", "Pixel Value, Class\n0, background\n1, road\n2, car\n")
    assert "train/_classes.csv and valid/_classes.csv differ" in refused(tmp_path)


def test_names_and_files_as_other_systems_write_them(tmp_path):
    pictures(tmp_path, "e\u0301.jpg", "1.jpg")
    coco(tmp_path / "HELD.JSON", ["\u00e9.jpg", "1.jpg"], [(0, 1, [4, 4, 9, 9], {})])
    put(tmp_path / "HELD.JSON", b"\xef\xbb\xbf" + (tmp_path / "HELD.JSON").read_bytes())
    assert open_dataset(tmp_path).files == ("e\u0301.jpg", "1.jpg") == open_dataset(tmp_path / "HELD.JSON").files


# Damaged annotations


def test_an_xml_bomb_is_refused(tmp_path):
    folder = write_voc(scenes(), tmp_path / "set")
    path = folder / "Annotations" / "000000.xml"
    entities = "".join(f'<!ENTITY e{place} "{f"&e{place - 1};" * 10 if place else "boom"}">' for place in range(20))
    path.write_text(f"<!DOCTYPE a [{entities}]>" + path.read_text().replace("<name>", "<name>&e19;", 1))
    with pytest.raises(UsageError, match="Annotations/000000.xml: it declares a document type"): open_dataset(folder)
    assert len(open_dataset(folder, config=LENIENT)) == ROWS - 1


def test_what_is_left_out_is_counted(tmp_path):
    folder = write_coco(scenes(), tmp_path / "set")
    path = folder / "annotations" / "instances.json"
    held = json.loads(path.read_text())
    whole = len(held["annotations"])
    held["annotations"][0]["bbox"][2] = 0
    held["annotations"][1]["category_id"] = 77
    held["annotations"].append({"image_id": 500, "category_id": 1, "bbox": [0, 0, 1, 1]})
    held["images"].append({"id": 9, "file_name": "gone.png"})
    path.write_text(json.dumps(held))
    found = open_dataset(folder, config=LENIENT)
    assert len(found.targets.table.boxes) == whole - 2 and len(found) == ROWS
    keys = "annotations[1]", f"annotations[{whole}]", f"images[{ROWS}]", "annotations[0]"
    assert [where for where, _ in found.skipped] == [f"annotations/instances.json, {key}" for key in keys]
    with pytest.raises(UsageError, match=r"annotations\[1\]: category_id is 77, which is no id in categories. Mend it"): open_dataset(folder)


def test_a_mask_never_lacks_a_faulty_object(tmp_path):
    folder = write_coco(scenes("masks"), tmp_path / "set")
    path = folder / "annotations" / "instances.json"
    held = json.loads(path.read_text())
    for damage in ([], None, {"counts": [-1, 5], "size": [SIDE, SIDE]}, [[1, 2, 3]], [[1, 2, 3, 4, 500, 6]], {"counts": [9], "size": [3, 3]}):
        held["annotations"][0]["segmentation"] = damage
        path.write_text(json.dumps(held))
        found = open_dataset(folder, target="masks", config=LENIENT)
        assert found.files == tuple(f"images/{row:06}.png" for row in range(1, ROWS)) and len(found.skipped) == 1
        with pytest.raises(UsageError, match="instances.json"): open_dataset(folder, target="masks")


NUMBERS = [True, False, -1, 0, 1, 2, 1.5, 1e9, -1e300, 10**400, float("nan")]
JUNK = st.sampled_from([*NUMBERS, None, "", "1", "x", [], {}, [1], [[1]], [1, 2, 3, 4], {"id": 1}])
MUTANTS = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def damaged(draw, data):
    "Bytes with some flipped, lost, doubled, put in, or cut off."
    data, kind = bytearray(data), draw(st.sampled_from(["flip", "flip", "letter", "lose", "double", "put in", "cut"]))
    at, length = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 12))
    if kind == "flip": data[at] ^= 1 << draw(st.integers(0, 7))
    if kind == "letter": data[at] = draw(st.sampled_from(b"0123456789.-+eE,;:\"'[]{}<>/& \n\t\0nan"))
    if kind == "lose": del data[at : at + length]
    if kind == "double": data[at:at] = data[at : at + length]
    if kind == "put in": data[at:at] = draw(st.binary(min_size=1, max_size=6))
    if kind == "cut": del data[at:]
    return bytes(data)


@st.composite
def replaced(draw, text):
    "JSON text with a value or two replaced, or a key lost."
    held = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        place, key = held, draw(st.sampled_from(sorted(held)))
        while isinstance(place[key], list | dict) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place, dict) and draw(st.booleans()): del place[key]
        else: place[key] = deepcopy(draw(JUNK))
        if not held: return "{}"
    return json.dumps(held)


def cut(box, side=SIDE): return tuple(float(np.float32(min(max(value, 0.0), side))) for value in box)


def clipped(boxes): return sorted((name, label, cut(box), crowd) for name, label, box, crowd in boxes)


def check_mutant(folder, naive):
    "A mutant is an error or a skip that is counted, or says what `naive`, a reader that knows no doubts, makes of it."
    try: strict = seen(open_dataset(folder, *naive[1:], config=AS_IS))
    except UsageError as error:
        assert len(str(error)) > 20
        strict = None
    try: found = open_dataset(folder, *naive[1:], config=LENIENT)
    except UsageError:
        assert strict is None
        return
    if strict is not None:
        assert found.skipped == () and seen(found) == strict
        assert strict == clipped(naive[0]())
    else:
        assert found.skipped
        left = clipped(item for item in naive[0](lenient=True))
        for item in seen(found): left.remove(item)


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    folder = write_coco(scenes(), tmp_path_factory.mktemp("coco") / "set")
    path = folder / "annotations" / "instances.json"
    held = json.loads(path.read_text())
    del held["images"][3:], held["annotations"][4:]
    held["annotations"] = [item for item in held["annotations"] if item["image_id"] <= 3]
    path.write_text(json.dumps(held))
    return folder


def naive_coco(path):
    def read(lenient=False):
        held = json.loads(path.read_text())
        found = []
        for item in held["annotations"]:
            try:
                file = next(image["file_name"] for image in held["images"] if image.get("id") == item["image_id"])
                name = next(category["name"] for category in held["categories"] if category.get("id") == item["category_id"])
                x, y, width, height = item["bbox"]
                found.append((Path(file).name, name.strip(), (x, y, x + width, y + height), bool(item.get("iscrowd", 0))))
            except (KeyError, TypeError, ValueError, StopIteration, AttributeError, OverflowError):
                if not lenient: raise
        return found
    return read, "coco", "boxes"


@MUTANTS
@given(st.data())
def test_damaged_coco(coco_folder, data):
    path = coco_folder / "annotations" / "instances.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)) if data.draw(st.booleans()) else data.draw(replaced(whole.decode())).encode())
        check_mutant(coco_folder, naive_coco(path))
    finally: path.write_bytes(whole)


@pytest.fixture(scope="module")
def mask_folder(tmp_path_factory): return write_coco(scenes("masks"), tmp_path_factory.mktemp("coco masks") / "set")


@MUTANTS
@given(st.data())
def test_damaged_outlines_of_coco(mask_folder, data):
    path = mask_folder / "annotations" / "instances.json"
    whole = path.read_bytes()
    try:
        held = json.loads(whole)
        item = data.draw(st.sampled_from(held["annotations"]))
        polygons = {"polygon": [[1, 1, 9, 1, 9, 9], [2.5, 3, 4, 5, 6, 7]]}
        changed = json.loads(data.draw(replaced(json.dumps(data.draw(st.sampled_from([item["segmentation"], polygons]))))))
        item["segmentation"] = changed.get("polygon", changed)
        path.write_text(json.dumps(held))
        try: found = open_dataset(mask_folder, "coco", "masks", LENIENT)
        except UsageError: return
        rows = [int(Path(file).stem) for file in found.files]
        assert len(rows) + len(found.skipped) == ROWS
        masks = found.targets.read(np.arange(len(rows)))
        for mask, row in zip(masks, rows, strict=True):
            if row != item["image_id"] - 1: assert (mask == MASKS[row]).all()
    finally: path.write_bytes(whole)


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory): return write_voc(scenes(), tmp_path_factory.mktemp("voc") / "set")


def naive_voc(folder):
    def read(lenient=False):
        found = []
        for path in sorted((folder / "Annotations").iterdir()):
            try: element = ElementTree.parse(path).getroot()
            except ElementTree.ParseError:
                if lenient: continue
                raise
            for item in element.iter("object"):
                try:
                    left, top, right, bottom = (float(item.find(f"bndbox/{edge}").text) for edge in ("xmin", "ymin", "xmax", "ymax"))
                    file = (element.findtext("filename") or f"{path.stem}.png").strip().replace("\\", "/")
                    if path.stem in (Path(file).name, Path(file).stem): file = f"{path.stem}.png"
                    name, crowd = item.findtext("name").strip(), item.findtext("difficult") == "1"
                    found.append((Path(file).name, name, (left - 1, top - 1, right, bottom), crowd))
                except (AttributeError, ValueError, TypeError):
                    if not lenient: raise
        return found
    return read, "voc", "boxes"


@MUTANTS
@given(st.data())
def test_damaged_voc(voc_folder, data):
    path = voc_folder / "Annotations" / "000001.xml"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        check_mutant(voc_folder, naive_voc(voc_folder))
    finally: path.write_bytes(whole)


@pytest.fixture(scope="module")
def yolo_folder(tmp_path_factory): return write_yolo(scenes(), tmp_path_factory.mktemp("yolo") / "set")


def naive_yolo(folder):
    def read(lenient=False):
        found = []
        for path in sorted((folder / "labels").iterdir()):
            try: text = path.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError:
                if lenient: continue
                raise
            for line in text.split("\n"):
                if not line.strip(): continue
                try:
                    label, *values = [float(word) for word in line.split()]
                    if len(values) == 4: x, y, width, height = values
                    else:
                        low, high = (min(values[::2]), min(values[1::2])), (max(values[::2]), max(values[1::2]))
                        x, y, width, height = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[0] - low[0], high[1] - low[1]
                    box = tuple(SIDE * value for value in (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
                    found.append((f"{path.stem}.png", SHAPES[int(label)], box, False))
                except (ValueError, IndexError):
                    if not lenient: raise
        return found
    return read, "yolo", "boxes"


@MUTANTS
@given(st.data())
def test_damaged_yolo(yolo_folder, data):
    path = yolo_folder / "labels" / data.draw(st.sampled_from(["000000.txt", "000001.txt", "000002.txt"]))
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        check_mutant(yolo_folder, naive_yolo(yolo_folder))
    finally: path.write_bytes(whole)


@MUTANTS
@given(st.data())
def test_damaged_settings_of_yolo(yolo_folder, data):
    path = yolo_folder / "data.yaml"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(b"train: images\n" + whole)))
        try: found = open_dataset(yolo_folder, "yolo", "boxes", AS_IS)
        except UsageError: return
        numbers = [(SHAPES.index(name) if name in SHAPES else number) for number, name in enumerate(found.classes)]
        assert numbers == list(range(len(numbers)))  # a name may have changed, never its place
    finally: path.write_bytes(whole)


@pytest.fixture(scope="module")
def csv_folder(tmp_path_factory):
    folder = write_csv(scenes(), tmp_path_factory.mktemp("csv") / "set")
    os.remove(folder / "classes.txt")
    return folder


def naive_csv(path):
    def read(lenient=False):
        found = []
        for line in path.read_text(encoding="utf-8-sig").split("\n")[1:]:
            try: cells = next(csv.reader([line], strict=True), [])
            except csv.Error: cells = []
            try:
                file, *box, name = (cell.strip() for cell in cells)
                if name or any(box): found.append((Path(file).name, name, tuple(float(value) for value in box), False))
            except ValueError:
                if line.strip() and not lenient: raise
        return [item for item in found if len(item[2]) == 4]
    return read, "csv", "boxes"


@MUTANTS
@given(st.data())
def test_damaged_tables(csv_folder, data):
    path = csv_folder / "annotations.csv"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        check_mutant(csv_folder, naive_csv(path))
    finally: path.write_bytes(whole)


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory): return write_masks(scenes("masks"), tmp_path_factory.mktemp("masks") / "set")


@MUTANTS
@given(st.data())
def test_damaged_masks(pairs_folder, data):
    path = pairs_folder / "masks" / "000001.png"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged(whole)))
        found = open_dataset(pairs_folder, "masks", "masks", LENIENT)
        rows = [int(Path(file).stem) for file in found.files]
        assert (found.targets.read(np.arange(len(rows))) == MASKS[rows]).all() and len(rows) + len(found.skipped) == ROWS
    finally: path.write_bytes(whole)
