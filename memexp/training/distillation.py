"""Distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): a student learns the labels and its teacher's softened scores.

    L = (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(z_teacher / T) || softmax(z / T))

T^2 keeps the size of the second gradient as T changes. alpha 0.7 and T 5 are ReduceNet's (2023).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

ALPHA, TEMPERATURE = 0.7, 5.0


class Taught(NamedTuple):
    """What a student learns from: labels, as its loss takes them, and the teacher's scores, (n, classes)."""

    labels: Tensor
    scores: Tensor


@torch.no_grad()
def taught(teacher: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Taught]:
    """The batch with the scores of `teacher`, which is in eval mode, beside its labels."""
    return images, Taught(labels, teacher(images).float())


class Distillation:
    """The student's loss.

    loss: of scores and labels alone, such as cross-entropy with smoothed labels; it is all there is where a batch has not been
    taught, as where strategies are timed.
    Raises ValueError for alpha outside of [0, 1] and a temperature that is not above 0.
    """

    def __init__(
        self,
        alpha: float = ALPHA,
        temperature: float = TEMPERATURE,
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: the teacher's share of the loss, from 0 to 1")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: above 0; 1 takes the scores as they are")
        self.alpha, self.temperature, self.loss = alpha, temperature, loss

    def __call__(self, scores: Tensor, target: Tensor | Taught) -> Tensor:
        """The mean loss over the batch."""
        if not isinstance(target, Taught):
            return self.loss(scores, target)
        T = self.temperature
        soft, expected = (functional.log_softmax(z.float() / T, 1) for z in (scores, target.scores))
        apart = functional.kl_div(soft, expected, reduction="batchmean", log_target=True)
        return (1 - self.alpha) * self.loss(scores, target.labels) + self.alpha * T**2 * apart
