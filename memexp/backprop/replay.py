"""Evaluating a part of a network a second time exactly as the first time.

What the first pass depended on beside its inputs is recorded, and put in place around every later evaluation:

* random state: recorded before each branch that draws from it, set for the recomputation, and the caller's put back;
* autocast, on or off and its dtype, without its cache (a weight cast without a graph must not serve where one is due);
* train or eval mode of every module;
* buffers: normalisation layers in training mode normalise with the batch's statistics again and move scratch copies, so
  running statistics move once per training step; buffers of other modules that the first pass changed (power iterations
  of a spectral norm, say) are seen as they were before it.

Nothing is kept for a step that draws no random numbers and changes no buffers but running statistics.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

T = TypeVar("T")
_current: ContextVar["Record | None"] = ContextVar("record", default=None)


def evaluate(key: str, branch: Callable[..., T], *inputs: Tensor) -> T:
    """`branch(*inputs)`; inside a recorded or replayed step, under the name `key`.

    Steps evaluate their branches through this, so that a branch can be replayed by itself and in another order.
    """
    record = _current.get()
    return branch(*inputs) if record is None else record.evaluate(key, branch, *inputs)


class Surroundings:
    """Autocast and devices at a Chain's entry, the same for all its steps."""

    def __init__(self, streams: Sequence[Tensor]) -> None:
        self.devices = sorted({x.device for x in streams if x.device.type not in ("cpu", "meta")}, key=str)
        types = ["cpu", *sorted({device.type for device in self.devices})]
        self.autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in types]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with ExitStack() as stack:
            for kind, enabled, dtype in self.autocast:
                if enabled:
                    stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
                elif torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    def random_state(self) -> list[Tensor]:
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
        self._modes = [(module, module.training) for module in step.modules()]
        self._random: dict[str, list[Tensor]] = {}
        self._buffers: dict[str, list[tuple[nn.Module, str, Tensor]]] = {}
        self._replaying = False

    def repeatable(self, key: str) -> bool:
        """Whether the branch gives the same value for the same input wherever it is evaluated: no random numbers."""
        return key not in self._random and key not in self._buffers

    @contextmanager
    def first(self) -> Iterator[None]:
        """Around the first pass."""
        token = _current.set(self)
        try:
            with self.surroundings():
                yield
        finally:
            _current.reset(token)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Around each later evaluation of the step or of one of its branches."""
        token = _current.set(self)
        changed = [(module, module.training) for module, mode in self._modes if module.training != mode]
        for module, mode in self._modes:
            module.training = mode
        moved: list[tuple[nn.Module, str, Tensor]] = [
            (module, name, buffer.clone())
            for module, mode in self._modes
            if mode and isinstance(module, _NormBase)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._replaying = True
        try:
            with self.surroundings(), _substituted(moved):
                yield
        finally:
            self._replaying = False
            for module, mode in changed:
                module.training = mode
            _current.reset(token)

    def evaluate(self, key: str, branch: Callable[..., T], *inputs: Tensor) -> T:
        # what is nested in the branch belongs to the branch, and must not write under this step's keys
        token = _current.set(None)
        try:
            return self._replay(key, branch, *inputs) if self._replaying else self._watch(key, branch, *inputs)
        finally:
            _current.reset(token)

    def _watch(self, key: str, branch: Callable[..., T], *inputs: Tensor) -> T:
        state = self.surroundings.random_state()
        before = [(module, name, buffer, buffer._version, buffer.clone()) for module, name, buffer in self._volatile()]
        result = branch(*inputs)
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

    def _replay(self, key: str, branch: Callable[..., T], *inputs: Tensor) -> T:
        state = self._random.get(key)
        with _substituted([(module, name, value.clone()) for module, name, value in self._buffers.get(key, ())]):
            if state is None:
                return branch(*inputs)
            callers = self.surroundings.random_state()
            self.surroundings.set_random_state(state)
            try:
                return branch(*inputs)
            finally:
                self.surroundings.set_random_state(callers)

    def _volatile(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        for module, _ in self._modes:
            if module._buffers and not isinstance(module, _NormBase):
                for name, buffer in module._buffers.items():
                    if buffer is not None and not buffer.is_inference():
                        yield module, name, buffer


@contextmanager
def _substituted(values: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """The modules see `values` as their buffers; the buffers themselves are not touched."""
    originals = [(module, name, module._buffers[name]) for module, name, _ in values]
    for module, name, value in values:
        module._buffers[name] = value
    try:
        yield
    finally:
        for module, name, buffer in originals:
            module._buffers[name] = buffer
