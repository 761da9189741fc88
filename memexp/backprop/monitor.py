"""How far a strategy's gradient is from that of stored activations, measured on demand for one step of training."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memexp.backprop.chain import Chain
from memexp.backprop.measures import angle, relative_error


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


def compare(model: nn.Module, loss_fn: Callable[[], Tensor]) -> Comparison:
    """Runs `loss_fn` with the model's own strategies and with stored activations, and compares the gradients.

    Costs two forward and backward passes. Leaves parameters, their `.grad`, buffers (batch statistics) and random state
    as they were.

    Args:
        model: holds one Chain or more.
        loss_fn: evaluates `model` on a batch, under autocast if that is how it is trained, and returns the loss.
    """
    chains = [module for module in model.modules() if isinstance(module, Chain)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    devices = {p.device for p in parameters if p.device.type != "cpu"}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    errors: list[float] = []

    def gradient() -> list[Tensor]:
        with torch.enable_grad(), torch.random.fork_rng(list(devices), device_type=next(iter(devices), cpu).type):
            found = torch.autograd.grad(loss_fn(), parameters, allow_unused=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    cpu = torch.device("cpu")
    try:
        for chain in chains:
            chain.monitor = errors
        own = gradient()
    finally:
        for chain in chains:
            chain.monitor = None
    with ExitStack() as stack:
        for chain in chains:
            stack.enter_context(chain.using("stored"))
        stored = gradient()
    return Comparison(max(errors, default=0.0), relative_error(own, stored), angle(own, stored))
