"""The edit `discretise`: plain data, the same network again on the meta device, one clear message for what does not fit."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from memexp import edits
from memexp.backprop import Chain
from memexp.integral import IntegralNetwork
from memexp.integral.family import inn


def built(seed: int = 0) -> IntegralNetwork:
    torch.manual_seed(seed)
    return inn(classes=10, shape=(3, 32, 32), chain=Chain, base="resnet20")


@pytest.mark.parametrize("sizes", [0.6, {"stem.0": 9, "body.3.f.5#1": 0.5}, {"stem.0": [0.0, 0.3, 0.4, 0.55, 1.0]}])
def test_round_trip_through_a_file(tmp_path: Path, sizes: object) -> None:
    integral = built()
    edit = integral.edit(sizes)  # type: ignore[arg-type]
    plain = integral.discretize(sizes).eval()  # type: ignore[arg-type]
    torch.save({"edits": [edit], "model": plain.state_dict()}, tmp_path / "last.pt")
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert json.loads(json.dumps(state["edits"])) == [edit]
    with torch.device("meta"):
        again = edits.apply_all(built(seed=1), state["edits"])
    again.load_state_dict(state["model"], assign=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), plain(x))
    # on real tensors too, and with weights the edit itself computes them
    assert torch.equal(edits.apply(built(), edit).eval()(x), plain(x))


def test_integral_network_itself_through_a_file(tmp_path: Path) -> None:
    integral = built().train()
    integral(torch.randn(2, 3, 32, 32)).sum().backward()
    torch.save(integral.state_dict(), tmp_path / "last.pt")
    with torch.device("meta"):
        again = built(seed=1)
    again.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True), assign=True)
    x = torch.randn(2, 3, 32, 32)
    for size in (1.0, 0.5):
        integral.resize(size)
        again.resize(size)
        assert torch.equal(again.eval()(x), integral.eval()(x))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"partitions": {"stem.9": 8}}, "no continuous group is named stem.9"),
        ({"partitions": {"stem.0": 1}}, "size 1 of group stem.0 is impossible"),
        ({"partitions": 0.5}, "partitions=0.5 is no table"),
        ({}, "partitions=None is no table"),
    ],
)
def test_what_does_not_fit_is_refused(edit: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edits.apply(built(), {"kind": "discretise", **edit})


def test_only_for_integral_networks() -> None:
    with pytest.raises(ValueError, match="Linear is no integral network"):
        edits.apply(nn.Linear(2, 2), {"kind": "discretise", "partitions": {}})
