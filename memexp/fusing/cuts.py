"""Which neighbours of a run are merged: the cuts between its groups.

none   only what folding did          block   what makes no kernel larger and costs no more adds-multiplies
all    as few groups as exact merging allows          auto    the least time, by dynamic programming over the cuts:

t(j) = min over i < j of t(i) + time(pieces i+1 ... j as one convolution, or one piece as it is)
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from memexp.channels.called import Inputs, arguments, rows
from memexp.channels.outputs import tensors_in
from memexp.fusing.flow import Value
from memexp.fusing.measure import latency
from memexp.fusing.mergeable import Group, Piece, Runs

MERGES = ("none", "block", "auto", "all")
TOO_MANY = 30  # a merge that takes so many times the adds-multiplies of its layers is not measured
Cost = Callable[[list[Piece], Group | None], float]


def chosen(runs: Runs, cost: Cost) -> list[Group]:
    """The groups of all runs with the least total cost; a single piece may stay as it is (Group None)."""
    found = []
    for run in runs.runs:
        best: list[tuple[float, list[Group]]] = [(0.0, [])]
        for j in range(1, len(run) + 1):
            options = []
            for i in range(j):
                pieces = run[i:j]
                group = runs.group(pieces) if len(pieces) > 1 or pieces[0].rows else None
                alternatives = [group] if group else []
                for option in [*alternatives, None] if len(pieces) == 1 else alternatives:
                    options.append((best[i][0] + cost(pieces, option), best[i][1] + ([option] if option else [])))
            best.append(min(options, key=lambda option: option[0]))
        found += best[-1][1]
    return found


def by_block(pieces: list[Piece], group: Group | None) -> float:
    """Fewest groups among the merges that are free."""
    if group is None:
        return 1 if not pieces[0].rows else 1.5
    return math.inf if group.grows or group.macs > group.before else 1


def by_count(pieces: list[Piece], group: Group | None) -> float:
    """Fewest groups."""
    return 1 if group is not None or not pieces[0].rows else 1.5


class ByTime:
    """Measured seconds on a batch like the example, each distinct convolution once. skipped: merges too large to measure."""

    def __init__(self, network: nn.Module, runs: Runs, example_input: Inputs) -> None:
        self.skipped = 0
        self._network, self._runs = network, runs
        self._images, first = rows(example_input), tensors_in(arguments(example_input))[0]
        self._last = first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last)
        # numbers are of the type of the weights: images may be bytes, which the network divides
        weights = (parameter for parameter in network.parameters() if parameter.is_floating_point())
        self._like = next(weights, torch.empty(0, device=first.device))
        self._known: dict[tuple[object, ...], float] = {}

    def __call__(self, pieces: list[Piece], group: Group | None) -> float:
        if group is None:
            return self._apart(pieces)
        if group.macs > TOO_MANY * max(group.before, 1):
            self.skipped += 1
            return math.inf
        conv = group.kernel.layer(self._like).to_empty(device=self._like.device)
        for parameter in conv.parameters():
            nn.init.ones_(parameter)
        return self._time(conv, pieces[0].source)

    def saved(self, groups: list[Group]) -> float:
        """Seconds that these merges save."""
        return sum(self._apart(group.pieces) - self(group.pieces, group) for group in groups)

    def _apart(self, pieces: list[Piece]) -> float:
        seconds = 0.0
        for piece in pieces:
            if held := self._runs.holder(piece):
                module, activation = held
                after = self._time(self._network.get_submodule(activation), piece.value) if activation else 0.0
                seconds += self._time(self._network.get_submodule(module), piece.source) - after
                continue
            for call in piece.calls:
                layer = self._network.get_submodule(call.name) if call.layer else None
                seconds += self._time(layer, call.inputs[0])
        return seconds

    def _time(self, layer: nn.Module | None, value: Value) -> float:
        """Of a layer on tensors like the value, or of their sum. The least that is seen, as whatever disturbs adds to it."""
        traced = self._runs.shape(value)
        shape = (self._images, *traced[1:])
        key = (str(layer), shape)
        if key not in self._known:
            x = torch.ones(shape, dtype=self._like.dtype, device=self._like.device)
            if layer is not None:
                layer = layer.to(x)
            if self._last:
                x = x.contiguous(memory_format=torch.channels_last)
                layer = layer and layer.to(memory_format=torch.channels_last)
            with torch.inference_mode():
                run = (lambda: x + x) if layer is None else (lambda: layer(x))
                self._known[key] = latency({"": run}, x.device, seconds=0.03, of=min)[""]
        return self._known[key]
