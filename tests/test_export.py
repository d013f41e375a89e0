"ONNX export: parity on images, refusal with the number, nothing red left in place."

import logging
import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cnnbench.artefact import ArtefactInfo, Preprocessing, build, load_artefact, save_artefact
from cnnbench.core import UsageError
from cnnbench.export import (
    ONNX,
    OPSET,
    ParityCheck,
    check_onnx,
    export_artefact,
    export_checked,
    export_onnx,
    latency,
    plain_copy,
    require_parity,
)
from cnnbench.models import MODELS, ModelConfig, build_model
from cnnbench.tasks import TaskConfig

SHAPE, MEAN, STD = (3, 32, 32), (120.0, 115.0, 105.0), (60.0, 61.0, 62.0)
SPEC = "conv 8, norm, gelu, max 2, residual(conv 8, norm), tanh, avg 2, flatten, dropout, linear 16, sigmoid, linear classes"
CONFIGS = [*(ModelConfig(name, spec=SPEC if name == "spec" else "") for name in MODELS), ModelConfig("resnet18"), ModelConfig("mobilenet_v3_small")]


def make(config: ModelConfig, seed: int = 0) -> nn.Module:
    "A model whose running statistics are not those of a fresh one."
    model = build_model(config, SHAPE, 10, MEAN, STD, seed=seed)
    with torch.no_grad():
        for _ in range(3): model(pixels(16))
    return model


def pixels(count: int) -> torch.Tensor: return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8)


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    "A LeNet and its ONNX file."
    torch.manual_seed(0)
    model = make(ModelConfig("lenet"))
    return model, export_onnx(model, tmp_path_factory.mktemp("lenet") / "lenet.onnx", pixels(2))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_every_model_agrees(config, tmp_path):
    model = make(config).train()
    parity = export_checked(model, tmp_path / "m.onnx", pixels(45))
    assert parity.passed and parity.decisions_equal == 1 and parity.images == 45 and parity.opset == OPSET
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):  # beside the check's own
        images = pixels(batch)
        with torch.no_grad(): wanted = plain_copy(model)(images).numpy()
        got = session.run(None, {"images": images.numpy()})[0]
        assert np.abs(got - wanted).max() <= parity.allowed
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_file_is_whole_portable_and_says_what_it_is(lenet):
    model, path = lenet
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph, full_check=True)
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param and [side.dim_value for side in shape[1:]] == list(SHAPE)
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [item.name for item in graph.graph.output] == ["logits"]
    assert not [tensor for tensor in graph.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert not any(node.metadata_props for node in graph.graph.node) and b"/site-packages/" not in path.read_bytes()


@pytest.mark.parametrize("opset", [18, 20])
def test_the_opset_is_the_one_asked_for(opset, tmp_path, lenet):
    parity = export_checked(lenet[0], tmp_path / "m.onnx", pixels(4), opset=opset)
    assert parity.passed and parity.opset == opset and f"opset {opset}" in str(parity)


def test_other_weights_are_refused_with_the_number(lenet, tmp_path, monkeypatch):
    model, _ = lenet
    other = make(ModelConfig("lenet"), seed=1)
    monkeypatch.setattr("cnnbench.export.export_onnx", lambda given, *rest: export_onnx(other, *rest))
    parity = check_onnx(export_onnx(other, tmp_path / "aside.onnx", pixels(2)), model, pixels(20))
    (tmp_path / "aside.onnx").unlink()
    with pytest.raises(UsageError, match=r"differs from the trained one by up to (\S+), above the (\S+) that") as caught:
        export_checked(model, tmp_path / ONNX, pixels(20))
    assert not parity.passed and float(str(caught.value).split("by up to ")[1].split(",")[0]) > parity.allowed
    assert list(tmp_path.iterdir()) == []


def test_a_red_export_leaves_the_artefact_as_it_was(tmp_path, monkeypatch):
    info = ArtefactInfo(ModelConfig("lenet"), TaskConfig(), tuple("abc"), Preprocessing(SHAPE, MEAN, STD))
    artefact = load_artefact(save_artefact(tmp_path / "artefact", build(info), info))
    broken = build_model(info.model, SHAPE, 3, MEAN, STD, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr("cnnbench.export.export_onnx", lambda given, *rest: export_onnx(broken, *rest))
        with pytest.raises(UsageError, match="It is not kept"): export_artefact(artefact, pixels(20))
    assert sorted(path.name for path in artefact.folder.iterdir()) == ["artefact.json", "weights.safetensors"]
    assert export_artefact(artefact, pixels(20)).passed
    assert sorted(path.name for path in artefact.folder.iterdir()) == ["artefact.json", ONNX, "weights.safetensors"]
    assert load_artefact(artefact.folder).classes == tuple("abc")


class Mixing(nn.Module):
    "What an image gives depends on its neighbours; alone, it gives 0."

    def forward(self, images):
        values = images.float().mean((2, 3))
        return values - values.mean(0, keepdim=True)


class Zero(nn.Module):
    def forward(self, images): return images.float().mean((2, 3)) * 0


def test_images_of_a_batch_that_are_mixed_are_found(tmp_path):
    export_onnx(Mixing(), tmp_path / "m.onnx", pixels(2))
    assert check_onnx(tmp_path / "m.onnx", Zero(), pixels(1)).passed
    assert not check_onnx(tmp_path / "m.onnx", Zero(), pixels(5)).passed


def test_a_batch_of_one_size_only_is_found(lenet, tmp_path):
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(plain_copy(lenet[0]), (pixels(4),), tmp_path / "m.onnx", dynamo=True, verbose=False, **names)
    with pytest.raises(UsageError, match="does not run on images of"): check_onnx(tmp_path / "m.onnx", lenet[0], pixels(4))


PARITY = ParityCheck(1e-5, 1e-6, scale=0.5, tolerance=1e-4, decisions_equal=1.0, images=9, opset=18, runtime="onnxruntime")


def parity(**changes) -> ParityCheck: return replace(PARITY, **changes)


def test_the_tolerance_follows_the_scale_above_one():
    assert parity().allowed == 1e-4 and parity(scale=8.0).allowed == 8e-4
    assert parity(max_abs_diff=5e-4, scale=8.0).passed and not parity(max_abs_diff=5e-4, scale=1.0).passed
    for broken in (parity(max_abs_diff=float("nan")), parity(max_abs_diff=float("inf"), scale=float("inf"), tolerance=0.0)):
        assert not broken.passed
        with pytest.raises(UsageError, match="by up to (nan|inf)"): require_parity(broken)
    assert require_parity(parity()) == parity()


def test_outputs_that_are_no_numbers_do_not_pass(tmp_path):
    model = make(ModelConfig("lenet"))
    with torch.no_grad(): model.network[-1].bias[0] = float("nan")
    with pytest.raises(UsageError, match="by up to nan"): export_checked(model, tmp_path / "m.onnx", pixels(4))
    assert list(tmp_path.iterdir()) == []


def test_the_check_is_the_same_each_time(lenet):
    model, path = lenet
    images = pixels(50)
    assert check_onnx(path, model, images) == check_onnx(path, model, images)
    other = plain_copy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert check_onnx(path, other, images) == check_onnx(path, model, images)


class Undecided(nn.Module):
    def forward(self, images): return images.float() if images.float().mean() > 0 else images.double()


def test_what_cannot_be_exported_is_said_and_nothing_else(tmp_path, capfd):
    with pytest.raises(UsageError, match="cannot be exported to ONNX: ") as caught: export_onnx(Undecided(), tmp_path / "m.onnx", pixels(2))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_exporting_is_quiet_and_leaves_the_loggers(tmp_path, capfd, lenet):
    before = [(name, logging.getLogger(name).level) for name in ("torch.onnx", "onnxscript", "onnx_ir")], list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught: export_onnx(lenet[0], tmp_path / "m.onnx", pixels(2))
    assert capfd.readouterr() == ("", "") and caught == []
    assert ([(name, logging.getLogger(name).level) for name in ("torch.onnx", "onnxscript", "onnx_ir")], list(warnings.filters)) == before


def test_hostile_files_are_refused_in_a_sentence(lenet, tmp_path):
    model, path = lenet
    data = path.read_bytes()
    outside = onnx.load(str(path))
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    tensor = next(tensor for tensor in outside.graph.initializer if len(tensor.raw_data) > 64)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "inner").mkdir()
    hostile = {"empty": b"", "text": b"hello", "cut": data[: len(data) // 2], "outside": outside.SerializeToString()}
    for name, held in hostile.items():
        (tmp_path / "inner" / name).write_bytes(held)
        with pytest.raises(UsageError, match="no ONNX model that can be run|must take one input"):
            check_onnx(tmp_path / "inner" / name, model, pixels(2))
    with pytest.raises(UsageError, match="There is no file"): check_onnx(tmp_path / "none", model, pixels(2))


def test_images_of_another_kind_are_refused(lenet):
    model, path = lenet
    for images in (pixels(2).float(), pixels(2)[0], pixels(0)):
        with pytest.raises(UsageError, match="give uint8"): check_onnx(path, model, images)
    with pytest.raises(UsageError, match="does not run on images of"): check_onnx(path, model, pixels(2)[..., :16])


def test_latency_is_stated_with_its_circumstances(lenet):
    model, path = lenet
    measured = latency(path, model, pixels(3), calls=20, rounds=4)
    assert (measured.batch, measured.calls, measured.threads) == (3, 20, torch.get_num_threads())
    assert measured.ratio == measured.eager_p50 / measured.onnx_p50
    assert "batch 3" in str(measured) and "20 calls each" in str(measured)
