"""What an undone step is asked in backward, and the part of the answer that is the same for every kind of step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from memexp.backprop.replay import Record, evaluate

Streams = tuple[Tensor, ...]
Grads = tuple[Tensor | None, ...]


@dataclass
class Task:
    """Backward of one undone step: from its outputs and their gradients to its inputs and theirs.

    Attributes:
        outputs: the step's outputs, exact or reconstructed.
        owned: whether `outputs` belong to the engine, so that the step may overwrite them.
        grads: gradients of the outputs; None where there is none. Never to be overwritten.
        needs: which inputs' gradients are wanted. If none, the inputs need not be reconstructed either.
        parameters: the parameters whose gradients are wanted.
        refine: fixed-point iterations of an approximate inverse.
        record: the first pass of the step.
        known: a module and its value at `outputs[0]`, where the step above has evaluated it there already.
    """

    outputs: tuple[Tensor, ...]
    owned: bool
    grads: Grads
    needs: tuple[bool, ...]
    parameters: Sequence[Tensor]
    refine: int
    record: Record
    known: tuple[nn.Module, Tensor] | None = None
    parameter_grads: dict[Tensor, Tensor] = field(default_factory=dict)

    def wanted(self, module: nn.Module) -> list[Tensor]:
        """Those of the module's parameters whose gradients are wanted."""
        own = {id(p) for part in module.modules() for p in part._parameters.values()}
        return [p for p in self.parameters if id(p) in own]

    def branch(
        self, key: str, module: nn.Module, x: Tensor, grad: Tensor | None, direct: Tensor | None, need: bool
    ) -> tuple[Tensor, Tensor | None]:
        """A branch's value z at `x` and, from the same evaluation, its gradients.

        Parameters' gradients are added to `parameter_grads`. If `need`, that of `x` is returned: what comes through the
        branch from `grad`, the gradient of z, plus `direct`, what `x` has besides.
        """
        parameters = self.wanted(module)
        if grad is None or not (need or parameters):
            with torch.no_grad():
                return evaluate(key, module, x), direct
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(need)
            # an output made before z: autograd reaches it last, and adds to a gradient that is its own in place
            same = leaf.view_as(leaf)
            z = evaluate(key, module, leaf)
        (dx,) = self.pull((z, same), (grad, direct if need else None), (leaf,), parameters)
        return z.detach(), dx

    def pull(
        self, outputs: Sequence[Tensor], grads: Grads, inputs: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> Grads:
        """Vector-Jacobian product: gradients of `inputs` that need one; of `parameters` into `parameter_grads`."""
        found, of_parameters = pull_back(outputs, grads, inputs, parameters)
        for p, grad in zip(parameters, of_parameters, strict=True):
            if grad is not None:
                self.parameter_grads[p] = self.parameter_grads[p] + grad if p in self.parameter_grads else grad
        return found


@dataclass
class Undone:
    """Answer to a Task: `inputs` is None where none was needed; `known` as in Task, for the step below."""

    inputs: tuple[Tensor, ...] | None
    grads: Grads
    known: tuple[nn.Module, Tensor] | None = None


def pull_back(
    outputs: Sequence[Tensor], grads: Grads, inputs: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Grads, Grads]:
    """Gradients of `inputs` (None for those that need none) and of `parameters`, in one call of autograd."""
    used = [(y, g.to(y.dtype)) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
    targets = [x for x in inputs if x.requires_grad] + list(parameters)
    if not used or not targets:
        return (None,) * len(inputs), (None,) * len(parameters)
    # a tensor hook of the user's on a parameter is to see the gradient once: when it leaves the engine
    hooks = [(p, dict(p._backward_hooks)) for p in parameters if p._backward_hooks]
    for p, _ in hooks:
        p._backward_hooks.clear()  # type: ignore[union-attr]
    try:
        found = iter(torch.autograd.grad([y for y, _ in used], targets, [g for _, g in used], allow_unused=True))
    finally:
        for p, own in hooks:
            p._backward_hooks.update(own)  # type: ignore[union-attr]
    return tuple(next(found) if x.requires_grad else None for x in inputs), tuple(found)


def undo(step: nn.Module, task: Task) -> Undone:
    """The step's own `undo`; without one, inputs by `inverse` and gradients by one more evaluation there."""
    own: Callable[[Task], Undone] | None = getattr(step, "undo", None)
    if own is not None:
        return own(task)
    inverse: Callable[..., Tensor | Streams] = step.inverse  # type: ignore[assignment]
    with torch.no_grad():
        inputs = as_tuple(evaluate("step", inverse, *task.outputs))
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_(need) for x, need in zip(inputs, task.needs, strict=True))
        outputs = as_tuple(evaluate("step", step, *leaves))
    return Undone(inputs, task.pull(outputs, task.grads, leaves, task.parameters))


def as_tuple(streams: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (streams,) if isinstance(streams, Tensor) else tuple(streams)
