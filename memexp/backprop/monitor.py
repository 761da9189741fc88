"""How far a strategy's gradient is from that of stored activations, measured on demand for one step of training."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memexp.backprop.measures import angle, relative_error
from memexp.backprop.untouched import untouched
from memexp.backprop.wrapped import chains


@dataclass(frozen=True)
class Comparison:
    """Figures of one step.

    Attributes:
        reconstruction_error: |x~ - x| / |x| at the first step of a run of undone steps, the largest of all runs;
            0 where nothing is undone.
        gradient_error: |g~ - g| / |g| over all parameters.
        gradient_angle: angle between g~ and g, in degrees.
    """

    reconstruction_error: float
    gradient_error: float
    gradient_angle: float


def reconstruction_error(model: nn.Module, loss_fn: Callable[[], Tensor]) -> float:
    """|x~ - x| / |x| at the first step of a run of undone steps, the largest of all runs; 0 where nothing is undone.

    Costs one forward and backward pass, and the memory of the streams that enter each run. Leaves everything as it was.
    """
    return _observe(model, loss_fn)[1]


def compare(model: nn.Module, loss_fn: Callable[[], Tensor]) -> Comparison:
    """Runs `loss_fn` with the model's own strategies and with stored activations, and compares the gradients.

    Costs two forward and backward passes and the memory of stored activations. Leaves parameters, their `.grad`, buffers
    (batch statistics) and random state as they were.

    Args:
        model: holds one Chain or more.
        loss_fn: evaluates `model` on a batch, under autocast if that is how it is trained, and returns the loss.
    """
    own, error = _observe(model, loss_fn)
    with ExitStack() as stack:
        for chain in chains(model):
            stack.enter_context(chain.using("stored"))
        stored = gradient(model, loss_fn)
    return Comparison(error, relative_error(own, stored), angle(own, stored))


def _observe(model: nn.Module, loss_fn: Callable[[], Tensor]) -> tuple[list[Tensor], float]:
    """The gradient with the model's own strategies, and the largest reconstruction error on the way."""
    errors: list[float] = []
    try:
        for chain in chains(model):
            chain.monitor = errors
        found = gradient(model, loss_fn)
    finally:
        for chain in chains(model):
            chain.monitor = None
    return found, max(errors, default=0.0)


def gradient(model: nn.Module, loss_fn: Callable[[], Tensor]) -> list[Tensor]:
    """Of all parameters that are trained; leaves `.grad`, buffers, attributes of modules and random state as they were."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = next((p.device for p in parameters if p.device.type != "cpu"), torch.device("cpu"))
    devices = {p.device for p in parameters if p.device.type != "cpu"}
    with (
        untouched(model),
        torch.enable_grad(),
        torch.random.fork_rng(list(devices), device_type=device.type),
    ):
        found = torch.autograd.grad(loss_fn(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
