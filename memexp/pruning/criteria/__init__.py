"""Criteria: how much a channel, or a weight, is worth. One small class each; the least score is removed first."""

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from memexp.pruning.criteria.activation import Apoz, Entropy, Fisher, Skeletonization, TaylorActivation
from memexp.pruning.criteria.base import Criterion, OfElements
from memexp.pruning.criteria.gradient import Obd, Snip, TaylorWeight
from memexp.pruning.criteria.magnitude import BnScale, Fpgm, L1Norm, L2Norm, Lamp, Mean, Random, SignedSum, Std
from memexp.pruning.criteria.obs import Obs

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

    Raises ValueError for a name that there is not and for an option that it does not have.
    """
    if isinstance(criterion, Criterion):
        return criterion
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
    return kind(**(options or {}))


def name_of(criterion: Criterion) -> str:
    """The name under which its class is listed, or the class's own."""
    return next((name for name, kind in CRITERIA.items() if type(criterion) is kind), type(criterion).__name__)


__all__ = ["CRITERIA", "Criterion", "OfElements", "create", "name_of"]
