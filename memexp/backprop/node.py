"""The one autograd function of the engine: a group of steps that is recomputed in backward.

A Chain is cut into groups by its plan; each group that is not `stored` is one node of the autograd graph. Streams,
keyword tensors and parameters enter it as inputs and their gradients leave as outputs, so that hooks of
DistributedDataParallel fire while earlier steps are still in backward, gradients accumulate as they come, and
`torch.autograd.grad`, frozen parameters and inputs without grad work. A node that has its inputs in backward, kept or
reconstructed, hands them to the node below.
"""

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.capture import is_captured
from memexp.backprop.context import Context, takes
from memexp.backprop.determinism import check_unaltered, explain, fingerprint
from memexp.backprop.drift import Drift, Kept, sample
from memexp.backprop.errors import StepError, describe, not_here, parameter_changed
from memexp.backprop.escaping import alone, constants, is_listened_to, may_escape, remembered, without_graph
from memexp.backprop.graph import Grads, Known, Streams, pull_back
from memexp.backprop.measures import relative_error
from memexp.backprop.plan import Keep
from memexp.backprop.replay import Frame, Record
from memexp.backprop.rounding import RangeWatch, Rounding
from memexp.backprop.run import run, run_all
from memexp.backprop.streams import nbytes
from memexp.backprop.surroundings import BATCHED, NOTHING, Surroundings
from memexp.backprop.tail import LARGE_STREAMS, forgetful, forms, without_tail
from memexp.backprop.task import Task, as_tuple, undo_all
from memexp.backprop.unheard import unheard

Handed = tuple[Streams, tuple[nn.Module, Tensor] | None]


class Call:
    """One forward pass of a Chain: what its nodes have in common."""

    def __init__(
        self,
        streams: Streams,
        context: Context,
        rounding: Rounding | None,
        watch: RangeWatch | None,
        refine: int,
        monitor: list[float] | None,
        drift: Drift | None,
        verdicts: list[Callable[[], None]] | None = None,
    ) -> None:
        self.surroundings = Surroundings(streams, context)
        self.context = context
        self.tensors = [name for name, value in context.items() if isinstance(value, Tensor)]
        self.rounding = rounding
        self.watch = watch
        self.refine = refine
        self.monitor = monitor
        self.drift = drift
        self.verdicts = verdicts

    def needs(self, steps: dict[int, nn.Module], streams: Streams) -> bool:
        """Whether anything that the steps declare to read needs a gradient."""
        read = [name for name in self.tensors if self.context[name].requires_grad]
        return (
            any([x.requires_grad for x in streams])
            or any(p.requires_grad for step in steps.values() for p in step.parameters())
            or any(takes(step, name) for name in read for step in steps.values())
        )


class Node:
    """A group of steps of one forward pass of a Chain, to be recomputed in backward.

    Args:
        keep: as the plan has it: `checkpointed` or `undone`, for all of them.
        steps: by their indices.
        below: the node of the steps before, None where they are stored.
        top: the steps after are stored, or there are none: nobody hands the outputs back.

    Raises:
        StepError: a step has lazy parameters without a shape yet.
    """

    def __init__(
        self, keep: Keep, steps: dict[int, nn.Module], call: Call, below: "Node | None" = None, top: bool = True
    ) -> None:
        self.keep = keep
        self.steps = steps
        self.call = call
        self.record = Record(steps.values(), call.surroundings)
        self.frame = Frame(call.rounding, call.watch, self.record, keep == "undone")
        if self.record.lazy:
            raise StepError(
                f"{self.name} has a lazy module whose parameters have no shape yet: evaluate the Chain once under "
                "torch.no_grad() before training it"
            )
        every = {id(p): p for p in self.record.parameters}
        self.known = Known(every.values())
        self.parameters = [p for p in every.values() if p.requires_grad]
        # the gradient of a keyword is summed step by step, from the last on, as autograd would
        self.reads = [(i, name) for name in call.tensors for i in reversed(steps) if takes(steps[i], name)]
        self.below = below if below is not None and below.keep == "undone" else None
        self.top = top
        self.escaping = False
        self._handed: Handed | None = None
        self._fingerprint: Tensor | None = None
        self._original: Streams | None = None
        self._kept: Kept | None = None
        self._above: weakref.ref[Node] | None = None
        if self.below is not None:
            self.below._above = weakref.ref(self)

    @property
    def name(self) -> str:
        names = [describe(index, step) for index, step in self.steps.items()]
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"

    def __call__(self, *streams: Tensor) -> Streams:
        context = [self.call.context[name] for _, name in self.reads]
        return as_tuple(_Recompute.apply(self, len(streams), *streams, *context, *self.parameters))

    def forward(self, streams: Streams) -> tuple[Streams, list[Tensor]]:
        """The outputs, and those among them that depend on nothing that is trained."""
        if self.keep == "undone" and self.below is None:
            self._fingerprint = fingerprint(streams) if self.call.rounding else None
            self._original = streams if self.call.monitor is not None else None
            self._kept = self.call.drift.keep(streams) if self.call.drift else None
        begun, record, objects = torch.autograd._get_sequence_nr(), self.record, self.record.objects
        self.escaping = is_listened_to() or (not record.quiet and may_escape(record.modules))
        with record.surroundings(), remembered(self.name) if self.escaping else NOTHING:
            outputs = run_all(self.steps, streams, self.frame, self.call.context)
        constant = constants(outputs, streams, self.escaping)
        outputs = without_graph(outputs, streams, begun)
        record.settle()
        if objects is not None and objects.changed:
            if self.keep == "undone":
                raise objects.order_lost(self.name)
            if self.escaping:
                objects.replace(lambda t: alone(t, begun, self.name))
        return outputs, [outputs[place] for place in constant]

    def kept(self, inputs: Streams, outputs: Streams) -> Streams:
        """What stays in memory until backward."""
        if self.keep == "checkpointed":
            return inputs
        return outputs if self.top else ()

    def backward(
        self, kept: Streams, grads: Grads, needs: tuple[bool, ...], reads: tuple[bool, ...]
    ) -> tuple[Grads, Grads, Mapping[int, Tensor | None]]:
        """Gradients of the inputs, of the keywords and, by id, of parameters; hands the inputs to the node below.

        Raises:
            RuntimeError: something that the first pass has read was changed since.
            StepError: the recomputation reads what no input of the node is.
        """
        if self.record.parameters_changed():
            raise RuntimeError(parameter_changed(self.name, self.record.writes_parameters))
        changed = [f"the buffer {name}" for name in self.record.buffers_changed()]
        changed += [f"the keyword tensor {name}" for name in self.call.surroundings.changed()]
        if changed:
            raise RuntimeError(
                f"{self.name}: {', '.join(changed)} was changed in place between forward and backward; the recomputation "
                "would give another gradient: run backward first"
            )
        if self.keep == "checkpointed":
            return self._recompute(kept, grads, needs, self._leaves(reads))
        return self._undo(kept, grads, needs, self._leaves(reads))

    def _leaves(self, reads: tuple[bool, ...]) -> dict[int, Context]:
        """For each step the keywords of the call, its tensors as leaves where their gradients are wanted."""
        if not self.reads:
            return dict.fromkeys(self.steps, self.call.context)
        leaves = {index: dict(self.call.context) for index in self.steps}
        for (index, name), need in zip(self.reads, reads, strict=True):
            leaves[index][name] = self.call.context[name].detach().requires_grad_(need)
        return leaves

    def _recompute(
        self, inputs: Streams, grads: Grads, needs: tuple[bool, ...], contexts: dict[int, Context]
    ) -> tuple[Grads, Grads, dict[int, Tensor]]:
        if self.below is not None and any(needs):
            self.below._handed = (inputs, None)
        leaves = tuple(x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True))
        outputs = leaves
        with torch.enable_grad(), self.record.again(recording=True), self._without_tail(inputs, needs):
            for index, step in self.steps.items():
                outputs = run(index, step, outputs, self.frame.of(index), contexts[index])
        read = tuple(contexts[index][name] for index, name in self.reads)
        try:
            found = pull_back(outputs, grads, (*leaves, *read), self.known)
        except StepError as error:
            raise StepError(f"{self.name}: {error}") from None
        return tuple(found.get(id(x)) for x in leaves), tuple(found.get(id(x)) for x in read), found

    def _without_tail(self, inputs: Streams, needs: tuple[bool, ...]) -> AbstractContextManager[None]:
        record = self.record
        if record.compiled or self.reads or nbytes(inputs) < LARGE_STREAMS:
            return NOTHING  # what follows each operation does not see those of compiled code
        if not forgetful(record.modules):
            return NOTHING
        # a layer that was pruned gives other shapes for the same streams
        wanted = tuple([(p.requires_grad, p.shape) for p in record.parameters]), frozenset(self.known.unwanted), needs
        surroundings = tuple(record.modes), tuple(record.surroundings.autocast), self.call.rounding
        steps = forms(record.modules)
        return without_tail(next(iter(self.steps.values())), (steps, wanted, surroundings), inputs)

    def _undo(
        self, kept: Streams, grads: Grads, needs: tuple[bool, ...], contexts: dict[int, Context]
    ) -> tuple[Grads, Grads, Mapping[int, Tensor | None]]:
        if self.call.watch is not None and self.call.watch.left is not None:
            raise self.call.watch.left
        outputs, value = (kept, None) if self.top else self._take()
        call, casts = self.call, self.record.surroundings.cast_now()
        task = Task(outputs, grads, needs, self.known, call.refine, call.context, value, casts=casts)
        del outputs
        with self.record.again():
            undone, read = undo_all(self.steps, task, self.frame, contexts)
        if undone.inputs is not None:
            if self.below is None:
                self._verify(undone.inputs)
            else:
                value = undone.value if self.record.entered_as(self.below.record) else None
                self.below._handed = (undone.inputs, value)
        return undone.grads, tuple([read[index].get(name) for index, name in self.reads]), task.parameter_grads

    def _verify(self, inputs: Streams) -> None:
        """The first step of a run is undone: are these the streams that had entered?"""
        if self.call.monitor is not None and self._original is not None:
            self.call.monitor.append(relative_error(inputs, self._original))
        late, drift, kept = self.call.verdicts, self.call.drift, self._kept
        if drift is not None and kept is not None and drift.due(inputs, kept):
            samples = self.name, sample(inputs), kept.sample
            if late is None:
                drift.compare(*samples)
            else:
                late.append(drift.replayed(*samples) if is_captured(inputs[0]) else partial(drift.compare, *samples))
        if self._fingerprint is None:
            return
        if late is not None:
            late.append(partial(check_unaltered, self.name, fingerprint(inputs), self._fingerprint))
            return
        if torch.equal(fingerprint(inputs), self._fingerprint):
            return
        steps: list[tuple[str, Callable[[Streams], Streams]]] = []
        node: Node | None = self
        while node is not None and node.keep == "undone":
            steps += [(describe(index, step), partial(node.again, index)) for index, step in node.steps.items()]
            node = node._above() if node._above else None
        raise RuntimeError(explain(steps, inputs))

    def again(self, index: int, streams: Streams) -> Streams:
        """One step's first pass once more."""
        with self.record.again():
            return run(index, self.steps[index], streams, self.frame.of(index), self.call.context)

    def _take(self) -> Handed:
        if self._handed is None:
            raise RuntimeError(f"backward of {self.name} runs before that of the step after it")
        handed, self._handed = self._handed, None
        return handed


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, node: Node, count: int, *tensors: Tensor) -> Streams:
        streams = tensors[:count]
        outputs, constant = node.forward(streams)
        ctx.mark_non_differentiable(*constant)
        ctx.node, ctx.count = node, count
        ctx.hooks = {place: x._backward_hooks for place, x in enumerate(tensors) if x._backward_hooks and not x.is_leaf}
        ctx.save_for_backward(*node.kept(streams, outputs))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        kept = ctx.saved_tensors  # a second time, torch says so
        node: Node = ctx.node
        transformed = torch._C._are_functorch_transforms_active()
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or transformed:
            raise RuntimeError(not_here(node.name))
        needs = ctx.needs_input_grad[2:]
        first, second = ctx.count, ctx.count + len(node.reads)
        # a leaf frozen since the first pass gets no gradient, as it gets none from autograd
        pairs = zip(node.parameters, needs[second:], strict=True)
        node.known.unwanted = {id(p) for p, need in pairs if not (need and p.requires_grad)}
        every = not node.known.unwanted and len(node.parameters) == len(node.record.places)
        node.known.plain = every and not node.known.ends and not any([p._backward_hooks for p in node.parameters])
        with torch._C._ExcludeDispatchKeyGuard(BATCHED):
            found, of_context, of_parameters = node.backward(kept, grads, needs[:first], needs[first:second])
        if node.escaping and not node.call.rounding and not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.node = None  # which may hold what the graph of what has escaped leads to (exact's faults need it)
        grads = (*found, *of_context, *[of_parameters.get(id(p)) for p in node.parameters])
        if any([grad is None for grad in grads]):
            unheard(ctx.next_functions, grads, ctx.hooks)
        return None, None, *grads
