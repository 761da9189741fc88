"""A graph is tried out: what the forward cannot do with fewer channels, for a length written into it, is frozen.

Only where a length is written next to channels: views, slices, splits, pads. The network is run once more, for its shapes, with
another share of each group's channels. Where that fails, each group is tried by itself, those that fail are frozen with the
error as the reason, and the rest is tried again.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from memexp.channels.applying import narrow
from memexp.channels.graph import ChannelError, Graph, assemble
from memexp.channels.narrowing import narrow_edit
from memexp.channels.outputs import tensors_in
from memexp.channels.skipping import ShapesOnly
from memexp.channels.tape import Tape


def settle(network: nn.Module, tape: Tape, inputs: Sequence[Any], outputs: Any) -> Graph:
    """The graph of what a trace wrote down, in which each group can be narrowed.

    Raises ChannelError if groups can be narrowed one by one, but not together.
    """
    graph = assemble(tape)
    if not tape.doubtful or _fault(network, graph, range(len(graph.groups)), inputs, outputs) is None:
        return graph
    for number, group in enumerate(graph.groups):
        fault = _fault(network, graph, [number], inputs, outputs)
        if fault is not None:
            for member in group.members:
                entries = tape.entries[member.name, member.dim]
                for own in member.indices:
                    tape.atoms.freeze(entries[list(own)], f"the forward does not run with fewer of them: {fault}")
    graph = assemble(tape)
    fault = _fault(network, graph, range(len(graph.groups)), inputs, outputs)
    if fault is not None:
        raise ChannelError(f"each group of channels can be narrowed by itself, but not all together: {fault}")
    return graph


def _fault(network: nn.Module, graph: Graph, groups: Iterable[int], inputs: Sequence[Any], outputs: Any) -> str | None:
    """Why the network does not run with fewer channels of these groups; None if it does."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
    try:
        edit = narrow_edit(graph, {number: range(_some(number, graph.groups[number].size)) for number in groups})
        with torch.no_grad(), ShapesOnly():
            found = narrow(copy.deepcopy(network, shared), edit)(*inputs)
    except Exception as error:  # whatever the forward raises, be it a KeyError for a table by width
        return fault_of(error)
    a, b = _shapes(outputs), _shapes(found)
    return None if a == b else f"its output becomes {b}, not {a}"


def fault_of(error: Exception) -> str:
    """What an error says, in one line: a KeyError says no more than its key."""
    words = str(error).strip().partition("\n")[0][:200]
    plain = isinstance(error, RuntimeError | ValueError | AssertionError | TypeError)
    return words if words and plain else f"{type(error).__name__} {words}".strip()


def _some(number: int, size: int) -> int:
    """From one to all but one, and for each group another share, so that no two lengths agree by chance."""
    return 1 + (size - 1) * (20 + 37 * number % 61) // 100


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors_in(value)]
