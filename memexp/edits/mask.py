"""Mask: weights that are zero stay zero while the network is trained on (memexp.pruning.unstructured).

    {"kind": "mask"}

Shapes and values are as they are, and which weights are zero is read from them; the edit travels with the network, so that
whoever goes on with it knows.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn


def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`network` itself. Raises ValueError for an edit that holds more than its kind."""
    if more := sorted(set(edit) - {"kind"}):
        raise ValueError(f"edit mask: it has no {', '.join(more)}")
    return network
