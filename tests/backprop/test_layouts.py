"""Branches that draw random numbers draw them in the order of memory: streams come back as they had lain there."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from memexp.backprop import AdditiveCoupling, Chain

CHANNELS_LAST = torch.channels_last
WHOLE = torch.randn(3, 12, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STREAMS = {
    "contiguous": [half.contiguous() for half in WHOLE.chunk(2, 1)],
    "channels last": [half.contiguous(memory_format=CHANNELS_LAST) for half in WHOLE.chunk(2, 1)],
    "one of each": [WHOLE[:, :6].contiguous(), WHOLE[:, 6:].contiguous(memory_format=CHANNELS_LAST)],
    "slices": list(WHOLE.chunk(2, 1)),
    "slices, channels last": list(WHOLE.contiguous(memory_format=CHANNELS_LAST).chunk(2, 1)),
    "transposed": [half.transpose(2, 3).contiguous().transpose(2, 3) for half in WHOLE.chunk(2, 1)],
    "expanded": [WHOLE[:1, :6].expand(3, -1, -1, -1), WHOLE[:, :1].expand(-1, 6, -1, -1)],
}
LAYOUTS = {
    "contiguous": lambda y: y.contiguous(),
    "channels last": lambda y: y.contiguous(memory_format=CHANNELS_LAST),
    "transposed": lambda y: y.transpose(2, 3).contiguous().transpose(2, 3),
    "a slice": lambda y: torch.cat([y, y], 1)[:, : y.shape[1]],
}


class Drawing(nn.Module):
    """Dropout, noise and a convolution, with outputs laid out in one way."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.conv = layout, nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(x, 0.5, self.training)
        return LAYOUTS[self.layout](self.conv(y + 0.1 * torch.randn_like(y)).tanh())


def gradients(steps: list[nn.Module], backprop: str, streams: list[Tensor], **options: bool) -> list[Tensor]:
    network = Chain(copy.deepcopy(steps), backprop, **options)
    streams = [x.detach().requires_grad_() for x in streams]
    torch.manual_seed(1)
    torch.stack([y.square().sum() for y in network(*streams)]).sum().backward()
    return [x.grad for x in (*network.parameters(), *streams)]


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("exact", [False, True])
def test_what_is_drawn_again_is_what_was_drawn(streams, exact):
    for layouts in itertools.product(LAYOUTS, repeat=2):
        torch.manual_seed(0)
        steps = [AdditiveCoupling(*map(Drawing, layouts)).double() for _ in range(2)]
        expected = gradients(steps, "stored", STREAMS[streams])
        found = gradients(steps, "reversible", STREAMS[streams], exact=exact)
        bound = 1e-2 if exact else 1e-9  # on the grid, streams are rounded
        assert all((a - b).abs().max() <= bound * b.abs().max() for a, b in zip(found, expected, strict=True)), layouts


@pytest.mark.parametrize("streams", STREAMS)
def test_gradients_lie_in_memory_as_autograd_would_have_them(streams):
    """Products of matrices round otherwise where they lie otherwise: bits are those of stored."""
    steps = [AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)]
    whole = [x.float() for x in STREAMS[streams]]
    found, expected = (gradients(steps, backprop, whole, exact=True) for backprop in ("reversible", "stored"))
    assert all(map(torch.equal, found, expected))
