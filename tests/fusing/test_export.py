"""Exported files load elsewhere and agree, at any batch size, and say what they are."""

import importlib
import json
from functools import partial

import pytest
import torch
from fusing_networks import build, settled, vanished
from torch import nn

from memexp import fusing, models
from memexp.backprop import Chain

CIFAR = (3, 32, 32)
NAMES = [f"class {index}" for index in range(10)]
PREPROCESSING = {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def _family(name: str, backprop: str, **settings) -> nn.Module:
    chain = partial(Chain, backprop=backprop)
    return settled(models.create(name, classes=10, shape=CIFAR, chain=chain, **settings))


FAMILIES = {
    "reducenet": vanished,
    "reducenet, linear": lambda: vanished(vanish="all"),
    "revnet": lambda: _family("revnet", "reversible", depth=14),
    "heunnet": lambda: _family("heunnet", "adjoint", depth=4),
    "resnet": lambda: _family("resnet", "checkpointed", depth=8),
    "vgg16": lambda: _family("vgg16", "stored"),
}


def _onnx_agrees(file, network: nn.Module, x: torch.Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(x).numpy()
    (found,) = session.run(["scores"], {"images": x.numpy()})
    assert abs(found - expected).max() <= 1e-4 * abs(expected).max()


@pytest.mark.parametrize(
    "case", ["reducenet", *(pytest.param(case, marks=pytest.mark.long) for case in list(FAMILIES)[1:])]
)
def test_every_family_is_exported(case, tmp_path):
    torch.manual_seed(0)
    network, x = FAMILIES[case](), torch.randn(4, *CIFAR)
    report = fusing.export(network, x, tmp_path / "net", classes=NAMES, preprocessing=PREPROCESSING, merge="all")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.pt2"]
    assert max(report["error"].values()) <= 1e-4
    assert report["fused"] <= 1e-5
    extra = {"classes.json": "", "preprocessing.json": ""}
    loaded = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    assert json.loads(extra["classes.json"]) == NAMES
    assert json.loads(extra["preprocessing.json"]) == PREPROCESSING
    for size in (1, 3, 5, 64):
        other = torch.randn(size, *CIFAR)
        with torch.no_grad():
            torch.testing.assert_close(loaded(other), network(other), rtol=1e-4, atol=1e-4)
        _onnx_agrees(tmp_path / "net.onnx", network, other)
    import onnx

    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    notes = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert notes["classes"] == NAMES
    assert notes["preprocessing"] == PREPROCESSING
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [dim.dim_value for dim in shape[1:]] == list(CIFAR)


def test_it_is_fused_unless_told_not_to(tmp_path):
    network, x = vanished(), torch.randn(3, *CIFAR)
    sizes = {}
    for merge in ("block", None):
        file = tmp_path / f"{merge}.pt2"
        report = fusing.export(network, x, file, merge=merge)
        sizes[merge] = sum(t.numel() for t in torch.export.load(file).state_dict.values())
        assert (report["fused"] is None) == (merge is None)
    assert sizes["block"] < sizes[None]


def test_missing_packages_are_named_before_the_work(tmp_path, monkeypatch):
    def without(name: str) -> None:
        if name in ("onnxscript", "onnxruntime"):
            raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"needs onnxscript, onnxruntime: pip install onnxscript onnxruntime"):
        fusing.export(vanished(), torch.randn(3, *CIFAR), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


class Counted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, : 3 if x.sum().item() > 0 else 2]


def test_what_cannot_be_exported_is_said_and_leaves_no_file(tmp_path):
    x = torch.randn(3, *CIFAR)
    with pytest.raises(ValueError, match="train mode"):
        fusing.export(build(), x, tmp_path / "net.pt2")
    with pytest.raises(ValueError, match="9 names for outputs of shape"):
        fusing.export(vanished(), x, tmp_path / "net.pt2", classes=NAMES[:9])
    with pytest.raises(fusing.ExportError, match="cannot capture"):
        fusing.export(nn.Sequential(Counted()).eval(), x, tmp_path / "net.pt2", merge=None)
    assert list(tmp_path.iterdir()) == []
