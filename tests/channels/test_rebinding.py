"""Functions that hold parts of the network: those of a pruned, fused, grown or masked copy hold the copy's."""

import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memexp import fusing, integral
from memexp.channels.hooked import twin
from memexp.pruning import mask_weights, prune

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """hold: puts something into it that holds one of its parts."""

    def __init__(self, hold: Callable[["Network"], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b, self.c = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 3),
            nn.Conv2d(6, 4, 1),
        )
        self.block: Callable[[Tensor], Tensor] = self.middle
        self.found: dict[str, Tensor] = {}
        hold(self)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu()).relu()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return self.c(self.found.get("b", y)).mean((2, 3))  # type: ignore[no-any-return]


def _closure(network: Network) -> None:
    network.block = lambda x: network.b(network.norm(network.a(x)).relu()).relu()


def _layers(network: Network) -> None:
    a, b = network.a, network.b
    network.block = lambda x: b(network.norm(a(x)).relu()).relu()


def _table(network: Network) -> None:
    """As one does who does not know nn.ModuleDict, beside attributes."""
    network.table = {"first": [network.a, network.norm], "second": network.b}  # type: ignore[assignment]

    def block(self: Network, x: Tensor) -> Tensor:
        for layer in self.table["first"]:  # type: ignore[index, union-attr]
            x = layer(x)
        return self.table["second"](x.relu()).relu()  # type: ignore[index, operator]

    network.block = MethodType(block, network)


def _tuple(network: Network) -> None:
    first, rest = (network.a, lambda x: network.norm(x)), [network.b]
    network.parts = first  # type: ignore[assignment]
    network.block = lambda x: rest[0](first[1](network.parts[0](x)).relu()).relu()  # type: ignore[index]


def _default(network: Network) -> None:
    network.block = lambda x, self=network: self.middle(x)


def _named_default(network: Network) -> None:
    def block(x: Tensor, *, layers: Any = network) -> Tensor:
        return layers.middle(x)  # type: ignore[no-any-return]

    network.block = block


def _features(network: Network) -> None:
    """As many write it to read what is within a network: the forward gives what a hook has stored."""

    def store(layer: nn.Module, given: Any, out: Tensor) -> None:
        network.found["b"] = out.relu()

    network.b.register_forward_hook(store)


def _wrapped(network: Network) -> None:
    before = network.b.forward
    network.b.forward = lambda x: before(x) * 2


def _listed(network: Network) -> None:
    network.parts = [lambda x: network.norm(network.a(x)), lambda x: network.b(x.relu()).relu()]
    network.block = MethodType(lambda self, x: self.parts[1](self.parts[0](x)), network)


def _recursive(network: Network) -> None:
    def block(x: Tensor, depth: int = 2) -> Tensor:
        return network.middle(x) if depth == 0 else block(x, depth - 1)

    network.block = block


def _weakly(network: Network) -> None:
    network.owner = weakref.ref(network)
    network.block = lambda x: network.owner().middle(x)


def _partial(network: Network) -> None:
    def store(name: str, layer: nn.Module, given: Any, out: Tensor) -> None:
        network.found[name] = out.relu()

    network.b.register_forward_hook(partial(store, "b"))


def _forward(network: Network) -> None:
    """As one changes the forward of a network of others."""
    before = network.forward
    network.forward = MethodType(lambda self, x: before(x) * 2, network)  # type: ignore[method-assign]


def _cached(network: Network) -> None:
    network.block = lru_cache(maxsize=1)(network.middle)


def _trunk(network: Network) -> None:
    trunk = nn.Sequential(network.a, network.norm, nn.ReLU(), network.b, nn.ReLU())
    network.block = lambda x: trunk(x)  # type: ignore[no-any-return]


def _unregistered(network: Network) -> None:
    network.parts = [nn.Sequential(network.a, network.norm, nn.ReLU(), network.b)]
    network.block = MethodType(lambda self, x: self.parts[0](x).relu(), network)


def _variable(network: Network) -> None:
    """Two functions have it, of which one does not hold the network."""
    found = None

    def store(layer: nn.Module, given: Any, out: Tensor) -> None:
        nonlocal found
        found = out.relu()

    def block(x: Tensor) -> Any:
        network.middle(x)
        return found

    network.b.register_forward_hook(store)
    network.block = block


def _global(network: Network) -> None:
    """As in a notebook."""
    global net
    net = network
    network.block = lambda x: net.b(net.norm(net.a(x)).relu()).relu()


def _object(network: Network) -> None:
    network.options = SimpleNamespace(block=lambda x: network.middle(x))
    network.block = MethodType(lambda self, x: self.options.block(x), network)


def _appended(network: Network) -> None:
    network.features = []  # type: ignore[assignment]
    keep = network.features.append  # type: ignore[operator]
    network.block = lambda x: (keep(network.middle(x)), network.features.pop())[1]  # type: ignore[operator]


def _by_layer(network: Network) -> None:
    network.scales = {network.norm: 2.0}  # type: ignore[assignment]
    network.block = lambda x: network.middle(x) * network.scales[network.norm]  # type: ignore[index, return-value]


WAYS = (
    *(_closure, _layers, _table, _tuple, _default, _named_default, _features, _wrapped, _listed, _recursive, _weakly),
    *(_partial, _forward, _cached, _trunk, _unregistered, _variable, _global, _object, _appended, _by_layer),
)
HOLDS = {f.__name__[1:]: f for f in WAYS}
USES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": twin,
    "prune": lambda network: prune(network, X, ratio=0.5)[0],
    "to a target": lambda network: prune(network, X, target="macs:0.5", scope="global")[0],
    "mask": lambda network: mask_weights(network, ratio=0.5)[0],
    "fuse": lambda network: fusing.fuse(network, X).network,
    "integral": lambda network: integral.convert(network, X, fold=False).discretize(0.7),
}
CASES = [(hold, use) for hold in HOLDS for use in USES if use == "copy" or hold in ("closure", "features")]


@pytest.mark.parametrize(("hold", "use"), CASES)
def test_a_copy_computes_with_its_own_layers(hold: str, use: str) -> None:
    network = Network(HOLDS[hold]).eval()
    with torch.no_grad():
        expected = network(X)
    network.found.clear()
    made = USES[use](network)
    made(X).square().sum().backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    assert all(p.grad is None for p in network.parameters())
    assert not network.found
    with torch.no_grad():
        assert torch.equal(network(X), expected)


# of a layer with a hook, or with a forward of its own, none takes the place; whose results are kept is not called again
REPLACED = [hold for hold in HOLDS if hold not in ("wrapped", "features", "partial", "variable", "cached")]


@pytest.mark.parametrize("hold", REPLACED)
def test_what_takes_a_layers_place_is_called_in_its_place(hold: str) -> None:
    network = Network(HOLDS[hold]).eval()
    kept = dict(vars(network))
    assert fusing.folds(network, X) == [["a", "norm"]]
    assert fusing.growable(network, X) == ["a", "b"]
    fused, grown = fusing.fuse(network, X), fusing.grow(network, [X])
    assert max(fused.error, grown.error) <= 1e-5
    assert type(fused.network.norm) is nn.Identity
    grown.network(X).square().sum().backward()
    assert all(p.grad is not None for p in grown.network.parameters())
    assert all(vars(network)[name] is value for name, value in kept.items())


def test_what_holds_nothing_of_the_network_stays_the_same_function() -> None:
    def scale(x: Tensor, by: float = 2.0) -> Tensor:
        return x * by * len(table)

    table = [1, 2]
    network = Network(lambda network: network.register_forward_hook(lambda *_: None))
    network.scale = scale  # type: ignore[assignment]
    assert twin(network).scale is scale


def test_a_module_around_the_network_stays() -> None:
    """Its hook tells who holds it: `outer.inner = prune(outer.inner)` goes on so."""
    outer = nn.Module()
    outer.inner = Network(lambda network: None)
    outer.inner.register_forward_hook(lambda layer, given, out: setattr(outer, "latest", out))
    copied = twin(outer.inner)
    assert copied(X) is outer.latest
