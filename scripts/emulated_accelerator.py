"""An accelerator that does not exist, for checks of device code on a machine without one: device "npu", computed on the CPU.

It is strict, as a real one is: an operation on tensors of two devices is an error. It counts what costs time on a real one:
kernels that are launched, reads of the host that wait for the device (with the line that asked), and copies across the bus.

    import emulated_accelerator as npu        # before anything is computed: it registers torch's PrivateUse1 backend
    with npu.counted() as counts:
        step()
    counts.kernels, counts.reads, counts.copies

One registration a process, and for good: tests run it in processes of their own.
"""

import traceback
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "npu"
GRANULE = 512  # bytes: an allocator rounds every request up to a multiple of this
MEMORY = 80 * 2**30  # bytes that it says to have
HOME = Path(__file__).resolve().parent.parent  # lines below it are named where the host waits
# what makes or names memory and launches nothing
NO_KERNEL = {
    *(aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default),
    *(aten.new_empty_strided.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default),
}
WAITING = {  # the host waits for their result
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default),
    *(aten.is_nonzero.default, aten.unique_dim.default, aten._unique2.default),
}
COPIES = {aten.copy_.default, aten._copy_from.default, aten._copy_from_and_resize.default, aten._to_copy.default}
INDEXING = {
    *(aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default),
    *(aten._index_put_impl_.default,),
}
IN_HALF = ("conv2d", "linear", "addmm", "mm", "matmul")  # what autocast casts down
IN_FLOAT = ("cross_entropy_loss",)  # and what it casts up


@dataclass
class Counts:
    """kernels: launches by operation. reads: waits of the host, to_device and to_host: copies; by the line of the project that
    asked. random: reads and settings of the random state.
    """

    by_operation: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    to_device: Counter[str] = field(default_factory=Counter)
    to_host: Counter[str] = field(default_factory=Counter)
    random: Counter[str] = field(default_factory=Counter)

    @property
    def kernels(self) -> int:
        return sum(self.by_operation.values())


class _Memory:
    """Bytes that live on the device, each storage once."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def see(self, storage: Any) -> None:
        address = storage._cdata
        if address in self._known:
            return
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: Any) -> None:
            self._known.pop(address, None)
            self.live -= size

        self._known[address] = weakref.ref(storage, gone)


memory = _Memory()
_generator = torch.Generator()
_counting: list[Counts] = []


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts what is done inside."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


def _note(kind: str, what: str) -> None:
    for counts in _counting:
        getattr(counts, kind)[f"{what} at {_line()}" if kind != "by_operation" else what] += 1


def _line() -> str:
    """The innermost line of the project's package, which asked for it."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(HOME / "memexp"):
            return f"{path.relative_to(HOME)}:{frame.lineno}"
    return "elsewhere"


class _Properties:
    total_memory = MEMORY


class _Module:
    """torch.npu, as far as anything asks."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        return None

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        _generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = NAME) -> Tensor:
        _note("random", "get")
        return _generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = NAME) -> None:
        _note("random", "set")
        _generator.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        _note("reads", "synchronize")

    def get_device_properties(self, device: Any) -> type[_Properties]:
        return _Properties

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return 9, 0


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


_setup_privateuseone_for_python_backend(NAME, _Module(), _Hooks())
DEVICE = torch.device(f"{NAME}:0")


class OnDevice(torch.Tensor):
    """A tensor of the device; `raw` is where its numbers really are."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "OnDevice":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
            layout=raw.layout,
            requires_grad=False,
            storage_size=raw.untyped_storage().nbytes(),
        )
        assert isinstance(tensor, OnDevice)
        tensor.raw = raw
        memory.see(raw.untyped_storage())
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({self.raw})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.raw.__reduce_ex__(protocol)  # a file has its numbers, on the CPU

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def tolist(self) -> Any:
        _note("reads", "tolist")
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        mode = next((t.fake_mode for t in tree_iter((args, kwargs)) if isinstance(t, FakeTensor)), None)
        if mode is None:
            return _call(func, args, kwargs or {})

        def emptied(value: Any) -> Any:  # a trace without data takes tensors of a real device as descriptions
            if not isinstance(value, OnDevice):
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)

        with mode:
            args, kwargs = tree_map(emptied, args), tree_map(emptied, kwargs or {})
            return func(*args, **kwargs)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carries `func` out on the CPU, after a device's own checks."""
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    wanted = kwargs.get("device")
    to_host = func is aten._to_copy.default and wanted is not None and torch.device(wanted).type == "cpu"
    if ours and func not in COPIES and func not in INDEXING and any(tensor.dim() > 0 for tensor in others):
        shapes = [tuple(tensor.shape) for tensor in others if tensor.dim() > 0]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} was given some on the CPU, {shapes}")
    _count_waiting(func, args, kwargs, ours, others, to_host)
    plain_args, plain_kwargs = tree_map(_plain, args), tree_map(_plain, dict(kwargs))
    if plain_kwargs.get("device") is not None:
        plain_kwargs["device"] = torch.device("cpu")
    plain_kwargs |= {"pin_memory": False} if plain_kwargs.get("pin_memory") else {}
    if func is aten._to_copy.default:
        plain_kwargs.pop("non_blocking", None)
    with _own_random_numbers(func):
        out = func(*plain_args, **plain_kwargs)
    _count_kernel(func, out, ours)
    known = {id(tensor.raw): tensor for tensor in ours}
    given = {id(tensor) for tensor in tree_iter((plain_args, plain_kwargs)) if isinstance(tensor, Tensor)}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or to_host:
            return value
        if id(value) in known:
            return known[id(value)]
        return value if id(value) in given and ours else OnDevice(value)

    return tree_map(placed, out)


def _plain(value: Any) -> Any:
    return value.raw if isinstance(value, OnDevice) else value


@contextmanager
def _own_random_numbers(func: Any) -> Iterator[None]:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    kept = torch.get_rng_state()
    torch.set_rng_state(_generator.get_state())
    try:
        yield
    finally:
        _generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)


def _count_waiting(func: Any, args: Any, kwargs: Any, ours: list[Any], others: list[Tensor], to_host: bool) -> None:
    if not _counting:
        return
    name = func._overloadpacket.__name__
    if func in WAITING:
        _note("reads", name)
    if func in INDEXING:
        given = [index for index in args[1] or [] if isinstance(index, Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in given):
            _note("reads", f"{name} by a mask")
        if any(index.dim() > 0 and not isinstance(index, OnDevice) for index in given):
            _note("to_device", f"{name}'s index")
    if to_host and ours:
        _note("to_host", name)
        if not kwargs.get("non_blocking"):
            _note("reads", name)
    if func is aten._to_copy.default and others and not ours:
        _note("to_device", name)
    if func in (aten.copy_.default, aten._copy_from.default):
        source, target = (args[1], args[0]) if func is aten.copy_.default else (args[0], args[1])
        if isinstance(target, OnDevice) and not isinstance(source, OnDevice):
            _note("to_device", name)
        if isinstance(source, OnDevice) and not isinstance(target, OnDevice):
            _note("to_host", name)
            _note("reads", name)


def _count_kernel(func: Any, out: Any, ours: list[Any]) -> None:
    if not _counting or func in NO_KERNEL:
        return
    outputs = [value for value in tree_iter(out) if isinstance(value, Tensor)]
    storages = {tensor.raw.untyped_storage()._cdata for tensor in ours}
    same = {id(tensor.raw) for tensor in ours}
    viewed = outputs and all(o.untyped_storage()._cdata in storages and id(o) not in same for o in outputs)
    if not viewed:
        _note("by_operation", func._overloadpacket.__name__)


# the counters of an allocator, which a backend written in Python has none of
torch.accelerator.reset_peak_memory_stats = lambda device=None: setattr(memory, "peak", memory.live)
torch.accelerator.max_memory_allocated = lambda device=None: memory.peak
torch.accelerator.max_memory_reserved = lambda device=None: memory.peak
torch.accelerator.memory_stats = lambda device=None: OrderedDict(num_alloc_retries=0, num_ooms=0)
torch.accelerator.synchronize = lambda device=None: _note("reads", "synchronize")

_library = torch.library.Library("_", "IMPL")
_autocast = torch.library.Library("aten", "IMPL")


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return _call(op, args, kwargs)


_library.fallback(_fallback, "PrivateUse1")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]


def _casting(name: str, cast: Callable[[Tensor], Tensor]) -> None:
    operation = getattr(aten, name).default

    def one(value: Any) -> Any:
        ours = isinstance(value, Tensor) and value.is_floating_point() and value.device.type == NAME
        return cast(value) if ours else value

    def cast_first(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return operation(*tree_map(one, args), **tree_map(one, kwargs))

    _autocast.impl(name, cast_first, "AutocastPrivateUse1")


for _name in IN_HALF:
    _casting(_name, lambda tensor: tensor.to(torch.get_autocast_dtype(NAME)))
for _name in IN_FLOAT:
    _casting(_name, lambda tensor: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)
