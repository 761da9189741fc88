"""How a network is trained, made in one place for training, estimate, bench and studies: optimizer, schedule, loss, precision,
mixing, and the weights that are evaluated.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from memexp import optim
from memexp.models.vanishing import set_lambda
from memexp.optim import Lookahead, schedules
from memexp.training.distillation import Distillation, taught
from memexp.training.graphed import Graphed
from memexp.training.precision import Precision
from memexp.training.step import Batch, Loss, train_step

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Settings:
    """How long and how; the fields are the configuration's keys of the same names."""

    epochs: int
    max_steps: int | None
    batch_size: int
    accumulate: int
    evaluate_every: int
    precise_batchnorm: bool
    checkpoint_every: int | None
    log_every: int
    monitor_every: int
    clip_grad: float | None
    ema: float

    def steps_per_epoch(self, batches: int) -> int:
        """Optimizer steps, of so many batches."""
        return max(1, batches // self.accumulate)

    def total_steps(self, batches: int) -> int:
        """Optimizer steps of the whole stage, where an epoch has so many batches."""
        steps = self.epochs * self.steps_per_epoch(batches)
        return steps if self.max_steps is None else min(steps, self.max_steps)


def settings_of(cfg: DictConfig) -> Settings:
    return Settings(**{field.name: cfg[field.name] for field in fields(Settings)})


@dataclass
class Recipe:
    """What trains one network.

    factor: (step, total steps) -> what multiplies the learning rate. mix: blends images and labels of a batch. average: of the
    weights, which is then what is evaluated. course: (step, total steps) -> lambda of its vanishing activations, where they
    move in this training. teacher: whose scores are learnt, too; in eval mode. graphed: replays forward and backward.
    """

    settings: Settings
    network: nn.Module
    optimizer: torch.optim.Optimizer
    factor: Callable[[int, int], float]
    loss_fn: Loss
    precision: Precision
    mix: Mix | None
    average: AveragedModel | None
    course: Callable[[int, int], float] | None = None
    teacher: nn.Module | None = None
    graphed: Graphed | None = None

    def prepared(self, images: Tensor, labels: Tensor) -> Batch:
        """A batch as the step takes it: mixed, and with the teacher's scores of what is then seen."""
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        if self.teacher is None:
            return images, labels
        with self.precision.autocast():
            return taught(self.teacher, images, labels)

    def vanish(self, step: int, total: int) -> float | None:
        """Sets lambda of the vanishing activations for `step` of `total`, and gives it; None where none is on its course."""
        if self.course is None:
            return None
        value = self.course(step, total)
        for network in (self.network, self.average.module if self.average is not None else None):
            if network is not None:
                set_lambda(network, value)
        return value

    def step(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """One optimizer step of `model`, the network as it is called; the mean loss, still on the device."""
        clip_grad = self.settings.clip_grad
        return train_step(model, self.loss_fn, self.optimizer, batches, self.precision, clip_grad, self.graphed)

    @property
    def averages(self) -> bool:
        """Whether the weights that are evaluated are others than those that are trained."""
        return self.average is not None or isinstance(self.optimizer, Lookahead)

    def evaluated_weights(self) -> AbstractContextManager[nn.Module]:
        """The network as it is to be evaluated: its average, its Lookahead's slow weights, or itself."""
        if self.average is not None:
            return nullcontext(self.average.module)
        if isinstance(self.optimizer, Lookahead):
            return _entered(self.optimizer.evaluation_weights(), self.network)
        return nullcontext(self.network)

    def state(self) -> dict[str, Any]:
        """What decides the future, beside the network's own state."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from `state()`. Raises ValueError or KeyError where it is of another optimizer."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])


def make(cfg: DictConfig, network: nn.Module, device: torch.device, classes: int) -> Recipe:
    """The recipe of a configuration for `network`, which is on `device` and gives scores for `classes`.

    Raises ValueError for an optimizer that does not fit the network.
    """
    optimizer = optim.build(cfg.optimizer, network)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    average = None
    if cfg.ema:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema), use_buffers=True)
    return Recipe(
        settings_of(cfg),
        network,
        optimizer,
        functools.partial(schedules.factor, cfg.schedule),
        _loss(cfg),
        Precision(cfg.precision.name, device),
        _mix(cfg, classes),
        average,
    )


def _loss(cfg: DictConfig) -> Loss:
    loss = functools.partial(functional.cross_entropy, label_smoothing=cfg.label_smoothing)
    distill = cfg.distill
    return loss if distill.teacher is None else Distillation(distill.alpha, distill.temperature, loss)


def _mix(cfg: DictConfig, classes: int) -> Mix | None:
    """MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019), or one of them drawn for each batch."""
    if not (cfg.mixup or cfg.cutmix):
        return None
    from torchvision.transforms import v2  # torchvision takes its time to import

    kinds: list[nn.Module] = []
    if cfg.mixup:
        kinds.append(v2.MixUp(alpha=float(cfg.mixup), num_classes=classes))
    if cfg.cutmix:
        kinds.append(v2.CutMix(alpha=float(cfg.cutmix), num_classes=classes))
    return v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0]


@contextmanager
def _entered(context: AbstractContextManager[object], network: nn.Module) -> Iterator[nn.Module]:
    with context:
        yield network
