"""Runs that the tests of stages share: small, and what is asked of each when it has ended."""

import json
from pathlib import Path

import torch

import memexp
from memexp import build, saved

DATA = ["dataset=digits", "dataset.limit=96", "dataset.test_limit=40", "device=cpu", "monitor_every=0", "epochs=1"]
DATA += ["tune.epochs=1", "tune.max_steps=2"]
RESNET = ["model=resnet", "model.units=[1,1]", "model.channels=[16,16,32]"]


def run(path: Path, *overrides: str) -> dict:
    return memexp.run(memexp.compose(list(overrides)), path)


def same_network(path: Path) -> None:
    """What evaluate reads from the run is what the record says of it, and nothing in the file is needed beside plain data."""
    results = json.loads((path / "results.json").read_text())
    assert saved.evaluate(path)["top1"] == results["accuracy"]["top1"]
    assert results["parameters"] == results["stages"][-2]["parameters"]  # as its accuracy, of the network that is left
    _, network, state = build.from_run(path)
    assert sum(p.numel() for p in network.parameters()) == results["stages"][-2]["parameters"]
    assert state["edits"] == torch.load(path / "checkpoints/last.pt", weights_only=True)["edits"]
