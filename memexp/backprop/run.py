"""Steps of a Chain, forward; errors name them."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from memexp.backprop.context import Context, taken
from memexp.backprop.errors import StepError, describe
from memexp.backprop.replay import Frame, current, evaluate
from memexp.backprop.step import Step

Streams = tuple[Tensor, ...]


def run(index: int, step: nn.Module, streams: Streams, frame: Frame | None, context: Context) -> Streams:
    """The step's outputs.

    Raises:
        StepError: the step changed a stream in place, gave something else than tensors, has a hook that changes streams
            though it is undone without being called, or what it raised itself.
    """
    versions = [x._version for x in streams if not x.is_inference()]
    own = taken(step, context) if context else {}
    token = current.set(frame)
    try:
        if frame is not None and frame.undone and _attached(step):
            found = _watched(step, streams, own)
        # a step of the engine evaluates its branches one by one; any other step is one branch
        elif isinstance(step, Step):
            found = step(*streams, **own)
        else:
            found = evaluate("step", step, *streams, **own)
    except StepError as error:
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break()  # it is raised uncompiled: the compiler of torch 2.11 fails at a `from`
        raise StepError(f"{describe(index, step)}: {error}") from error.__cause__
    except TypeError:
        _check_count(index, step, len(streams), own)
        raise
    except RuntimeError as error:
        if (said := _said(index, step, streams, str(error))) is not None:
            raise said from error
        raise
    finally:
        current.reset(token)
    outputs = _tensors(index, step, found)
    if versions != [x._version for x in streams if not x.is_inference()]:
        raise _written(index, step)
    if frame is not None and frame.rounding is not None and not (isinstance(step, Step) and step.on_grid):
        outputs = tuple(frame.rounding.enter(y) for y in outputs)  # back on the grid
    return outputs


def run_all(steps: dict[int, nn.Module], streams: Streams, frame: Frame | None, context: Context) -> Streams:
    """The outputs of the last of these steps, one after the other; the frame's watch sees those of each."""
    for index, step in steps.items():
        streams = run(index, step, streams, None if frame is None else frame.of(index), context)
        if frame is not None and frame.watch is not None:
            frame.watch.see(describe(index, step), streams)
    return streams


def _is_trained(x: Tensor) -> bool:
    return x.is_leaf and x.requires_grad


def _written(index: int, step: nn.Module) -> StepError:
    return StepError(
        f"{describe(index, step)} changes a stream in place; streams belong to the Chain and its caller: "
        "use an operation that is not in place, e.g. nn.ReLU(inplace=False)"
    )


def _said(index: int, step: nn.Module, streams: Streams, error: str) -> StepError | None:
    """What an error of torch's means for a step, where that is known."""
    # where autograd records, torch refuses to write to a leaf before it is written to
    if "leaf Variable that requires grad is being used in an in-place" in error and any(map(_is_trained, streams)):
        return _written(index, step)
    if "don't yet support saved tensor hooks" in error:
        return StepError(
            f"{describe(index, step)} differentiates in its own forward with torch.func, which torch does not allow where "
            "what autograd saves is looked at: use backprop=stored, or torch.autograd.grad and backprop=light"
        )
    return None


def _tensors(index: int, step: nn.Module, found: Any) -> Streams:
    outputs = (found,) if isinstance(found, Tensor) else found
    if not isinstance(outputs, tuple | list) or not all([isinstance(y, Tensor) for y in outputs]):
        raise StepError(
            f"{describe(index, step)} gives a {type(found).__name__}: a step gives a tensor or a tuple of them"
        )
    return tuple(outputs)


def _check_count(index: int, step: nn.Module, count: int, context: Context) -> None:
    signature = inspect.signature(step.forward)
    try:
        signature.bind(*range(count), **context)
    except TypeError:
        names = ", ".join(name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD)
        given = f"{count} streams" + "".join(f" and {name}" for name in context)
        raise StepError(f"{describe(index, step)} takes ({names}), got {given}") from None


def _attached(step: nn.Module) -> bool:
    """Whether something stands between a call of the step and its forward."""
    return bool(
        step._forward_hooks
        or step._forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or type(step).__call__ is not nn.Module.__call__
    )


def _watched(step: nn.Module, streams: Streams, own: Context) -> Any:
    """A call of the step, of which its forward must be all: in backward it is undone without being called."""
    forward = step.forward
    seen: list[tuple[tuple[Any, ...], Any, list[int]]] = []

    def noted(*inputs: Any, **keywords: Any) -> Any:
        result = (
            forward(*inputs, **keywords) if isinstance(step, Step) else evaluate("step", forward, *inputs, **keywords)
        )
        seen.append((inputs, result, [y._version for y in _listed(result)]))
        return result

    own_forward = step.__dict__.get("forward")
    step.__dict__["forward"] = noted
    try:
        found = step(*streams, **own)
    finally:
        del step.__dict__["forward"]
        if own_forward is not None:
            step.__dict__["forward"] = own_forward
    if len(seen) == 1:
        inputs, result, versions = seen[0]
        outputs = _listed(found)
        same_inputs = len(inputs) == len(streams) and all(a is b for a, b in zip(inputs, streams, strict=True))
        same_outputs = len(outputs) == len(versions) and all(
            a is b for a, b in zip(outputs, _listed(result), strict=True)
        )
        if same_inputs and same_outputs and [y._version for y in outputs] == versions:
            return found
    raise StepError(
        "has a hook, or a __call__ of its own, that changes its streams, but the step is undone in backward without being "
        "called: put the hook on a branch, or use backprop=checkpointed or stored"
    )


def _listed(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [y for y in found if isinstance(y, Tensor)]
