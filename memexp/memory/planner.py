"""Which steps to store, and which to keep what is dear of, so that a run fits a number of bytes and adds least compute.

The bytes of every step in every neighbourhood (choice.py) are read off training steps on tensors without data: the network is
built once and takes a step with nothing stored, one with everything, and one with each turn of the sequence 00010111, which
holds every word of three, so that each step of the Chain is seen with every choice for itself and its neighbours; once where 1
is stored, once where it is light. Times are measured, or counted in MACs where there is no device. What the model leaves out
(small undone steps that share a node reach further than their neighbours, a light step beside a stored one) shows when a choice
takes a step itself: then it is made again with the bytes corrected.

Layers that the strategy recomputes together are chosen together.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, product
from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from memexp.backprop import chains
from memexp.backprop.budget import together
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.memory.choice import LEAST, LIGHT, STORED, WORDS, Choice, Costs, choose, least, search
from memexp.memory.fake import without_data
from memexp.memory.trace import Training, trace
from memexp.memory.tracker import Tracker
from memexp.units import parse_bytes, shown_bytes

REMADE = 0.15  # what a light step does again in backward, of its forward pass: 0.02 to 0.15 was measured on ResNet-110
TURNS = (False, False, False, True, False, True, True, True)  # each word of three once, read around


@dataclass(frozen=True)
class Plan:
    """stored, light: indices of such steps of each Chain. Bytes: budget, predicted peak, least, stored peak, and what of each
    of these peaks kernels may take beside tensors. saved: time."""

    stored: list[frozenset[int]]
    light: list[frozenset[int]]
    budget: int
    peak: int
    least: int
    most: int
    saved: float
    scratch: int = 0

    def steps(self) -> dict[str, list[list[int]]]:
        """As plain data."""
        return {
            "stored_steps": [sorted(steps) for steps in self.stored],
            "light_steps": [sorted(steps) for steps in self.light],
        }

    def as_dict(self) -> dict[str, Any]:
        return {**self.steps(), "budget": self.budget, "least_peak": self.least, "stored_peak": self.most}

    def __str__(self) -> str:
        stored, light = (sum(map(len, steps)) for steps in (self.stored, self.light))
        return (
            f"budget {shown_bytes(self.budget)}: {shown_bytes(self.peak)} at the peak (all stored {shown_bytes(self.most)}, "
            f"least {shown_bytes(self.least)}); {stored} steps stored, {light} light, the others recomputed"
            + (f"; {shown_bytes(self.scratch)} of it for kernels' scratch space" if self.scratch else "")
        )

    def apply(self, model: nn.Module) -> None:
        store(model, self.stored, self.light)


def store(model: nn.Module, stored: Sequence[frozenset[int]], light: Sequence[frozenset[int]]) -> None:
    """Sets the steps of each Chain of `model` that are stored, and those that are light."""
    for module, indices, others in zip(chains(model), stored, light, strict=True):
        module.choose("budget", **module.options | {"stored": indices, "light": others})


def plan(
    cfg: DictConfig,
    times: Sequence[float] | None = None,
    edits: Sequence[Edit] = (),
    beside: int = 0,
    scratch: int = 0,
) -> Plan:
    """The best choice for `cfg`, whose backprop is budget; below the least that there is, the fastest of that.

    times: seconds of each step's forward, or none: by MACs. beside: bytes on the device that are not the training step's.
    scratch: bytes that its kernels take beside tensors.
    """
    with without_data():
        steps = Steps(Training(cfg, edits))
        try:
            found = best(steps, times, cfg.backprop.limit, beside, cfg.compile, scratch)
        except ValueError as error:
            raise ConfigError([f"backprop: {error}"]) from error
    peak = trace(cfg, found.apply, edits).report.peak  # also of the step that makes the state
    return replace(found, peak=peak + scratch)


def best(
    steps: "Steps",
    times: Sequence[float] | None,
    limit: str | float,
    beside: int = 0,
    compiled: bool = False,
    scratch: int = 0,
) -> Plan:
    """The best choice for these steps, followed without data; of equal ones the one that takes least.

    limit: bytes, or a share of what stored takes. beside, scratch: as of `plan`. compiled: what is cheap is remade within the
    kernels of backward.
    """
    count = len(steps.units)
    steps.peak((LEAST,) * count)  # a first step, as the optimizer makes its state in it
    steps.sort()
    nothing, _, everything = (steps.peak((word,) * count) for word in WORDS)
    costs = steps.costs(times, 0.0 if compiled else REMADE)
    share = isinstance(limit, int | float) and 0 <= limit <= 1
    budget = round(float(limit) * (everything + scratch)) if share else parse_bytes(limit) - beside
    room = budget - scratch  # for tensors: whichever kernel takes most may run where they take most
    steps.peak(least(costs, max(nothing, everything)))
    lowest = min(steps.seen.values())
    if room < everything:  # what is looked at is then in `seen`
        search(max(room, lowest), lambda b: choose(costs, b), costs.peak, steps.peak, costs.saved)
    # where storing everything takes no more than the least, it is stored
    fitting = [chosen for chosen, peak in steps.seen.items() if peak <= max(room, lowest)]
    chosen = max(fitting, key=lambda c: (costs.saved(c), -steps.seen[c]))
    peak, lowest, most = (found + scratch for found in (steps.seen[chosen], lowest, everything))
    return Plan(*steps.by_chain(chosen), budget, peak, lowest, most, costs.saved(chosen), scratch)


class Followed(Protocol):
    """A training step that a tracker follows."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def tracker(self) -> Tracker: ...
    def step(self) -> None:
        """Takes one."""


@dataclass
class Marks:
    """Where each unit ends in the last forward pass and begins in backward, as positions in the tracker's timeline."""

    start: int
    first: int = 0
    after: dict[int, int] = field(default_factory=dict)
    backward: dict[int, int] = field(default_factory=dict)
    flops: Counter[int] = field(default_factory=Counter)


class Steps:
    """Training steps without data with one choice after another; a unit is a run of layers that are chosen together.

    seen: the peak of each choice so far.
    """

    def __init__(self, training: Followed) -> None:
        self._training = training
        self.units = [(c, run) for c, module in enumerate(chains(training.model)) for run in together(list(module))]
        self.seen: dict[Choice, int] = {}
        self._begun = 0
        self._curve: list[int] = []
        self._marks = Marks(0)

    def sort(self) -> None:
        """Puts the units into the order in which they ran in the last step, and forgets what was seen.

        Raises:
            ValueError: a unit did not run.
        """
        for index, (number, run) in enumerate(self.units):
            if index not in self._marks.after:
                kind = list(chains(self._training.model)[number])[run.start]._get_name()
                raise ValueError(
                    f"unit {index} ({kind}) of the network's blocks is not called by its forward, or without any tensor, so "
                    "that it cannot be recomputed: name the blocks that are called with one, blocks=[names or classes]"
                )
        self.units = [unit for _, unit in sorted(enumerate(self.units), key=lambda unit: self._marks.after[unit[0]])]
        self.seen.clear()

    def by_chain(self, chosen: Choice) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
        """The steps of each Chain that are stored, and those that are light."""
        count = len(chains(self._training.model))
        found = {word: [set[int]() for _ in range(count)] for word in WORDS}
        for word, (number, run) in zip(chosen, self.units, strict=True):
            found[word][number].update(run)
        return list(map(frozenset, found[STORED])), list(map(frozenset, found[LIGHT]))

    def peak(self, chosen: Choice) -> int:
        """Bytes at the peak of a training step with this choice for the units."""
        if chosen not in self.seen:
            store(self._training.model, *self.by_chain(chosen))
            tracker = self._training.tracker
            begun = tracker.position
            with self._marking(tracker):
                self._training.step()
            self._begun, self._curve = begun, tracker.curve(begun)
            self.seen[chosen] = max(self._curve)
        return self.seen[chosen]

    def costs(self, times: Sequence[float] | None, remade: float = REMADE) -> Costs:
        """Bytes of every unit in every neighbourhood. times: seconds of each step of the Chains, or none: by MACs."""
        count = len(self.units)
        found = Costs(0, [], [{} for _ in self.units], [{} for _ in self.units])
        for word, turn in product((STORED, LIGHT), range(len(TURNS))):
            turned = tuple(word if TURNS[(i + turn) % len(TURNS)] else LEAST for i in range(count))
            self.seen.pop(turned, None)  # its marks are wanted, too
            self.peak(turned)
            found.base = self._at(self._marks.first)
            around = (LEAST, *turned, LEAST)
            for index, (kept, beside) in enumerate(self._of_units()):
                context = around[index] != LEAST, turned[index], around[index + 2] != LEAST
                found.kept[index].setdefault(context, kept)
                found.beside[index][context] = max(beside, found.beside[index].get(context, beside))
        if times is None:
            whole = [float(self._marks.flops[index]) for index in range(count)]
        else:
            starts = [0, *accumulate(map(len, chains(self._training.model)))]
            whole = [sum(times[starts[number] + index] for index in run) for number, run in self.units]
        found.gains = [(0.0, (1 - remade) * gain, gain) for gain in whole]
        return found

    def _at(self, position: int) -> int:
        return self._curve[position - self._begun]

    def _of_units(self) -> Iterator[tuple[int, int]]:
        """For each unit in the last step: bytes kept, and the most that stood beside what those before it keep."""
        marks, end = self._marks, self._begun + len(self._curve) - 1
        order = sorted((position, index) for index, position in marks.backward.items())
        ends = [position for position, _ in order[1:]] + [end]
        spans = {index: (position, until) for (position, index), until in zip(order, ends, strict=True)}
        loss = order[0][0] if order else end
        held, begun = self._at(marks.first), marks.start
        last = len(self.units) - 1
        for index in range(len(self.units)):
            after = marks.after[index]
            pieces = [(begun, after), *([spans[index]] if index in spans else [])]
            if index == last:
                pieces.append((after, loss))
            highest = max(max(self._curve[a - self._begun : b - self._begun + 1]) for a, b in pieces)
            yield self._at(after) - held, highest - held
            held, begun = self._at(after), after

    @contextmanager
    def _marking(self, tracker: Tracker) -> Iterator[None]:
        model = self._training.model
        steps = [list(module) for module in chains(model)]
        modules = [[steps[number][index] for index in run] for number, run in self.units]
        uses = Counter(module for unit in modules for step in unit for module in step.modules())

        def begins(*_: Any) -> None:  # the last of accumulated batches counts: the gradients stand beside it
            self._marks = Marks(tracker.position)

        def enters(index: int) -> None:
            if not tracker.in_backward:
                if index == 0:
                    self._marks.first = tracker.position
                else:  # what the step before needed for itself is gone by now
                    self._marks.after[index - 1] = tracker.position
                self._marks.flops[index] -= tracker.flops

        def leaves(index: int, outputs: Any) -> None:
            if tracker.in_backward:
                return
            self._marks.after[index] = tracker.position
            self._marks.flops[index] += tracker.flops
            if torch.is_grad_enabled():  # a stored unit: its backward begins with the gradient of what it gave
                for y in tree_iter(outputs):
                    if isinstance(y, Tensor) and y.requires_grad:
                        y.register_hook(lambda _: self._marks.backward.setdefault(index, tracker.position) and None)

        def again(index: int) -> None:
            if tracker.in_backward:
                self._marks.backward.setdefault(index, tracker.position)

        hooks = [model.register_forward_pre_hook(begins)]
        for index, unit in enumerate(modules):
            hooks.append(unit[0].register_forward_pre_hook(lambda *_, i=index: enters(i)))
            hooks.append(unit[-1].register_forward_hook(lambda m, x, y, i=index: leaves(i, y)))
            # an undone step's branches are called, not the step; one that steps share does not tell whose turn it is
            for module in chain.from_iterable(step.modules() for step in unit):
                if uses[module] == 1:
                    hooks.append(module.register_forward_pre_hook(lambda *_, i=index: again(i)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
