"""What is refused, and what a trace leaves alone."""

import copy
import re

import equality
import hand_made as made
import pytest
import torch
from torch import Tensor, nn

from memexp import channels
from memexp.backprop import Chain
from memexp.channels import settling


class Baked(made.Network):
    """A view to a number of channels that the source fixes, and one layer that is free."""

    shape = (2, 10)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 6 * 16), self.conv(6, 8), self.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).view(-1, 6, 4, 4)).relu())


class Derived(made.Network):
    """Heads whose length is the input's width by their number: neither can change by itself, which shows in a trial alone."""

    shape = (2, 7, 8)

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.qkv, self.out = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.hidden, self.classes = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, 2 * (c // 2) // self.heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.classes(self.hidden(x).relu())


class Correlated(made.Network):
    """An operation that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = self.conv(3, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.linalg.pinv(self.a(x)).mT)


class Mixing(made.Network):
    """Operations that mix channels, each of which keeps what it mixes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = self.conv(3, 6), self.conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.kind == "softmax":
            return self.b(x.softmax(1))
        if self.kind == "mean":
            return self.b(x - x.mean(1, keepdim=True))
        if self.kind == "flip":
            return self.b(x + x.flip(1))
        if self.kind == "maximum":
            return self.b(x * x.amax(1, keepdim=True))
        if self.kind == "norm":
            return self.b(nn.functional.layer_norm(x, x.shape[1:]))
        if self.kind == "constant":
            return self.b(x * torch.arange(6.0).reshape(1, 6, 1, 1))
        return self.b(x[:, torch.tensor([5, 4, 3, 2, 1, 0])])


def test_an_operation_without_a_rule_is_named() -> None:
    with pytest.raises(channels.ChannelError, match=r"aten\.linalg_pinv\.\w+ in Correlated's forward has no rule"):
        channels.trace(Correlated(), torch.randn(Correlated.shape))


def test_torchscript_is_refused_by_name() -> None:
    scripted = torch.jit.script(nn.Conv2d(6, 8, 3))
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(scripted, nn.Conv2d(8, 5, 3)))
    with pytest.raises(channels.ChannelError, match=r"1\.0 is a TorchScript module"):
        channels.trace(network, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    "network", [nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU()), nn.LazyLinear(4), nn.LazyBatchNorm2d()]
)
def test_a_lazy_network_is_to_be_called_first(network: nn.Module) -> None:
    with pytest.raises(
        channels.ChannelError, match=r"Lazy\w+ whose parameters have no shape yet: call the network once"
    ):
        channels.trace(network, torch.randn(2, 3, 6, 6))


class Mapped(made.Network):
    """A layer within torch.vmap, or a number that has no channels."""

    shape = (3, 4)

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.layer = layer
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer:
            return self.b(torch.vmap(lambda row: self.a(row).relu())(x))
        return self.b(self.a(x).relu()) * torch.vmap(lambda row: row.sum())(x)[:, None]


def test_channels_within_vmap_are_refused_by_name() -> None:
    with pytest.raises(channels.ChannelError, match=r"runs within torch\.vmap .* write the forward for a batch"):
        channels.trace(Mapped(layer=True), torch.randn(Mapped.shape))
    assert [group.size for group in channels.trace(Mapped(layer=False), torch.randn(Mapped.shape)).groups] == [8]


class ByWidth(made.Network):
    """What is looked up by a width, or computed from it, is there for one width alone."""

    shape = (2, 3, 6, 6)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.table = kind, {8: 0.5}
        self.a, self.b = self.conv(3, 8), self.conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = y.view(len(x), y.shape[1], *y.shape[2:])
        if self.kind == "KeyError":
            return self.b(y * self.table[y.shape[1]])
        if self.kind == "StopIteration":
            return self.b(y * next(0.5 for width in self.table if width == y.shape[1]))
        return self.b(y * getattr(self, "kind" if y.shape[1] == 8 else "missing").count("A"))


@pytest.mark.parametrize("kind", ["KeyError", "StopIteration", "AttributeError"])
def test_whatever_a_forward_raises_with_fewer_channels_is_the_reason(kind: str) -> None:
    graph = channels.trace(ByWidth(kind), torch.randn(ByWidth.shape))
    assert graph.groups == []
    assert kind in graph.frozen["a.weight", 0]


WORDS = {
    "softmax": "mixes channels",
    "mean": "a statistic over channels",
    "flip": "change their places",
    "maximum": "a statistic over channels",
    "norm": "statistics over channels",
    "constant": "no channels",
    "index": "picked by their numbers",
}


@pytest.mark.parametrize("kind", WORDS)
def test_what_mixes_channels_keeps_them(kind: str) -> None:
    graph = channels.trace(Mixing(kind), torch.randn(Mixing.shape))
    assert graph.groups == []
    assert WORDS[kind] in graph.frozen["a.weight", 0]


def test_a_length_in_the_source_freezes_what_it_counts() -> None:
    graph = channels.trace(Baked(), torch.randn(Baked.shape))
    assert [g.size for g in graph.groups] == [8]
    assert "the length 6 is fixed in the source" in graph.frozen["a.weight", 0]


def test_what_cannot_become_narrower_is_found_by_trial() -> None:
    torch.manual_seed(0)
    network, inputs = equality.randomise(Derived().double()), torch.randn(Derived.shape, dtype=torch.float64)
    graph = channels.trace(network, inputs)
    assert [(g.size, g.members[0].name) for g in graph.groups] == [(32, "hidden.weight")]
    assert "does not run with fewer of them" in graph.frozen["qkv.weight", 0]
    assert equality.difference(network, graph, equality.choose(graph, 0.5), inputs)[1] < 1e-12


def test_the_network_is_left_as_it_was() -> None:
    network = made.TorchAttention().train()
    network.embed.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attributes = [{k: v for k, v in m.__dict__.items() if not k.startswith("_")} for m in network.modules()]
    modes = [m.training for m in network.modules()]
    channels.trace(network, torch.randn(made.TorchAttention.shape))
    assert [m.training for m in network.modules()] == modes
    assert type(network.attention) is nn.MultiheadAttention
    now = [{k: v for k, v in m.__dict__.items() if not k.startswith("_")} for m in network.modules()]
    assert now == attributes
    assert all(type(v) is not channels.sizes.Attribute for d in now for v in d.values())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_failed_trace_leaves_the_network_as_it_was() -> None:
    network = Correlated().train()
    with pytest.raises(channels.ChannelError):
        channels.trace(network, torch.randn(Correlated.shape))
    assert network.training
    assert type(network.a.out_channels) is int


@pytest.mark.parametrize("strategy", ["stored", "checkpointed"])
def test_a_chain_is_traced_whatever_its_strategy(strategy: str) -> None:
    steps = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)]
    graph = channels.trace(Chain(steps, backprop=strategy), torch.randn(1, 3, 8, 8))
    assert [g.size for g in graph.groups] == [6]


def test_a_network_without_data_is_traced() -> None:
    with torch.device("meta"):
        network = made.PaddedShortcut()
    graph = channels.trace(network, torch.randn(made.PaddedShortcut.shape, device="meta"))
    expected = channels.trace(made.PaddedShortcut(), torch.randn(made.PaddedShortcut.shape))
    assert graph.groups == expected.groups


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({2: [0]}, "group 2 is not in this graph: it has 2"),
        ({0: []}, "group 0: keep a sorted list of at least one"),
        ({0: [3, 1]}, "group 0: keep a sorted list"),
        ({0: [1, 1]}, "group 0: keep a sorted list"),
        ({0: [6]}, "channels 0 to 5"),
        ({0: [-1, 2]}, "channels 0 to 5"),
    ],
)
def test_choices_that_do_not_fit(kept: dict[int, list[int]], words: str) -> None:
    graph = channels.trace(made.PaddedShortcut(), torch.randn(made.PaddedShortcut.shape))
    with pytest.raises(channels.ChannelError, match=re.escape(words)):
        channels.narrow_edit(graph, kept)


def test_masked_is_a_copy() -> None:
    network = made.CatWithItself().eval()
    inputs = torch.randn(made.CatWithItself.shape)
    graph = channels.trace(network, inputs)
    before = copy.deepcopy(network.state_dict())
    masked = channels.masked(network, graph, {0: [0, 1]})
    assert not masked.network.a.weight[2:].any()
    assert masked.network.b.weight.all()  # weights that take a channel need not be zero
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@torch.no_grad()
def test_a_copy_of_a_masked_network_computes_the_same() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval(), torch.randn(2, 4)
    masked = channels.masked(network, channels.trace(network, x), {0: [0, 1, 2]})
    expected = masked(x)
    assert torch.equal(copy.deepcopy(masked)(x), expected)
    assert torch.allclose(copy.deepcopy(masked).double()(x.double()).float(), expected, atol=1e-6)


def test_groups_with_a_fault_are_found_by_halves() -> None:
    tried = []

    def fault(groups: range) -> str | None:
        tried.append(groups)
        return "it fails" if {3, 11} & {*groups} else None

    assert list(settling._alone(range(32), fault)) == [(3, "it fails"), (11, "it fails")]
    assert len(tried) < 20
