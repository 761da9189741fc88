"""The end of a recomputation, which nobody reads: noted when steps are recomputed first, left out from then on.

Backward needs what the operations of a step have saved; of the last convolution of a branch, and of the sum behind it, that is
nothing that they give. So the second and later recomputations of the same steps on streams of the same sizes compute no
further than the last operation whose result is saved; those behind it give memory, as autograd's graph is wanted, and no
values. Only where the modules are known to keep no values for others to read.
"""

import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from memexp.backprop.followed import done

LARGE_STREAMS = 2**17  # bytes: below, looking at each operation costs more than the last ones
READ = {torch.ops.aten._local_scalar_dense, torch.ops.aten.equal}  # values that Python sees
DETACH = torch.ops.aten.detach.default  # done for each tensor that is saved where a hook looks at it, and only there
PLAIN = {int, float, bool, str, type(None)}
HOMES = ("torch.nn.modules.", "torchvision.", "memexp.models.", "memexp.backprop.coupling", "memexp.backprop.euler")


@dataclass(frozen=True)
class Geometry:
    """Of a tensor that an operation gives."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def geometry(tensor: Tensor) -> Geometry:
    return Geometry(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


@dataclass
class Tail:
    """operations: all of a recomputation in order, with the geometry of what is new; last: index of the last that is needed."""

    operations: list[tuple[Any, Any]]
    last: int


_known: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Tail]] = weakref.WeakKeyDictionary()


def forgetful(modules: Iterable[nn.Module]) -> bool:
    """Whether the modules are known to keep no values, and no hook reads any."""
    return all(
        type(module).__module__.startswith(HOMES)
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
        for module in modules
    )


def forms(modules: Iterable[nn.Module]) -> Hashable:
    """Which modules they are, and their settings: others may save what these do not."""
    return tuple([(id(m), type(m), *[v for v in vars(m).values() if type(v) in PLAIN]) for m in modules])


@contextmanager
def without_tail(step: nn.Module, key: Hashable, streams: Sequence[Tensor]) -> Iterator[None]:
    """Around a recomputation of steps, the first of which is `step`; key: what it depends on whether a tensor is saved."""
    tails = _known.setdefault(step, {})
    key = key, tuple(map(geometry, streams))
    tail = tails.get(key)
    if tail is None:
        learning = _Learning()
        with torch.autograd.graph.saved_tensors_hooks(learning.pack, lambda tensor: tensor), learning:
            yield
        tails[key] = Tail(learning.operations, learning.last)
    else:
        stopping = _Stopping(tail)
        with stopping:
            yield
        if not stopping.same:
            del tails[key]


class _Learning(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any]] = []
        self.last = -1
        self._made: dict[int, int] = {}  # storage -> the operation that wrote to it last

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = done(func, args, kwargs or {})
        if func is DETACH:
            return out
        index = len(self.operations)
        read = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        made = {t.untyped_storage()._cdata for t in tree_iter(out) if isinstance(t, Tensor)}
        new = not made & read and not func._schema.is_mutable
        self.operations.append(
            (func, tree_map(lambda t: geometry(t) if isinstance(t, Tensor) else t, out) if new else None)
        )
        if func._overloadpacket in READ:
            self.last = index
        if not func.is_view:
            self._made |= dict.fromkeys(made, index)
        return out

    def pack(self, tensor: Tensor) -> Tensor:
        self.last = max(self.last, self._made.get(tensor.untyped_storage()._cdata, -1))
        return tensor


class _Stopping(TorchDispatchMode):
    """same: whether the operations have been those that were noted."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self._operations, self._last = tail.operations, tail.last
        self._index, self.same = -1, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DETACH:
            return done(func, args, kwargs or {})
        self._index += 1
        self.same = self.same and self._index < len(self._operations) and func is self._operations[self._index][0]
        if self.same and self._index > self._last and (new := self._operations[self._index][1]) is not None:
            return tree_map(lambda g: g.empty() if isinstance(g, Geometry) else g, new)
        return done(func, args, kwargs or {})
