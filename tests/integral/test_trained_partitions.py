"""Where a smaller size is sampled is trained by itself, and a size that is set for evaluation trains nothing else."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from integral_networks import build, drawn, relative, small, step
from torch import nn
from torch.nn import functional

from memexp.integral import convert

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([1, 5, 0, 9])


@pytest.mark.parametrize("backprop", ["stored", "reversible"])
def test_partitions_are_trained_alone(backprop: str) -> None:
    network = convert(build("revnet14", backprop), IMAGES[:1], permute=False)
    uniform = copy.deepcopy(network)
    kept = {key: value.clone() for key, value in network.network.named_parameters()}
    parameters = network.train_partitions(0.6)
    assert len(parameters) == len(network.groups)
    assert {id(p) for p in network.parameters() if p.requires_grad} == {id(p) for p in parameters}
    network.eval()
    network_before = network(IMAGES)
    uniform.resize(0.6)
    torch.testing.assert_close(network_before, uniform(IMAGES), rtol=1e-3, atol=1e-4)  # they start uniform
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = [step(network, IMAGES, LABELS, optimizer) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, kept[key]) for key, p in network.network.named_parameters() if key in kept)
    edit = network.edit()
    for name, nodes in edit["partitions"].items():
        assert len(nodes) == round(0.6 * network.groups[name])
        assert nodes[0] == 0
        assert nodes[-1] == 1
        assert nodes == sorted(nodes)
        assert nodes[1] != 1 / (len(nodes) - 1)  # moved
    plain = network.discretize()
    assert relative(plain(IMAGES), network(IMAGES)) <= 1e-5
    assert {p.requires_grad for p in plain.parameters()} == {True}
    assert not [key for key in plain.state_dict() if "partition" in key]


def test_gradient_of_partitions_under_recomputation() -> None:
    grads = []
    for backprop in ("stored", "reversible"):
        network = convert(build("revnet14", backprop).double(), IMAGES[:1].double(), permute=False)
        parameters = network.train_partitions({"body.0.0": 11, "body.3.F.2": 20})
        network.double()
        functional.cross_entropy(network(IMAGES.double()), LABELS).backward()
        grads.append([p.grad for p in parameters])
    for a, b in zip(*grads, strict=True):
        assert a is not None
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


def test_partitions_survive_a_file() -> None:
    network = small().eval()
    network.train_partitions(0.6)
    with torch.no_grad():
        for group in network._continua.values():
            nn.init.uniform_(group.nodes.delta)  # type: ignore[union-attr,arg-type]
    again = small().eval()
    again.train_partitions(0.6)
    again.load_state_dict(copy.deepcopy(network.state_dict()), assign=True)
    x = torch.randn(2, 3, 10, 10)
    assert torch.equal(again(x), network(x))
    assert again.edit() == network.edit()


@pytest.mark.parametrize(
    "size",
    [5, 0.5, [0.0, 0.1, 0.5, 0.9, 1.0], np.int64(5), np.float32(0.5), np.linspace(0, 1, 5), torch.tensor([0, 0.2, 1])],
    ids=repr,
)
@pytest.mark.parametrize("tuned", [False, True])
def test_a_size_of_evaluation_leaves_training_as_it_is(size: Any, tuned: bool) -> None:
    """Nodes that were listed were those of all training steps, too; after trained ones, nothing was trained."""
    networks, x = [small().eval() for _ in range(2)], torch.ones(2, 3, 10, 10)
    trained = [name for name, p in networks[0].named_parameters() if p.requires_grad]
    group = next(iter(networks[0].groups))
    if tuned:
        networks[0].train_partitions(0.6)
    networks[0].resize({group: size})
    assert networks[0].sizes[group] == (
        len(size) if hasattr(size, "__len__") else 5 if size == 5 else networks[0].counts(0.5)[group]
    )
    assert [name for name, p in networks[0].named_parameters() if p.requires_grad] == trained
    assert relative(networks[0].discretize()(x), networks[0](x)) <= 1e-5
    for network in networks:
        network.train()(x).sum().backward()
    assert drawn(networks[0]) == drawn(networks[1])


def test_nodes_of_gauss_and_simpson_cannot_be_trained() -> None:
    network = convert(build("flattened"), torch.randn(1, 3, 10, 10), quadrature="simpson")
    with pytest.raises(ValueError, match="use trapezoidal or riemann"):
        network.train_partitions(0.5)
