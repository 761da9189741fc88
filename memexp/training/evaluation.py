"""Accuracy of a network over a split."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.data import Batches
from memexp.training import distribution
from memexp.training.distribution import World
from memexp.training.precision import Precision


@dataclass
class Evaluation:
    """top1, top5 in %; loss the mean cross entropy; confusion (true class, predicted class) in images."""

    top1: float
    top5: float
    loss: float
    images: int
    confusion: Tensor

    def as_dict(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5, "error": 100 - self.top1, "loss": self.loss}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    precision: Precision,
    world: World,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Accuracy of `model` (put into eval mode for it, and back) over all of `batches`.

    `check` is called between batches and may raise to end it. With fewer than five classes top5 counts all of them.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=precision.device)
    confusion: Tensor | None = None
    try:
        for images, labels in batches.epoch(0):
            check()
            with precision.autocast():
                scores = model(images)
            scores = scores.float()
            classes = scores.shape[1]
            ranked = scores.topk(min(5, classes), dim=1).indices
            hits = ranked == labels[:, None]
            loss = functional.cross_entropy(scores, labels, reduction="sum")
            sums += torch.stack(
                [hits[:, 0].sum(), hits.any(1).sum(), loss, torch.tensor(len(labels)).to(loss)]
            ).double()
            counts = torch.bincount(labels * classes + ranked[:, 0], minlength=classes * classes)
            confusion = counts if confusion is None else confusion + counts
    finally:
        model.train(training)
    if confusion is None:
        raise ValueError("the split to evaluate holds no images")
    first, five, loss_sum, images_seen = distribution.total(sums, world).tolist()
    classes = round(len(confusion) ** 0.5)
    return Evaluation(
        top1=100 * first / images_seen,
        top5=100 * five / images_seen,
        loss=loss_sum / images_seen,
        images=int(images_seen),
        confusion=distribution.total(confusion, world).reshape(classes, classes).cpu(),
    )
