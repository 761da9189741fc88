"""Layers with complex weights stay as they are, and what is real beside them is fused."""

import pytest
import torch
from torch import Tensor, nn

from memexp.fusing import fuse


class Complex(nn.Module):
    """Two complex convolutions in a row, or side by side, then a real one and its normalisation."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = (nn.Conv2d(3, 3, size, padding=size // 2, dtype=torch.complex64) for size in (3, 1))
        self.c, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.complex(x, 2 * x)
        z = self.b(self.a(z)) if self.how == "in a row" else self.a(z) + self.b(z)
        return self.norm(self.c(z.abs()))


@pytest.mark.parametrize("merge", ["none", "block", "all"])
@pytest.mark.parametrize("how", ["in a row", "side by side"])
def test_complex_convolutions_are_left(how: str, merge: str) -> None:
    found = fuse(Complex(how).eval(), torch.randn(2, 3, 6, 6), merge)
    assert [edit["kind"] for edit in found.edits] == ["fold"]
    assert found.error < 1e-5
    assert found.network.get_parameter("a.weight").is_complex()
