"""Activations that vanish while the network is trained (ReduceNet 2023; VanillaNet, Chen et al. 2023, arXiv 2305.12972).

act(x) = lambda relu(x) + (1 - lambda) x, which is a leaky ReLU of slope 1 - lambda; lambda falls from 1 to 0 along a cosine
over all iterations: lambda_t = (1 + cos(pi t / (T - 1))) / 2.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.backprop.capture import is_captured


def vanishing(step: int, total: int) -> float:
    """lambda for `step` (from 0) of `total` optimizer steps: 1 in the first, exactly 0 in the last, and after it.

    Raises ValueError for a step below 0 or a run without steps.
    """
    if step < 0 or total < 1:
        raise ValueError(f"lambda of step {step} of {total}: steps count from 0, and a run has at least one")
    return 0.0 if step >= total - 1 else (1 + math.cos(math.pi * step / (total - 1))) / 2


def returning(step: int, total: int) -> float:
    """lambda for a network that has grown: from 0 up to 1 in the middle and down to exactly 0 in the last step.

    Two half cosines, (1 - cos(2 pi t / (T - 1))) / 2. Raises ValueError as `vanishing` does.
    """
    return 4 * vanishing(step, total) * (1 - vanishing(step, total))


class VanishingReLU(nn.Module):
    """act(x) of any shape; at lambda = 0 it hands its input on, and can be merged with its neighbours.

    until: share of the training, in (0, 1], after which it is gone: its own lambda follows the same cosine in that time.
    inplace: it may overwrite its input. The value of lambda is a buffer, so that it is saved and loaded with the weights.
    """

    value: Tensor

    def __init__(self, until: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if not 0 < until <= 1:
            raise ValueError(f"until={until}: a share of the training in (0, 1]")
        self.until, self.inplace = until, inplace
        self.register_buffer("value", torch.ones(()))
        self._lambda = 1.0  # the same as a number: reading the buffer would wait for the device

    def extra_repr(self) -> str:
        return f"lambda={self._lambda:g}" + (f", until={self.until:g}" if self.until < 1 else "")

    @property
    def lambda_(self) -> float:
        return self._lambda

    def set(self, value: float) -> None:
        """lambda of the network, from which its own follows. Raises ValueError outside of [0, 1]."""
        if not 0 <= value <= 1:
            raise ValueError(f"lambda={value}: it falls from 1 (ReLU) to 0 (identity)")
        if self.until < 1:
            share = math.acos(2 * value - 1) / math.pi / self.until
            value = 0.0 if share >= 1 else (1 + math.cos(math.pi * share)) / 2
        self._lambda = float(torch.tensor(value, dtype=self.value.dtype, device="cpu"))  # as it is saved and loaded
        self.value.fill_(self._lambda)

    def forward(self, x: Tensor) -> Tensor:
        if _made_once(x):
            return torch.where(x > 0, x, x * (1 - self.value))
        if self._lambda == 0:
            return x
        return functional.leaky_relu(x, 1 - self._lambda, self.inplace)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.value.is_meta:
            self._lambda = float(self.value)


class ArtefactReLU(VanishingReLU):
    """The published code to the letter: relu overwrites x first, so this is relu(x) for every lambda, and never vanishes."""

    def forward(self, x: Tensor) -> Tensor:
        if _made_once(x):
            return self.value * functional.relu_(x) + (1 - self.value) * x
        return self._lambda * functional.relu(x, inplace=True) + (1 - self._lambda) * x


def _made_once(x: Tensor) -> bool:
    """Whether what is done to x now will serve other values of lambda, too: code that is compiled, or a CUDA graph."""
    return torch.compiler.is_dynamo_compiling() or is_captured(x)


def set_lambda(network: nn.Module, value: float) -> None:
    """lambda of every vanishing activation in `network`."""
    for module in network.modules():
        if isinstance(module, VanishingReLU):
            module.set(value)
