"""Sparse tensors, as the adjacency of a graph: torch counts no bytes of them, and they have no storage to follow."""

import pytest
import torch
from torch import nn

from memexp.backprop import Chain, apply, check
from memexp.backprop.monitor import compare

EDGES = (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
LAYOUTS = {"coo": torch.Tensor.to_sparse, "csr": torch.Tensor.to_sparse_csr}
FEATURES = 64  # 1.5 kB a tensor, which light follows


class Handed(nn.Module):
    """A convolution on a graph that it is handed."""

    def __init__(self, edges=None):
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, x, edges):
        return x + torch.tanh(torch.sparse.mm(edges, self.layer(x)))


class Held(Handed):
    """On one in a buffer, which it scales."""

    def __init__(self, edges):
        super().__init__()
        self.register_buffer("edges", edges)

    def forward(self, x, edges):
        self.edges = self.edges * 0.9
        return super().forward(x, self.edges)


class Written(Held):
    def forward(self, x, edges):
        self.edges.mul_(0.9)
        return Handed.forward(self, x, self.edges)


class Network(nn.Module):
    def __init__(self, kind, edges):
        super().__init__()
        self.blocks = nn.ModuleList(kind(edges.clone()) for _ in range(3))

    def forward(self, x, edges):
        for block in self.blocks:
            x = block(x, edges)
        return x


def network(kind, layout):
    torch.manual_seed(0)
    return Network(kind, LAYOUTS[layout](EDGES))


def trained(model, layout):
    for _ in range(2):
        model(torch.ones(6, FEATURES), LAYOUTS[layout](EDGES)).square().sum().backward()
    return [p.grad for p in model.parameters()] + [buffer.to_dense() for buffer in model.buffers()]


@pytest.mark.parametrize("backprop", ["light", "checkpointed", "budget"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [Handed, Held, Written])
def test_gradients_and_buffers_are_those_of_stored(kind, layout, backprop):
    found = trained(apply(network(kind, layout), backprop), layout)
    assert all(map(torch.equal, found, trained(network(kind, layout), layout)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_measured_and_left_as_they_are(layout):
    edges, x = LAYOUTS[layout](EDGES), torch.ones(6, FEATURES)
    steps = list(network(Written, layout).blocks)
    report = check(Chain(steps, "checkpointed"), x, edges=edges)
    assert all(step.repeatable and step.gradient_error == 0 for step in report.steps)
    assert compare(Chain(steps, "checkpointed"), lambda: Chain(steps)(x, edges=edges).sum()).gradient_error == 0
    assert all(torch.equal(step.edges.to_dense(), EDGES) for step in steps)
