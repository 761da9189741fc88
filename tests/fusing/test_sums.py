"""However a sum is written, it is fused where it is the plain sum of what a convolution can compute, and else left alone."""

import pytest
import torch
from fusing_networks import convolutions, settled
from torch import nn

from memexp import edits, fusing

FUSED = {
    "Python's sum, the identity first": lambda c, x: sum([x, c(x)]),
    "Python's sum, the identity twice": lambda c, x: sum([x, x, c(x)]),
    "Python's sum from a tensor": lambda c, x: sum([c(x)], x),
    "0.0 +": lambda c, x: 0.0 + x + c(x),
    "torch.add": lambda c, x: torch.add(x, c(x)),
    "alpha=1": lambda c, x: torch.add(x, c(x), alpha=1),
    "in place of the convolution's": lambda c, x: c(x).add_(x),
    "a sum in a sum": lambda c, x: c(x) + (x + x),
}
LEFT = {
    "torch.add, alpha": lambda c, x: torch.add(x, c(x), alpha=0.5),
    "method, alpha": lambda c, x: c(x).add(x, alpha=3),
    "in place, alpha": lambda c, x: c(x).add_(x, alpha=3),
    "alpha of 0": lambda c, x: torch.add(c(x), 0, alpha=2) + x,
    "out": lambda c, x: torch.add(c(x), x, out=torch.empty_like(x)),
    "in place of the input": lambda c, x: x.add_(c(x)),
    "sub": lambda c, x: c(x) - x,
    "sub, alpha": lambda c, x: torch.sub(c(x), x, alpha=3),
    "rsub": lambda c, x: torch.rsub(c(x), x, alpha=2),
    "a constant before": lambda c, x: 1 + x + c(x),
    "a constant after": lambda c, x: c(x) + x + 1,
    "scaled": lambda c, x: c(x) * 2 + x,
    "addcmul": lambda c, x: torch.addcmul(c(x), x, torch.ones_like(x), value=2),
    "lerp": lambda c, x: torch.lerp(c(x), x, 0.3),
}


class Summed(nn.Module):
    def __init__(self, how) -> None:
        super().__init__()
        self.c, self.how = nn.Conv2d(4, 4, 3, padding=1), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self.c, x)


class Between(nn.Module):
    """Reads what went into the sum again, after it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sin(x)
        return torch.relu(self.inner(x)) + x


@pytest.mark.parametrize("merge", ["block", "all"])
@pytest.mark.parametrize("case", [*FUSED, *LEFT])
def test_a_sum_is_fused_or_left_alone(case, merge):
    torch.manual_seed(0)
    network = settled(Between(Summed((FUSED | LEFT)[case]))).double()
    result = fusing.fuse(network, torch.randn(2, 4, 8, 8, dtype=torch.float64), merge)
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(result.network(x), network(x), rtol=0, atol=1e-12)
    assert (type(result.network.inner) is nn.Conv2d) == (case in FUSED)
    assert len(convolutions(result.network)) == 1


@pytest.mark.parametrize("chain", [[[[[[]]], ["0"]]], [[[], [[["0"]]]]], [[[[[], []]], ["0"]]]])
def test_a_weight_is_found_at_any_depth_of_a_chain(chain):
    network = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1).double())
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    expected = network(x) + (2 if chain == [[[[[], []]], ["0"]]] else 1) * x
    edit = {"kind": "merge", "merges": [{"into": "0", "gone": [], "inputs": 2, "chain": chain}]}
    torch.testing.assert_close(edits.apply(network, edit)(x), expected, rtol=0, atol=1e-12)
