"""Partitions of [0, 1] that can be trained: ordered and spanning [0, 1] whatever an optimizer does to them.

P = cumsum(delta_norm), delta_norm = delta^2 / sum(delta^2), delta = (0, d_1 .. d_n)       (Solodskikh et al. 2023)
"""

import torch
from torch import Tensor, nn

LEAST = (
    1e-6  # of delta^2 beside its largest: nodes never fall together entirely, and delta = 0 is the uniform partition
)


class Partition(nn.Module):
    """A trainable partition of `m` nodes, uniform at first; `delta` holds d_1 .. d_{m-1}.

    Raises ValueError for fewer than 2 nodes.
    """

    def __init__(self, m: int) -> None:
        super().__init__()
        if m < 2:
            raise ValueError(f"a trainable partition of {m} nodes: it has two ends, so use at least 2")
        self.delta = nn.Parameter(torch.ones(m - 1))

    def forward(self) -> Tensor:
        """P, (m,) in float64, P_0 = 0 and P_{m-1} = 1."""
        delta = self.delta.double()
        # relative to the largest, so that no square over- or underflows
        delta = delta / delta.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        steps = delta.square() + LEAST
        sums = steps.cumsum(0)
        # the last sum over itself is 1 exactly
        return torch.cat([sums.new_zeros(1), sums / sums[-1]])
