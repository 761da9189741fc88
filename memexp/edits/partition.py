"""Partition: an integral network is set to one size, and what is trained is where its weights are sampled, not the weights.

    {"kind": "partition", "partitions": {"features.0": 39, ...}}

Each named group has so many nodes, uniform at first; another keeps its native size. `discretise` makes a plain network of the
nodes that training has found (Solodskikh et al., CVPR 2023).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn


def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`network` itself, its weights frozen.

    Raises ValueError for a network that is not integral, a group that there is not, and a size that is impossible.
    """
    train: Any = getattr(network, "train_partitions", None)
    if train is None:
        raise ValueError(
            f"edit partition: {type(network).__name__} is no integral network, whose nodes could be trained"
        )
    partitions = edit.get("partitions")
    if not isinstance(partitions, Mapping):
        raise ValueError(f"edit partition: partitions={partitions!r} is no table of a size for each group")
    train(partitions)
    return network
