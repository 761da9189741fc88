"""What a recomputed step hands out beside its outputs: an auxiliary loss in an attribute, a feature that a hook keeps.

The first pass of a step without a graph would lose a gradient that is asked of that tensor in silence. Steps that may hand
something out, having modules of other origin than torch's own or forward hooks, run with a graph that keeps no tensors: what
escapes knows whether it depends on something that is trained, and a backward pass that needs what was not kept says so. So do
layers that compute otherwise where nothing is recorded: torch's attention, in evaluation mode, by another kernel.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from memexp.backprop.errors import StepError

FUSED = nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder


def may_escape(modules: Sequence[nn.Module]) -> bool:
    """Whether a module may leave tensors somewhere, being neither torch's nor of the engine, or having a forward hook; or
    computes otherwise where nothing is recorded.
    """
    if any(map(_is_foreign, set(map(type, modules)))) or any(["forward" in m.__dict__ for m in modules]):
        return True
    if any([isinstance(m, FUSED) and not m.training for m in modules]):
        return True
    return _keep([hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())])


def is_listened_to() -> bool:
    """Whether there are somebody's hooks on all modules."""
    every = torch.nn.modules.module
    if not every._global_forward_hooks and not every._global_forward_pre_hooks:
        return False
    return _keep([*every._global_forward_hooks.values(), *every._global_forward_pre_hooks.values()])


def _keep(hooks: Sequence[Any]) -> bool:
    return any(not getattr(hook, "__module__", "").startswith("memexp.") for hook in hooks)  # ours keep nothing


@cache
def _is_foreign(kind: type[nn.Module]) -> bool:
    return not kind.__module__.startswith(("torch.nn.modules.", "memexp.backprop."))


_inside: ContextVar[bool] = ContextVar("inside", default=False)


WITHIN = (
    "differentiates in its own forward (torch.autograd.grad, backward), and its first pass keeps nothing that this needs: use "
    "backprop=stored or light"
)


class Gone(Tensor):
    """Stands for a tensor that was not kept. Using it raises StepError; a backward pass that only passes by does not.

    step: its name.
    """

    step: str
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:  # as autograd does before it looks whether there is a gradient
            return args[0]
        if is_remembered():
            raise StepError(WITHIN)
        raise lost(next(leaf.step for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Gone)))


def lost(name: str) -> StepError:
    """What is raised where a gradient is asked for that the step of that name cannot give."""
    return StepError(
        f"the gradient of a tensor that {name} hands out beside its outputs (in an attribute, a list, an object of a class of "
        "one's own, to a hook) is asked for, and would be lost, as the step is recomputed: let it give the tensor as an "
        "output, by itself or in a tuple or dict (or a dataclass, after torch.utils._pytree.register_dataclass), or use "
        "backprop=stored or light"
    )


@contextmanager
def remembered(name: str) -> Iterator[None]:
    """Inside, autograd records and keeps no tensor; backward of what escapes raises StepError with the step's name."""

    def unpack(shape: torch.Size) -> Tensor:
        gone = Tensor._make_wrapper_subclass(Gone, shape)
        gone.step = name
        return gone

    token = _inside.set(True)
    try:
        with torch.enable_grad(), saved_tensors_hooks(Tensor.size, unpack):
            yield
    finally:
        _inside.reset(token)


def is_remembered() -> bool:
    """Whether autograd records only so that what escapes is known: a Chain within has nothing to plan for."""
    return _inside.get()


def constants(outputs: Sequence[Tensor], inputs: Sequence[Tensor], recorded: bool) -> list[int]:
    """Places of outputs that depend on nothing that is trained, as far as is known: a mask, say, that later steps read.

    If they were taken for trained, kernels would be chosen that can give their gradient, and may draw other random numbers.
    """
    return [i for i, y in enumerate(outputs) if not y.requires_grad and (recorded or any(y is x for x in inputs))]


def without_graph(outputs: Sequence[Tensor], inputs: Sequence[Tensor], begun: int) -> tuple[Tensor, ...]:
    """The outputs, without the graph that was recorded since `begun`, a sequence number of autograd (each thread's own).

    None is a view of what the caller does not see: torch lets nobody write to such an output.
    """
    return tuple([y if any([y is x for x in inputs]) else _without_graph(y, begun) for y in outputs])


def _without_graph(y: Tensor, begun: int) -> Tensor:
    recorded = y.grad_fn is not None and y.grad_fn._sequence_nr() >= begun
    if y._is_view() and (recorded or y.grad_fn is None):
        return y.detach()
    return y.detach_() if recorded else y


def alone(tensor: Tensor, begun: int, name: str) -> Tensor:
    """In place of a tensor with a graph recorded since `begun`: one whose backward raises StepError, and that leads nowhere.

    An object that holds a graph, and is held by the nodes of that graph, would stay in memory for good.
    """
    if tensor.grad_fn is None or tensor.grad_fn._sequence_nr() < begun:
        return tensor
    root = torch.empty((), dtype=tensor.dtype, device=tensor.device, requires_grad=True)
    root.left_by = name  # type: ignore[attr-defined]
    with torch.enable_grad():
        alias: Tensor = _Alone.apply(tensor.detach(), root, name)
    return alias


class _Alone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, root: Tensor, name: str) -> Tensor:
        ctx.name = name
        ctx.set_materialize_grads(False)
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None, None]:
        if grads != (None,):
            raise lost(ctx.name)
        return None, None, None
