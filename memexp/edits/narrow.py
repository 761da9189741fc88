"""The edit `narrow`: parameters and buffers keep some of their indices, and modules learn of their new widths.

    {"kind": "narrow",
     "kept": {"features.0.weight": {"0": [0, 2, 5]}, "features.3.weight": {"1": [0, 2, 5]}},
     "attributes": {"body.3.s": {"before": 3, "after": 5}}}

`kept`: of each parameter or buffer (its name in the network, saved or not), the indices that stay along each dimension.
Widths that a module of torch has from its weight (channels, features, groups of a convolution) follow by themselves;
`attributes` holds those that the forward reads: `name`, or `name.i` for one item of a tuple. memexp.channels.narrow_edit
writes it.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from memexp.channels.applying import narrow


def apply(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`network`, narrowed in place. Works on real, fake and meta tensors; the parameters are new ones.

    Raises ValueError for a name, dimension, index or attribute that is not in the network; the network is then as it was.
    """
    return narrow(network, edit)
