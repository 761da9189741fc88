"""One optimizer step. The estimate of a run's memory traces this very function, so it holds all that a step does."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memexp.optim import kernels
from memexp.training.graphed import Graphed
from memexp.training.precision import Precision

Loss = Callable[[Tensor, Any], Tensor]  # of scores and what they are compared with
Batch = tuple[Tensor, Any]


def _in_one(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Several processes exchange the gradients of all batches once, with the last of them."""
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()


def train_step(
    model: nn.Module,
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    precision: Precision,
    clip_grad: float | None = None,
    graphed: Graphed | None = None,
) -> Tensor:
    """Forward and backward over every batch (gradients accumulate), then one step of the optimizer.

    graphed: replays forward and backward, instead of launching them.

    Returns the mean loss over the batches, detached, still on the device: reading it is what would wait for it.
    """

    def run(images: Tensor, labels: Any) -> Tensor:
        with precision.autocast():
            loss = loss_fn(model(images), labels)
        if len(batches) > 1:
            loss = loss / len(batches)
        precision.scaler.scale(loss).backward()
        return loss.detach()

    total: Tensor | None = None
    for number, batch in enumerate(batches, 1):
        with _in_one(model, last=number == len(batches)):
            loss = run(*batch) if graphed is None else graphed(run, number == 1, *batch)
        total = loss if total is None else total + loss
    if total is None:
        raise ValueError("train_step was given no batches: one step takes at least one")
    if clip_grad is not None:
        precision.scaler.unscale_(optimizer)
        kernels.clip(model.parameters(), clip_grad)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total
