"""The one autograd function of the engine: a group of steps that is recomputed in backward.

A Chain is cut into groups by its plan; each group that is not `stored` is one node of the autograd graph. Streams and
parameters enter it as inputs and their gradients leave as outputs, so that hooks of DistributedDataParallel fire while
earlier steps are still in backward, gradients accumulate as they come, and `torch.autograd.grad`, frozen parameters and
inputs without grad work. A node that has its inputs in backward, kept or reconstructed, hands them to the node below.
"""

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.determinism import explain, fingerprint
from memexp.backprop.errors import StepError, describe
from memexp.backprop.measures import relative_error
from memexp.backprop.plan import Keep, Strategy
from memexp.backprop.replay import Record, Surroundings, evaluate
from memexp.backprop.rounding import RangeWatch, Rounding
from memexp.backprop.task import Grads, Streams, Task, Undone, as_tuple, pull_back, undo

Handed = tuple[Streams, bool, tuple[nn.Module, Tensor] | None]


def run(index: int, step: nn.Module, streams: Streams, rounding: Rounding | None) -> Streams:
    """One step forward; errors name it.

    Raises:
        StepError: the step changed a stream in place, or what it raised itself.
    """
    versions = [None if x.is_inference() else x._version for x in streams]
    try:
        # a step with an `undo` of its own evaluates its branches one by one; any other step is one branch
        outputs = as_tuple(step(*streams) if hasattr(step, "undo") else evaluate("step", step, *streams))
    except StepError as error:
        raise StepError(f"{describe(index, step)}: {error}") from None
    except TypeError:
        _check_count(index, step, len(streams))
        raise
    if any(version is not None and x._version != version for x, version in zip(streams, versions, strict=True)):
        raise StepError(
            f"{describe(index, step)} changes a stream in place; streams belong to the Chain and its caller: "
            "use an operation that is not in place, e.g. nn.ReLU(inplace=False)"
        )
    if rounding is not None and not getattr(step, "undoable", False):
        outputs = tuple(rounding.enter(y) for y in outputs)  # back on the grid; an undoable step keeps to it by itself
    return outputs


def _check_count(index: int, step: nn.Module, count: int) -> None:
    signature = inspect.signature(step.forward)
    try:
        signature.bind(*range(count))
    except TypeError:
        names = ", ".join(signature.parameters)
        raise StepError(f"{describe(index, step)} takes ({names}), got {count} streams") from None


class Node:
    """A group of steps of one forward pass of a Chain, to be recomputed in backward."""

    def __init__(
        self,
        keep: Keep,
        steps: dict[int, nn.Module],
        strategy: Strategy,
        surroundings: Surroundings,
        watch: RangeWatch | None,
        below: "Node | None",
        monitor: list[float] | None,
        top: bool,
    ) -> None:
        self.keep = keep
        self.steps = steps
        self.strategy = strategy
        self.watch = watch
        self.below = below if below and below.keep == "undone" else None
        self.top = top
        self.records = {index: Record(step, surroundings) for index, step in steps.items()}
        self.parameters: list[Tensor] = list(
            dict.fromkeys(p for step in steps.values() for p in step.parameters() if p.requires_grad)
        )
        self._versions = [p._version for p in self.parameters]
        self._handed: Handed | None = None
        self.monitor = monitor
        self._fingerprint: Tensor | None = None
        self._original: Streams | None = None
        self._above: weakref.ref[Node] | None = None
        if self.below is not None:
            self.below._above = weakref.ref(self)

    @property
    def name(self) -> str:
        return ", ".join(describe(index, step) for index, step in self.steps.items())

    def __call__(self, *streams: Tensor) -> Streams:
        return as_tuple(_Recompute.apply(self, len(streams), *streams, *self.parameters))

    def forward(self, streams: Streams) -> Streams:
        if self.keep == "undone" and self.below is None:
            self._fingerprint = fingerprint(streams) if self.strategy.rounding else None
            self._original = streams if self.monitor is not None else None
        for index, step in self.steps.items():
            with self.records[index].first():
                streams = run(index, step, streams, self.strategy.rounding)
            if self.watch:
                self.watch.see(describe(index, step), streams)
        return streams

    def kept(self, inputs: Streams, outputs: Streams) -> Streams:
        """What stays in memory until backward."""
        if self.keep == "checkpointed":
            return inputs
        return outputs if self.top else ()

    def backward(
        self, kept: Streams, grads: Grads, needs: tuple[bool, ...], wanted: Sequence[Tensor]
    ) -> tuple[Grads, Grads]:
        """Gradients of the inputs and of the parameters; hands the inputs to the node below."""
        if [p._version for p in self.parameters] != self._versions:
            raise RuntimeError(
                f"a parameter of {self.name} was changed in place between forward and backward (an optimizer step?); "
                "its recomputation would give another gradient: run backward first"
            )
        if self.keep == "checkpointed":
            return self._recompute(kept, grads, needs, wanted)
        return self._undo(kept, grads, needs, wanted)

    def _recompute(
        self,
        inputs: Streams,
        grads: Grads,
        needs: tuple[bool, ...],
        wanted: Sequence[Tensor],
    ) -> tuple[Grads, Grads]:
        if self.below is not None and any(needs):
            self.below._handed = (inputs, False, None)
        leaves = tuple(x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True))
        with torch.enable_grad():
            outputs = self.again(leaves)
        return pull_back(outputs, grads, leaves, wanted)

    def _undo(
        self, kept: Streams, grads: Grads, needs: tuple[bool, ...], wanted: Sequence[Tensor]
    ) -> tuple[Grads, Grads]:
        ((index, step),) = self.steps.items()
        outputs, owned, known = (kept, False, None) if self.top else self._take()
        record = self.records[index]
        task = Task(outputs, owned, grads, needs, wanted, self.strategy.refine, record, known)
        del outputs
        with record.again():
            undone: Undone = undo(step, task)
        if undone.inputs is not None:
            self._verify(undone.inputs)
        if self.below is not None and undone.inputs is not None:
            self.below._handed = (undone.inputs, True, undone.known)
        return undone.grads, tuple(task.parameter_grads.get(p) for p in wanted)

    def _verify(self, inputs: Streams) -> None:
        """The first step of a run is undone: are these the streams that had entered?"""
        if self.monitor is not None and self._original is not None:
            self.monitor.append(relative_error(inputs, self._original))
        if self._fingerprint is None or torch.equal(fingerprint(inputs), self._fingerprint):
            return
        steps = []
        node: Node | None = self
        while node is not None and node.keep == "undone":
            steps.append((node.name, node.again))
            node = node._above() if node._above else None
        raise RuntimeError(explain(steps, inputs))

    def again(self, streams: Streams) -> Streams:
        """The group's first pass once more."""
        for index, step in self.steps.items():
            with self.records[index].again():
                streams = run(index, step, streams, self.strategy.rounding)
        return streams

    def _take(self) -> Handed:
        if self._handed is None:
            raise RuntimeError(f"backward of {self.name} runs before that of the step after it")
        handed, self._handed = self._handed, None
        return handed


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, node: Node, count: int, *tensors: Tensor) -> Streams:
        streams = tensors[:count]
        outputs = node.forward(streams)
        ctx.node, ctx.count = node, count
        ctx.save_for_backward(*node.kept(streams, outputs))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        node: Node = ctx.node
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"double backward (create_graph=True) through {node.name}: recomputing strategies give first "
                "derivatives only; use backprop=stored for second derivatives"
            )
        needs = ctx.needs_input_grad[2 : 2 + ctx.count]
        asked = ctx.needs_input_grad[2 + ctx.count :]
        wanted = [p for p, need in zip(node.parameters, asked, strict=True) if need]
        found, of_parameters = node.backward(ctx.saved_tensors, grads, needs, wanted)
        rest = iter(of_parameters)
        return None, None, *found, *(next(rest) if need else None for need in asked)
