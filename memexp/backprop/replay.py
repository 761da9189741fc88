"""Evaluating a part of a network a second time exactly as the first time.

What the first pass depended on beside its inputs is recorded, and put in place around every later evaluation:

* modules and parameters: those of the first pass, also where others have taken their place since
  (`torch.func.functional_call`);
* random state: recorded before each branch that draws from it, set for the recomputation, and the caller's put back;
* attention's kernels and their order, the default dtype and device, and autocast, on or off and its dtype; its cache only
  where all is recorded (a weight cast without a graph must not serve where one is due; so with the cache of
  `torch.nn.utils.parametrize`);
* train or eval mode of every module;
* buffers: normalisation layers in training mode normalise with the batch's statistics again and move none, so running
  statistics move once per training step; buffers of other modules that the first pass changed (power iterations of a
  spectral norm, running statistics that a layer of one's own reads in training, say) are seen as they were before it. Not
  replayed: statistics of a torch norm in training mode that another module reads before it calls the norm (as convolutions
  trained for quantization do; check=True finds it), or moves itself as well (they then move once more);
* objects that the call hands to the steps: as they were before the first pass (objects.py);
* attributes of a user's modules, and lists, dicts and sets there: as they were before the first pass, and before each branch
  of it (attributes.py).

Layers that are known to neither draw nor count are not watched (quiet.py). Nothing is kept for a step that draws
no random numbers and changes no buffers but running statistics. Random state means torch's global generators, of the CPU and
of the devices of streams, keywords and the step's parameters: numbers from a `torch.Generator` of one's own or Python's
`random`, or a count of calls outside of the modules, are not replayed (`Chain(..., check=True)` finds the step that uses such).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_map

from memexp.backprop.attributes import MISSING, Attributes, Plain, alike, check_thread, lent
from memexp.backprop.buffers import Values, as_before, calls_of, moved, normalises, noted
from memexp.backprop.objects import Objects
from memexp.backprop.quiet import is_quiet, survey
from memexp.backprop.rounding import RangeWatch, Rounding
from memexp.backprop.surroundings import NOTHING, Surroundings

T = TypeVar("T")


@dataclass(slots=True)
class Frame:
    """What a Chain tells the step that it evaluates.

    Attributes:
        rounding: the grid of `exact`, or None.
        watch: looks at the range of the grid.
        record: of the first pass, where the step will be evaluated again.
        undone: the step will be undone, without being called.
        prefix: of the names of its branches in the record.
    """

    rounding: Rounding | None
    watch: RangeWatch | None = None
    record: "Record | None" = None
    undone: bool = False
    prefix: str = ""

    @property
    def one_graph(self) -> bool:
        """Bits count, and there are compiled parts, whose graph without gradients rounds otherwise than that with them."""
        return self.rounding is not None and self.record is not None and self.record.compiled

    def of(self, index: int) -> "Frame":
        """For one of several steps that have a record together."""
        if self.record is not None and self.record.quiet:  # which takes down nothing under a name
            return self
        return Frame(self.rounding, self.watch, self.record, self.undone, f"{self.prefix}{index}.")


current: ContextVar[Frame | None] = ContextVar("frame", default=None)


def grid() -> Rounding | None:
    """The grid of `exact` that the step being evaluated is to keep to, or None."""
    if torch.compiler.is_dynamo_compiling():
        return None
    frame = current.get()
    return None if frame is None else frame.rounding


def evaluate(key: str, branch: Callable[..., T], *inputs: Tensor, **context: Any) -> T:
    """`branch(*inputs, **context)`; inside a recorded or replayed step, under the name `key`.

    Steps evaluate their branches through this, so that a branch can be replayed by itself and in another order.
    """
    if torch.compiler.is_dynamo_compiling():
        return branch(*inputs, **context)
    frame = current.get()
    if frame is None:
        return branch(*inputs, **context)
    if frame.one_graph and not torch.is_grad_enabled():
        branch = partial(_as_in_backward, branch)
    if frame.record is not None and frame.record.quiet:
        return branch(*inputs, **context)
    # what is nested in the branch belongs to the branch, and must not write under this step's keys
    token = current.set(None)
    try:
        if frame.record is None:
            return branch(*inputs, **context)
        return frame.record.evaluate(frame.prefix + key, branch, inputs, context)
    finally:
        current.reset(token)


def _as_in_backward(branch: Callable[..., T], *inputs: Tensor, **context: Any) -> T:
    """The branch's value, by the code that gives its gradient."""
    with torch.enable_grad():
        result = branch(*(x.detach().requires_grad_(x.is_floating_point()) for x in inputs), **context)
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, result)


class Record:
    """The first pass of some steps, recorded (until `settle`) and replayed (in `again`)."""

    def __init__(self, steps: Iterable[nn.Module], surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        steps = tuple(steps)
        self._spans = survey(steps)
        self.modules = modules = list(self._spans)
        check_thread(modules)
        self.modes = [module.training for module in modules]
        self.quiet = is_quiet(modules, steps)
        self.compiled = any([module._compiled_call_impl is not None for module in modules])
        buffered = [m for m in modules if m._buffers]
        self._normalise = [m for m in buffered if m.training and normalises(m)]
        self._called = {} if self.quiet else {m: calls_of(m) for m in self._normalise}
        self._by_hand: set[nn.Module] = set()  # of these, those whose statistics others move
        self._held = [(module, dict(module._parameters)) for module in modules if module._parameters]
        self._holding = [(module, dict(module._modules)) for module in modules if module._modules]
        self.places = [p for _, held in self._held for p in held.values()]
        self._starts = [0, *accumulate([len(module._parameters) for module in modules])]  # of each module's among them
        self._ids = list(map(id, self.places))
        self.parameters = [p for p in self.places if p is not None]
        self.lazy = any([issubclass(kind, UninitializedParameter) for kind in set(map(type, self.parameters))])
        if self.lazy:  # nothing more can be asked of a parameter without a shape
            return
        self.surroundings = surroundings.on(self.parameters)
        handed = surroundings.context
        self.objects = Objects(handed) if len(handed) > len(surroundings.versions) else None
        self.attributes = None if self.quiet else Attributes(modules)
        self._versions = [p._version for p in self.parameters]
        self._memory = [p.untyped_storage()._cdata for p in self.parameters]
        self._read = [m for m in buffered if not (m.training and normalises(m))]
        self._left: list[tuple[nn.Module, str, Tensor, int]] = []
        self._states: list[tuple[str, list[Tensor]]] = []
        self._random: dict[str, list[Tensor]] = {}
        self._buffers: dict[str, Values] = {}
        self._attributes: dict[str, Attributes] = {}
        self._entered: dict[str, Plain] = {}  # what the modules had when a branch was evaluated
        self._replaying = False

    def settle(self) -> None:
        """After the first pass: which branches have drawn random numbers, which objects and attributes have changed?"""
        self.writes_parameters = self._versions != [p._version for p in self.parameters]
        if self.objects is not None:
            self.objects.settle()
        if self.attributes is not None:
            self.attributes.settle()
        self._by_hand = {m for m, calls in self._called.items() if calls is None or calls == calls_of(m)}
        if self._read:
            own = [
                (m, n, b) for m in self._read for n, b in m._buffers.items() if b is not None and not b.is_inference()
            ]
            self._left = [(m, name, buffer, buffer._version) for m, name, buffer in own]
        states, self._states = self._states, []
        if not states:
            return
        seen = [state for _, state in states] + [self.surroundings.random_state()]
        for (key, state), following in zip(states, seen[1:], strict=True):
            if not all(map(torch.equal, state, following)):
                self._random[key] = state

    def parameters_of(self, module: nn.Module) -> Sequence[nn.Parameter | None]:
        """Those of a module of the steps, and of all that it holds."""
        place = self._spans.get(module)
        if place is None:
            return [p for part in survey((module,)) for p in part._parameters.values()]
        return self.places[self._starts[place.start] : self._starts[place.stop]]

    def repeatable(self, key: str) -> bool:
        """Whether the branch gives the same value for the same input wherever it is evaluated: no random numbers, no state."""
        return not any(key in changed for changed in (self._random, self._buffers, self._attributes))

    def entered_as(self, other: "Record") -> bool:
        """Whether the branches of both found the attributes of their modules alike."""
        if self.quiet or other.quiet:
            return True
        mine, others = (list(chain.from_iterable(record._entered.values())) for record in (self, other))
        return alike(mine, others)

    def parameters_changed(self) -> bool:
        """Whether a parameter's values, or the memory that holds them, are no longer those of the first pass."""
        return self._versions != [p._version for p in self.parameters] or self._memory != [
            p.untyped_storage()._cdata for p in self.parameters
        ]

    def buffers_changed(self) -> list[str]:
        """Buffers that the first pass has read, and not moved, which were written to since."""
        if not self._left:
            return []
        moved = {(module, name) for values in self._buffers.values() for module, name, _ in values}
        return [
            f"{name} of {type(module).__name__}"
            for module, name, buffer, version in self._left
            if buffer._version != version and module._buffers.get(name) is buffer and (module, name) not in moved
        ]

    @contextmanager
    def again(self, recording: bool = False) -> Iterator[None]:
        """Around each later evaluation of the step or of one of its branches. recording: of all that is done inside."""
        seen: list[tuple[nn.Module, str, Any]] = []
        # buffers that others have taken the place of since
        scratch: Values = [(m, name, b) for m, name, b, _ in self._left if m._buffers.get(name) is not b]
        if self.modes != [module.training for module in self.modules]:
            pairs = zip(self.modules, self.modes, strict=True)
            seen += [(module, "training", mode) for module, mode in pairs if module.training != mode]
        for norm in self._normalise:
            if not norm.track_running_stats:  # or in a recomputation of a Chain around
                continue
            # without weights, the statistics alone say under autocast in which type the kernel computes
            plain = type(norm).forward is _BatchNorm.forward and (norm.affine or not self.surroundings.is_cast)
            if plain and not self.compiled and norm not in self._by_hand:  # which would compile it once more
                # it then leaves running statistics alone, and normalises as before; faster than moving copies
                seen.append((norm, "track_running_stats", False))
            else:
                scratch += [(norm, name, b) for name, b in norm._buffers.items() if b is not None]
        if self._ids != [id(p) for module, _ in self._held for p in module._parameters.values()]:
            for module, held in self._held:
                own = module._parameters
                if len(held) != len(own) or not all(map(is_, held.values(), own.values())):
                    seen.append((module, "_parameters", held))
        seen += [(module, "_modules", held) for module, held in self._holding if module._modules != held]
        objects = NOTHING if self.objects is None else self.objects.again()
        attributes = NOTHING if self.attributes is None else self.attributes.again()
        self._replaying = True
        try:
            with (
                self.surroundings(recording),
                substituted(scratch),
                objects,
                attributes,
                lent(seen) if seen else NOTHING,
            ):
                yield
        finally:
            self._replaying = False

    def evaluate(self, key: str, branch: Callable[..., T], inputs: tuple[Tensor, ...], context: dict[str, Any]) -> T:
        return (self._replay if self._replaying else self._watch)(key, branch, inputs, context)

    def _watch(self, key: str, branch: Callable[..., T], inputs: tuple[Tensor, ...], context: dict[str, Any]) -> T:
        self._states.append((key, self.surroundings.random_state()))
        before = noted(m for m in self.modules if not normalises(m))
        attributes = Attributes(self.modules)
        self._entered[key] = attributes.plain
        result = branch(*inputs, **context)
        if changed := moved(before):
            self._buffers[key] = changed
        if attributes.settle():  # a module may be evaluated in several branches, which are undone in another order
            self._attributes[key] = attributes
        return result

    def _replay(self, key: str, branch: Callable[..., T], inputs: tuple[Tensor, ...], context: dict[str, Any]) -> T:
        entered = [(m, n, v) for m, own in self._entered.get(key, ()) for n, v in own.items()]
        others = [(m, name, value) for m, name, value in entered if vars(m).get(name, MISSING) is not value]
        if others:
            with lent(others):
                return self._replay(key, branch, inputs, context)
        if self.repeatable(key):
            return branch(*inputs, **context)
        state = self._random.get(key)
        attributes = self._attributes.get(key)
        with substituted(self._buffers.get(key, [])), NOTHING if attributes is None else attributes.again():
            if state is None:
                return branch(*inputs, **context)
            callers = self.surroundings.random_state()
            self.surroundings.set_random_state(state)
            try:
                return branch(*inputs, **context)
            finally:
                self.surroundings.set_random_state(callers)


def substituted(values: Values) -> AbstractContextManager[None]:
    """The modules see `values` as their buffers; the buffers themselves are not touched."""
    return lent(as_before(values)) if values else NOTHING
