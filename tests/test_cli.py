"""The command line as a user meets it: a folder of pictures to a checked export, and a sentence for whatever is wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cnnbench.artefact import load_artefact
from cnnbench.cli import main
from cnnbench.experiment import load_experiment, read_log
from cnnbench.train import StepEnd

QUICK = ("--data.size", "16", "--model", "lenet", "--train.epochs", "2", "--train.lr", "0.01", "--threads", "1")
SUMMARY = {
    "task", "data", "model", "seed", "epochs", "figures", "main_metric", "main_value", "test_accuracy", "val_accuracy", "train_seconds",
    "images_per_second", "train_images",
    "parameters", "precision", "artefact", "onnx_max_abs_diff", "version",
}


def say(capsys, *words):
    "A command's exit status, and all that it printed."
    try: status = main([str(word) for word in words])
    except SystemExit as left: status = left.code
    told = capsys.readouterr()
    return status, told.out + told.err


def digit_folder(root: Path, count: int = 40, classes: int = 3) -> Path:
    "Digits as files in many formats and modes, one folder a class."
    digits = load_digits()
    ways = [("png", "L"), ("jpg", "L"), ("bmp", "RGB"), ("gif", "P"), ("webp", "RGB"), ("tif", "L"), ("ppm", "RGB"), ("png", "RGBA"), ("jpg", "CMYK")]
    for label in range(classes):
        folder = root / f"digit {label}"
        folder.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:count]):
            suffix, mode = ways[number % len(ways)]
            picture = Image.fromarray((image * 15.9).astype(np.uint8)).resize((24, 24 + number % 3))
            picture.convert(mode).save(folder / f"{number}.{suffix}")
    return root


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    data, out = digit_folder(root / "data"), root / "run"
    (data / "digit 0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n half of it")
    words = ["run", "--data", data, *QUICK, "--train.epochs", "4", "--out", out, "--seed", "3"]
    told = subprocess.run([sys.executable, "-m", "cnnbench", *map(str, words)], capture_output=True, text=True, timeout=300)
    return data, out, told


def test_folder_to_checked_export(folder_run):
    data, out, told = folder_run
    assert told.returncode == 0, told.stderr
    assert "could not be read: 1 (" in told.stdout and "broken.png" in told.stdout
    assert f"Open {out / 'report.html'}" in told.stdout and "epoch 4/4" in told.stderr and "images/s" in told.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == SUMMARY and summary["main_value"] > 0.8 and summary["onnx_max_abs_diff"] < 1e-3
    assert load_artefact(out / "artefact").classes == ("digit 0", "digit 1", "digit 2")
    assert load_experiment(out).seed == 3


def test_predict_from_the_artefact(folder_run, capsys, tmp_path):
    data, out, _ = folder_run
    status, text = say(capsys, "predict", out / "artefact", data, "--csv", tmp_path / "all.csv")
    rows = list(csv.DictReader((tmp_path / "all.csv").open(newline="")))
    assert status == 0 and len(rows) == 121 and "broken.png" in text
    right = [row["label"] == Path(row["file"]).parent.name for row in rows if not row["error"]]
    assert np.mean(right) > 0.8


def test_a_run_goes_on_from_another_folder(tmp_path):
    "The data's folder was given relative to where the run was started."
    digit_folder(tmp_path / "data")
    words = [sys.executable, "-m", "cnnbench", "run", "--data", "data", "--out", "run", *QUICK]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=300).returncode == 0
    (tmp_path / "run" / "report.html").unlink()
    told = subprocess.run([*words[:3], "resume", str(tmp_path / "run")], cwd="/", capture_output=True, text=True, timeout=300)
    assert told.returncode == 0 and (tmp_path / "run" / "report.html").exists(), told.stderr


def test_compare_runs_replay(folder_run, capsys, tmp_path):
    _, out, _ = folder_run
    status, text = say(capsys, "replay", out, "--out", tmp_path / "again")
    assert status == 0 and "the same to the bit" in text
    assert say(capsys, "compare", out, tmp_path / "again")[0] == 0
    status, text = say(capsys, "runs", "--root", out.parent, "--tag", out.name, "first")
    assert status == 0 and "first" in text and "finished" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_names_the_way_on(tmp_path, capsys, number):
    words = [sys.executable, "-m", "cnnbench", "run", "--out", str(tmp_path / "run"), *QUICK, "--train.epochs", "400"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(isinstance(r, StepEnd) for _, r in read_log(tmp_path / "run")): time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"cnnbench resume {tmp_path / 'run'}" in out, out + err
    assert "Traceback" not in err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def one_class(root): digit_folder(root, 10, 1)
def empty(root): root.mkdir()
def lonely(root): (digit_folder(root, 10, 2), [path.unlink() for path in list((root / "digit 1").iterdir())[1:]])
def loose(root): Image.new("L", (9, 9)).save(write(root / "a.png"))
def mostly_broken(root): (digit_folder(root, 10, 2), [write(root / "digit 0" / f"zero{i}.png") for i in range(9)])


@pytest.mark.parametrize(("make", "sentence"), [
    (None, "There is no"), (empty, "There are no images"), (one_class, "one class"), (lonely, "digit 1"), (loose, "not in sub-folders"),
    (mostly_broken, "zero0.png"),
])
def test_bad_folders(tmp_path, capsys, make, sentence):
    if make: make(tmp_path / "data")
    status, text = say(capsys, "run", "--data", tmp_path / "data", *QUICK, "--out", tmp_path / "run")
    assert status == 1 and sentence in text and "Traceback" not in text and len(text.strip().splitlines()) == 1, text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--train.lr", "-1"], "TrainConfig.lr is -1"), (["--train.epochs", "0"], "between 1 and"), (["--model", "resnet81"], "Did you mean resnet"),
    (["--train.optimizer", "adammm"], "Did you mean adam"), (["--data", "cifr10"], "cifar10"), (["--task", "classify"], "classification"),
    (["--device", "abacus"], "cannot be used here"), (["--model", "spec", "--model.spec", "conv 4, linear 7"], "put flatten or global before it"),
    (["--train.monitor", "val_acc"], "val_accuracy"), (["--data", "my_module:thing"], "my_module"),
    (["--config", "nowhere.json"], "There is no file"),
    (["--data.test", "0", "--data.val", "0"], "Nothing is held out"), (["--out"], "--out needs a value"),
])
def test_bad_settings(tmp_path, capsys, flags, sentence):
    out = [] if flags == ["--out"] else ["--out", tmp_path / "run"]
    status, text = say(capsys, "run", *QUICK[:2], *out, *flags)
    assert status in (1, 2) and sentence in text and "Traceback" not in text, text
    assert not (tmp_path / "run").exists()


def test_divergence_is_told(tmp_path, capsys):
    flags = ["--train.optimizer", "sgd", "--train.lr", "100", "--train.warmup", "0", "--train.schedule", "constant", "--task.loss", "cross_entropy"]
    spec = ["--model", "spec", "--model.spec", "flatten, linear 50, linear 50, linear classes"]
    status, text = say(capsys, "run", *QUICK, *spec, *flags, "--out", tmp_path / "run")
    assert status == 1 and "Training diverged" in text and "Likely causes" in text and "Traceback" not in text


def test_a_config_file_starts_the_same_run(folder_run, capsys, tmp_path):
    _, out, _ = folder_run
    assert say(capsys, "run", "--config", out / "experiment.json", "--out", tmp_path / "again")[0] == 0
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["main_value"] == json.loads((out / "summary.json").read_text())["main_value"]


def test_help_without_torch():
    code = "import sys; from cnnbench.cli import main; main(['--help']); sys.exit(bool({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert told.returncode == 0 and all(name in told.stdout for name in ("run", "resume", "predict", "replay"))


@pytest.mark.parametrize("command", ["run", "resume", "evaluate", "explain", "predict", "compare", "runs", "replay"])
def test_every_command_has_help(capsys, command):
    status, text = say(capsys, command, "--help")
    assert status == 0 and f"cnnbench {command}" in text
