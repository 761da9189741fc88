"""Is a step what its strategy takes it for? Inverse, gradient and repeatability of each step, measured by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.chain import Chain
from memexp.backprop.context import Context, taken
from memexp.backprop.door import check_keywords, check_streams, twice
from memexp.backprop.errors import StepError, describe
from memexp.backprop.measures import relative_error
from memexp.backprop.node import Call, Node
from memexp.backprop.objects import Objects
from memexp.backprop.plan import Keep, has_inverse
from memexp.backprop.replay import Frame
from memexp.backprop.run import run
from memexp.backprop.surroundings import Surroundings
from memexp.backprop.untouched import untouched


@dataclass(frozen=True)
class StepReport:
    """Figures of one step, on the streams that reach it.

    Attributes:
        name: as errors name it.
        inverse_error: |x~ - x| / |x| of the inputs computed back from the outputs; None where the strategy keeps them.
        gradient_error: |g~ - g| / |g|, of inputs, keywords and parameters together, against stored; None where the strategy
            stores the step (or keeps what is dear of it) or what it reads needs no gradient.
        repeatable: a second evaluation gives the same bits.
        fault: the error of a step that could not be recomputed.
    """

    name: str
    inverse_error: float | None
    gradient_error: float | None
    repeatable: bool
    fault: str | None = None


@dataclass(frozen=True)
class Report:
    """Of each step of a Chain; as text, a table."""

    steps: tuple[StepReport, ...]

    def __str__(self) -> str:
        lines = [f"{'step':<32}{'inverse error':>15}{'gradient error':>16}{'repeatable':>12}"]
        for step in self.steps:
            figures = ["-" if e is None else f"{e:.1e}" for e in (step.inverse_error, step.gradient_error)]
            lines.append(f"{step.name:<32}{figures[0]:>15}{figures[1]:>16}{'yes' if step.repeatable else 'NO':>12}")
            if step.fault:
                lines.append(f"    {step.fault}")
        return "\n".join(lines)


def check(chain: Chain, inputs: Tensor | Sequence[Tensor], **context: Any) -> Report:
    """Measures each step of `chain` on the streams that reach it from `inputs`, as its strategy would recompute it.

    The last step is taken as one that is undone, though it is stored in training. Costs a few passes; leaves parameters,
    their `.grad`, buffers, attributes and random state as they are.

    Args:
        inputs: the streams, of a typical size; of a batch from the data, errors are those of training.
        context: keywords of the Chain's call.

    Raises:
        StepError: the streams or keywords do not fit the Chain.
    """
    streams = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    check_streams(streams)
    check_keywords(list(chain), context)
    rounding = chain.strategy.rounding
    found = []
    with torch.no_grad():
        streams = tuple(x.detach() for x in chain._enter(rounding, streams))
    plan = list(chain.strategy.plan(list(chain), streams))
    for index, (step, keep) in enumerate(zip(chain, plan, strict=True)):
        last = index + 1 == len(chain) and any(word == "undone" for word in plan)
        undoable = has_inverse(step)
        word: Keep = "undone" if last and undoable else "checkpointed" if keep == "continued" else keep
        surroundings = Surroundings(streams, context).on(step.parameters())
        with _restored(step, surroundings):
            outputs, repeatable = twice(index, step, streams, surroundings, rounding)
        inverse_error = gradient_error = fault = None
        try:
            if word not in ("stored", "light"):
                errors: list[float] = []
                call = Call(streams, context, rounding, None, chain.strategy.refine, errors, None)
                with _restored(step, surroundings):
                    own = _gradients(Node(word, {index: step}, call), streams, context, step)
                with _restored(step, surroundings):
                    frame = Frame(rounding)
                    stored = _gradients(
                        lambda *x, f=frame, i=index, s=step: run(i, s, x, f, context), streams, context, step
                    )
                inverse_error = max(errors, default=None)
                gradient_error = relative_error(own, stored) if stored else None
        except (StepError, RuntimeError) as error:
            fault = str(error)
        found.append(StepReport(describe(index, step), inverse_error, gradient_error, repeatable, fault))
        streams = outputs
    return Report(tuple(found))


def _gradients(evaluated: Any, streams: Sequence[Tensor], context: Context, step: nn.Module) -> list[Tensor]:
    """Of all that the step reads, for a fixed random gradient of its outputs; zeros where there is none."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(x.is_floating_point() or x.is_complex()) for x in streams]
        read = [value for value in taken(step, context).values() if isinstance(value, Tensor) and value.requires_grad]
        targets = [t for t in (*leaves, *read, *dict.fromkeys(step.parameters())) if t.requires_grad]
        outputs = [y for y in evaluated(*leaves) if y.requires_grad]
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
    if not outputs or not targets:
        return []
    found = torch.autograd.grad(outputs, targets, grads, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(targets, found, strict=True)]


@contextmanager
def _restored(step: nn.Module, surroundings: Surroundings) -> Iterator[None]:
    """Afterwards the step's buffers and attributes, objects that it is handed, and torch's random state are as before."""
    state = surroundings.random_state()
    objects = Objects(surroundings.context)
    try:
        with untouched(step):
            yield
    finally:
        surroundings.set_random_state(state)
        objects.put_back()
