"""Light: what is dear to make is kept, the rest is remade in backward, bit for bit.

O(N) activation memory, about half of stored's where normalisations and activations follow every convolution.
Backward 2N (forward = N), and the cheap operations once more: normalisations, activations, sums, copies. See remade.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from memexp.backprop.plan import Keep
from memexp.backprop.stored import Stored


@dataclass(frozen=True)
class Light(Stored):
    """Outputs of convolutions and products of matrices, random numbers and what enters the steps are kept."""

    def plan(self, steps: Sequence[nn.Module], streams: tuple[Tensor, ...]) -> list[Keep]:
        return ["light" for _ in steps]
