"""Tensors that autograd would keep, remade in backward from those that are dear to make.

While a part of a network runs forward, a dispatch mode notes by which cheap operations (cheap.py) each tensor was made. When
autograd saves one, it is dropped if what it can be remade from is kept already, or is smaller; so the output of a
normalisation, of an activation, of a concatenation goes, and their inputs stay. In backward the operations are done once
more, on the same bits, and what is remade is held until all who saved it have had it. (In-Place ABN, arXiv 1712.02616, and
the memory-efficient DenseNet, arXiv 1707.06990, do so for one kind of layer each.)

A tensor that is written to is another value from then on: values are what is followed, not memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from memexp.backprop.cheap import again, is_cheap, targets, written
from memexp.backprop.followed import done
from memexp.backprop.values import Operation, Value, copied, geometry, kind, unchanged

SMALL = 1024  # bytes: what is not worth the work
REDUCED = 4  # a result so many times smaller than what it is made of is kept
NESTED = 2  # saved values that are dropped may be made of one another so deep: each is in memory for the next


class Remaking(TorchDispatchMode):
    """Follows a part of a forward pass, and decides what autograd saves of it. streams: what enters it."""

    def __init__(self, streams: Sequence[Tensor]) -> None:
        super().__init__()
        self._values: dict[int, tuple[Any, Value]] = {}
        for x in filter(_is_dense, streams):
            value = self._value(x)
            value.entered = True
            value.nbytes = x.nbytes  # what else is in its memory, such as other images, is there anyway

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if written(func):
            return self._write(func, args, kwargs)
        out = done(func, args, kwargs)
        if is_cheap(func):
            self._note(func, args, kwargs, out)
        return out

    def pack(self, tensor: Tensor) -> Any:
        """What autograd is to hold for a tensor that it saves."""
        if not _is_dense(tensor) or tensor.nbytes < SMALL:
            return _alone(tensor), tensor._version
        value = self._value(tensor)
        if value.kept is not None or value.kind != kind(tensor):
            return _alone(tensor), tensor._version
        if value.source is not None and _dropped(value):
            value.uses += 1
            return value, geometry(tensor)
        tensor = _alone(tensor)
        value.keep(tensor if geometry(tensor) == value.geometry else tensor.as_strided(*value.geometry))
        return tensor, tensor._version

    def leave(self, outputs: Sequence[Tensor]) -> None:
        """What leaves is in memory for others, and need not be remade."""
        for y in filter(_is_dense, outputs):
            _, value = self._values.get(y.untyped_storage()._cdata, (None, None))
            if value is not None and value.uses and value.kept is None and value.kind == kind(y):
                root = y.detach()
                value.keep(root if geometry(root) == value.geometry else root.as_strided(*value.geometry))

    def forget(self) -> None:
        """The graph holds the hook, and with it this; what is followed here would hold the graph in turn, for good."""
        self._values.clear()

    def _value(self, tensor: Tensor) -> Value:
        """What the tensor's storage holds now."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        found = self._values.get(key)  # as long as there is a weak reference, no other storage gets the key
        if found is None:
            found = self._values[key] = (StorageWeakRef(storage), Value(tensor))
        return found[1]

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """A cheap operation was done."""
        results = [y for y in (out if isinstance(out, list | tuple) else [out]) if _is_dense(y)]
        if not results or results[0].nbytes < SMALL or any(isinstance(value, Tensor) for value in kwargs.values()):
            return
        function, arguments = again(func, args, out)
        operation, size = self._operation(function, arguments, kwargs)
        if operation is None:
            return
        for index, y in enumerate(results if function is func else results[:1]):
            storage = y.untyped_storage()
            if REDUCED * y.nbytes >= size and storage._cdata not in self._values:  # else it is a view
                self._values[storage._cdata] = StorageWeakRef(storage), Value(y, operation, index)

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation writes to some of its arguments, which are other values from then on."""
        changed = list(filter(_is_dense, targets(func, args, kwargs)))
        if all(t.nbytes < SMALL and t.untyped_storage()._cdata not in self._values for t in changed):
            return func(*args, **kwargs)  # a count of batches
        followed = len(changed) == 1 and not kwargs and is_cheap(func)
        target = next((i for i, argument in enumerate(args) if argument is changed[0]), None) if followed else None
        operation = None if target is None else self._operation(func, args, kwargs, target)[0]
        before = [self._value(tensor) for tensor in changed]
        for value in before:
            if value.kept is not None:  # what is made of it needs it as it was
                value.keep(copied(value.kept))
            value.lost = True
        out = func(*args, **kwargs)
        for tensor, value in zip(changed, before, strict=True):
            storage = tensor.untyped_storage()
            self._values[storage._cdata] = StorageWeakRef(storage), value.written(tensor, operation)
        return out

    def _operation(
        self, function: Any, args: Any, kwargs: Any, target: int | None = None
    ) -> tuple[Operation | None, int]:
        """The operation, and the bytes of what it reads; None where it reads what is not followed, or bits of a value as
        something else.
        """
        arguments, size = list(args), 0
        for position, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                read = [argument]
            elif isinstance(argument, list | tuple):
                read = [x for x in argument if isinstance(x, Tensor)]
            else:
                continue
            if any([not _is_dense(x) or self._value(x).kind != kind(x) for x in read]):
                return None, 0
            if isinstance(argument, Tensor):
                arguments[position] = self._value(argument), geometry(argument)
            else:
                arguments[position] = [(self._value(x), geometry(x)) if isinstance(x, Tensor) else x for x in argument]
            size += sum([x.nbytes for x in read])
        return Operation(function, arguments, kwargs, target), size


@contextmanager
def remaking(streams: Sequence[Tensor]) -> Iterator[Remaking]:
    """Inside, what autograd saves is kept only where it is dear to make; call `leave` with what the part gives."""
    mode = Remaking(streams)
    with ExitStack() as stack:
        stack.callback(mode.forget)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(mode.pack, unpack))
        stack.enter_context(mode)
        yield mode


def unpack(packed: Any) -> Tensor:
    """The tensor that autograd had saved."""
    first, second = packed
    if isinstance(first, Tensor):
        return unchanged(first, second)
    value: Value = first
    with torch.no_grad(), torch._C._DisableAutocast():
        root = value.tensor()
        if value.held is not None:
            value.waiting -= 1
            if value.waiting == 0:
                value.held = None
        return root if second == value.geometry else root.as_strided(*second)


def _is_dense(value: Any) -> bool:
    """Whether it is a tensor whose storage can be followed."""
    return isinstance(value, Tensor) and value.layout is torch.strided


def _alone(tensor: Tensor) -> Tensor:
    """In place of the output of the node that saves it, which would hold itself for good."""
    node = tensor.grad_fn
    own = node is not None and node._sequence_nr() == torch._C._autograd._get_sequence_nr() - 1
    return tensor.detach() if own else tensor


def _dropped(value: Value) -> bool:
    """Drops a value that autograd saves, if what it is remade from is kept or smaller; else it will be kept."""
    if value.uses:
        return True
    wanted: dict[Value, Tensor] = {}
    depth = _sources(value, wanted)
    if depth is None or depth >= NESTED:
        return False
    new = sum(source.nbytes for source in wanted if not source.free)
    if new > value.nbytes or (new == value.nbytes and not all(source.entered for source in wanted)):
        return False
    for source, tensor in wanted.items():
        source.keep(tensor.detach() if not source.free else tensor)
    value.depth = depth + 1
    return True


def _sources(value: Value, wanted: dict[Value, Tensor]) -> int | None:
    """Collects what has to be kept to remake the value; gives how deep what it is made of is nested, None: impossible."""
    assert value.source is not None
    depth = 0
    for argument in value.source.values:
        if argument.kept is not None or argument in wanted:
            continue
        if argument.source is not None:
            below = argument.depth if argument.uses else _sources(argument, wanted)
            if below is None:
                return None
            depth = max(depth, below)
            continue
        tensor = argument.weak() if argument.weak is not None and not argument.lost else None
        if tensor is None:
            return None
        wanted[argument] = tensor
    return depth
