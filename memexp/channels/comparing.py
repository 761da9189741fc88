"""Groups whose channels do more than they carry: found by comparing the network without some of them with the masked one.

A number that the forward makes of a width is not always seen in a trace: 0.5 * self.width, math.log(x.shape[1]), or the width
that a layer of torch says of itself (self.conv.out_channels). It would change with the width, and what is computed with it.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from memexp.channels.applying import narrow
from memexp.channels.called import copied
from memexp.channels.drawing import drawn_alike
from memexp.channels.graph import Graph
from memexp.channels.hooked import twin
from memexp.channels.narrowing import masked, narrow_edit
from memexp.channels.outputs import tensors_in
from memexp.channels.settling import some

WHY = "the forward computes with their number, or in another way that depends on it"


def changing(network: nn.Module, graph: Graph, *example_inputs: Any) -> list[int]:
    """The groups without some of whose channels the network computes something else than with zeros in their place.

    Of outputs that are no numbers nothing is known, and none is listed.
    """
    every = range(len(graph.groups))
    if not every or not _differs(network, graph, every, example_inputs):
        return []
    return [number for number in every if _differs(network, graph, [number], example_inputs)]


@torch.no_grad()
def _differs(network: nn.Module, graph: Graph, groups: Iterable[int], inputs: tuple[Any, ...]) -> bool:
    kept = {number: range(some(number, graph.groups[number].size)) for number in groups}
    parameters: dict[int, Any] = {id(p): p for p in network.parameters()}
    narrowed = narrow(twin(network, parameters), narrow_edit(graph, kept)).eval()
    reference = masked(network, graph, kept).eval()
    with drawn_alike():
        expected = _outputs(reference, inputs)
        try:
            found = _outputs(narrowed, inputs)
        except Exception:  # which way it takes depends on values: another matter
            return False
    if [x.shape for x in found] != [x.shape for x in expected]:
        return False
    return any(_apart(y, x) for y, x in zip(found, expected, strict=True))


def _outputs(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in tensors_in(network(*copied(inputs))) if x.is_floating_point()]


def difference(y: Tensor, x: Tensor) -> float:
    """The largest, of the largest finite element of x. Of whole numbers and truth values any difference counts as 1."""
    if not x.numel():
        return 0.0
    if not x.real.is_floating_point():
        return float((x != y).any())
    if x.dtype in (torch.float16, torch.bfloat16):
        y, x = y.float(), x.float()
    apart = (x - y).abs().masked_fill(x == y, 0)  # infinities that are the same
    return float(apart.max() / x.abs().masked_fill(~x.isfinite(), 0).max().clamp(min=torch.finfo(x.dtype).tiny))


def _apart(y: Tensor, x: Tensor) -> bool:
    """Whether they differ by more than rounding explains."""
    error = difference(y, x)
    return math.isnan(error) or error > torch.finfo(x.dtype).eps ** 0.5
