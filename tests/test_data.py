"Data sets, files of every kind, splits and loaders."

import gc
import hashlib
import io
import os
import pickle
import re
import socket
import sys
import threading
import time
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from cnnbench import data, images, shapes
from cnnbench.config import from_json, to_code, to_json
from cnnbench.core import UsageError
from cnnbench.data import (
    DATASETS, OPEN, TEST, TRAIN, VAL, ArrayImages, Batch, DataConfig, Dataset, LazyImages, Loader, ShapesConfig,
    fingerprint, load_dataset, pixel_statistics, plain_batch, split_dataset,
)
from cnnbench.images import fit_image, read_image
from cnnbench.shapes import MOTIONS, SHAPES, clip_states, draw_clip, draw_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "Each test has a cache folder of its own, and none reaches for the network."
    monkeypatch.setenv("CNNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(rows=24, columns=40):
    "A smooth colour picture, so that lossy formats keep it."
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x * 200 / columns, y * 200 / rows, 120 + 0 * x], axis=2).astype(np.uint8)


def write(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(picture() if image is None else image)).save(path, **options)
    return path


def tree(root, classes=("cat", "dog"), count=6, size=(24, 40), suffix="png"):
    "A folder with `count` distinct images in each class."
    for number, name in enumerate(classes):
        for index in range(count): write(root / name / f"{index}.{suffix}", np.roll(picture(*size), 3 * index + number, axis=1))
    return root


def numbered(count=60, classes=3, size=8):
    "A small data set in memory."
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Dataset("numbered", ArrayImages(images), np.arange(count) % classes, tuple("abc"[:classes]))


# ---- the contract, for every name in the registry and for a user's own

OWN = '''
import numpy as np
from PIL import Image
from cnnbench.data import ArrayImages, Dataset

rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (20, 16, 12, 3), dtype=np.uint8), np.arange(20) % 2

def arrays(): return images, labels
def grey_arrays(config): return images[..., 0], labels
def ours(config): return Dataset("ours", ArrayImages(images), labels, ("a", "b"))
def wrong(): return 3
def tensors():
    import torch
    return [(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 8, 8), 1)]
def floats(): return images / 255, labels
def negative(): return images, labels - 1

class Items:
    classes = ["no", "yes"]
    def __init__(self, size=99): pass
    def __len__(self): return len(images)
    def __getitem__(self, row):
        if row >= 20: raise IndexError
        return Image.fromarray(images[row]).resize((10 + row, 30)), int(labels[row])
'''


NAMED = '''
class Named(Items):
    def __init__(self, classes): self.classes = classes

class Broken(Items):
    def __getitem__(self, row):
        if row == 7: raise OSError("the disk is gone")
        return super().__getitem__(row)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_data", None)


def write_cifar(root, monkeypatch):
    "CIFAR-10 and CIFAR-100 in their on-disk format, with the checksums that torchvision wants set to those of these files."
    from torchvision import datasets

    rng = np.random.default_rng(0)
    def dump(folder, name, value):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(pickle.dumps(value))
        return hashlib.md5((root / folder / name).read_bytes()).hexdigest()
    for kind, folder, label in ((datasets.CIFAR10, "cifar-10-batches-py", "labels"), (datasets.CIFAR100, "cifar-100-python", "fine_labels")):
        count = 10 if label == "labels" else 100
        for attribute in ("train_list", "test_list"):
            entries = []
            for name, _ in getattr(kind, attribute):
                content = {"data": rng.integers(0, 256, (2 * count, 3072), dtype=np.uint8), label: list(range(count)) * 2}
                entries.append([name, dump(folder, name, content)])
            monkeypatch.setattr(kind, attribute, entries)
        meta = dict(kind.meta)
        meta["md5"] = dump(folder, meta["filename"], {meta["key"]: [f"class {number}" for number in range(count)]})
        monkeypatch.setattr(kind, "meta", meta)


def write_mnist(root, name):
    for part, count in (("train", 20), ("t10k", 10)):
        raw = root / name / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        images = np.arange(count * 784).reshape(count, 28, 28).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(np.array([2051, count, 28, 28], ">i4").tobytes() + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + (np.arange(count) % 10).astype(np.uint8).tobytes())


def write_svhn(root, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    lists = {}
    for part, count in (("train", 20), ("test", 10)):
        path = root / f"{part}_32x32.mat"
        images = np.arange(count * 3072).reshape(32, 32, 3, count).astype(np.uint8)
        savemat(path, {"X": images, "y": (np.arange(count) % 10 + 1)[:, None]})  # 10 stands for the digit 0
        lists[part] = ["http://localhost/", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)


@pytest.fixture
def named(tmp_path, monkeypatch):
    root = tmp_path / "torchvision"
    write_cifar(root, monkeypatch)
    write_mnist(root, "MNIST")
    write_mnist(root, "FashionMNIST")
    write_svhn(root, monkeypatch)
    return str(root)


EXPECTED = {
    "digits": (1797, (1, 32, 32), 10), "shapes": (30, (3, 64, 64), 5), "mnist": (30, (1, 28, 28), 10), "fashionmnist": (30, (1, 28, 28), 10),
    "cifar10": (120, (3, 32, 32), 10), "cifar100": (400, (3, 32, 32), 100), "svhn": (30, (3, 32, 32), 10),
    "own_data:arrays": (20, (3, 16, 12), 2), "own_data:grey_arrays": (20, (1, 16, 12), 2), "own_data:ours": (20, (3, 16, 12), 2),
    "own_data:Items": (20, (3, 32, 32), 2),
}


def test_every_entry_is_tested(): assert set(DATASETS) <= set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_contract(name, named, own):
    config = DataConfig(name=name, root=named, download=False, shapes=ShapesConfig(count=30))
    dataset = load_dataset(config)
    rows, shape, classes = EXPECTED[name]
    assert (len(dataset), dataset.shape, len(dataset.classes)) == (rows, shape, classes)
    assert dataset.targets.dtype == np.int64 and set(dataset.targets.tolist()) == set(range(classes))
    assert all(isinstance(word, str) for word in dataset.classes)
    images = dataset.images.read(np.array([3, 0, 3]))
    assert images.dtype == np.uint8 and images.shape == (3, *shape[1:], shape[0]) and images.flags.c_contiguous
    assert np.array_equal(images[0], images[2])
    kept = images.copy()
    images[:] = 0  # the caller may write to what it got
    assert np.array_equal(dataset.images.read(np.array([3, 0, 3])), kept)
    assert fingerprint(dataset) == fingerprint(load_dataset(config))
    split = split_dataset(dataset, 0.1, 0.2, seed=0)
    assert np.array_equal(np.sort(np.concatenate([split.train, split.val, split.test])), np.arange(rows))
    for part in (split.train, split.val, split.test): assert len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all()
    statistics = pixel_statistics(dataset, split.train)
    assert len(statistics.mean) == len(statistics.std) == shape[0] and all(0 < value < 255 for value in statistics.mean + statistics.std)
    batch = next(Loader(dataset, split.train, 4, seed=0)(0))
    assert batch.images.shape == (4, *shape) and batch.images.dtype == torch.uint8 and batch.targets.dtype == batch.rows.dtype == torch.int64
    assert batch.targets.tolist() == dataset.targets[batch.rows.numpy()].tolist()
    for settings_ in ({"size": 16}, {"size": 16, "channels": "grey"}, {"channels": "colour"}):
        if name == "own_data:ours": continue  # a Dataset of the user's own is taken as it is
        other = load_dataset(replace(config, **settings_)).shape
        assert other[0] == {"grey": 1, "colour": 3}.get(settings_.get("channels"), shape[0])
        assert other[1:] == ((16, 16) if "size" in settings_ else shape[1:])


@pytest.mark.parametrize("name, words", {
    "own_data:wrong": "gives a int", "own_data:tensors": "not a tensor", "own_data:floats": "give uint8",
    "own_data:negative": "a whole number for each", "own_data:aray": "Did you mean", "no_such_module_at_all:x": "no module",
    "digts": "Did you mean digits?",
}.items())
def test_wrong_names_and_own_data(name, words, own):
    with pytest.raises(UsageError, match=words.replace("?", r"\?")): load_dataset(DataConfig(name=name))


def test_torchvision_parts_are_kept(named):
    dataset = load_dataset(DataConfig(name="cifar10", root=named, download=False))
    split = split_dataset(dataset, 0.1, 0.2, seed=0)
    assert split.test.tolist() == list(range(100, 120)) and len(split.val) == 10
    assert dataset.classes[0] == "class 0"


def test_svhn_labels_and_layout(named):
    dataset = load_dataset(DataConfig(name="svhn", root=named, download=False))
    assert dataset.targets[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.array_equal(dataset.images.read([2])[0], np.arange(20 * 3072).reshape(32, 32, 3, 20).astype(np.uint8)[..., 2])


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn", "fashionmnist"])
def test_missing_offline(name, tmp_path, monkeypatch, capfd):
    def no_network(*_, **__): raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    root = tmp_path / "root"
    with pytest.raises(UsageError) as refused: load_dataset(DataConfig(name=name, root=str(root)))
    words = str(refused.value)
    assert "cannot be downloaded" in words and data.NAMED_SETS[name].files in words and str(root) in words and "Name or service" in words
    assert not root.exists()
    out, err = capfd.readouterr()
    assert not out + err
    with pytest.raises(UsageError, match="switched off"): load_dataset(DataConfig(name=name, root=str(root), download=False))


def test_download_broken_off_leaves_nothing(tmp_path, monkeypatch):
    from torchvision import datasets

    class Answer:
        def close(self): pass

    def cut(self):
        os.makedirs(self.root, exist_ok=True)
        open(os.path.join(self.root, "cifar-10-python.tar.gz"), "w").write("half")
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(data.urllib.request, "urlopen", lambda *_, **__: Answer())
    monkeypatch.setattr(datasets.CIFAR10, "download", cut)
    with pytest.raises(UsageError, match="cannot be downloaded"): load_dataset(DataConfig(name="cifar10", root=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_download_arrives(tmp_path, monkeypatch):
    from torchvision import datasets

    write_cifar(tmp_path / "there", monkeypatch)

    class Answer:
        def close(self): pass

    def fetch(self):
        import shutil
        shutil.copytree(tmp_path / "there" / "cifar-10-batches-py", os.path.join(self.root, "cifar-10-batches-py"), dirs_exist_ok=True)

    monkeypatch.setattr(data.urllib.request, "urlopen", lambda *_, **__: Answer())
    monkeypatch.setattr(datasets.CIFAR10, "download", fetch)
    assert len(load_dataset(DataConfig(name="cifar10", root=str(tmp_path / "here")))) == 120
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["cifar-10-batches-py"]


def test_config():
    config = DataConfig(name="a folder", size=64, shapes=ShapesConfig(count=11))
    assert from_json(DataConfig, to_json(config)) == config and eval(to_code(config)) == config
    for wrong, words in (({"size": 4}, "between 8 and 4096"), ({"fit": "squash"}, "crop"), ({"val": 0.5, "test": 0.5}, "nothing to train on")):
        with pytest.raises(UsageError, match=words): DataConfig(**wrong)


# ---- files

def close(image, wanted, most=6.0): return image.shape == wanted.shape and abs(image.astype(int) - wanted).mean() < most


@pytest.mark.parametrize("suffix, options", [
    ("jpg", {"quality": 95}), ("png", {}), ("bmp", {}), ("gif", {}), ("webp", {"lossless": True}), ("tif", {}),
    ("tif", {"compression": "tiff_lzw"}), ("ppm", {}),
])
def test_formats(suffix, options, tmp_path):
    path = write(tmp_path / f"image.{suffix}", **options)
    assert close(read_image(path, 3), picture(), 8 if suffix == "gif" else 2)
    grey = read_image(path, 1)
    assert grey.shape == (24, 40, 1) and close(grey[..., 0], cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY), 8)
    kind, name = ("PNG", "image.jpg") if suffix == "png" else ("JPEG", "image.png")
    lying = write(tmp_path / name, format=kind)
    assert close(read_image(lying, 3), picture())  # the content decides, not the name


@pytest.mark.parametrize("suffix, mode", [
    ("png", "1"), ("png", "L"), ("png", "LA"), ("png", "P"), ("png", "RGB"), ("png", "RGBA"), ("jpg", "L"), ("jpg", "CMYK"),
    ("tif", "CMYK"), ("tif", "1"), ("tif", "LAB"), ("tif", "RGBA"), ("webp", "RGBA"), ("tif", "YCbCr"), ("jpg", "YCbCr"),
])
def test_modes(suffix, mode, tmp_path):
    image = Image.fromarray(picture())
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        made = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    else: made = image.quantize(64) if mode == "P" else image.convert(mode)
    path = write(tmp_path / f"image.{suffix}", made, **({"lossless": True} if suffix == "webp" else {}))
    wanted = np.asarray(image.convert("L").convert("RGB")) if mode in ("1", "L", "LA") else picture()
    read = read_image(path, 3)
    if mode == "1": assert set(np.unique(read)) == {0, 255} and abs(read.mean() - wanted.mean()) < 12
    else: assert close(read, wanted, 12 if mode in ("P", "LAB") else 6)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L key", "RGB key"])
def test_transparency_lies_on_white(kind, tmp_path):
    array = np.full((4, 4), 10, np.uint8)
    path = tmp_path / "image.png"
    if kind == "RGBA": Image.fromarray(np.dstack([array] * 3 + [np.array([[0, 255]] * 8, np.uint8).reshape(4, 4)])).save(path)
    elif kind == "LA": Image.fromarray(np.dstack([array, np.array([[0, 255]] * 8, np.uint8).reshape(4, 4)]), "LA").save(path)
    elif kind == "P":
        image = Image.fromarray(np.array([[0, 1]] * 8, np.uint8).reshape(4, 4), "P")
        image.putpalette([77, 77, 77, 10, 10, 10])
        image.save(path, transparency=0)
    elif kind == "L key": Image.fromarray(np.where(np.arange(16).reshape(4, 4) % 2, array, 77).astype(np.uint8)).save(path, transparency=77)
    else: Image.fromarray(np.dstack([np.where(np.arange(16).reshape(4, 4) % 2, 10, 77).astype(np.uint8)] * 3)).save(path, transparency=(77,) * 3)
    wanted = np.where(np.arange(16).reshape(4, 4) % 2, 10, 255)
    for channels in (1, 3): assert np.array_equal(read_image(path, channels), np.dstack([wanted] * channels))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif(suffix, turn, tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    path = write(tmp_path / f"image.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    with Image.open(path) as image: wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert wanted.shape[0] == (40 if turn > 4 else 24) and close(read_image(path, 3), wanted, 3)
    header = data.read_header(path)
    assert (header.height, header.width) == wanted.shape[:2]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_harms_nobody(suffix, tmp_path):
    path = write(tmp_path / f"image.{suffix}", exif=b"Exif\0\0II*\0nonsense" * 3)
    assert close(read_image(path), picture(), 12)


def deep(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


@pytest.mark.parametrize("suffix, colour", [("png", True), ("png", False), ("tif", True), ("tif", False), ("ppm", True), ("pgm", False)])
def test_deep_files(suffix, colour, tmp_path):
    values = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 4
    array = np.dstack([values, values // 2, values // 4]) if colour else values  # BGR
    path = deep(tmp_path / f"image.{suffix}", array)
    read = read_image(path, 3, depth=12)
    assert np.array_equal(read, (array[..., ::-1] if colour else np.dstack([array] * 3)) >> 4)
    assert np.array_equal(read_image(path, 3), read >> 4)  # the full range where nothing is known of a data set


def test_one_depth_for_the_whole_set(tmp_path):
    for name, top in (("a", 4000), ("b", 300)):
        for index in range(2): deep(tmp_path / name / f"{index}.png", np.full((32, 32), top - index, np.uint16))
    write(tmp_path / "b" / "plain.png", np.full((32, 32), 200, np.uint8))
    dataset = load_dataset(DataConfig(name=str(tmp_path)))
    assert dataset.depth == 12 and dataset.shape[0] == 1
    tops = dict(zip(dataset.files, dataset.images.read(np.arange(5)).max(axis=(1, 2, 3)).tolist(), strict=True))
    assert tops == {"a/0.png": 250, "a/1.png": 249, "b/0.png": 18, "b/1.png": 18, "b/plain.png": 200}
    assert read_image(tmp_path / "b" / "0.png", 1, dataset.depth).max() == 18


def test_floats(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for scale in (1, 255):
        path = write(tmp_path / "image.tif", Image.fromarray(ramp * scale))
        assert np.array_equal(read_image(path, 1)[..., 0], np.arange(256).reshape(16, 16))
    bad = ramp.copy()
    bad[0, 0] = np.nan
    assert read_image(write(tmp_path / "nan.tif", Image.fromarray(bad)), 1)[0, 0, 0] == 0


def test_first_frame_of_a_gif(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (30, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif", 1).max() == 30


def bomb(width=30_000, height=30_000):
    "A PNG of a few hundred bytes that says it is huge."
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = np.array([width, height], ">u4").tobytes()
    import zlib
    content[29:33] = np.array([zlib.crc32(bytes(content[12:29]))], ">u4").tobytes()
    return bytes(content)


def bad_files(root):
    content = write(root / "good.jpg").read_bytes()
    small = write(root / "good.png").read_bytes()
    others = {suffix: write(root / f"good.{suffix}").read_bytes() for suffix in ("bmp", "tif", "webp")}
    for path in root.glob("good.*"): path.unlink()
    return {
        "zero.jpg": (b"", "the file is empty"), "text.jpg": (b"no image at all", "no image"), "cut.jpg": (content[: len(content) // 2], "damaged"),
        "cut.png": (small[: len(small) // 2], "damaged"), "head.jpg": (content[:30], ""), "bomb.png": (bomb(), "limit of 50 megapixels"),
        "large.png": (bomb(8_000, 8_000), "limit of 50 megapixels"), "warned.png": (bomb(11_000, 10_000), "limit"),
        "noise.tif": (bytes(range(200)), "no image"),
        **{f"cut.{name}": (held[: len(held) // 2], "damaged|no image") for name, held in others.items()},
    }


def test_bad_files_alone(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (content, words) in bad_files(tmp_path).items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UsageError, match=words) as refused: read_image(tmp_path / name)
            assert str(tmp_path / name) in str(refused.value)
        with pytest.raises(UsageError, match="No such file"): read_image(tmp_path / "missing.png")
        with pytest.raises(UsageError, match="limit of 0.01"): read_image(write(tmp_path / "image.png", np.zeros((200, 200), np.uint8)), largest=0.01)


@pytest.mark.parametrize("where", [{}, {"memory": 0}, {"memory": 0, "disk": 0}])
def test_bad_files_are_skipped_and_named(where, tmp_path):
    root, bad = tree(tmp_path / "root", count=10), bad_files(tmp_path)
    for name, (content, _) in bad.items(): (root / "cat" / name).write_bytes(content)
    config = DataConfig(name=str(root), bad_share=0.5, **where)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is to be said about files that are skipped anyway
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision's, about its decoders
        for _ in range(2):  # the second time from the cache
            dataset = load_dataset(config)
            assert len(dataset) == 20 and {file for file, _ in dataset.skipped} == {f"cat/{name}" for name in bad}
            for file, why in dataset.skipped: assert re.search(bad[file.removeprefix("cat/")][1], why)
            wanted = [read_image(root / file) for file in dataset.files]
            assert np.array_equal(dataset.images.read(np.arange(20)), np.stack(wanted))
    with pytest.raises(UsageError, match="of 32 images") as refused: load_dataset(replace(config, bad_share=0.2))
    assert "cat/" in str(refused.value) and "bad_share" in str(refused.value)


def test_all_files_bad(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"text")
    with pytest.raises(UsageError, match="2 of 2 images"): load_dataset(DataConfig(name=str(tmp_path), bad_share=1))


# ---- folders

def test_folder_layouts(tmp_path):
    plain = tree(tmp_path / "plain")
    write(plain / "cat" / "deeper" / "still" / "x.PNG")
    write(plain / "cat" / ".hidden.png")
    write(plain / ".git" / "x.png")
    (plain / "dog" / "notes.txt").write_text("not an image, and not counted as a broken one")
    dataset = load_dataset(DataConfig(name=str(plain)))
    assert dataset.classes == ("cat", "dog") and len(dataset) == 13
    assert "cat/deeper/still/x.PNG" in dataset.files and list(dataset.files) == sorted(dataset.files)
    assert dataset.parts is None and dataset.skipped == () and dataset.geometry is None and dataset.shape == (3, 24, 40)

    parted = tmp_path / "parted"
    for name, count in (("train", 8), ("Validation", 3), ("test", 4)): tree(parted / name, count=count)
    dataset = load_dataset(DataConfig(name=str(parted)))
    assert np.bincount(dataset.parts).tolist() == [16, 6, 8]
    split = split_dataset(dataset, 0.1, 0.2, seed=0)
    for rows, place in ((split.train, TRAIN), (split.val, VAL), (split.test, TEST)): assert (dataset.parts[rows] == place).all() and len(rows)

    half = tmp_path / "half"
    for name, count in (("train", 8), ("test", 4)): tree(half / name, count=count)
    dataset = load_dataset(DataConfig(name=str(half)))
    split = split_dataset(dataset, 0.25, 0.2, seed=0)
    assert (dataset.parts[split.test] == TEST).all() and len(split.test) == 8 and 0 < len(split.val) < 8
    assert set(dataset.targets[split.val]) == {0, 1}


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tree(tmp_path / "root")
    elsewhere = write(tmp_path / "elsewhere" / "x.png").parent
    (root / "cat" / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root / "cat")
    files = load_dataset(DataConfig(name=str(root))).files
    assert "cat/link/x.png" in files and len(files) < 30


def test_folder_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def refuses(words, name, **other):
        with pytest.raises(UsageError, match=words): load_dataset(DataConfig(name=str(name), **other))
    tree(tmp_path / "animals")
    refuses("Did you mean .*animals", tmp_path / "animal")
    refuses("Did you mean animals", "animls")
    refuses("is a file", write(tmp_path / "one.png"))
    (tmp_path / "empty").mkdir()
    refuses("There are no images in sub-folders", tmp_path / "empty")
    write(tmp_path / "loose" / "x.png")
    refuses("move each class's into one of its own", tmp_path / "loose")
    refuses("one class only, cat", tree(tmp_path / "single", classes=("cat",)))
    tree(tmp_path / "extra" / "train")
    tree(tmp_path / "extra" / "test", classes=("cat", "dog", "emu"))
    refuses("emu has images in test but none in train", tmp_path / "extra")
    write(tree(tmp_path / "few") / "emu" / "x.png")
    few = load_dataset(DataConfig(name=str(tmp_path / "few")))
    with pytest.raises(UsageError, match="Class emu has one image only"): split_dataset(few, 0.1, 0.2, 0)
    assert len(split_dataset(few, 0.1, 0, 0).test) == 0  # nothing to hold out: one is enough


def test_folder_named_like_a_part(tmp_path):
    tree(tmp_path, classes=("test", "other"))  # no train beside it: a class
    assert load_dataset(DataConfig(name=str(tmp_path))).classes == ("other", "test")


@pytest.mark.parametrize("classes", [
    ("bus", "car", "train"), ("car", "train"), ("bullet_train", "car", "test_tube", "tram", "van"),
    ("Tom Cruise", "Val Kilmer"), ("contest", "strain"),
])
def test_classes_with_a_part_in_their_names(classes, tmp_path):
    tree(tmp_path, classes=classes)
    dataset = load_dataset(DataConfig(name=str(tmp_path)))
    assert dataset.classes == classes and dataset.parts is None and len(dataset) == 6 * len(classes)


@pytest.mark.parametrize("names", [
    ("training_set", "dev_set", "test_set"), ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"), ("Training", "Validation", "Testing"),
    ("train_images", "valid_images", "test_images"), ("Train", "Eval", "Test"), ("trn", "dev", "testset"), ("trainImages", "valImages", "testImages"),
    ("train2017", "val2017", "test2017"), ("train/Train", "val", "test"),
])
def test_parts_by_other_names(names, tmp_path):
    for name, count in zip(names, (8, 3, 4), strict=True): tree(tmp_path / name, count=count)
    (tmp_path / "labels").mkdir()
    write(tmp_path / "__MACOSX" / "._x.png")  # neither holds an image
    write(tmp_path / names[0] / "overview.png")  # loose beside the classes
    dataset = load_dataset(DataConfig(name=str(tmp_path)))
    assert dataset.classes == ("cat", "dog") and np.bincount(dataset.parts).tolist() == [16, 6, 8]
    for file, target in zip(dataset.files, dataset.targets, strict=True): assert file.split("/")[-2] == dataset.classes[target]


def test_parts_that_are_not_clear(tmp_path):
    def refuses(words, *folders):
        root = tmp_path / "-".join(folders).replace("/", "_")
        for folder in folders: write(root / folder / "x.png")
        with pytest.raises(UsageError, match=words): load_dataset(DataConfig(name=str(root)))
    refuses("the parts of the data would be test, train, but seg_pred beside holds images", "train/cat", "train/dog", "test/cat", "seg_pred")
    refuses("the parts of the data would be train, but more beside", "train/cat", "train/dog", "more/cat")
    refuses("the parts of the data would be test, but trainval beside", "trainval/cat", "trainval/dog", "test/cat")
    refuses("the parts of the data would be test_images, train_images, but sample beside", "train_images", "test_images", "sample")
    refuses("holds test, val: nothing is there to train on", "val/cat", "test/cat")
    refuses("holds test_negative, test_positive: nothing is there to train on", "test_negative", "test_positive")
    refuses("test, by name a part of the data, holds images, but not in sub-folders", "train/cat", "train/dog", "test")
    refuses("train_images, by name a part of the data, holds images, but not in sub-folders", "train_images", "test_images")


def test_links_to_a_folder_above_add_nothing(tmp_path):
    root = tree(tmp_path / "root", classes=("a", "b"))
    for name, target in (("up", ".."), ("further", "../..")): (root / "a" / name).symlink_to(target)
    dataset = load_dataset(DataConfig(name=str(root)))
    assert len(dataset) == 12 and dataset.targets.tolist() == [0] * 6 + [1] * 6
    (tmp_path / "linked").symlink_to(root)
    assert len(load_dataset(DataConfig(name=str(tmp_path / "linked")))) == 12


def test_deep_tiffs(tmp_path):
    "Whole numbers of 32 bits keep what they say, by one rule for all files; values that would be cut off are refused."
    ramp = np.arange(24 * 24, dtype=np.int32).reshape(24, 24)
    values = {"a/0": ramp, "a/1": ramp + 100, "b/0": ramp * 2, "b/1": ramp * 3}
    for name, array in values.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / f"{name}.tif")
    dataset = load_dataset(DataConfig(name=str(tmp_path)))
    assert dataset.depth == 11 and dataset.shape == (1, 24, 24)
    assert np.array_equal(dataset.images.read(np.arange(4))[..., 0], np.stack([*values.values()]) >> 3)
    for array, words in (
        (ramp * 999, "go from 0 to 574425, and whole numbers from 0 to 65535"), (ramp - 9, "go from -9 to 566"),
        (np.float32(ramp) * 3, "go from 0 to 1725, and floats from 0 to 1 or from 0 to 255"), (np.float32(ramp) / 9 - 7, "go from -7 to"),
    ):
        Image.fromarray(array).save(tmp_path / "a" / "0.tif")
        with pytest.raises(UsageError, match=words): load_dataset(DataConfig(name=str(tmp_path)))
    for array, wanted in ((ramp / 575, np.round(ramp / 575 * 255)), (ramp / 3, np.round(ramp / 3))):
        Image.fromarray(np.float32(array)).save(tmp_path / "float.tif")
        assert np.abs(read_image(tmp_path / "float.tif", 1)[..., 0] - wanted).max() <= 1
    Image.fromarray(ramp.astype(np.int16)).save(tmp_path / "signed.tif")
    assert np.array_equal(read_image(tmp_path / "signed.tif", 1, depth=10)[..., 0], ramp >> 2)


@pytest.mark.parametrize("items, words", [
    ('[{"image": images[0], "label": 0}] * 4', r"item 0 cannot be taken: it is a mapping: give \(image, target\)"),
    ("[(images[0], 0), 3]", r"item 1 cannot be taken: it is a int: give \(image, target\)"),
    ("[(image.transpose(2, 0, 1), 0) for image in images]", r"item 0 cannot be taken: its image is uint8 \(3, 16, 12\): give \(height"),
    ("[(images[0], 0), (images, 1)]", r"item 1 cannot be taken: its image is uint8 \(20, 16, 12, 3\)"),
    ("([image[: row + 3] for row, image in enumerate(images)], labels)", r"a pair, but not of images and labels .* as a list of \(image, label\)"),
    ("((Image.fromarray(images[0]), 0), (Image.fromarray(images[1]), 1))", r"a pair, but not of images and labels"),
    ("(3, labels)", "labels are int64"), ("Broken()", "own_data:made: item 7 cannot be taken: the disk is gone"),
    ("Named({'cat': 'x', 'dog': 'y'})", "not of names to the numbers from 0 to 1"),
])
def test_own_items_that_are_none(items, words, own, tmp_path):
    (tmp_path / "own_data.py").write_text(OWN + NAMED + f"\ndef made(): return {items}\n")
    with pytest.raises(UsageError, match=words): load_dataset(DataConfig(name="own_data:made"))


@pytest.mark.parametrize("classes", ['{"cat": 1, "dog": 0}', '{1: "cat", 0: "dog"}', '["dog", "cat"]', '{"dog": np.int64(0), "cat": np.int64(1)}'])
def test_own_classes_go_by_their_numbers(classes, own, tmp_path):
    (tmp_path / "own_data.py").write_text(OWN + NAMED + f"\ndef made(): return Named({classes})\n")
    assert load_dataset(DataConfig(name="own_data:made")).classes == ("dog", "cat")


def test_channels(tmp_path):
    root = tree(tmp_path / "root")
    for path in root.rglob("*.png"): Image.open(path).convert("L").save(path)
    for channels, wanted in (("auto", 1), ("colour", 3), ("grey", 1)):
        assert load_dataset(DataConfig(name=str(root), channels=channels)).shape[0] == wanted
    write(root / "cat" / "palette.gif", Image.fromarray(picture()).convert("L"), )  # a palette of greys is grey
    assert load_dataset(DataConfig(name=str(root))).shape[0] == 1
    write(root / "cat" / "colour.png")
    assert load_dataset(DataConfig(name=str(root))).shape[0] == 3


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_sizes_and_geometry(fit, tmp_path):
    root = tree(tmp_path / "root", size=(100, 160))
    tree(root, classes=("emu",), size=(90, 90))
    dataset = load_dataset(DataConfig(name=str(root), fit=fit))
    assert dataset.shape == (3, 96, 96) and dataset.geometry.shape == (18, 3, 3) and dataset.geometry.dtype == np.float32
    row = dataset.files.index("cat/0.png")
    original, image = read_image(root / "cat" / "0.png"), dataset.images.read([row])[0]
    for x, y in ((48, 48), (30, 40), (70, 60)):
        across, down, _ = dataset.geometry[row] @ (x, y, 1)
        assert abs(image[y, x].astype(int) - original[round(down), round(across)]).max() <= 4
    batch = plain_batch(dataset)(np.array([row]), 0)
    assert torch.equal(batch.geometry[0], torch.from_numpy(dataset.geometry[row]))
    assert load_dataset(DataConfig(name=str(root), size=40)).shape == (3, 40, 40)


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 70)] * 2, *[st.integers(8, 40)] * 2, st.sampled_from(["crop", "pad", "stretch"]), st.sampled_from([1, 3]))
def test_fit_image(rows, columns, height, width, fit, channels):
    image, matrix = fit_image(np.full((rows, columns, channels), 77, np.uint8), (height, width), fit)
    assert image.shape == (height, width, channels) and image.dtype == np.uint8 and image.flags.c_contiguous and matrix.dtype == np.float32
    if fit != "pad": assert (image == 77).all()
    else: assert set(np.unique(image)) <= {77, images.PADDING} and (image == 77).any()
    left, top, _ = matrix @ (-0.5, -0.5, 1)
    right, bottom, _ = matrix @ (width - 0.5, height - 0.5, 1)
    if fit == "crop": assert left >= -0.51 and top >= -0.51 and right <= columns - 0.49 and bottom <= rows - 0.49
    if fit == "stretch": np.testing.assert_allclose((left, top, right, bottom), (-0.5, -0.5, columns - 0.5, rows - 0.5), atol=1e-3)
    if fit == "pad": assert left <= -0.49 and top <= -0.49 and right >= columns - 0.51 and bottom >= rows - 0.51


def test_shrinking_is_antialiased():
    stripes = np.zeros((256, 256, 1), np.uint8)
    stripes[:, ::2] = 255
    image, _ = fit_image(stripes, (32, 32), "stretch")
    assert image.min() >= 127 and image.max() <= 128


# ---- where pixels are held

def test_memory_file_and_on_the_fly_are_equal(tmp_path):
    root = tree(tmp_path / "root", size=(50, 70))
    write(root / "cat" / "wide.png", picture(40, 90))
    (root / "dog" / "cut.png").write_bytes(write(tmp_path / "whole.png").read_bytes()[:150])
    kinds, held = [], []
    for where in ({}, {"memory": 0}, {"memory": 0}, {"memory": 0, "disk": 0}):
        dataset = load_dataset(DataConfig(name=str(root), bad_share=0.2, **where))
        kinds.append((type(dataset.images), isinstance(getattr(dataset.images, "array", np.zeros(0)).base, np.memmap)))
        held.append((dataset.images.read(np.arange(len(dataset))), dataset.files, dataset.skipped, fingerprint(dataset)))
    assert kinds[0][0] is ArrayImages and kinds[1] == kinds[2] == (ArrayImages, True)
    for pixels, files, skipped, mark in held:
        assert np.array_equal(pixels, held[0][0]) and (files, skipped, mark) == held[0][1:]


def test_cache_is_reused_and_renewed(tmp_path, monkeypatch):
    root = tree(tmp_path / "root")
    config, decode, calls = DataConfig(name=str(root), memory=0), data.decode_file, []
    monkeypatch.setattr(data, "decode_file", lambda *given: calls.append(given) or decode(*given))
    first = load_dataset(config)
    made = len(calls)
    load_dataset(config)
    assert made == 12 and len(calls) == 12
    write(root / "cat" / "0.png", np.zeros((24, 40, 3), np.uint8))
    os.utime(root / "cat" / "0.png", (1, 1))
    changed = load_dataset(config)
    assert len(calls) == 24 and changed.images.read([0]).max() == 0 and first.images.read([0]).max() > 0
    load_dataset(replace(config, size=16))
    assert len(calls) == 36


def test_cache_budget(tmp_path, monkeypatch):
    root = tree(tmp_path / "root")  # 12 images of 2,880 bytes
    folder = data.cache_folder() / "images"
    for size in (0, 24, 0):
        load_dataset(DataConfig(name=str(root), memory=0, disk=50e-6, size=size))
        assert sum(path.stat().st_size for path in folder.glob("*.npy")) <= 50_000
    assert len(list(folder.glob("*.npy"))) == 1
    assert not list(folder.glob(".*"))
    full = type("usage", (), {"free": 1000})
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: full)
    dataset = load_dataset(DataConfig(name=str(root), memory=0, size=32))  # no room: decoded each time
    assert isinstance(dataset.images, LazyImages)


def test_cache_folder_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNBENCH_CACHE", str(write(tmp_path / "file.png")))
    with pytest.raises(UsageError, match="CNNBENCH_CACHE"): load_dataset(DataConfig(name=str(tree(tmp_path / "root")), memory=0))


def test_cache_cut_off(tmp_path, monkeypatch):
    root = tree(tmp_path / "root")
    config, make = DataConfig(name=str(root), memory=0), data.make_all
    def stop(*given): raise KeyboardInterrupt
    monkeypatch.setattr(data, "make_all", stop)
    with pytest.raises(KeyboardInterrupt): load_dataset(config)
    assert not list((data.cache_folder() / "images").iterdir())
    monkeypatch.setattr(data, "make_all", make)
    assert len(load_dataset(config)) == 12


# ---- drawn data

def test_shapes_are_a_function_of_seed_and_row():
    for size in (16, 48, 128):
        scenes = {seed: draw_shapes(seed, 5, size) for seed in (0, 1)}
        again = draw_shapes(0, 5, size)
        for name in ("image", "labels", "boxes", "mask"): assert np.array_equal(getattr(scenes[0], name), getattr(again, name))
        assert not np.array_equal(scenes[0].image, scenes[1].image) and not np.array_equal(again.image, draw_shapes(0, 6, size).image)
    with pytest.raises(UsageError, match="at least 16"): draw_shapes(0, 0, 8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 100_000), st.sampled_from([32, 64, 128]))
def test_scenes(seed, row, size):
    scene = draw_shapes(seed, row, size)
    assert scene.image.shape == (size, size, 3) and scene.image.dtype == scene.mask.dtype == np.uint8 and scene.boxes.dtype == np.float32
    assert 1 <= len(scene.labels) == len(scene.boxes) <= 5 and set(np.unique(scene.mask)) - {0} == set((scene.labels + 1).tolist())
    assert (scene.boxes[:, :2] >= 0).all() and (scene.boxes[:, 2:] <= size).all() and (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
    covered = np.zeros((size, size), bool)
    for label, (left, top, right, bottom) in zip(scene.labels, scene.boxes.astype(int), strict=True):
        part = scene.mask[top:bottom, left:right] == label + 1
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()  # the box is tight about what is visible
        assert max(bottom - top, right - left) <= size / 2 + 3
        covered[top:bottom, left:right] = True
    assert not (scene.mask[~covered]).any()


def test_scene_of_one_object():
    for row in range(20):
        scene = draw_shapes(0, row, 128, objects=(1, 1))
        assert scene.labels.tolist() == data.scene_kinds(0, row, (1, 1)).tolist()
        inside = scene.image[scene.mask > 0].mean(axis=0)
        assert 12 <= max(scene.boxes[0, 2:] - scene.boxes[0, :2]) + 4 and np.isfinite(inside).all()
    assert {SHAPES[draw_shapes(0, row, 32, (1, 1)).labels[0]] for row in range(60)} == set(SHAPES)


def test_hidden_share(monkeypatch):
    "What is seen of an object is at least 60 % of something that was drawn."
    cover, drawn, fewest = shapes.cover, [], 1.0
    def spy(contours, size):
        window, covered = cover(contours, size)
        whole = np.zeros((size, size), bool)
        whole[window] = covered >= 0.5
        drawn.append(whole)
        return window, covered
    monkeypatch.setattr(shapes, "cover", spy)
    for row in range(25):
        drawn.clear()
        scene = draw_shapes(3, row, 96, objects=(5, 5))
        for label in np.unique(scene.labels):
            if (scene.labels == label).sum() > 1: continue  # two of a kind cannot be told apart in the mask
            seen = scene.mask == label + 1
            share = max(seen.sum() / whole.sum() for whole in drawn if not (seen & ~whole).any())
            assert share >= 0.6
            fewest = min(fewest, share)
    assert fewest < 0.95  # some are hidden in part


def test_clips():
    clip, motion = draw_clip(0, 0, 32, 6)
    assert clip.shape == (6, 32, 32, 3) and clip.dtype == np.uint8 and 0 <= motion < 8 == len(MOTIONS)
    again, same = draw_clip(0, 0, 32, 6)
    assert np.array_equal(clip, again) and motion == same
    for row in range(40):
        states, motion = clip_states(0, row, 6)
        steps = (np.diff(states, axis=0) + 0.5) % 1 - 0.5
        moving = np.abs(steps).max(axis=0) > 1e-9
        axis = {"left": 0, "right": 0, "up": 1, "down": 1, "growing": 2, "shrinking": 2, "turning": 3}.get(MOTIONS[motion])
        assert moving.tolist() == [axis == number for number in range(4)]
        sign = {"left": -1, "up": -1, "shrinking": -1, "right": 1, "down": 1, "growing": 1}.get(MOTIONS[motion])
        if sign: assert (np.sign(steps[:, axis]) == sign).all()


def test_no_frame_tells_the_motion():
    "In each frame the object's state is spread evenly over its range, whatever the motion (Kolmogorov-Smirnov)."
    from scipy.stats import kstest

    clips = [clip_states(7, row, 8) for row in range(3000)]
    worst = [kstest([state[frame, axis] for state, moves in clips if moves == motion], "uniform").pvalue
             for motion in range(8) for frame in (0, 3, 7) for axis in range(4)]
    assert min(worst) > 1e-4 and np.mean(worst) > 0.3


# ---- splits

def filed(files, targets, classes=2):
    images = ArrayImages(np.zeros((len(files), 2, 2, 1), np.uint8))
    return Dataset("filed", images, np.asarray(targets), tuple("abcdef"[:classes]), files=tuple(files))


@settings(max_examples=20, deadline=None)
@given(st.integers(160, 240), st.integers(1, 60), st.integers(0, 1000), st.randoms())
def test_more_files_move_nobody(count, more, seed, random):
    names = [f"{'ab'[index % 2]}/{index}.png" for index in range(count + more)]
    few = filed(names[:count], [index % 2 for index in range(count)])
    places = list(enumerate(names))
    random.shuffle(places)  # rows come in another order too
    many = filed([name for _, name in places], [index % 2 for index, _ in places])
    def where(dataset):
        split = split_dataset(dataset, 0.3, 0.3, seed)
        return {dataset.files[row]: part for part in ("train", "val", "test") for row in getattr(split, part)}
    later = where(many)
    assert all(later[name] == part for name, part in where(few).items())


def test_shares_and_seeds():
    dataset = filed([f"{'ab'[index % 2]}/{index}.png" for index in range(4000)], np.arange(4000) % 2)
    split, other = split_dataset(dataset, 0.1, 0.2, 0), split_dataset(dataset, 0.1, 0.2, 1)
    for rows, share in ((split.val, 0.1), (split.test, 0.2)):
        for target in (0, 1): assert abs((dataset.targets[rows] == target).sum() / 2000 - share) < 0.03
    assert not np.array_equal(split.test, other.test)
    assert len(split_dataset(dataset, 0, 0, 0).train) == 4000


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 9), st.integers(0, 500), st.booleans(), st.floats(0, 0.45), st.floats(0, 0.45))
def test_small_classes_have_something_everywhere(count, seed, with_files, val, test):
    names = tuple(f"a/{index}" for index in range(count)) if with_files else ()
    dataset = replace(filed([f"a/{index}" for index in range(count)], np.zeros(count, np.int64), 1), files=names)
    split = split_dataset(dataset, val, test, seed)
    assert len(split.train) + len(split.val) + len(split.test) == count
    assert len(split.train) >= 1 and (len(split.test) >= 1) == (test > 0)
    if val and count > 2: assert len(split.val) >= 1
    if not val: assert len(split.val) == 0


def test_numbered_rows_are_split_exactly():
    dataset = numbered(90)
    split = split_dataset(dataset, 0.1, 0.2, 3)
    for rows, wanted in ((split.train, 21), (split.val, 3), (split.test, 6)): assert np.bincount(dataset.targets[rows]).tolist() == [wanted] * 3
    assert np.array_equal(split.test, split_dataset(dataset, 0.1, 0.2, 3).test)


def test_open_rows_beside_parts():
    parts = np.array([TRAIN, TEST, OPEN] * 20, np.uint8)
    dataset = replace(numbered(60, classes=2), parts=parts)
    split = split_dataset(dataset, 0.1, 0.2, 0)
    assert np.array_equal(split.test, np.flatnonzero(parts == TEST)) and len(split.val) == 4
    with pytest.raises(UsageError, match="nothing to train on"): split_dataset(dataset, 0.5, 0.5, 0)


# ---- statistics and fingerprint

def test_statistics():
    dataset = numbered(50)
    rows = np.arange(0, 50, 3)
    pixels = dataset.images.array[rows].astype(np.float64)
    statistics = pixel_statistics(dataset, rows)
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)
    other = dataset.images.array.copy()
    other[np.setdiff1d(np.arange(50), rows)] = 0  # rows outside do not matter
    assert pixel_statistics(replace(dataset, images=ArrayImages(other)), rows) == statistics
    flat = replace(dataset, images=ArrayImages(np.full((50, 4, 4, 1), 9, np.uint8)))
    assert pixel_statistics(flat, rows) == data.PixelStatistics((9.0,), (1.0,))
    assert pixel_statistics(dataset, np.arange(50), most=10) == pixel_statistics(dataset, np.linspace(0, 49, 10).astype(int))
    with pytest.raises(UsageError, match="no training rows"): pixel_statistics(dataset, np.array([], np.int64))


def test_statistics_in_chunks(monkeypatch):
    dataset = numbered(40, size=64)
    whole = pixel_statistics(dataset, np.arange(40))
    monkeypatch.setattr(data, "CHUNK", 64 * 64 * 7)
    assert pixel_statistics(dataset, np.arange(40)) == whole


def test_fingerprint(tmp_path):
    root = tree(tmp_path / "root")
    mark = fingerprint(load_dataset(DataConfig(name=str(root))))
    moved = tmp_path / "moved"
    root.rename(moved)
    assert fingerprint(load_dataset(DataConfig(name=str(moved)))) == mark
    write(moved / "cat" / "0.png", 255 - picture())
    assert fingerprint(load_dataset(DataConfig(name=str(moved)))) != mark
    dataset = numbered()
    others = replace(dataset, targets=dataset.targets[::-1].copy()), replace(dataset, classes=("x", "b", "c"))
    assert len({fingerprint(one) for one in (dataset, *others)}) == 3


# ---- loaders

def contents(batches): return [(batch.rows.tolist(), batch.targets.tolist(), batch.images.numpy().tobytes()) for batch in batches]


def test_any_number_of_threads():
    dataset = numbered()
    wanted = contents(Loader(dataset, np.arange(60), 7, seed=1, threads=0)(2))
    for threads in (1, 2, 4):
        for prefetch in (1, 3, 100): assert contents(Loader(dataset, np.arange(60), 7, seed=1, threads=threads, prefetch=prefetch)(2)) == wanted


def test_start_anywhere():
    loader = Loader(numbered(), np.arange(60), 7, seed=1)
    whole = contents(loader(0))
    assert len(whole) == len(loader) == 9 and len(whole[-1][0]) == 4
    for start in range(10): assert contents(loader(0, start)) == whole[start:]
    assert contents(loader(1)) != whole


def test_order():
    dataset, rows = numbered(), np.arange(5, 50)
    loader = Loader(dataset, rows, 8, seed=0)
    assert sorted(row for batch in loader(0) for row in batch.rows.tolist()) == rows.tolist()
    assert [row for batch in Loader(dataset, rows, 8, seed=0, shuffle=False)(4) for row in batch.rows.tolist()] == rows.tolist()
    assert contents(Loader(dataset, rows, 8, seed=1)(0)) != contents(loader(0))
    dropping = Loader(dataset, rows, 8, seed=0, drop_last=True)
    assert contents(dropping(0)) == contents(loader(0))[:5] and len(dropping) == 5
    assert list(Loader(dataset, [], 8, seed=0)(0)) == []
    with pytest.raises(UsageError, match="choose a smaller one"): Loader(dataset, rows, 64, seed=0, drop_last=True)
    with pytest.raises(UsageError, match="at least 1"): Loader(dataset, rows, 0, seed=0)


def test_batches_share_no_memory_with_the_data_set():
    dataset = numbered()
    for batch in Loader(dataset, np.arange(60), 16, seed=0)(0):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        batch.images.zero_()
    assert dataset.images.array.max() > 0


def test_errors_surface():
    dataset = numbered()
    plain = plain_batch(dataset)
    def make(rows, epoch):
        if 13 in rows: raise UsageError("13 cannot be read")
        return plain(rows, epoch)
    for threads in (0, 2):
        loader = Loader(dataset, np.arange(60), 5, seed=0, make=make, shuffle=False, threads=threads)
        batches = loader(0)
        assert [next(batches).rows[0].item() for _ in range(2)] == [0, 5]
        with pytest.raises(UsageError, match="13 cannot be read"): next(batches)
        assert len(list(loader(0, 3))) == 9  # the loader goes on


def test_leaving_half_way_stops_the_work():
    dataset, made = numbered(600), []
    plain, gate = plain_batch(dataset), threading.Event()
    def make(rows, epoch):
        made.append(rows[0])
        if len(made) > 2: gate.wait(20)
        return plain(rows, epoch)
    loader = Loader(dataset, np.arange(600), 6, seed=0, make=make, prefetch=50, threads=2)
    batches = loader(0)
    next(batches)
    del batches
    gc.collect()
    gate.set()
    loader._pool.shutdown()
    assert len(made) <= 6


def test_threads_are_shared_and_go_with_the_loader():
    before = threading.active_count()
    loader = Loader(numbered(), np.arange(60), 6, seed=0, threads=3)
    for epoch in range(4): assert len(list(loader(epoch))) == 10
    assert threading.active_count() - before <= 3
    del loader
    gc.collect()
    for _ in range(100):
        if threading.active_count() <= before: break
        time.sleep(0.05)
    assert threading.active_count() <= before


@pytest.mark.parametrize("threads", [0, 2])
def test_switch(threads):
    dataset = numbered()
    plain = plain_batch(dataset)
    def inverted(rows, epoch):
        batch = plain(rows, epoch)
        return Batch(255 - batch.images, batch.targets, batch.rows)
    def dark(rows, epoch): return Batch(plain(rows, epoch).images // 2, plain(rows, epoch).targets, plain(rows, epoch).rows)
    def new(): return Loader(dataset, np.arange(60), 6, seed=0, threads=threads, prefetch=3)
    loader = new()
    first = loader(0)
    seen = [next(first), next(first)]
    at = loader.switch(inverted)
    assert at == ((0, 2) if threads == 0 else (0, 5))
    seen += list(first)
    assert loader.switch(dark) == (1, 0)
    seen += list(loader(1))
    replay = new()
    replay.switch(dark, (1, 0))
    replay.switch(inverted, at)
    assert contents([*replay(0), *replay(1)]) == contents(seen)
    assert contents(replay(0, 7)) == contents(seen[7:10])
    kinds = [inverted if number >= at[1] else plain for number in range(10)]
    assert contents(seen[:10]) == contents(make(batch.rows.numpy(), 0) for make, batch in zip(kinds, seen[:10], strict=True))


def test_switch_again_at_one_place():
    dataset = numbered()
    plain, loader = plain_batch(dataset), Loader(dataset, np.arange(60), 6, seed=0)
    def marked(value): return lambda rows, epoch: replace(plain(rows, epoch), targets=torch.full((len(rows),), value))
    assert loader.switch(marked(7)) == (0, 0)
    assert loader.switch(marked(8)) == (0, 0)  # the last one counts
    assert [batch.targets[0].item() for batch in loader(0)] == [8] * 10


def test_files_through_a_loader(tmp_path):
    root = tree(tmp_path / "root")
    dataset = load_dataset(DataConfig(name=str(root), memory=0, disk=0))
    held = load_dataset(DataConfig(name=str(root)))
    assert isinstance(dataset.images, LazyImages)
    assert contents(Loader(dataset, np.arange(12), 5, seed=0)(0)) == contents(Loader(held, np.arange(12), 5, seed=0)(0))


def test_batch_moves():
    batch = plain_batch(replace(numbered(), geometry=np.tile(np.eye(3, dtype=np.float32), (60, 1, 1))))(np.arange(4), 0)
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images) and torch.equal(moved.geometry, batch.geometry) and len(moved) == 4
    assert plain_batch(numbered())(np.arange(4), 0).to("cpu").geometry is None
