"""Criteria: how much a channel, or a weight, is worth. One small class each; the least score is removed first."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memexp.channels import Group
from memexp.channels.unread import few
from memexp.pruning.calibration import Calibration
from memexp.pruning.criteria.activation import Apoz, Entropy, Fisher, Skeletonization, TaylorActivation
from memexp.pruning.criteria.base import Criterion, OfElements
from memexp.pruning.criteria.gradient import Obd, Snip, TaylorWeight
from memexp.pruning.criteria.magnitude import BnScale, Fpgm, L1Norm, L2Norm, Lamp, Mean, Random, SignedSum, Std
from memexp.pruning.criteria.obs import Obs
from memexp.pruning.filters import layers

log = logging.getLogger("memexp")
CRITERIA: dict[str, type[Criterion]] = {
    "l1_norm": L1Norm,
    "l2_norm": L2Norm,
    "signed_sum": SignedSum,
    "mean": Mean,
    "std": Std,
    "bn_scale": BnScale,
    "fpgm": Fpgm,
    "lamp": Lamp,
    "apoz": Apoz,
    "entropy": Entropy,
    "taylor_activation": TaylorActivation,
    "taylor_weight": TaylorWeight,
    "fisher": Fisher,
    "obd": Obd,
    "obs": Obs,
    "snip": Snip,
    "skeletonization": Skeletonization,
    "random": Random,
}


def create(criterion: str | Criterion, options: Mapping[str, Any] | None = None) -> Criterion:
    """The criterion of that name with its options, or the one given.

    Raises ValueError for a name that there is not, for an option that it does not have, and for a number that is not above 0.
    """
    if isinstance(criterion, Criterion):
        return _checked(criterion)
    if criterion not in CRITERIA:
        near = difflib.get_close_matches(str(criterion), CRITERIA, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"criterion={criterion!r} is not one of {', '.join(CRITERIA)}.{hint}")
    kind = CRITERIA[criterion]
    allowed: list[str] = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    if unknown := [option for option in options or {} if option not in allowed]:
        raise ValueError(
            f"criterion={criterion} has no option {', '.join(unknown)}; it has {', '.join(allowed) or 'none'}"
        )
    return _checked(kind(**(options or {})))


def _checked(criterion: Criterion) -> Criterion:
    """All options that are numbers are counts or sizes."""
    if not is_dataclass(criterion) or type(criterion) not in CRITERIA.values():  # a user's own may take any
        return criterion
    for field in fields(criterion):
        value = getattr(criterion, field.name)
        if not isinstance(value, bool) and not value > 0:
            raise ValueError(
                f"criterion={name_of(criterion)}: {field.name}={value!r} is not allowed: use a number above 0"
            )
    return criterion


def scored(criterion: Criterion, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
    """The criterion's scores of each group; names groups of which it tells no channel from another.

    Raises ValueError where one is no number, and where a criterion of the user's own does not give one for each channel.
    """
    found = [torch.as_tensor(scores).detach() for scores in criterion.scores(network, groups, calibration)]
    if len(found) != len(groups):
        raise ValueError(
            f"criterion={name_of(criterion)} gives scores for {len(found)} groups of channels, and {len(groups)} were asked "
            "for: give a tensor for each"
        )
    alike = []
    for group, scores in zip(groups, found, strict=True):
        check_scores(criterion, layers(group)[0], scores, (group.size,))
        if (scores == scores[0]).all():
            alike.append(layers(group)[0])
    if alike:
        log.warning(
            "criterion=%s gives all channels of a layer the same score (%s), so which of them go is by their number "
            "alone: the weights, activations or gradients that it reads do not tell them apart, as where they are all zero, as "
            "they were before training, or of one sample",
            name_of(criterion),
            few(alike),
        )
    return found


def check_scores(criterion: Criterion, layer: str, scores: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError where there is not one score for each, or one is no number: the order would be of chance."""
    if scores.shape != tuple(shape):
        raise ValueError(
            f"criterion={name_of(criterion)} gives layer {layer} scores of shape {tuple(scores.shape)}: give one for each of "
            f"what can go there, a tensor of shape {tuple(shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError(
            f"criterion={name_of(criterion)} gives layer {layer} scores that are no finite numbers: the network's weights, or "
            "its outputs on the data, are not finite; start from a network that has not diverged"
        )


def name_of(criterion: Criterion) -> str:
    """The name under which its class is listed, or the class's own."""
    return next((name for name, kind in CRITERIA.items() if type(criterion) is kind), type(criterion).__name__)


__all__ = ["CRITERIA", "Criterion", "OfElements", "check_scores", "create", "name_of", "scored"]
