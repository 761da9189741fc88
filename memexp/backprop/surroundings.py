"""What all steps of one call of a Chain have around them: its keywords, devices, autocast, random state."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

NOTHING: AbstractContextManager[None] = nullcontext()
CPU = torch.device("cpu")
# kinds of devices, whether autocast is on for them, and to which type it casts
Casts = list[tuple[str, bool, torch.dtype]]
# around a recomputation: among gradients in a batch (is_grads_batched) torch lets nobody draw; what is drawn again is no batch
BATCHED = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("VmapMode"))  # type: ignore[arg-type]

_cuda = torch.backends.cuda
# what a caller may set around a forward pass alone, such as attention's kernels (sdpa_kernel), which draw other random numbers
SWITCHES: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch._C._get_flash_sdp_enabled, _cuda.enable_flash_sdp),
    (torch._C._get_mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp),
    (torch._C._get_math_sdp_enabled, _cuda.enable_math_sdp),
    (torch._C._get_cudnn_sdp_enabled, _cuda.enable_cudnn_sdp),
    (torch._C._get_sdp_priority_order, torch._C._set_sdp_priority_order),
    (torch.get_default_dtype, torch.set_default_dtype),
]


class Surroundings:
    """A Chain's call, the same for all its steps: keywords, devices, autocast, switches, the default device."""

    def __init__(self, streams: Sequence[Tensor], context: dict[str, Any]) -> None:
        self.context = context
        self.switches = _switches()
        self.default = _default_device()
        self.versions = {n: t._version for n, t in context.items() if isinstance(t, Tensor) and not t.is_inference()}
        self._take({x.device for x in (*streams, *context.values()) if isinstance(x, Tensor)})
        self.cached = torch.is_autocast_cache_enabled()

    def _take(self, devices: Iterable[torch.device]) -> None:
        self.devices = sorted({device for device in devices if device.type not in ("cpu", "meta")}, key=str)
        types = ["cpu", *sorted({device.type for device in self.devices})]
        self.autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in types]
        self.is_cast = any([enabled for _, enabled, _ in self.autocast])

    def on(self, parameters: Iterable[Tensor]) -> "Surroundings":
        """With the devices of a step's parameters, where it takes its streams, too."""
        devices = {p.device for p in parameters}.union(self.devices)
        if len(devices - {CPU}) == len(self.devices):
            return self
        found = copy(self)
        found._take(devices)
        return found

    def __call__(self, recording: bool = False) -> AbstractContextManager[Any]:
        """Around every evaluation of a step: autocast and switches as at the Chain's entry, and caches of weights out of force.

        recording: all that is done inside is recorded by autograd. A weight that is read again and again, as in a loop over
        time, is then cast once, as in the network without the engine, and its gradient is added up in the cast's type.
        """
        caches = recording and self.cached and not _in_autocast()
        set_again = [
            torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=caches)
            for kind, enabled, dtype in self.autocast
            if enabled or torch.is_autocast_enabled(kind)
        ]
        switched = self.switches != _switches()
        moved = self.default != _default_device()
        if not set_again and not parametrize._cache_enabled and not switched and not moved:
            return NOTHING
        stack = ExitStack()
        if switched:
            stack.enter_context(_switched(self.switches))
        if moved:  # what is made or drawn there, be it one number, is another on another
            stack.enter_context(self.default)
        # what the cache of parametrize.cached() holds is with a graph in one pass and without in the other
        stack.enter_context(_without_cache())
        for autocast in set_again:
            stack.enter_context(autocast)
        return stack

    def cast_now(self) -> Casts:
        """Autocast, where it is now another than at the Chain's entry."""
        now = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind, _, _ in self.autocast]
        pairs = zip(now, self.autocast, strict=True)
        return [own for own, entered in pairs if own != entered and (own[1] or entered[1])]

    def changed(self) -> list[str]:
        """Keywords whose tensors were changed in place since."""
        return [name for name, version in self.versions.items() if self.context[name]._version != version]

    def random_state(self) -> list[Tensor]:
        if not self.devices:
            return [torch.get_rng_state()]
        states = [torch.get_rng_state()]
        return states + [torch.get_device_module(device).get_rng_state(device) for device in self.devices]

    def set_random_state(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def casting(casts: Casts) -> Iterator[None]:
    """Inside, autocast is so."""
    own = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind, _, _ in casts]
    try:
        _cast(casts)
        yield
    finally:
        _cast(own)


def _cast(casts: Casts) -> None:
    for kind, enabled, dtype in casts:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _switches() -> list[Any]:
    return [get() for get, _ in SWITCHES]


def _default_device() -> torch.device:
    """Where tensors are made, by a `with torch.device(...)` or torch.set_default_device."""
    return torch.get_default_device() if torch._C._len_torch_function_stack() else CPU


@contextmanager
def _switched(values: list[Any]) -> Iterator[None]:
    own = _switches()
    try:
        for (_, put), value in zip(SWITCHES, values, strict=True):
            put(value)
        yield
    finally:
        for (_, put), value in zip(SWITCHES, own, strict=True):
            put(value)


def _in_autocast() -> bool:
    """Whether a caller's autocast is around, in whose cache casts may be that have no graph."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth > 1


@contextmanager
def _without_cache() -> Iterator[None]:
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled
