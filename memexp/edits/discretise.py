"""Discretise: an integral network becomes an ordinary one, its continuous groups sampled at given nodes.

    {"kind": "discretise", "partitions": {"features.0": 39, "features.3": [0.0, 0.013, ..., 1.0]}}

A number is that many nodes where the quadrature wants them, a list the nodes themselves (a partition that was trained); a group
that is not named keeps its native size. The network that it applies to is the one that the configuration builds with model=inn,
or that memexp.integral.convert made.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """The network inside the integral one, made of ordinary layers; the integral network is used up.

    Raises ValueError for a network that is not integral, a group that there is not, and a size that is impossible.
    """
    become: Callable[[Any], nn.Module] | None = getattr(network, "become_discrete", None)
    if become is None:
        raise ValueError(
            f"edit discretise: {type(network).__name__} is no integral network, or one that was made discrete before: build it "
            "with model=inn or memexp.integral.convert"
        )
    partitions = edit.get("partitions")
    if not isinstance(partitions, Mapping):
        raise ValueError(f"edit discretise: partitions={partitions!r} is no table of a size, or nodes, for each group")
    return become(partitions)
