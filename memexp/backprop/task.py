"""What an undone step is asked in backward, and the part of the answer that is the same for every kind of step."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from memexp.backprop.context import Context, taken
from memexp.backprop.errors import StepError, describe
from memexp.backprop.graph import Grads, Known, Streams, differentiate, pull_back
from memexp.backprop.replay import Frame, current, evaluate
from memexp.backprop.step import Step
from memexp.backprop.surroundings import NOTHING, Casts, casting


@dataclass
class Task:
    """Backward of one undone step: from its outputs and their gradients to its inputs and theirs.

    Attributes:
        outputs: the step's outputs, exact or reconstructed. Never to be overwritten, and neither are the gradients.
        grads: gradients of the outputs; None where there is none.
        needs: which inputs' gradients are wanted. If none, the inputs need not be reconstructed either.
        known: the step's parameters, and which of their gradients are wanted.
        refine: fixed-point iterations of an approximate inverse.
        context: the keywords of the step; tensors whose gradients are wanted are leaves.
        value: a module and its value at `outputs[0]`, where the step above has evaluated it there already.
        parameter_grads, context_grads: what has been found so far, by id and by name.
        casts: autocast around this backward pass, where it is another than around the first pass: gradients are computed by it.
    """

    outputs: Streams
    grads: Grads
    needs: tuple[bool, ...]
    known: Known
    refine: int
    context: Context
    value: tuple[nn.Module, Tensor] | None = None
    parameter_grads: dict[int, Tensor | None] = field(default_factory=dict)
    context_grads: dict[str, Tensor] = field(default_factory=dict)
    casts: Casts = field(default_factory=list)

    def given(self, module: nn.Module) -> Context:
        """The keywords that the module takes."""
        return taken(module, self.context) if self.context else {}

    def casting(self) -> AbstractContextManager[None]:
        """Around what autograd would do in this backward pass."""
        return casting(self.casts) if self.casts else NOTHING

    def reaches(self, module: nn.Module) -> bool:
        """Whether a gradient is wanted of something that the module reads beside its input."""
        return any(map(self.known.wants, module.parameters())) or any(map(_is_leaf, self.given(module).values()))

    def repeatable(self, key: str) -> bool:
        """Whether the branch gives the same value for the same input wherever it is evaluated."""
        frame = current.get()
        return frame is not None and frame.record is not None and frame.record.repeatable(frame.prefix + key)

    def branch(
        self, key: str, module: nn.Module, x: Tensor, grad: Tensor | None, direct: Tensor | None, need: bool
    ) -> tuple[Tensor, Tensor | None]:
        """A branch's value z at `x` and, from the same evaluation, its gradients.

        Parameters' gradients are added to `parameter_grads`. If `need`, that of `x` is returned: what comes through the
        branch from `grad`, the gradient of z, plus `direct`, what `x` has besides.
        """
        if grad is None:
            with torch.no_grad():
                return evaluate(key, module, x, **self.given(module)), direct
        frame = current.get()
        graph = need or (frame is not None and frame.one_graph)
        if frame is not None and frame.record is not None and frame.record.quiet and not self.context:
            return self._layers(frame.record.parameters_of(module), module, x, grad, direct, need, graph)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_() if graph else x.detach()
            z = evaluate(key, module, leaf, **self.given(module))
        (dx,) = self.pull((z,), (grad,), (leaf,))
        if dx is None or direct is None:
            return z.detach(), direct if dx is None else dx
        return z.detach(), direct + dx

    def _layers(
        self,
        parameters: Sequence[nn.Parameter | None],
        module: nn.Module,
        x: Tensor,
        grad: Tensor,
        direct: Tensor | None,
        need: bool,
        graph: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`branch` of layers of torch's: they read nothing but their parameters, which need not be looked for in the graph.

        parameters: of the module and all that it holds.
        """
        leaf = x.detach().requires_grad_() if graph else x.detach()
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)  # as torch.enable_grad, which takes as long as a small layer
        try:
            z = module(leaf)
        finally:
            torch._C._set_grad_enabled(before)
        value = z.detach()
        known = self.known
        wanted = parameters if known.plain else [p for p in parameters if p is not None and known.wants(p)]
        if not (z.requires_grad and (need or wanted)):
            return value, direct
        targets: Streams = (leaf, *wanted) if need else tuple(wanted)  # type: ignore[arg-type]  # none is None
        with self.casting():
            found = differentiate((z,), (grad if grad.dtype is z.dtype else grad.to(z.dtype),), targets, known.plain)
        dx = found[0] if need else None
        self._sum(dict(zip(map(id, wanted), found[1:] if need else found, strict=True)))
        return value, direct if dx is None else dx if direct is None else direct + dx

    def pull(self, outputs: Sequence[Tensor], grads: Grads, inputs: Streams) -> Grads:
        """Vector-Jacobian product: gradients of `inputs` that need one; of all else into `..._grads`."""
        read = {name: value for name, value in self.context.items() if _is_leaf(value)} if self.context else {}
        with self.casting():
            found = pull_back(outputs, grads, (*inputs, *read.values()), self.known)
        of_inputs = tuple(found.pop(id(x), None) for x in inputs)
        if read:
            self.add({name: found.pop(id(x)) for name, x in read.items() if id(x) in found})
        self._sum(found)
        return of_inputs

    def _sum(self, found: Mapping[int, Tensor | None]) -> None:
        """Gradients of parameters, by id."""
        sums = self.parameter_grads
        if sums.keys().isdisjoint(found):
            sums.update(found)
            return
        for key, grad in found.items():
            before = sums.get(key)
            sums[key] = grad if before is None else before if grad is None else before + grad

    def add(self, context_grads: dict[str, Tensor]) -> None:
        """Gradients of keywords."""
        for name, grad in context_grads.items():
            self.context_grads[name] = self.context_grads[name] + grad if name in self.context_grads else grad


@dataclass
class Undone:
    """Answer to a Task: `inputs` is None where none was needed; `value` as in Task, for the step below."""

    inputs: Streams | None
    grads: Grads
    value: tuple[nn.Module, Tensor] | None = None


def undo_all(
    steps: dict[int, nn.Module], task: Task, frame: Frame, contexts: dict[int, Context]
) -> tuple[Undone, dict[int, dict[str, Tensor]]]:
    """Undoes steps that follow each other, from the last. Gradients of keywords are apart for each step.

    Args:
        task: of all of them together; `parameter_grads` is filled.
        frame: of their common record.
        contexts: of each step.

    Raises:
        StepError: names the step.
    """
    undone = Undone(task.outputs, task.grads, task.value)
    found: dict[int, dict[str, Tensor]] = {}
    lowest = next(iter(steps))
    for index in reversed(steps):
        outputs = undone.inputs
        if outputs is None:
            break
        needs = task.needs if index == lowest else tuple([y.is_floating_point() or y.is_complex() for y in outputs])
        own = Task(
            outputs, undone.grads, needs, task.known, task.refine, contexts[index], undone.value, task.parameter_grads,
            casts=task.casts,
        )  # fmt: skip
        del outputs
        token = current.set(frame.of(index))
        try:
            undone = undo(steps[index], own)
        except StepError as error:
            raise StepError(f"{describe(index, steps[index])}: {error}") from None
        finally:
            current.reset(token)
        found[index] = own.context_grads
    return undone, found


def undo(step: nn.Module, task: Task) -> Undone:
    """The step's own `undo`; without one, inputs by `inverse` and gradients by one more evaluation there."""
    if isinstance(step, Step):
        if (
            step._backward_hooks
            or step._backward_pre_hooks
            or hooks._global_backward_hooks
            or hooks._global_backward_pre_hooks
        ):
            return _with_hooks(step, task)
        return step.undo(task)
    with torch.no_grad():
        inputs = invert(step, task.outputs, task.refine, task.given(step))
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_(need) for x, need in zip(inputs, task.needs, strict=True))
        outputs = as_tuple(evaluate("step", step, *leaves, **task.given(step)))
    return Undone(inputs, task.pull(outputs, task.grads, leaves))


def invert(step: nn.Module, outputs: Streams, refine: int, context: Context) -> Streams:
    """The step's inputs by its `inverse`, refined where it is approximate.

    With h the step and g its inverse, x~ = g(y), then `refine` times x~ <- x~ + g(y) - g(h(x~)). The fixed point is x, and
    the iteration converges where g is near the inverse of h; for an Euler step it is one of higher order than its own.
    An `inverse` that has a keyword `refine` is left to refine by itself.

    Args:
        context: the keywords that the step takes; its `inverse` gets those that it has, too.
    """
    inverse: Callable[..., Tensor | Streams] = step.inverse  # type: ignore[assignment]
    parameters = inspect.signature(inverse).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = {name: value for name, value in context.items() if anything or name in parameters}
    call: Callable[..., Tensor | Streams] = inverse if isinstance(step, Step) else partial(evaluate, "step", inverse)
    if "refine" in parameters:
        return as_tuple(call(*outputs, **own, refine=refine))
    first = inputs = as_tuple(call(*outputs, **own))
    for _ in range(refine if getattr(step, "approximate", False) is True and not isinstance(step, Step) else 0):
        again = as_tuple(evaluate("step", step, *inputs, **context))
        off = as_tuple(call(*again, **own))
        inputs = tuple(x + (a - b) for x, a, b in zip(inputs, first, off, strict=True))
    return inputs


def _with_hooks(step: Step, task: Task) -> Undone:
    """`step.undo`, and the step's full backward hooks as autograd would call them."""
    before, (after, _) = step._get_backward_pre_hooks(), step._get_backward_hooks()
    with task.casting():
        for hook in before:
            task.grads = _changed(hook(step, task.grads), task.grads)
    undone = step.undo(task)
    with task.casting():
        for hook in after:
            undone.grads = _changed(hook(step, undone.grads, task.grads), undone.grads)
    return undone


def _changed(result: Grads | Tensor | None, grads: Grads) -> Grads:
    if result is None:
        return grads
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _is_leaf(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def as_tuple(streams: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (streams,) if isinstance(streams, Tensor) else tuple(streams)
