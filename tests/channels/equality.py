"""Narrowed against masked: what the tests of channels and of pruning compare."""

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn

from memexp import channels, edits


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` in evaluation mode, with statistics and affine parameters that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict(keep_vars=True).items():
        low, high = {"running_mean": (-0.3, 0.3), "running_var": (0.5, 2.0)}.get(name.rpartition(".")[2], (0.0, 0.0))
        if tensor.ndim == 1 and isinstance(tensor, nn.Parameter):
            low, high = (0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)
        if low != high:
            with torch.no_grad():
                tensor.uniform_(low, high, generator=generator)
        elif tensor.is_floating_point() and not tensor.any():
            with torch.no_grad():
                tensor.uniform_(-0.1, 0.1, generator=generator)
    return network.eval()


def choose(graph: channels.Graph, ratio: float) -> dict[int, list[int]]:
    """Of each group all but `ratio` of its channels, at random."""
    draw = random.Random(round(100 * ratio))
    return {
        number: sorted(draw.sample(range(group.size), max(1, round(group.size * (1 - ratio)))))
        for number, group in enumerate(graph.groups)
    }


def difference(
    network: nn.Module, graph: channels.Graph, kept: dict[int, list[int]], *inputs: Any
) -> tuple[nn.Module, float]:
    """The narrowed network, and how far its outputs are from the masked one's, relative to the largest of them."""
    narrowed = edits.apply(copy.deepcopy(network), channels.narrow_edit(graph, kept))
    with torch.no_grad():
        found, expected = _tensor(narrowed(*inputs)), _tensor(channels.masked(network, graph, kept)(*inputs))
    assert expected.abs().max() > 0
    return narrowed, float((found - expected).abs().max() / expected.abs().max())


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _tensor(value: Any) -> Tensor:
    return (
        value
        if isinstance(value, Tensor)
        else _tensor(next(iter(value.values() if isinstance(value, dict) else value)))
    )
