"""Tensors without data: code runs for its shapes only, at any size, in the time of its Python."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_equal = torch.ops.aten.equal.default
_item = torch.ops.aten._local_scalar_dense.default
_batch_norm = torch.ops.aten.native_batch_norm.default


@contextmanager
def without_data() -> Iterator[None]:
    """Inside, tensors have shape, dtype and device but no memory; the caller's random state is left alone."""
    answers = _Answers()
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: answers.count(1)),
        register_optimizer_step_post_hook(lambda *_: answers.count(-1)),
    ]
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), answers:
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Answers(TorchDispatchMode):
    """Answers what code asks of values that are not there, as in a run where nothing goes wrong.

    A number read is 0 (a gradient that overflowed, values outside of a range, draws to be repeated: none), but 1 inside an
    optimizer, which reads there which step it is; tensors are equal. Random numbers
    that are drawn move the real generator's state, as that is what recomputation compares.
    """

    def __init__(self) -> None:
        super().__init__()
        self._optimizers = 0

    def count(self, change: int) -> None:
        """Optimizers whose step is running; wrapped ones are nested."""
        self._optimizers += change

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _item:
            kind = args[0].dtype
            number = 1 if self._optimizers else 0
            return bool(number) if kind is torch.bool else float(number) if kind.is_floating_point else number
        if func is _equal and not any(isinstance(t, FakeTensor) for t in args):
            with _disable_current_modes():
                return func(*args)
        if func is _equal:
            return True
        if torch.Tag.nondeterministic_seeded in func.tags:
            with _disable_current_modes():
                torch.rand(())
        out = func(*args, **(kwargs or {}))
        return _with_full_statistics(args, out) if func is _batch_norm else out


def _with_full_statistics(args: Any, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Batch statistics kept for backward are in the parameters' float32 where the input is in half precision.

    So it is in the kernels; FakeTensor's rule for native_batch_norm gives them the input's dtype.
    """
    parameters = [tensor for tensor in args[1:5] if isinstance(tensor, Tensor)]
    if any(p.dtype is torch.float32 for p in parameters) and out[1].dtype is not torch.float32:
        return out[0], *(torch.empty_like(statistic, dtype=torch.float32) for statistic in out[1:])
    return out


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
