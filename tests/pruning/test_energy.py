"""Every layer that a forward calls has an energy, whatever it returns and whatever it has inside."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memexp import edits
from memexp.channels import narrow_edit, trace
from memexp.pruning import Settings, energy, remove
from memexp.pruning.counting import Use, skeleton

X = torch.randn(2, 20, 12)


class Tokens(nn.Module):
    """A layer that returns a tuple, between two linear ones."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.i, self.layer, self.o = nn.Linear(12, 16), layer, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.i(x).relu()
        y, *_ = self.layer(y, y, y) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(y)
        return self.o(y.mean(1))


def attention(batch_first: bool = True, heads: int = 4) -> nn.Module:
    return nn.MultiheadAttention(16, heads, batch_first=batch_first)


# its adds-multiplies for one sample of 20 tokens
LAYERS: dict[str, tuple[Any, int]] = {
    "attention": (attention, 20 * 4 * 16 * 16 + 2 * 20 * 20 * 16),
    "lstm": (lambda: nn.LSTM(16, 16, batch_first=True), 20 * 8 * 16 * 16),
    "gru": (lambda: nn.GRU(16, 16, batch_first=True), 20 * 6 * 16 * 16),
}


def spent(network: nn.Module) -> dict[str, float]:
    with skeleton(network, trace(network, X), (X,)) as bones:
        return energy.by_layer(bones.uses({}), 2)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_that_returns_several_tensors_has_an_energy(kind: str) -> None:
    made, macs = LAYERS[kind]
    found = spent(Tokens(made()).eval())
    own = {name for name in found if name.startswith("layer")}
    assert found.keys() - own == {"i", "o"}
    assert sum(found[name] for name in own) > macs * (energy.MULTIPLY + energy.ADD)


def test_what_makes_the_channels_behind_attention_has_its_energy() -> None:
    found = spent(Tokens(attention()).eval())
    alone = energy.by_layer([Use("", nn.Linear(16, 16), (torch.zeros(2, 20, 16),), {}, torch.zeros(2, 20, 16))], 2)
    assert found["layer.out_proj"] == alone[""]
    assert found["layer"] > found["layer.out_proj"]


def test_attention_whose_heads_went_is_one_layer_too() -> None:
    network = Tokens(attention()).eval()
    graph = trace(network, X)
    heads = next(n for n, group in enumerate(graph.groups) if group.size == 4)
    narrowed = edits.apply(copy.deepcopy(network), narrow_edit(graph, {heads: [0, 2]}))
    before, after = spent(network), spent(narrowed)
    assert set(after) == set(before)
    assert after["layer"] < before["layer"]
    assert after["i"] == before["i"]


def test_heads_go_first_where_attention_costs_most() -> None:
    network = Tokens(attention()).eval()
    found = remove(network, X, "l1_norm", Settings(target="macs:0.6", order="energy", floor=0.25))
    widths = found.record["widths"]
    assert widths["layer"][1] < widths["layer"][0]
