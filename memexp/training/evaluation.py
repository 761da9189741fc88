"""Accuracy of a network over a split."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.data import Batches
from memexp.modes import evaluating
from memexp.training import distribution
from memexp.training.distribution import World
from memexp.training.precision import Precision
from memexp.training.signals import StopRequest


@dataclass
class Evaluation:
    """top1, top5 in %; loss the mean cross entropy; confusion (true class, predicted class) in images, or None: not kept."""

    top1: float
    top5: float
    loss: float
    images: int
    confusion: Tensor | None = None

    def as_dict(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5, "error": 100 - self.top1, "loss": self.loss}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Batches,
    precision: Precision,
    world: World,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Accuracy of `model` (put into eval mode for it, and back) over all of `batches`.

    Raises Interrupted between batches where `stop` has come, in all processes where it has in one. With fewer than five classes
    top5 counts all of them.
    """
    sums: list[Tensor] = []  # of each batch, read together at the end, so that the device has work meanwhile
    confusion: Tensor | None = None
    seen = 0
    with evaluating(model):
        for images, labels in batches.epoch(0):
            if stop is not None and stop.signum is not None:
                break
            with precision.autocast():
                scores = model(images)
            scores = scores.float()
            classes = scores.shape[1]
            ranked = scores.topk(min(5, classes), dim=1).indices
            predicted, *_ = ranked.unbind(1)
            first, five = (predicted == labels).sum(), (ranked == labels.unsqueeze(1)).sum()
            loss = functional.cross_entropy(scores, labels, reduction="sum")
            sums.append(torch.stack([first, five, loss]))
            seen += len(labels)
            if confusion is None:
                confusion = torch.zeros(classes * classes, dtype=torch.int64, device=scores.device)
            confusion.index_add_(0, labels * classes + predicted, torch.ones_like(labels))
    distribution.heed(stop, world)
    if confusion is None:
        raise ValueError("the split to evaluate holds no images")
    # on the host, as not every accelerator has float64
    over_batches = torch.cat([torch.stack(sums).cpu().double().sum(0), torch.tensor([seen], dtype=torch.float64)])
    ones, fives, loss_sum, images_seen = distribution.total(over_batches, world).tolist()
    classes = round(len(confusion) ** 0.5)
    return Evaluation(
        top1=100 * ones / images_seen,
        top5=100 * fives / images_seen,
        loss=loss_sum / images_seen,
        images=int(images_seen),
        confusion=distribution.total(confusion.cpu(), world).reshape(classes, classes),
    )
