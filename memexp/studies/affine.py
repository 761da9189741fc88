"""The best affine map of pixels to scores: what any network without an activation ends as.

Softmax regression, W x + b with cross entropy and a penalty of lambda/2 |W|^2, is convex, so that its optimum is no matter of a
recipe: L-BFGS over all training images goes through the penalties from the strongest on, each from the optimum before. The
penalty is chosen on a tenth of the training images that is held out; accuracy is that on the test images.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional

from memexp import data
from memexp.config import ConfigError
from memexp.training import distribution
from memexp.training.distribution import World
from memexp.training.evaluation import evaluate
from memexp.training.precision import Precision

log = logging.getLogger("memexp")
HELD_OUT = 10  # each so many-th batch chooses the penalty


def study(cfg: DictConfig, directory: Path) -> dict[str, Any]:
    """Settings under `case`: penalties (lambda, for pixels normalised by channel), iterations (of L-BFGS, of each).

    Raises ConfigError for fewer batches than the penalty can be chosen on.
    """
    world = World()  # a study is one process's
    device = distribution.choose_device(cfg.device, world)
    splits = data.load(cfg.dataset, batch_size=cfg.batch_size, seed=cfg.seed, device=device)
    if len(splits.plain_train) < HELD_OUT:
        images = splits.plain_train.images
        raise ConfigError(
            [
                f"batch_size: {cfg.batch_size} makes {len(splits.plain_train)} batches of {images} images, and each "
                f"{HELD_OUT}th is held out to choose the penalty; set at most {max(1, images // HELD_OUT)}."
            ]
        )
    pixels = splits.shape[0] * splits.shape[1] * splits.shape[2]
    linear = nn.Linear(pixels, len(splits.classes))
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    classifier = nn.Sequential(nn.Flatten(), linear).to(device)
    found: dict[float, tuple[float, dict[str, Tensor]]] = {}
    for penalty in sorted(map(float, cfg.case.penalties), reverse=True):
        fit(linear, splits.plain_train, penalty, int(cfg.case.iterations))
        top1 = _held_out(classifier, splits.plain_train)
        found[penalty] = top1, {key: value.clone() for key, value in classifier.state_dict().items()}
        log.info("penalty %g: top-1 %.2f %% on the images held out", penalty, top1)
    best = max(found, key=lambda penalty: found[penalty][0])
    classifier.load_state_dict(found[best][1])
    measured = evaluate(classifier, splits.test, Precision("fp32", device), world)
    log.info("the best affine map: top-1 %.2f %%", measured.top1)
    return {
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "penalty": best,
        "accuracy": {**measured.as_dict(), "split": "test", "images": measured.images},
    }


def fit(linear: nn.Linear, batches: data.Batches, penalty: float, iterations: int) -> None:
    """Goes on from where `linear` is to the optimum on all batches but those held out."""
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total, images = 0.0, 0
        for number, (pixels, labels) in enumerate(batches.epoch(0)):
            if number % HELD_OUT == HELD_OUT - 1:
                continue
            loss = functional.cross_entropy(linear(pixels.flatten(1)), labels, reduction="sum")
            loss.backward()
            total, images = total + float(loss.detach()), images + len(labels)
        weight = linear.weight.detach()
        assert linear.weight.grad is not None
        assert linear.bias.grad is not None
        linear.weight.grad.div_(images).add_(weight, alpha=penalty)
        linear.bias.grad.div_(images)
        return torch.tensor(total / images + penalty / 2 * float(weight.square().sum()))

    optimizer.step(closure)


@torch.no_grad()
def _held_out(classifier: nn.Module, batches: data.Batches) -> float:
    right = images = 0
    for number, (pixels, labels) in enumerate(batches.epoch(0)):
        if number % HELD_OUT == HELD_OUT - 1:
            right += int((classifier(pixels).argmax(1) == labels).sum())
            images += len(labels)
    return 100 * right / max(1, images)
