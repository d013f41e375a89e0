"Artefacts: every model comes back the same, whatever is wrong is refused in a sentence, and nothing in a folder is ever run."

import ast
import csv
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cnnbench.artefact import (
    FACTS,
    FORMAT,
    WEIGHTS,
    Artefact,
    ArtefactInfo,
    Prediction,
    Preprocessing,
    build,
    file_sum,
    load_artefact,
    older,
    predictions_table,
    put_file,
    save_artefact,
    seal_of,
    write_facts,
    write_predictions_csv,
)
from cnnbench.core import UsageError, read_json
from cnnbench.data import DataConfig, load_dataset
from cnnbench.images import fit_image, read_image
from cnnbench.models import MODELS, ModelConfig
from cnnbench.tasks import ClassAnswer, TaskConfig

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("cat", "dog", "a \"quoted\" name")
SPEC = "conv 4, norm, relu, residual(conv 4, norm), tests_own_block:Twice, global, linear classes"


class OwnNetwork(nn.Module):
    "What a user may bring: a function, or a class, of (shape, outputs, config)."

    def __init__(self, shape, outputs, config):
        super().__init__()
        self.conv, self.head = nn.Conv2d(shape[0], 4, 3), nn.Linear(4, outputs)

    def forward(self, images): return self.head(torch.relu(self.conv(images)).amax((2, 3)))


class NeedsNumbers(OwnNetwork):
    "One that looks at its weights while it is built, as no tensor without numbers allows."

    def __init__(self, shape, outputs, config):
        super().__init__(shape, outputs, config)
        self.gain = float(self.head.weight.abs().mean().item())

    def forward(self, images): return super().forward(images) + 0 * self.gain


class Twice(nn.Module):
    def forward(self, values): return values * 2


def spy(path): raise AssertionError(f"the spec called {path}")


@pytest.fixture(autouse=True, scope="module")
def own_modules():
    "This module under the name that its artefacts use."
    sys.modules["tests_own_block"] = sys.modules[__name__]
    yield
    del sys.modules["tests_own_block"]


def make_info(config: ModelConfig = ModelConfig("lenet"), shape=(3, 32, 32), **changes) -> ArtefactInfo:  # noqa: B008
    channels = shape[0]
    held = Preprocessing(shape, tuple(100.0 + c for c in range(channels)), tuple(50.0 + c for c in range(channels)))
    return replace(ArtefactInfo(config, TaskConfig(), CLASSES, held, {"test_accuracy": 0.5}), **changes)


def make_model(info: ArtefactInfo) -> nn.Module:
    "A model with running statistics that are not those of a fresh one."
    model = build(info)
    with torch.no_grad(): model(torch.randint(0, 256, (8, *info.preprocessing.shape), dtype=torch.uint8))
    return model.eval()


@pytest.fixture
def saved(tmp_path) -> Path: return save_artefact(tmp_path / "artefact", make_model(make_info()), make_info())


def pixels(count: int, *shape: int) -> torch.Tensor: return torch.randint(0, 256, (count, *shape), dtype=torch.uint8)


def rewrite(folder: Path, **changes) -> None:
    "Change artefact.json as somebody would who knows how it is sealed."
    write_facts(folder, {**read_json(folder / FACTS), **changes})


CONFIGS = [
    *(ModelConfig(name, spec="conv 4, norm, relu, global, linear classes" if name == "spec" else "") for name in MODELS),
    ModelConfig("lenet", width=0.5, dropout=0.2),
    ModelConfig("resnet18"),
    ModelConfig("regnet_y_400mf"),
    ModelConfig("spec", spec=SPEC),
    ModelConfig("tests_own_block:OwnNetwork"),
    ModelConfig("tests_own_block:NeedsNumbers"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_every_model_comes_back_the_same(config, tmp_path):
    info = make_info(config)
    model = make_model(info)
    loaded = load_artefact(save_artefact(tmp_path / "new" / "artefact", model.to(memory_format=torch.channels_last), info))
    images = pixels(5, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(loaded.model(images), model.to(memory_format=torch.contiguous_format)(images))
    assert loaded.info == info and loaded.classes == CLASSES and loaded.metrics == {"test_accuracy": 0.5}
    assert not any(module.training for module in loaded.model.modules()) and not any(p.requires_grad for p in loaded.model.parameters())
    assert {"cnnbench", "python", "torch", "safetensors"} <= set(loaded.versions)
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == ["artefact", FACTS, WEIGHTS]


def test_it_loads_in_another_process_without_notebook_code(saved):
    code = f"from cnnbench.artefact import load_artefact; import sys; print(load_artefact({str(saved)!r}).classes, 'cnnbench.train' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    assert done.stdout.strip() == f"{CLASSES} False"


def test_an_older_artefact_is_replaced_whole(saved):
    (saved / "model.onnx").write_bytes(b"made from older weights")
    other = make_info(classes=("a", "b"))
    assert save_artefact(saved, make_model(other), other) == saved
    assert load_artefact(saved).classes == ("a", "b")
    assert sorted(path.name for path in saved.iterdir()) == [FACTS, WEIGHTS] and sorted(saved.parent.iterdir()) == [saved]


def test_an_artefact_behind_a_link_is_replaced_where_it_lies(saved, tmp_path):
    (tmp_path / "current").symlink_to(saved)
    other = make_info(classes=("a", "b"))
    save_artefact(tmp_path / "current", make_model(other), other)
    assert (tmp_path / "current").is_symlink() and load_artefact(tmp_path / "current").classes == load_artefact(saved).classes == ("a", "b")


def test_kill_while_saving_leaves_an_artefact_that_loads(saved):
    code = f"""
import sys; from cnnbench.artefact import *
from cnnbench.artefact import build
info = load_artefact({str(saved)!r}).info; model = build(info); print('go', flush=True)
while True: save_artefact({str(saved)!r}, model, info)"""
    for moment in (0.05, 0.31):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert load_artefact(saved).classes == CLASSES


def test_a_replacement_cut_between_its_renames_is_undone_by_the_next(saved):
    os.rename(saved, older(saved))
    assert load_artefact(saved).classes == CLASSES
    save_artefact(saved, make_model(make_info()), make_info())
    assert load_artefact(saved).folder == saved and not older(saved).exists()


def test_what_does_not_fit_is_not_saved(tmp_path):
    info = make_info()
    for wrong, words in (
        (make_info(ModelConfig("resnet9")), "do not fit resnet9 for 3 classes"),
        (make_info(classes=("a", "b")), "but the network has 2"),
        (replace(info, preprocessing=replace(info.preprocessing, std=(1.0, 1.0, 1.0))), "normalises with another std"),
    ):
        with pytest.raises(UsageError, match=words): save_artefact(tmp_path / "artefact", make_model(info), wrong)
    with pytest.raises(UsageError, match="test_accuracy is nan"): make_info(metrics={"test_accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_one(saved, monkeypatch):
    before = file_sum(saved / FACTS)
    monkeypatch.setattr("cnnbench.core.os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UsageError, match="disk is full"): save_artefact(saved, make_model(make_info()), make_info())
    assert file_sum(saved / FACTS) == before and list(saved.parent.iterdir()) == [saved]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine too")
    for name in ("photos", "file"):
        with pytest.raises(UsageError, match="is no artefact: it is left alone"): save_artefact(tmp_path / name, make_model(make_info()), make_info())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "one.jpg", "photos"]


class Boom:
    "What runs when it is unpickled."

    def __init__(self, path): self.path = path

    def __reduce__(self): return (open, (self.path, "w"))


def spoil_byte(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def spoil_length(folder): (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])
def spoil_facts(folder): (folder / FACTS).write_text((folder / FACTS).read_text().replace('"dog"', '"dug"'))
def drop_weights(folder): (folder / WEIGHTS).unlink()
def drop_facts(folder): (folder / FACTS).unlink()


def list_path(folder, name):
    (folder.parent / "outside.bin").write_bytes(b"secret")
    rewrite(folder, files=read_json(folder / FACTS)["files"] | {name: file_sum(folder.parent / "outside.bin")})


def sealed(folder, data):
    "Other weights, with sums that fit."
    (folder / WEIGHTS).write_bytes(data)
    rewrite(folder, files={WEIGHTS: file_sum(folder / WEIGHTS)})


def drop_entry(folder, entry): write_facts(folder, {name: value for name, value in read_json(folder / FACTS).items() if name != entry})
def header_of(size: int) -> bytes: return size.to_bytes(8, "little") + b"{}"


def shaped(folder, shape):
    "A description that asks for another size of image."
    rewrite(folder, preprocessing=read_json(folder / FACTS)["preprocessing"] | {"shape": shape})


def with_model(folder, **changes): rewrite(folder, model=read_json(folder / FACTS)["model"] | changes)


HOSTILE = {
    "flipped byte": (spoil_byte, "is not the file that was saved"),
    "truncated": (spoil_length, "is not the file that was saved"),
    "no weights": (drop_weights, "weights.safetensors is missing"),
    "no facts": (drop_facts, "is no artefact: there is no artefact.json"),
    "edited facts": (spoil_facts, "was changed or damaged"),
    "newer": (lambda f: rewrite(f, format=FORMAT + 1), f"has format {FORMAT + 1}; this version of cnnbench reads up to {FORMAT}"),
    "no format": (lambda f: rewrite(f, format="1"), "is not the description of an artefact"),
    "no object": (lambda f: (f / FACTS).write_text("[1]"), "is not the description of an artefact"),
    "no JSON": (lambda f: (f / FACTS).write_bytes(b"\xff\x00"), "not readable as JSON"),
    "deep JSON": (lambda f: (f / FACTS).write_text("[" * 200_000), "not readable as JSON"),
    "long number": (lambda f: (f / FACTS).write_text('{"format": 1' + "0" * 10_000 + "}"), "not readable as JSON"),
    "huge JSON": (lambda f: (f / FACTS).write_text(" " * 2**24 + "{}"), "too large"),
    "path up": (lambda f: list_path(f, "../outside.bin"), "no plain file name"),
    "absolute path": (lambda f: list_path(f, str(f.parent / "outside.bin")), "no plain file name"),
    "path of another system": (lambda f: list_path(f, "..\\outside.bin"), "no plain file name"),
    "files no object": (lambda f: rewrite(f, files=["a"]), "does not list weights.safetensors"),
    "sum no object": (lambda f: rewrite(f, files={WEIGHTS: "abc"}), "is not the file that was saved"),
    "sealed truncated": (lambda f: sealed(f, (f / WEIGHTS).read_bytes()[:-10]), "does not hold weights"),
    "sealed text": (lambda f: sealed(f, b"hello"), "does not hold weights"),
    "sealed empty": (lambda f: sealed(f, b""), "does not hold weights"),
    "huge header": (lambda f: sealed(f, header_of(2**60)), "does not hold weights"),
    "no tensors": (lambda f: sealed(f, header_of(2)), "normalize.mean is missing"),
    "huge image": (lambda f: shaped(f, [3, 60_000, 60_000]), "do not fit lenet"),
    "no image": (lambda f: shaped(f, [3, 10**9, 10**9]), "each from 1 to 65,536"),
    "text for numbers": (lambda f: shaped(f, "abc"), "entries must be of type int"),
    "number for a list": (lambda f: shaped(f, 5), "is not the description of an artefact"),
    "wide": (lambda f: with_model(f, width=8.0), "do not fit lenet"),
    "wider than allowed": (lambda f: with_model(f, width=1e9), "must be between 0.125 and 8"),
    "unknown model": (lambda f: with_model(f, name="lenett"), "no model 'lenett'. Did you mean lenet"),
    "unknown setting": (lambda f: with_model(f, evil=1), "has no setting 'evil'"),
    "not installed": (lambda f: with_model(f, name="no_such_module:net"), "no module 'no_such_module'"),
    "no network": (lambda f: with_model(f, name="os:getcwd"), "os:getcwd"),
    "no attribute": (lambda f: with_model(f, name="tests_own_block:OwnNetwork_"), "Did you mean OwnNetwork"),
    "missing entry": (lambda f: drop_entry(f, "classes"), "not the description of an artefact"),
    "classes no texts": (lambda f: rewrite(f, classes=[1, 2, 3]), "entries must be of type str"),
    "other classes": (lambda f: rewrite(f, classes=["a", "b"]), "but the network has 2"),
    "no metrics": (lambda f: rewrite(f, metrics={"a": "b"}), "holds finite numbers only"),
    "unknown task": (lambda f: rewrite(f, task={"name": "clasification"}), "Did you mean classification"),
    "other mean": (lambda f: rewrite(f, preprocessing=read_json(f / FACTS)["preprocessing"] | {"mean": [0.0] * 3}), "normalises with another mean"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_refused_in_a_sentence(name, saved):
    spoil, words = HOSTILE[name]
    spoil(saved)
    with pytest.raises(UsageError, match=re.escape(words)) as caught: load_artefact(saved)
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_block_of_a_spec_runs_nothing(tmp_path, saved):
    target = tmp_path / "ran"
    for word in (f"os:mkdir {target}", f"os:system touch={target}", f"builtins:open {target} w", "tests_own_block:spy x", "pathlib:Path x"):
        with_model(saved, name="spec", spec=f"residual({word}), global, linear classes")
        with pytest.raises(UsageError, match="is no nn.Module and does not take `shape`|has "): load_artefact(saved)
    assert not target.exists()


@pytest.mark.parametrize("name", ["tests_own_block:NeedsNumbers", "regnet_y_400mf"])
def test_weights_that_do_not_fit_are_refused_where_shapes_are_not_known_before(name, tmp_path):
    info = make_info(ModelConfig(name))
    folder = save_artefact(tmp_path / "artefact", make_model(info), info)
    rewrite(folder, classes=["a", "b"])
    with pytest.raises(UsageError, match="cannot be built with the weights in .* size mismatch") as caught: load_artefact(folder)
    assert "\n" not in str(caught.value)


def test_code_of_ones_own_can_be_refused(tmp_path):
    for config in (ModelConfig("tests_own_block:OwnNetwork"), ModelConfig("spec", spec=SPEC)):
        info = make_info(config)
        folder = save_artefact(tmp_path / "artefact", make_model(info), info)
        assert load_artefact(folder).info == info
        with pytest.raises(UsageError, match="names code outside of cnnbench, tests_own_block"): load_artefact(folder, own=False)


@pytest.mark.parametrize("setting", ["model.name", "model.backbone", "task.name", "task.loss"])
def test_no_setting_brings_code_in_unasked(saved, setting):
    "Refused before anything is imported: the module does not exist."
    part, name = setting.split(".")
    facts = json.loads((saved / FACTS).read_text("utf-8"))
    changes = {"name": "backbone"} if setting == "model.backbone" else {}
    rewrite(saved, **{part: facts[part] | changes | {name: "no_such_module:Thing"}})
    with pytest.raises(UsageError, match="names code outside of cnnbench, no_such_module:Thing"): load_artefact(saved, own=False)


@pytest.mark.parametrize("sums", ["old", "new"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_weights_never_runs(form, sums, saved, tmp_path):
    target = tmp_path / "ran"
    if form == "pickle": (tmp_path / "evil").write_bytes(pickle.dumps(Boom(str(target))))
    else: torch.save({"weights": Boom(str(target))}, tmp_path / "evil")
    data = (tmp_path / "evil").read_bytes()
    for name in ("weights.pt", "model.pkl", "pytorch_model.bin"): (saved / name).write_bytes(data)  # beside: not looked at
    load_artefact(saved)
    if sums == "new": sealed(saved, data)
    else: (saved / WEIGHTS).write_bytes(data)
    with pytest.raises(UsageError): load_artefact(saved)
    assert not target.exists()


def forbidden(source: str) -> list[str]:
    "The calls and imports in a module that could run what is in a file."
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom): names += [f"{node.module}"]
        found += [f"{line}: import {name}" for name in names if re.match(r"(c?pickle|dill|cloudpickle|joblib|shelve|marshal)\b", name)]
        if not isinstance(node, ast.Call): continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in ("eval", "exec", "compile", "__import__", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"):
            found.append(f"{line}: {called}")
        if called == "torch.load" and given.get("weights_only") != "True": found.append(f"{line}: torch.load without weights_only=True")
        if called == "np.load" and given.get("allow_pickle", "False") != "False": found.append(f"{line}: np.load with pickle")
    return found


def test_the_library_reads_no_pickle_and_runs_no_text():
    found = {path.name: lines for path in (ROOT / "cnnbench").glob("*.py") if (lines := forbidden(path.read_text("utf-8")))}
    assert found == {}


def test_what_is_forbidden_is_seen():
    bad = ["import pickle", "from pickle import loads", "torch.load(p)", "torch.load(p, weights_only=False)", "eval('1')", "exec(t)",
           "np.load(p, allow_pickle=True)", "import joblib", "from dill import load"]
    assert [text for text in bad if not forbidden(text)] == []
    assert forbidden("torch.load(p, weights_only=True)\nmodel.eval()\nnp.load(p, allow_pickle=False)\nre.compile('x')") == []


def test_further_files_are_listed_and_checked(saved, tmp_path):
    for text in (b"one", b"two"):
        (tmp_path / "aside").write_bytes(text)
        put_file(saved, "model.onnx", tmp_path / "aside")
        load_artefact(saved)
    facts = read_json(saved / FACTS)
    assert list(facts["files"]) == [WEIGHTS, "model.onnx"] and facts["seal"] == seal_of(facts)
    (saved / "model.onnx").write_bytes(b"tampered")
    with pytest.raises(UsageError, match="model.onnx is not the file that was saved"): load_artefact(saved)
    (tmp_path / "aside").write_bytes(b"three")
    for name in (WEIGHTS, FACTS, "../up", "a/b"):
        with pytest.raises(UsageError): put_file(saved, name, tmp_path / "aside")


def test_a_further_file_cut_off_leaves_an_artefact_that_loads(saved, tmp_path, monkeypatch):
    (tmp_path / "aside").write_bytes(b"one")
    put_file(saved, "model.onnx", tmp_path / "aside")
    (tmp_path / "aside").write_bytes(b"two")
    writes = []

    def cut(folder, facts):
        if writes: raise KeyboardInterrupt
        writes.append(facts)
        write_facts(folder, facts)

    monkeypatch.setattr("cnnbench.artefact.write_facts", cut)
    with pytest.raises(KeyboardInterrupt): put_file(saved, "model.onnx", tmp_path / "aside")
    assert load_artefact(saved).classes == CLASSES and (saved / "model.onnx").read_bytes() == b"two"


# ---- predictions


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    "A folder of images of many kinds, with some that are none."
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "deep" / "er").mkdir(parents=True)
    colour = rng.integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(colour).save(folder / "wide.png")
    Image.fromarray(colour.swapaxes(0, 1).copy()).save(folder / "tall.jpg", quality=95)
    Image.fromarray(colour[..., 0]).save(folder / "deep" / "grey.bmp")
    Image.fromarray(rng.integers(0, 256, (20, 20, 4), np.uint8)).save(folder / "deep" / "rgba.png")
    Image.fromarray(colour).quantize(16).save(folder / "deep" / "er" / "palette.png")
    Image.fromarray(rng.integers(0, 4096, (33, 31)).astype(np.uint16)).save(folder / "deep" / "sixteen.png")
    turned = Image.fromarray(colour)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "tall.jpg").read_bytes()[:300])
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


GOOD = ["deep/er/palette.png", "deep/grey.bmp", "deep/rgba.png", "deep/sixteen.png", "tall.jpg", "turned.jpg", "wide.png"]


@pytest.fixture(scope="module")
def lenet(tmp_path_factory) -> Artefact:
    info = make_info(preprocessing=Preprocessing((3, 32, 32), (100.0, 110.0, 120.0), (50.0, 60.0, 70.0), "pad", 12))
    return load_artefact(save_artefact(tmp_path_factory.mktemp("lenet") / "artefact", make_model(info), info))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_data_module(fit, channels, pictures):
    held = Preprocessing((channels, 24, 32), (0.0,) * channels, (1.0,) * channels, fit, 12)
    for name in GOOD:
        expected, _ = fit_image(read_image(pictures / name, channels, 12), (24, 32), fit)
        assert np.array_equal(held.read(pictures / name), expected)


def test_a_data_set_of_the_same_files_gives_the_same_pixels(pictures, tmp_path):
    for place, names in {"a": GOOD[:4], "b": GOOD[4:]}.items():
        (tmp_path / place).mkdir()
        for name in names: (tmp_path / place / Path(name).name).write_bytes((pictures / name).read_bytes())
    data = load_dataset(DataConfig(name=str(tmp_path), size=32, fit="pad"))
    held = Preprocessing(data.shape, (0.0,) * data.shape[0], (1.0,) * data.shape[0], data.fit, data.depth)
    files = [Path(data.root) / file for file in data.files]
    made = np.stack([held.read(file) for file in files])
    assert len(files) == len(GOOD) and np.array_equal(made, data.images.read(np.arange(len(data))))


def test_predictions_are_the_models_own(lenet, pictures):
    rows = lenet.predict([pictures / name for name in GOOD], batch_size=3)
    with torch.no_grad(): direct = lenet.model(lenet.preprocess([pictures / name for name in GOOD])).softmax(1)
    assert [row.file for row in rows] == [str(pictures / name) for name in GOOD]
    assert [row.answer.label for row in rows] == [CLASSES[place] for place in direct.argmax(1)]
    for row, chances in zip(rows, direct, strict=True):
        best = sorted(zip(CLASSES, chances.tolist(), strict=True), key=lambda pair: -pair[1])
        assert [name for name, _ in row.answer.top] == [name for name, _ in best]
        assert np.allclose([chance for _, chance in row.answer.top], [chance for _, chance in best], atol=1e-6)
        assert (row.answer.label, row.answer.probability, row.error) == (*row.answer.top[0], "")


def test_folders_are_walked_and_bad_files_get_a_row(lenet, pictures):
    rows = lenet.predict([pictures, pictures / "nowhere.png", str(pictures / "notes.txt")])
    good, bad = [row for row in rows if not row.error], {Path(row.file).name: row.error for row in rows if row.error}
    assert sorted(row.file for row in good) == sorted(str(pictures / name) for name in GOOD)
    assert set(bad) == {"empty.png", "cut.jpg", "text.png", "nowhere.png", "notes.txt"}
    assert bad["empty.png"] == "the file is empty" and bad["nowhere.png"] == "No such file or directory"
    assert all((row.answer is None) == bool(row.error) for row in rows)


def test_arrays_are_images_too(lenet):
    stack = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    expected = [row.answer.label for row in lenet.predict(list(stack))]
    assert [row.answer.label for row in lenet.predict(stack)] == expected
    assert [row.answer.label for row in lenet.predict(stack[0])] == expected[:1]
    assert torch.equal(lenet.preprocess(stack), torch.from_numpy(stack).permute(0, 3, 1, 2))
    grey = stack[..., 0]
    assert torch.equal(lenet.preprocess(grey), lenet.preprocess(np.repeat(grey[..., None], 3, 3)))
    assert len(lenet.predict(grey[0])) == 1
    rows = lenet.predict([stack[0], stack[0] / 255, np.zeros((0, 3, 3), np.uint8)])
    assert [row.file for row in rows] == ["image 0", "image 1", "image 2"] and [bool(row.error) for row in rows] == [False, True, True]


def test_nothing_to_predict_is_said(lenet, tmp_path):
    with pytest.raises(UsageError, match="nothing to predict"): lenet.predict([])
    with pytest.raises(UsageError, match="There are no images in"): lenet.predict(tmp_path)
    with pytest.raises(UsageError, match="Input 0 is dict"): lenet.predict([{}])


def test_predicting_leaves_the_model_alone(lenet, pictures):
    before = {name: value.clone() for name, value in lenet.model.state_dict().items()}
    lenet.predict(pictures)
    assert not lenet.model.training and all(torch.equal(value, before[name]) for name, value in lenet.model.state_dict().items())


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(names, names, st.floats(0, 1)), max_size=5))
def test_csv_brings_names_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    predictions = [Prediction(file, ClassAnswer(((label, chance),))) for file, label, chance in rows]
    write_predictions_csv(path, [*predictions, Prediction("\udcff\n.png", error='no "image"')])
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file: lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == [*(one.file for one in predictions), "\udcff\n.png"]
    assert [line.get("label", "") for line in lines] == [*(one.answer.label for one in predictions), ""]
    assert lines[-1]["error"] == 'no "image"' and [path] == list(path.parent.iterdir())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=4))
def test_the_table_prints_no_terminal_codes(rows):
    table = predictions_table([Prediction(file, ClassAnswer(((label, 0.5),))) for file, label in rows])
    assert len(table.split("\n")) == len(rows) + 1 and all(line.isprintable() for line in table.split("\n"))


def test_facts_are_plain_json(saved):
    facts = json.loads((saved / FACTS).read_text("utf-8"))
    assert facts["preprocessing"] == {"shape": [3, 32, 32], "mean": [100.0, 101.0, 102.0], "std": [50.0, 51.0, 52.0], "fit": "crop", "depth": 16,
                                      "stride": 1, "sampling": "uniform"}
    assert facts["classes"] == list(CLASSES) and facts["format"] == FORMAT
    assert facts["files"] == {WEIGHTS: file_sum(saved / WEIGHTS)} and facts["model"]["name"] == "lenet" and facts["task"]["name"] == "classification"
