"""What a Chain refuses before it computes: each in one sentence that names the step and the way out."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from memexp.backprop.context import Context, takes
from memexp.backprop.errors import StepError, describe
from memexp.backprop.plan import Keep
from memexp.backprop.replay import Frame, Record, substituted
from memexp.backprop.rounding import Rounding
from memexp.backprop.run import run
from memexp.backprop.surroundings import Surroundings


def check_steps(steps: Sequence[Any]) -> None:
    """Steps are modules."""
    for index, step in enumerate(steps):
        if not isinstance(step, nn.Module):
            raise StepError(f"step {index} is {step!r}, a {type(step).__name__}: a step is an nn.Module")


def check_streams(streams: Sequence[Any]) -> None:
    """Streams are tensors, one at least."""
    if not streams:
        raise StepError("a Chain takes at least one stream, got none: call it as chain(x) or chain(x1, x2)")
    for index, x in enumerate(streams):
        if not isinstance(x, Tensor):
            raise StepError(
                f"stream {index} is a {type(x).__name__}: streams are tensors, one an argument, chain(x1, x2); "
                "hand anything else to the steps as a keyword, chain(x1, x2, mask=None)"
            )


def check_keywords(steps: Sequence[nn.Module], context: Context) -> None:
    """Each keyword is taken by a step or a branch."""
    for name in context:
        if not any(takes(step, name) for step in steps):
            kinds = ", ".join(sorted({type(step).__name__ for step in steps})) or "no steps"
            raise StepError(
                f"no step takes the keyword {name} (the Chain has {kinds}): give a step's or a branch's forward a "
                f"parameter of that name; nn.Sequential hands none on"
            )


def check_transforms(steps: Sequence[nn.Module], plan: Sequence[tuple[Keep, range]], values: Sequence[Any]) -> None:
    """Nothing but ordinary backprop goes through a step that is recomputed."""
    index = next((group.start for keep, group in plan if keep != "stored"), None)
    if index is None:
        return
    _check_sharded(steps, plan)
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        what, way = "tracing and export", "under torch.no_grad() or "
    elif torch._C._are_functorch_transforms_active():
        what, way = "torch.func (grad, vmap, jvp)", ""
    elif any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in values):
        what, way = "forward-mode AD", ""
    else:
        return
    raise StepError(
        f"{describe(index, steps[index])} is recomputed in backward, which {what} cannot go through: call the Chain {way}with "
        "backprop=stored (`with chain.using('stored'):`)"
    )


def _check_sharded(steps: Sequence[nn.Module], plan: Sequence[tuple[Keep, range]]) -> None:
    """No step that is recomputed is sharded by itself, as fully_shard (FSDP2) then swaps its parameters in between."""
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if sharded is None or not torch.distributed.is_initialized():
        return
    for index in (index for keep, group in plan if keep != "stored" for index in group):
        if any(isinstance(module, sharded) for module in steps[index].modules()):
            raise StepError(
                f"{describe(index, steps[index])} is recomputed in backward, and fully_shard on it or its branches swaps its "
                "parameters before that: shard at the root only, fully_shard(network), or use backprop=stored"
            )


def check_repeatable(
    steps: Sequence[nn.Module], streams: tuple[Tensor, ...], context: Context, rounding: Rounding | None
) -> None:
    """Each step gives the same twice, under the conditions that a recomputation puts in place.

    Leaves buffers and torch's random state as they are.
    """
    surroundings = Surroundings(streams, context).on(p for step in steps for p in step.parameters())
    state = surroundings.random_state()
    try:
        for index, step in enumerate(steps):
            streams, same = twice(index, step, streams, surroundings, rounding)
            if not same:
                raise StepError(
                    f"{describe(index, step)} gives different results for the same streams, so it cannot be recomputed: "
                    "does it draw from a torch.Generator of its own or from Python's random, keep state outside of "
                    "its modules, or use a kernel that is not deterministic? Draw from torch's global generator, keep "
                    "state in buffers or attributes, set torch.use_deterministic_algorithms(True), or use backprop=stored"
                )
    finally:
        surroundings.set_random_state(state)


def twice(
    index: int, step: nn.Module, streams: tuple[Tensor, ...], surroundings: Surroundings, rounding: Rounding | None
) -> tuple[tuple[Tensor, ...], bool]:
    """The step's outputs, and whether a second evaluation gives the same bits."""
    record = Record([step], surroundings)
    frame = Frame(rounding, record=record)
    buffers = [(m, name, b) for m in step.modules() for name, b in m._buffers.items() if b is not None]
    with torch.no_grad(), substituted(buffers):
        with surroundings():
            outputs = run(index, step, streams, frame, surroundings.context)
        record.settle()
        with record.again():
            again = run(index, step, streams, frame, surroundings.context)
    if record.objects is not None:
        record.objects.put_back()
    if record.attributes is not None:
        record.attributes.put_back()
    return outputs, all(map(_same, outputs, again))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype is b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
