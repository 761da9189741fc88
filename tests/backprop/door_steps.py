"""Steps and streams that the tests of the door share."""

import torch
from torch import nn

from memexp.backprop import AdditiveCoupling


def pairs(count, kind=lambda: nn.Linear(4, 4)):
    return [AdditiveCoupling(kind(), kind()) for _ in range(count)]


def vectors(dtype=torch.float32, batch=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 4, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
