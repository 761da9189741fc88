"""A grown network computes what the network did, trains on, and is deployed at the same cost again."""

import copy

import pytest
import torch
from fusing_networks import convolutions, settled, vanished
from torch import nn
from torch.nn import functional

from memexp import edits, fusing

LAYERS = {
    "same shape": nn.Conv2d(4, 4, 3, padding=1),
    "no bias": nn.Conv2d(4, 4, 3, padding=1, bias=False),
    "stride": nn.Conv2d(4, 6, 3, 2, 1),
    "fewer channels": nn.Conv2d(4, 3, 5, padding=2),
    "no padding": nn.Conv2d(4, 4, 3),
    "dilated, reflected": nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="reflect"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("expansion", [1, 2, 3.5])
@pytest.mark.parametrize("case", LAYERS)
def test_a_grown_layer_is_the_layer(case, expansion, dtype):
    torch.manual_seed(0)
    network = nn.Sequential(copy.deepcopy(LAYERS[case]), nn.ReLU()).to(dtype).eval()
    batches = [2 + torch.randn(8, 4, 9, 9, dtype=dtype) for _ in range(2)]
    result = fusing.grow(network, batches, expansion, seed=1)
    block = result.network[0]
    other = torch.randn(4, 4, 9, 9, dtype=dtype)
    with torch.no_grad():
        expected, found = network(other), result.network(other)
        again = edits.apply_all(copy.deepcopy(network).to("meta"), result.edits)
        again.load_state_dict(result.network.state_dict(), assign=True)
        assert torch.equal(again.eval()(other), found)
        z = block.f[1](block.f[0](torch.cat(batches)))
        u = block.f[4](block.f[3](z)) - block.f[4].bias[:, None, None]
    bound = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert result.error <= bound
    assert (found - expected).abs().max() <= bound * expected.abs().max()
    assert block.f[0].out_channels == round(expansion * network[0].out_channels)
    # BN holds the statistics of the batches, so that training starts from the same function
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(z.shape[1], dtype=dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var((0, 2, 3)), torch.ones(z.shape[1], dtype=dtype), atol=1e-2, rtol=0)
    assert u.mean((0, 2, 3)).abs().max() < 1e-4
    assert (block.shortcut is None) == (case not in ("same shape", "no bias"))


def test_a_fused_network_grows_trains_on_and_fuses_to_the_same_cost():
    torch.manual_seed(0)
    network, x = vanished(), torch.randn(32, 3, 32, 32)
    deployed = fusing.fuse(network, x).network
    grown = fusing.grow(deployed, [x], expansion=2)
    assert grown.error <= 1e-5
    assert len(convolutions(grown.network)) == 2 * len(convolutions(deployed))
    optimizer = torch.optim.SGD(grown.network.parameters(), 0.01)
    losses = []
    grown.network.train()
    for value in (0.0, 0.5, 1.0, 0.0):
        grown.network.set_lambda(value)
        loss = functional.cross_entropy(grown.network(x), torch.arange(32) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(functional.cross_entropy(network(x), torch.arange(32) % 10).item(), rel=1e-3)
    assert losses[-1] < losses[0]
    again = fusing.fuse(grown.network.eval(), x)
    assert again.error <= 1e-5
    shapes = [[tuple(conv.weight.shape) for conv in convolutions(n)] for n in (deployed, again.network)]
    assert shapes[0] == shapes[1]


def test_the_random_directions_cancel_in_the_function_only():
    network, x = settled(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))), torch.randn(4, 4, 9, 9)
    one, two = (fusing.grow(network, [x], 2, seed=seed).network for seed in (0, 1))
    assert not torch.equal(one[0].f[0].weight, two[0].f[0].weight)
    assert torch.linalg.matrix_rank(one[0].f[0].weight.flatten(1)) == 8  # more than the four of the kernel


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"layers": ["1"], "expansion": 2, "seed": 0}, "a ReLU is no plain convolution"),
        ({"layers": ["2"], "expansion": 2, "seed": 0}, "groups=2"),
        ({"layers": ["9"], "expansion": 2, "seed": 0}, "no module '9'"),
        ({"layers": ["0", "0"], "expansion": 2, "seed": 0}, "different names"),
        ({"layers": ["0"], "expansion": 0.5, "seed": 0}, "expansion=0.5: at least 1"),
        ({"layers": ["0"], "expansion": 2}, "seed=None"),
    ],
)
def test_an_edit_of_another_network_is_refused(edit, message):
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match=message):
        edits.apply(network, {"kind": "grow"} | edit)
    assert isinstance(network[0], nn.Conv2d)


def test_a_grown_network_that_is_another_function_is_not_used(monkeypatch):
    monkeypatch.setattr("memexp.fusing.grown.settle", lambda f, *_: nn.init.ones_(f[4].bias))
    with pytest.raises(fusing.FusingError, match=r"the grown network's outputs differ .* another seed") as refused:
        fusing.grow(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), [3 + torch.randn(2, 4, 9, 9)])
    assert "fuse" not in str(refused.value)


class Twice(nn.Module):
    """A convolution of two names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.body = nn.Sequential(self.conv, nn.ReLU())

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("network", "name"),
    [(Twice(), "conv"), (Twice(), "body.0"), (nn.Conv2d(4, 4, 3), "")],
    ids=["first", "second", "whole"],
)
def test_a_layer_grows_under_all_of_its_names(network, name):
    network.requires_grad_(False)
    x = torch.randn(4, 4, 9, 9)
    assert len(fusing.growable(network.eval(), x)) == 1
    grown = fusing.grow(network, [x], layers=[name]).network
    assert len(convolutions(grown)) == 2
    assert not any(p.requires_grad for p in grown.parameters())  # as of what has grown


def _shared(layer, other):
    other.weight = layer.weight


STAYS = {
    "it shares a parameter": _shared,
    "it has hooks": lambda layer, _: layer.register_forward_hook(lambda *_: None),
    "its forward was replaced": lambda layer, _: setattr(layer, "forward", torch.relu),
    "complex weights": lambda layer, _: setattr(layer, "weight", nn.Parameter(layer.weight.cfloat())),
}


@pytest.mark.parametrize("why", STAYS)
def test_a_layer_that_would_not_be_the_same_does_not_grow(why):
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    STAYS[why](*network)
    with pytest.raises(ValueError, match=f"0: {why}|0: it has {why}"):
        edits.apply(network, {"kind": "grow", "layers": ["0"], "expansion": 2, "seed": 0})


def test_a_layer_that_is_called_by_another_way_than_its_place_does_not_grow():
    class Kept:
        def __init__(self, layer):
            self.layer = layer

    class Held(nn.Sequential):
        def forward(self, x):
            return self.kept.layer(x)

    network = Held(nn.Conv2d(4, 4, 3)).eval()
    network.kept = Kept(network[0])
    with pytest.raises(ValueError, match="grow: 0 is called by another way than its place"):
        fusing.grow(network, [torch.randn(2, 4, 9, 9)])


def test_one_image_alone_is_no_batch():
    with pytest.raises(ValueError, match=r"gives \(8, 7, 7\), as of one image alone"):
        fusing.grow(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), [torch.randn(4, 9, 9)])


def test_nothing_to_grow_is_said():
    with pytest.raises(ValueError, match="no plain convolution"):
        fusing.grow(nn.Sequential(nn.Conv2d(4, 4, 1)).eval(), [torch.randn(1, 4, 3, 3)])
    with pytest.raises(ValueError, match="no batches"):
        fusing.grow(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), [])
