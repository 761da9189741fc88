"""Latency: a table of measured seconds for each layer at each width, and from it a network's before it is built.

An entry is the time of one layer of exactly that configuration on an input of exactly that shape, measured when it is first
asked for, so that equal layers share it. A network's prediction is the sum over the modules that it calls, and the rest
(what happens between modules), which is what the whole network takes beyond its modules, in proportion to their inputs' sizes.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from memexp.backprop.untouched import untouched
from memexp.channels.called import copied
from memexp.channels.outputs import tensors_in
from memexp.modes import evaluating
from memexp.pruning.counting import Skeleton, Use, remade
from memexp.pruning.selection import Kept

Measure = Callable[[nn.Module, Sequence[Tensor]], float]
Key = tuple[Any, ...]

WARM_UP = 3  # calls that are not counted
LEAST_CALLS = 7
SECONDS = 0.03  # how long calls are repeated, at least LEAST_CALLS of them


def measured(module: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Seconds of the shortest of several calls without gradient: whatever else runs can only make a call longer."""
    inputs = copied(inputs)
    device = tensors_in(inputs)[0].device
    times: list[float] = []
    with torch.no_grad():
        for _ in range(WARM_UP):
            module(*inputs)
        while len(times) < LEAST_CALLS or sum(times) < SECONDS:
            _wait(device)
            start = time.perf_counter()
            module(*inputs)
            _wait(device)
            times.append(time.perf_counter() - start)
    return min(times)


class Table:
    """Seconds of layers by configuration and input shape, for one network on one device.

    network: the whole one; inputs: of the batch size that is meant. measure: (module, inputs) -> seconds.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor], measure: Measure = measured) -> None:
        self._measure = measure
        self.entries: dict[Key, float] = {}
        with evaluating(network), untouched(network):
            self.whole = measure(network, inputs)
        self._outside: tuple[float, int] | None = (
            None  # what the whole network takes beyond its modules, and their inputs
        )

    def predict(self, skeleton: Skeleton, kept: Kept) -> float:
        """Seconds of one forward pass of the network that has only these channels; called inside the skeleton's context."""
        if self._outside is None:
            whole = skeleton.uses({})
            self._outside = max(0.0, self.whole - self._modules(whole)), _volume(whole)
        rest, volume = self._outside
        uses = skeleton.uses(kept)
        return self._modules(uses) + rest * _volume(uses) / volume

    def _modules(self, uses: Iterable[Use]) -> float:
        return sum(self._seconds(use) for use in uses)

    def _seconds(self, use: Use) -> float:
        leaves, form = tree_flatten((use.args, dict(use.kwargs)))
        key = repr(use.module), str(form), *map(_configuration, leaves)
        if key not in self.entries:
            with _disable_current_modes():
                self.entries[key] = self._measure(*_real(use))
        return self.entries[key]


class _Call(nn.Module):
    """A module that takes the tensors among its arguments, the others being as they were."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.module = remade(use.module, _filled)
        self.leaves, self.form = tree_flatten((use.args, dict(use.kwargs)))

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.form)
        return self.module(*args, **kwargs)


def _real(use: Use) -> tuple[nn.Module, list[Tensor]]:
    """The module and inputs of it, with numbers in them."""
    plain = not use.kwargs and all(isinstance(value, Tensor) for value in use.args)
    return remade(use.module, _filled) if plain else _Call(use), list(map(_filled, use.inputs))


def _configuration(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)


def _filled(tensor: Tensor) -> Tensor:
    """Ones of that shape, layout, dtype and device: no value that is slow to compute with."""
    empty = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return empty.fill_(1)


def _volume(uses: Iterable[Use]) -> int:
    return sum(tensor.numel() for use in uses for tensor in use.inputs)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
