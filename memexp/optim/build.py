"""The optimizer of a configuration."""

from typing import Any

from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from memexp import own
from memexp.choices import arguments
from memexp.optim import checks, kernels
from memexp.optim.centralization import Centralized
from memexp.optim.lookahead import Lookahead
from memexp.optim.radam import RAdam


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of more than one dimension decay; biases and BN do not (Gomez et al. 2017)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build(settings: Any, model: nn.Module) -> Optimizer:
    """The optimizer that `settings` (the keys of conf/optimizer/*.yaml) describe, over the parameters of `model`.

    Raises ValueError for a name or value that is not allowed, and for a model without parameters to train.
    """
    groups = checks.filled(parameter_groups(model, settings.weight_decay))
    if "_target_" in settings:
        optimizer = _own(settings, groups)
    elif settings.name in OPTIMIZERS:
        optimizer = OPTIMIZERS[settings.name](settings, groups)
    else:
        raise ValueError(f"optimizer={settings.name!r}: there are {', '.join(OPTIMIZERS)}")
    if settings.gradient_centralization:
        optimizer = Centralized(optimizer, where=settings.centralize, conv_only=settings.conv_only)
    if settings.lookahead.k is not None:
        optimizer = Lookahead(optimizer, settings.lookahead.k, settings.lookahead.alpha, settings.evaluate_slow)
    return optimizer


def _own(settings: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """A user's own, which takes `params` and `lr`, as torch's do."""
    given = arguments("optimizer", OmegaConf.to_container(settings, resolve=True))  # type: ignore[arg-type]
    offered = {"params": groups, "lr": settings.lr}
    try:
        optimizer: Optimizer = own.made(settings["_target_"], offered, given, Optimizer, needs=tuple(offered))
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer: {error}") from error
    return optimizer


def _sgd(settings: Any, groups: list[dict[str, Any]]) -> Optimizer:
    options = {"lr": settings.lr, "momentum": settings.momentum, "nesterov": settings.nesterov}
    return kernels.SGD(groups, **options, **_kernel(groups))


def _adamw(settings: Any, groups: list[dict[str, Any]]) -> Optimizer:
    betas = float(settings.betas[0]), float(settings.betas[1])  # torch takes no whole numbers
    return kernels.AdamW(groups, settings.lr, betas, settings.eps, **_kernel(groups))


def _ranger(settings: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """RAdam, which with centralization and Lookahead around it is `memexp.optim.Ranger`."""
    return RAdam(groups, settings.lr, (settings.betas[0], settings.betas[1]), settings.eps)


def _kernel(groups: list[dict[str, Any]]) -> dict[str, bool]:
    return kernels.chosen(p for group in groups for p in group["params"])


OPTIMIZERS = {"sgd": _sgd, "ranger": _ranger, "adamw": _adamw}
