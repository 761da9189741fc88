"""Chain: the body of a residual network, and the place where architecture and gradient meet.

Activation memory of N steps, with s the bytes of the streams and a those that autograd keeps for one step:

    stored N a  |  checkpointed (every k) N s / k + k a  |  reversible, adjoint s + a (and s for each step not undone)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from memexp.backprop.adjoint import Adjoint
from memexp.backprop.container import BY_INDEX, Container
from memexp.backprop.context import Context, taken
from memexp.backprop.door import check_keywords, check_repeatable, check_streams, check_transforms
from memexp.backprop.drift import Drift
from memexp.backprop.errors import StepError, describe
from memexp.backprop.escaping import is_remembered
from memexp.backprop.graph import Streams
from memexp.backprop.node import Call, Node
from memexp.backprop.plan import Keep, groups, has_inverse
from memexp.backprop.remade import remaking
from memexp.backprop.replay import Frame, Record, current, evaluate
from memexp.backprop.rounding import RangeWatch, Rounding
from memexp.backprop.run import run_all
from memexp.backprop.step import Step
from memexp.backprop.stored import Stored
from memexp.backprop.strategies import make_strategy
from memexp.backprop.streams import full_precision, nbytes
from memexp.backprop.surroundings import Surroundings
from memexp.backprop.task import Task, Undone, as_tuple, invert, undo_all

# A node costs some 0.1 ms, as much as a small step: where memory allows it, one undoes several steps. Their gradients
# leave together, and the outputs of the last stay as long.
SMALL_STREAMS = 2**20  # bytes
SMALL_WEIGHTS = 2**24


class Chain(Container):
    """Steps one after the other on a tuple of streams, with a choice of how their gradient is obtained.

    A step is a module `forward(*streams) -> Tensor | tuple`; one that can be undone has `inverse(*streams)` too,
    exact or (`approximate = True`) not. Steps are registered as "0", "1", ... as in `nn.Sequential`, and come and go by
    its methods; a slice is a Chain of the same steps, and the strategy's options go with them. Where no gradient is needed the
    steps are simply called.
    A Chain can itself be a step: an outer Chain that undoes it undoes its steps, whatever its own strategy.

    Args:
        steps: the steps, in order.
        backprop: `stored`, `light`, `checkpointed`, `reversible`, `adjoint` or `budget`.
        check: evaluate every step twice in each pass that needs gradients, and refuse one that does not repeat itself.
            For finding a fault: it costs two more forward passes.
        **options: the strategy's options: `every`; `exact`, `exact_bits`; `refine`, `min_steps`; `stored`, `light`.

    Attributes:
        verdicts: a list, for a device that is not to be waited for in each pass: what `exact` and the watch over the drift
            have to say is appended as functions, to be called when it suits; they raise or warn. None: said at once.

    Call: `chain(*streams, **context)`. Streams are tensors of any shapes that the steps take; one that comes out is
        returned as a Tensor, more as a tuple. Keywords are handed to every step and branch whose forward takes them (an
        object that a step changes, such as a cache, is seen by its recomputation as the first pass saw it);
        what else a step reads and needs a gradient, and the gradient of what it hands out beside its outputs (a loss in an
        attribute, say), is refused in backward, unless the step is stored or light.

    Raises:
        ValueError: unknown strategy or option, or the strategy does not fit the steps.
        StepError (a ValueError): a step does not fit its streams, or changes them in place; names the step.
    """

    composite = True

    def __init__(
        self, steps: Iterable[nn.Module], backprop: str = "stored", *, check: bool = False, **options: Any
    ) -> None:
        super().__init__()
        if not isinstance(check, bool):
            raise ValueError(f"check={check!r}: use true or false")
        self.backprop = backprop
        self.options = options
        self.check = check
        self.monitor: list[float] | None = None
        self.drift = Drift()
        self.verdicts: list[Callable[[], None]] | None = None
        self.remade: set[tuple[int, Keep]] = set()  # steps whose compiled backward sees to what this plan does not keep
        make_strategy(backprop, options)  # what is wrong with it is said before what is wrong with the steps
        self._take([(None, step) for step in steps], options)

    def _accept(self, steps: list[nn.Module], options: dict[str, Any]) -> None:
        strategy = make_strategy(self.backprop, options)
        strategy.plan(steps, ())
        self.options, self.strategy = options, strategy
        self._weights: list[int] | None = None

    def _like(self, steps: list[nn.Module], options: dict[str, Any]) -> "Chain":
        return Chain(steps, self.backprop, check=self.check, **options)

    def extend(self, steps: Iterable[nn.Module]) -> Self:
        before, options = len(self), dict(self.options)
        if isinstance(steps, Chain) and steps.backprop == self.backprop:  # its plan goes with them
            for word in BY_INDEX & steps.options.keys():
                options[word] = frozenset({*options.get(word, ()), *(before + i for i in steps.options[word])})
        super().extend(steps)
        self.choose(self.backprop, **options)
        return self

    def choose(self, backprop: str, **options: Any) -> None:
        """Another strategy from now on.

        Raises:
            ValueError: as of a Chain.
        """
        strategy = make_strategy(backprop, options)
        strategy.plan(list(self), ())
        self.backprop, self.options, self.strategy = backprop, options, strategy

    @contextmanager
    def using(self, backprop: str, **options: Any) -> Iterator[None]:
        """Another strategy for the forwards inside; the Chain stays the same function (`exact` stays as it is)."""
        rounding = self.strategy.rounding
        if rounding is not None:
            options = {"exact": True, "exact_bits": rounding.bits} | options
        own, self.strategy = self.strategy, make_strategy(backprop, options)
        try:
            yield
        finally:
            self.strategy = own

    def extra_repr(self) -> str:
        return f"backprop={self.strategy}"

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"remade": set(), "verdicts": None}  # what belongs to this one alone

    def forward(self, *streams: Tensor, **context: Any) -> Tensor | tuple[Tensor, ...]:
        if torch.compiler.is_dynamo_compiling():
            return self._compiling(*streams, **context)
        return self._forward(*streams, **context)

    def _compiling(self, *streams: Tensor, **context: Any) -> Tensor | tuple[Tensor, ...]:
        """Inside a network that is compiled as a whole: its steps as part of the graph, or the engine outside of it."""
        plain = type(self.strategy) is Stored or self.remade.issuperset(enumerate(self.strategy.plan(list(self), ())))
        if not plain or self.strategy.rounding or self.check:
            return torch.compiler.disable(self._forward)(*streams, **context)
        if context:
            check_keywords(list(self), context)
        streams = self._enter(None, streams)
        for step in self:
            streams = as_tuple(step(*streams, **(taken(step, context) if context else {})))
        return streams[0] if len(streams) == 1 else streams

    def _forward(self, *streams: Tensor, **context: Any) -> Tensor | tuple[Tensor, ...]:
        frame = current.get()
        check_streams(streams)
        if frame is None:
            check_keywords(list(self), context)
            outputs = self._differentiated(self.strategy.rounding, streams, context)
        elif frame.undone:
            outputs = run_all(dict(enumerate(self)), streams, frame, context)
        else:  # a step of another Chain, but by its own strategy, on the other's grid
            rounding = frame.rounding or self.strategy.rounding
            outputs = evaluate("chain", lambda *xs, **c: self._differentiated(rounding, xs, c), *streams, **context)
        return outputs[0] if len(outputs) == 1 else outputs

    def _differentiated(self, rounding: Rounding | None, streams: Streams, context: Context) -> Streams:
        """The outputs, recomputed in backward as the strategy plans it."""
        steps = list(self)
        outputs = self._enter(rounding, streams)
        needs = (torch.is_grad_enabled() and not is_remembered()) and (
            any(x.requires_grad for x in (*streams, *context.values()) if isinstance(x, Tensor))
            or any(p.requires_grad for p in self.parameters())
        )
        # what leaves the range cannot be undone; in evaluation nothing is, unless backward asks for it
        watch = RangeWatch(rounding) if rounding is not None and (needs or self.training) else None
        frame = Frame(rounding, watch) if rounding is not None else None
        if not needs:
            return self._judged(watch, run_all(dict(enumerate(steps)), outputs, frame, context))
        keeps = enumerate(self.strategy.plan(steps, streams))
        plan = groups(steps, ["stored" if pair in self.remade else pair[1] for pair in keeps])
        check_transforms(steps, plan, (*streams, *context.values()))
        if self.check:
            check_repeatable(steps, outputs, context, rounding)
        # an error of an approximate inverse is no surprise
        undone = rounding is None and any(k == "undone" for k, _ in plan) and not isinstance(self.strategy, Adjoint)
        drift = self.drift if undone else None
        if drift is not None:
            drift.begin()
        call = Call(outputs, context, rounding, watch, self.strategy.refine, self.monitor, drift, self.verdicts)
        below: Node | None = None
        position = 0
        while position < len(plan):
            keep, group = plan[position]
            position += 1
            members = {index: steps[index] for index in group}
            if keep in ("stored", "light") or not call.needs(members, outputs):
                # also what needs no gradient: should it read something that does, autograd sees it
                below = None
                with remaking(outputs) if keep == "light" else nullcontext() as light:
                    outputs = run_all(members, outputs, frame, context)
                    if light is not None:
                        light.leave(outputs)
                continue
            if keep == "undone":
                for index in self._together(plan, position, outputs):
                    members[index] = steps[index]
                    position += 1
            top = position == len(plan) or plan[position][0] in ("stored", "light")
            below = Node(keep, members, call, below, top)
            outputs = below(*outputs)
        return self._judged(watch, outputs)

    def _judged(self, watch: RangeWatch | None, outputs: Streams) -> Streams:
        """The outputs, if none of the streams has left the range of the grid."""
        if watch and self.verdicts is not None:
            self.verdicts.append(partial(_raised, watch.verdict()))
        elif watch and (left := watch.check()) and self.training:
            raise left
        return outputs

    def _together(self, plan: Sequence[tuple[Keep, range]], position: int, streams: Streams) -> Iterator[int]:
        """Steps that the node of the undone step before `position` undoes, too: as many as cost little memory."""
        if nbytes(streams) > SMALL_STREAMS:
            return
        if self._weights is None:  # of a lazy module, nothing is known yet
            self._weights = [sum(p.nbytes for p in step.parameters() if not is_lazy(p)) for step in self]
        weights = self._weights[plan[position - 1][1].start]
        for keep, group in plan[position:]:
            weights += self._weights[group.start]
            if keep != "undone" or weights > SMALL_WEIGHTS:
                return
            yield group.start

    def _enter(self, rounding: Rounding | None, streams: Streams) -> Streams:
        if rounding is None and not any(has_inverse(step, approximate=False) for step in self):
            return streams
        # an expanded stream comes back in memory of its own, and dropout draws in the order of memory
        streams = tuple(x.contiguous() if 0 in x.stride() else x for x in streams)
        return tuple(map(full_precision if rounding is None else rounding.enter, streams))

    @property
    def undoable(self) -> bool:
        return len(self) > 0 and all(map(has_inverse, self))

    @property
    def approximate(self) -> bool:
        return any(has_inverse(step, approximate=True) for step in self)

    @property
    def on_grid(self) -> bool:
        return all(isinstance(step, Step) and step.on_grid for step in self)

    def inverse(self, *streams: Tensor, **context: Any) -> Tensor | tuple[Tensor, ...]:
        """The streams that had entered, from those that came out; batch statistics do not move.

        Raises:
            StepError: a step cannot be undone.
        """
        check_streams(streams)
        outer = current.get()
        rounding = self.strategy.rounding if outer is None else outer.rounding
        surroundings = Surroundings(streams, context)
        for index, step in reversed(list(enumerate(self))):
            if not has_inverse(step):
                raise StepError(f"{describe(index, step)} has no inverse, so the Chain cannot be undone")
            token = current.set(Frame(rounding))
            try:
                with Record([step], surroundings).again():
                    streams = invert(step, streams, self.strategy.refine, taken(step, context))
            finally:
                current.reset(token)
        return streams[0] if len(streams) == 1 else streams

    def undo(self, task: Task) -> Undone:
        """Step by step from the last, as the steps of an outer Chain."""
        undone, found = undo_all(
            dict(enumerate(self)), task, current.get() or Frame(None), dict.fromkeys(range(len(self)), task.context)
        )
        for own in found.values():
            task.add(own)
        return undone


def _raised(verdict: Callable[[], StepError | None]) -> None:
    if error := verdict():
        raise error
