"""What a network is called with need not be a batch alone, and is left as it is."""

import pytest
import torch
from fusing_networks import settled
from torch import Tensor, nn

from memexp import fusing, integral


class Net(nn.Module):
    """Two layers, BN between them; `how` is their reader's."""

    def __init__(self, how) -> None:
        super().__init__()
        self.first, self.norm, self.last, self.how = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), how
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))

    def mlp(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))

    def forward(self, *inputs) -> Tensor:
        return self.how(self, *inputs)


CASES = {
    "a weight for each class": (lambda net, x, w: net.mlp(x) * w, torch.randn(4, 5), torch.randn(4)),
    "the weights first": (lambda net, w, x: net.mlp(x) * w, torch.randn(4), torch.randn(4, 5)),
    "a graph, its edges' ends": (
        lambda net, x, e: net.mlp(x[e[:, 0]] - x[e[:, 1]]),
        torch.randn(4, 5),
        torch.tensor([[0, 1], [3, 2], [1, 1], [2, 0]]),
    ),
    "a graph, the edges kept": (lambda net, x: net.mlp(x[net.edges[0]] + x[net.edges[1]]), torch.randn(4, 5)),
    "a graph, all that is adjacent": (lambda net, x, a: a @ net.mlp(x), torch.randn(4, 5), torch.rand(4, 4)),
    "a number first": (lambda net, t, x: net.mlp(x) * t, torch.tensor(0.5), torch.randn(4, 5)),
    "no tensor first": (lambda net, name, x: net.mlp(x), "a", torch.randn(4, 5)),
    "it writes to its input": (lambda net, x: net.mlp(x.sub_(1)), torch.randn(4, 5)),
}


@pytest.mark.parametrize("merge", ["none", "block", "all"])
@pytest.mark.parametrize("case", CASES)
def test_fused_on_what_is_no_batch(case, merge):
    torch.manual_seed(0)
    how, *inputs = CASES[case]
    before = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    result = fusing.fuse(settled(Net(how)), tuple(inputs), merge)
    assert result.edits == [{"kind": "fold", "pairs": [["first", "norm"]]}]
    assert result.error <= 1e-5
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True) if isinstance(x, Tensor))


@pytest.mark.parametrize("case", CASES)
def test_converted_on_what_is_no_batch(case):
    torch.manual_seed(0)
    how, *inputs = CASES[case]
    before = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    assert integral.convert(settled(Net(how)), *inputs).groups == {"first": 8}
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True) if isinstance(x, Tensor))


UNBATCHED = {
    "an image": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(3, 7, 7)),
    "an image of one channel": (nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten()), torch.randn(1, 7, 7)),
    "numbers": (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(5)),
    "numbers, affine": (nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 4)), torch.randn(5)),
}


@pytest.mark.parametrize("merge", ["none", "block", "all"])
@pytest.mark.parametrize("case", UNBATCHED)
def test_one_that_is_no_batch_is_fused(case, merge):
    network, x = UNBATCHED[case]
    assert fusing.fuse(network.eval(), x, merge).error <= 1e-5


def test_a_network_that_does_not_run_says_so_itself():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as told:
        fusing.fuse(settled(Net(lambda net, x: net.mlp(x))), torch.randn(4, 6))
    assert told.value.__context__ is None
