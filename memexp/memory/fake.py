"""Tensors without data: code runs for its shapes only, at any size, in the time of its Python."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_equal = torch.ops.aten.equal.default
_item = torch.ops.aten._local_scalar_dense.default


@contextmanager
def without_data() -> Iterator[None]:
    """Inside, tensors have shape, dtype and device but no memory; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), _Answers():
        yield


class _Answers(TorchDispatchMode):
    """Answers what code asks of values that are not there, as in a run where nothing goes wrong.

    A number read is 0 (a gradient that overflowed, values outside of a range, draws to be repeated: none); tensors are
    equal. Random numbers that are drawn move the real generator's state, as that is what recomputation compares.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _item:
            kind = args[0].dtype
            return False if kind is torch.bool else 0.0 if kind.is_floating_point else 0
        if func is _equal and not any(isinstance(t, FakeTensor) for t in args):
            with _disable_current_modes():
                return func(*args)
        if func is _equal:
            return True
        if torch.Tag.nondeterministic_seeded in func.tags:
            with _disable_current_modes():
                torch.rand(())
        return func(*args, **(kwargs or {}))


def channels_last(model: nn.Module) -> nn.Module:
    """`model.to(memory_format=torch.channels_last)`, which swaps tensors and cannot swap those without data."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p.ndim == 4:
                if p not in moved:
                    moved[p] = nn.Parameter(p.detach().contiguous(memory_format=torch.channels_last), p.requires_grad)
                module._parameters[name] = moved[p]
    return model
