"""Optimizers by configuration."""

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of more than one dimension decay; biases and BN do not (Gomez et al. 2017)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build(settings: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a configuration names, over the parameters of `model`.

    Raises ValueError for a name or value that is not allowed.
    """
    groups = parameter_groups(model, settings.weight_decay)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    raise ValueError(f"optimizer={settings.name!r}: there is sgd")
