"""Whether a training pass of a network still waits for its backward, in which parts of it may be evaluated once more."""

import weakref
from collections.abc import Iterable

from torch import Tensor, nn


class _Pass:
    """The graph of its outputs keeps it alive. over: its backward has begun."""

    over = False

    def end(self, gradient: Tensor) -> None:
        self.over = True


_latest: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[_Pass]]" = weakref.WeakKeyDictionary()


def began(network: nn.Module, outputs: Iterable[Tensor]) -> None:
    """The network has had a pass with these outputs."""
    latest = _Pass()
    for y in outputs:
        if y.requires_grad:
            y.register_hook(latest.end)
    _latest[network] = weakref.ref(latest)


def waits(network: nn.Module) -> bool:
    """Whether its latest pass may still have a backward, which has not begun."""
    found = _latest.get(network)
    latest = None if found is None else found()
    return latest is not None and not latest.over
