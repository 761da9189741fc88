"""Exact reversible training ends with the weights of stored training, bit for bit, on real images with augmentation."""

import os
from pathlib import Path

import pytest
import torch

import memexp

CIFAR10 = os.environ.get("MEMEXP_TEST_CIFAR10")


def trained(directory: Path, *overrides: str) -> dict[str, torch.Tensor]:
    common = ["model=revnet", "backprop.exact=true", "device=cpu", "evaluate_every=1000", "dataset.test_limit=20"]
    memexp.run(memexp.compose([*common, *overrides]), directory)
    return torch.load(directory / "checkpoints" / "last.pt", weights_only=True)["model"]


def agree(tmp_path: Path, *overrides: str) -> None:
    undone = trained(tmp_path / "reversible", *overrides)
    kept = trained(tmp_path / "stored", "backprop=stored", *overrides)
    assert undone.keys() == kept.keys()
    assert [name for name in undone if not torch.equal(undone[name], kept[name])] == []


@pytest.mark.usefixtures("unestimated")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
def test_a_shallow_network_on_digits(tmp_path, precision):
    few = ["dataset.limit=100", "max_steps=4"]
    agree(tmp_path, "model.units=[4,4]", "model.channels=[8,8,16]", *few, f"precision={precision}")


@pytest.mark.long
@pytest.mark.skipif(CIFAR10 is None, reason="MEMEXP_TEST_CIFAR10 names no folder of images")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_of_revnet_164_on_cifar10(tmp_path, precision):
    data = ["dataset=cifar10", f"dataset.root={CIFAR10}", "dataset.limit=2000"]
    agree(tmp_path, *data, "model.depth=164", "max_steps=50", "batch_size=20", f"precision={precision}")
