"""Which steps to store so that a run fits a number of bytes and the added compute is least.

The model of cost: storing step i keeps a_i bytes from its forward to its backward and saves the time f_i of evaluating it
again. While backward is at step j, m_j bytes stand beside what the stored steps i < j keep (the later ones have let go), so
that a choice S fits B when m_j + sum of a_i over i in S, i < j, is at most B for every j. Most time saved under these nested
capacities is a knapsack whose capacity is checked again at every step; dynamic programming over the steps and the bytes used
(in 2,000 parts of B, rounded up) solves it exactly.

a_i and m_j are read off two traces on tensors without data, f_i is measured, or counted in MACs where there is no device. What
the model leaves out or counts twice (streams where an undone run meets a stored step) shows when the choice itself is traced:
it is made again with B corrected by as much, a few times, and the best choice whose trace fits is taken.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from memexp.backprop import Chain
from memexp.backprop.budget import Budget
from memexp.edits import Edit
from memexp.memory.trace import Trace, trace
from memexp.memory.tracker import Tracker
from memexp.units import parse_bytes

PARTS = 2000
ATTEMPTS = 10


@dataclass(frozen=True)
class Plan:
    """stored: indices of the stored steps of each Chain. Bytes: budget, predicted peak, least and stored peak. saved: time."""

    stored: list[frozenset[int]]
    budget: int
    peak: int
    least: int
    most: int
    saved: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "stored_steps": [sorted(steps) for steps in self.stored],
            "budget": self.budget,
            "least_peak": self.least,
            "stored_peak": self.most,
        }

    def apply(self, model: nn.Module) -> None:
        for module, stored in zip(_chains(model), self.stored, strict=True):
            assert isinstance(module.strategy, Budget)
            module.strategy = Budget(module.strategy.exact, module.strategy.exact_bits, stored)


def plan(cfg: DictConfig, times: Sequence[float] | None = None, edits: Sequence[Edit] = ()) -> Plan:
    """The best choice for `cfg`, whose backprop is budget. times: seconds of each step's forward, or none: by MACs."""
    sizes, most = _follow(cfg, edits, everything=True)
    steps, lowest = _follow(cfg, edits, everything=False)
    least, stored_peak = lowest.report.peak, most.report.peak
    limit = cfg.backprop.limit
    share = isinstance(limit, int | float) and 0 <= limit <= 1
    budget = round(limit * stored_peak) if share else parse_bytes(limit)
    gains = list(times) if times is not None else [float(flops) for flops in sizes.flops]
    every = range(len(sizes.kept))

    def made(chosen: frozenset[int], peak: int) -> Plan:
        return Plan(_by_chain(chosen, steps.lengths), budget, peak, least, stored_peak, sum(gains[i] for i in chosen))

    if budget >= stored_peak:
        return made(frozenset(every), stored_peak)
    found = search(
        budget,
        lambda effective: choose(sizes.kept, gains, steps.capacities(effective), effective),
        lambda chosen: steps.modelled(sizes.kept, chosen),
        lambda chosen: _traced(cfg, edits, _by_chain(chosen, steps.lengths)).report.peak,
        lambda chosen: sum(gains[i] for i in chosen),
    )
    return made(*found) if found else made(frozenset(), least)


def search(
    budget: int,
    choice: Callable[[int], frozenset[int]],
    modelled: Callable[[frozenset[int]], int],
    peak: Callable[[frozenset[int]], int],
    saved: Callable[[frozenset[int]], float],
) -> tuple[frozenset[int], int] | None:
    """The choice that saves most of those looked at whose peak is within the budget, and its peak; None where none is.

    choice: the best for a number of bytes, as modelled. modelled, peak: bytes of a choice by the model, and by its trace.
    """
    best: tuple[frozenset[int], int] | None = None
    tried = {frozenset[int]()}
    effective = budget
    for _ in range(ATTEMPTS):
        chosen = choice(effective)
        if chosen in tried:
            break
        tried.add(chosen)
        traced = peak(chosen)
        if traced <= budget and (best is None or saved(chosen) > saved(best[0])):
            best = chosen, traced
        corrected = budget - (traced - modelled(chosen))
        # downwards until a choice fits, so that none comes back; then also up, to what the model has counted too much
        effective = corrected if best else min(corrected, effective - 1)
    return best


def choose(kept: Sequence[int], gains: Sequence[float], capacities: Sequence[int], budget: int) -> frozenset[int]:
    """The steps to store: most gain, where the bytes kept by the chosen i < j are at most capacities[j], j = 1 ... len(kept).

    Exact up to the rounding of bytes to parts of the budget, upwards.
    """
    unit = max(1, -(-budget // PARTS))
    best: dict[int, tuple[float, tuple[int, ...] | None]] = {0: (0.0, None)}
    chosen: dict[int, Any] = {0: None}  # linked lists, so that a state costs one cell
    for i, (size, gain) in enumerate(zip(kept, gains, strict=True)):
        weight, capacity = -(-size // unit), capacities[i] // unit
        after: dict[int, tuple[float, Any]] = {}
        for used, (value, _) in best.items():
            for take in (False, True):
                total = used + weight * take
                worth = value + gain * take
                if total <= capacity and (total not in after or worth > after[total][0]):
                    after[total] = (worth, (i, chosen[used]) if take else chosen[used])
        if not after:  # not even nothing fits here: capacities below zero
            return frozenset()
        frontier: dict[int, tuple[float, Any]] = {}
        top = -1.0
        for used in sorted(after):  # a state that keeps more and gains no more is never better
            if after[used][0] > top:
                top = after[used][0]
                frontier[used] = after[used]
        best = {used: (worth, None) for used, (worth, _) in frontier.items()}
        chosen = {used: cell for used, (_, cell) in frontier.items()}
    found, cell = set(), chosen[max(best, key=lambda used: best[used][0])]
    while cell is not None:
        i, cell = cell
        found.add(i)
    return frozenset(found)


@dataclass
class Steps:
    """Where each step of every Chain begins and ends, in events of the tracker, in the last forward and backward pass."""

    lengths: list[int]
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    backward: dict[int, int] = field(default_factory=dict)
    flops: list[int] = field(default_factory=list)
    live: list[int] = field(default_factory=list)

    @property
    def kept(self) -> list[int]:
        """Bytes that stand after a step's forward and did not before."""
        return [max(0, self.live[b] - self.live[a]) for a, b in zip(self.before, self.after, strict=True)]

    def modelled(self, kept: Sequence[int], chosen: frozenset[int]) -> int:
        """The peak of a choice, as the model has it."""
        held = accumulate(size * (i in chosen) for i, size in enumerate(kept))
        return max(stored - free for stored, free in zip(held, self.capacities(0), strict=True))

    def capacities(self, budget: int) -> list[int]:
        """What stored steps 0 ... i may keep together, after the moments from backward's beginning to step i + 1's."""
        marks = sorted((position, step) for step, position in self.backward.items())
        ends = [position for position, _ in marks[1:]] + [len(self.live)]
        highest = {step: max(self.live[p : max(end, p + 1)]) for (p, step), end in zip(marks, ends, strict=True)}
        first = marks[0][0] if marks else len(self.live)
        head = max(self.live[self.after[-1] : first], default=0)
        base = [highest.get(i + 1, 0) for i in range(len(self.after))]
        base[-1] = max(base[-1], head)
        return [budget - b for b in base]


def _chains(model: nn.Module) -> list[Chain]:
    return [module for module in model.modules() if isinstance(module, Chain)]


def _by_chain(chosen: frozenset[int], lengths: Sequence[int]) -> list[frozenset[int]]:
    starts = [0, *accumulate(lengths)]
    return [frozenset(i - s for i in chosen if s <= i < s + n) for s, n in zip(starts, lengths, strict=False)]


def _traced(cfg: DictConfig, edits: Sequence[Edit], stored: list[frozenset[int]]) -> Trace:
    return trace(cfg, lambda model: Plan(stored, 0, 0, 0, 0, 0.0).apply(model), edits=edits)


def _follow(cfg: DictConfig, edits: Sequence[Edit], everything: bool) -> tuple[Steps, Trace]:
    """Traces with all steps stored, or none, and notes where each stands."""
    found: list[Steps] = []

    def configure(model: nn.Module) -> None:
        lengths = [len(module) for module in _chains(model)]
        found.append(Steps(lengths))
        if everything:
            Plan([frozenset(range(n)) for n in lengths], 0, 0, 0, 0, 0.0).apply(model)

    @contextmanager
    def observe(model: nn.Module, tracker: Tracker) -> Iterator[None]:
        steps = found[0]

        def begins(*_: Any) -> None:
            if not tracker.in_backward:  # the last of accumulated batches counts: the gradients stand beside it
                steps.before, steps.after, steps.backward, steps.flops = [], [], {}, []

        def enters(*_: Any) -> None:
            if not tracker.in_backward:
                steps.before.append(tracker.position)
                steps.flops.append(-tracker.flops)

        def leaves(*_: Any) -> None:
            if not tracker.in_backward:
                steps.after.append(tracker.position)
                steps.flops[-1] += tracker.flops

        def again(index: int) -> Callable[..., None]:
            def mark(*_: Any) -> None:
                if tracker.in_backward:
                    steps.backward.setdefault(index, tracker.position)

            return mark

        hooks = [_chains(model)[0][0].register_forward_pre_hook(begins)]
        every = list(chain.from_iterable(_chains(model)))
        uses = Counter(module for step in every for module in step.modules())
        for index, step in enumerate(every):
            hooks += [step.register_forward_pre_hook(enters), step.register_forward_hook(leaves)]
            # an undone step's branches are called, not the step; one that steps share does not tell whose turn it is
            hooks += [m.register_forward_pre_hook(again(index)) for m in step.modules() if uses[m] == 1]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    traced = trace(cfg, configure, observe, edits)
    found[0].live = [sum(held.values()) for _, held in traced.report.timeline]
    found[0].live.append(found[0].live[-1])
    return found[0], traced


def measure(model: nn.Module, step: Callable[[], None], repeats: int = 3) -> tuple[float, list[float]]:
    """Median seconds of `step()`, a forward and backward pass of `model`, and of each Chain step's forward in it.

    The first call is warm-up and left out.
    """
    device = next(model.parameters()).device
    synchronise = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    rounds: list[tuple[float, list[float]]] = []
    spans: list[float] = []

    def begin(*_: Any) -> None:
        if torch._C._current_graph_task_id() == -1:
            synchronise()
            spans.append(-time.perf_counter())

    def end(*_: Any) -> None:
        if torch._C._current_graph_task_id() == -1:
            synchronise()
            spans[-1] += time.perf_counter()

    hooks = []
    for module in chain.from_iterable(_chains(model)):
        hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        for _ in range(repeats + 1):
            spans.clear()
            synchronise()
            started = time.perf_counter()
            step()
            synchronise()
            rounds.append((time.perf_counter() - started, list(spans)))
    finally:
        for hook in hooks:
            hook.remove()
    rounds = rounds[1:]
    middle = len(rounds) // 2
    whole = sorted(seconds for seconds, _ in rounds)[middle]
    return whole, [sorted(column)[middle] for column in zip(*(spans for _, spans in rounds), strict=True)]
