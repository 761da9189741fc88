"""Whether a training pass of a network still waits for its backward, in which parts of it may be evaluated once more."""

import weakref
from collections.abc import Iterable

from torch import Tensor, nn


class _Pass:
    """The graph of its outputs keeps it alive. over: its backward has begun. versions: of the parameters in it."""

    over = False

    def __init__(self, network: nn.Module) -> None:
        self.versions = _versions(network)

    def end(self, gradient: Tensor) -> None:
        self.over = True


_latest: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[_Pass]]" = weakref.WeakKeyDictionary()


def began(network: nn.Module, outputs: Iterable[Tensor]) -> None:
    """The network has had a pass with these outputs."""
    latest = _Pass(network)
    for y in outputs:
        if y.requires_grad:
            y.register_hook(latest.end)
    _latest[network] = weakref.ref(latest)


def waits(network: nn.Module) -> bool:
    """Whether its latest pass may still have a backward, which has not begun.

    Once a step is taken it has none any more: that of a loss of features inside does not come by the outputs.
    """
    found = _latest.get(network)
    latest = None if found is None else found()
    return latest is not None and not latest.over and latest.versions == _versions(network)


def _versions(network: nn.Module) -> list[int]:
    return [p._version for p in network.parameters()]
