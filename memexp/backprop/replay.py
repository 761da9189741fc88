"""Evaluating a part of a network a second time exactly as the first time.

What the first pass depended on beside its inputs is recorded, and put in place around every later evaluation:

* parameters: those of the first pass, also where others have taken their place since (`torch.func.functional_call`);
* random state: recorded before each branch that draws from it, set for the recomputation, and the caller's put back;
* autocast, on or off and its dtype, without its cache (a weight cast without a graph must not serve where one is due;
  so with the cache of `torch.nn.utils.parametrize`);
* train or eval mode of every module;
* buffers: normalisation layers in training mode normalise with the batch's statistics again and move none, so running
  statistics move once per training step; buffers of other modules that the first pass changed (power iterations of a
  spectral norm, say) are seen as they were before it.

Nothing is kept for a step that draws no random numbers and changes no buffers but running statistics. Random state means
torch's global generators: numbers from a `torch.Generator` of one's own or Python's `random`, or a count of calls in an
attribute, are not replayed (`Chain(..., check=True)` finds the step that uses such).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils import parametrize

from memexp.backprop.rounding import RangeWatch, Rounding

T = TypeVar("T")
LARGE = 2**16  # bytes of a buffer from which on it is copied only if it is written to


@dataclass(frozen=True, slots=True)
class Frame:
    """What a Chain tells the step that it evaluates.

    Attributes:
        rounding: the grid of `exact`, or None.
        watch: looks at the range of the grid.
        record: of the step's first pass, where it will be evaluated again.
        undone: the step will be undone, without being called.
        prefix: of the names of branches, in a Chain that is a step of another.
    """

    rounding: Rounding | None
    watch: RangeWatch | None = None
    record: "Record | None" = None
    undone: bool = False
    prefix: str = ""

    def inside(self, index: int) -> "Frame":
        """Of step `index` of a Chain that is itself a step."""
        return replace(self, prefix=f"{self.prefix}{index}.")


current: ContextVar[Frame | None] = ContextVar("frame", default=None)


def grid() -> Rounding | None:
    """The grid of `exact` that the step being evaluated is to keep to, or None."""
    frame = current.get()
    return None if frame is None else frame.rounding


def evaluate(key: str, branch: Callable[..., T], *inputs: Tensor, **context: Any) -> T:
    """`branch(*inputs, **context)`; inside a recorded or replayed step, under the name `key`.

    Steps evaluate their branches through this, so that a branch can be replayed by itself and in another order.
    """
    frame = current.get()
    if frame is None:
        return branch(*inputs, **context)
    # what is nested in the branch belongs to the branch, and must not write under this step's keys
    token = current.set(None)
    try:
        if frame.record is None:
            return branch(*inputs, **context)
        return frame.record.evaluate(frame.prefix + key, branch, inputs, context)
    finally:
        current.reset(token)


def survey(module: nn.Module) -> list[nn.Module]:
    """All modules in `module`, itself first: `list(module.modules())` without the names."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            waiting += [child for child in reversed(part._modules.values()) if child is not None]
    return list(found.values())


class Surroundings:
    """A Chain's call, the same for all its steps: keywords, devices, autocast."""

    def __init__(self, streams: Sequence[Tensor], context: dict[str, Any]) -> None:
        self.context = context
        self._versions = {n: t._version for n, t in context.items() if isinstance(t, Tensor) and not t.is_inference()}
        tensors = (*streams, *(value for value in context.values() if isinstance(value, Tensor)))
        self.devices = sorted({x.device for x in tensors if x.device.type != "cpu"}, key=str)
        types = ["cpu", *sorted({device.type for device in self.devices})]
        self.autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in types]

    def __call__(self) -> AbstractContextManager[Any]:
        set_again = [
            torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
            for kind, enabled, dtype in self.autocast
            if enabled or torch.is_autocast_enabled(kind)
        ]
        if not set_again:
            return nullcontext()
        stack = ExitStack()
        for autocast in set_again:
            stack.enter_context(autocast)
        return stack

    def changed(self) -> list[str]:
        """Keywords whose tensors were changed in place since."""
        return [name for name, version in self._versions.items() if self.context[name]._version != version]

    def random_state(self) -> list[Tensor]:
        if not self.devices:
            return [torch.get_rng_state()]
        states = [torch.get_rng_state()]
        return states + [torch.get_device_module(device).get_rng_state(device) for device in self.devices]

    def set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)


class Record:
    """The first pass of one step, recorded (`first`) and replayed (`again`)."""

    def __init__(self, step: nn.Module, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        modules = survey(step)
        self._modes = [(module, module.training) for module in modules]
        self.parameters: list[tuple[nn.Module, str, Tensor]] = [
            (module, name, p) for module in modules for name, p in module._parameters.items() if p is not None
        ]
        self._contents = [(p._version, p.untyped_storage()._cdata) for _, _, p in self.parameters]
        self._buffered = [m for m in modules if m._buffers and not isinstance(m, _NormBase)]
        self._random: dict[str, list[Tensor]] = {}
        self._buffers: dict[str, list[tuple[nn.Module, str, Tensor]]] = {}
        self._replaying = False

    def repeatable(self, key: str) -> bool:
        """Whether the branch gives the same value for the same input wherever it is evaluated: no random numbers."""
        return key not in self._random and key not in self._buffers

    def parameters_changed(self) -> bool:
        """Whether a parameter's values, or the memory that holds them, are no longer those of the first pass."""
        return self._contents != [(p._version, p.untyped_storage()._cdata) for _, _, p in self.parameters]

    @contextmanager
    def first(self) -> Iterator[None]:
        """Around the first pass."""
        with self.surroundings(), _without_cache():
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """Around each later evaluation of the step or of one of its branches."""
        others = [entry for entry in self.parameters if entry[0]._parameters.get(entry[1]) is not entry[2]]
        changed: list[tuple[nn.Module, bool]] = []
        untracked: list[nn.Module] = []
        scratch: list[tuple[nn.Module, str, Tensor]] = []
        for module, mode in self._modes:
            if module.training != mode:
                changed.append((module, module.training))
                module.training = mode
            if not mode or not isinstance(module, _NormBase) or not module.track_running_stats:
                continue
            if type(module).forward is _BatchNorm.forward:
                # it then leaves running statistics alone, and normalises as before; faster than moving copies
                untracked.append(module)
                module.__dict__["track_running_stats"] = False
            else:
                scratch += [(module, name, b.clone()) for name, b in module._buffers.items() if b is not None]
        self._replaying = True
        try:
            with self.surroundings(), _without_cache(), substituted("_buffers", scratch):
                if not others:
                    yield
                else:
                    with substituted("_parameters", others):
                        yield
        finally:
            self._replaying = False
            for module, mode in changed:
                module.training = mode
            for module in untracked:
                module.__dict__["track_running_stats"] = True

    def evaluate(self, key: str, branch: Callable[..., T], inputs: tuple[Tensor, ...], context: dict[str, Any]) -> T:
        return (self._replay if self._replaying else self._watch)(key, branch, inputs, context)

    def _watch(self, key: str, branch: Callable[..., T], inputs: tuple[Tensor, ...], context: dict[str, Any]) -> T:
        state = self.surroundings.random_state()
        before = [
            (module, name, buffer, buffer._version, _copy(buffer))
            for module in self._buffered
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]
        result = branch(*inputs, **context)
        if any(not torch.equal(a, b) for a, b in zip(state, self.surroundings.random_state(), strict=True)):
            self._random[key] = state
        changed = [
            (module, name, value)
            for module, name, buffer, version, value in before
            if module._buffers.get(name) is not buffer or buffer._version != version
        ]
        if changed:
            self._buffers[key] = changed
        return result

    def _replay(self, key: str, branch: Callable[..., T], inputs: tuple[Tensor, ...], context: dict[str, Any]) -> T:
        state = self._random.get(key)
        before = [(module, name, value.clone()) for module, name, value in self._buffers.get(key, ())]
        if state is None and not before:
            return branch(*inputs, **context)
        with substituted("_buffers", before):
            if state is None:
                return branch(*inputs, **context)
            callers = self.surroundings.random_state()
            self.surroundings.set_random_state(state)
            try:
                return branch(*inputs, **context)
            finally:
                self.surroundings.set_random_state(callers)


def _copy(buffer: Tensor) -> Tensor:
    """Its value, whatever becomes of it. A large one, such as a mask, is copied only when it is written to."""
    if buffer.nbytes >= LARGE:
        try:
            return torch._lazy_clone(buffer)
        except (RuntimeError, NotImplementedError):  # memory that torch did not allocate, or no data at all
            pass
    return buffer.clone()


@contextmanager
def substituted(kind: str, values: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """The modules see `values` as their buffers or parameters; their own are not touched."""
    own = [(held := getattr(module, kind), name, name in held, held.get(name)) for module, name, _ in values]
    for (held, name, _, _), (_, _, value) in zip(own, values, strict=True):
        held[name] = value
    try:
        yield
    finally:
        for held, name, there, value in own:
            if there:
                held[name] = value
            else:
                held.pop(name, None)


@contextmanager
def _without_cache() -> Iterator[None]:
    """`parametrize.cached()` out of force: what it holds is with a graph in one pass and without in the other."""
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled
