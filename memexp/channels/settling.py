"""A graph is tried out: what the forward cannot do with fewer channels, for a length written into it, is frozen.

Only where a length is written next to channels: views, slices, splits, pads. The network is run once more, without data, with a
different share of each group's channels. Where that fails, each group is tried by itself, those that fail are frozen with the
error as the reason, and the rest is tried again.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memexp.channels.applying import narrow
from memexp.channels.graph import ChannelError, Graph, assemble
from memexp.channels.narrowing import narrow_edit
from memexp.channels.tape import Tape


def settle(network: nn.Module, tape: Tape, inputs: Sequence[Any], outputs: Any) -> Graph:
    """The graph of what a trace wrote down, in which each group can be narrowed.

    Raises ChannelError if groups can be narrowed one by one, but not together.
    """
    graph = assemble(tape)
    if not tape.doubtful:
        return graph
    everything = range(len(graph.groups))
    if (
        _fault(network, graph, everything, inputs, outputs, "meta") is None
    ):  # without data: shapes are all that is asked for
        return graph
    trial = "meta" if _fault(network, graph, [], inputs, outputs, "meta") is None else None
    if trial is None and _fault(network, graph, everything, inputs, outputs, None) is None:
        return graph
    for number, group in enumerate(graph.groups):
        fault = _fault(network, graph, [number], inputs, outputs, trial)
        if fault is not None:
            for member in group.members:
                entries = tape.entries[member.name, member.dim]
                for own in member.indices:
                    tape.atoms.freeze(entries[list(own)], f"the forward does not run with fewer of them: {fault}")
    graph = assemble(tape)
    fault = _fault(network, graph, range(len(graph.groups)), inputs, outputs, trial)
    if fault is not None:
        raise ChannelError(f"each group of channels can be narrowed by itself, but not all together: {fault}")
    return graph


def _fault(
    network: nn.Module,
    graph: Graph,
    groups: Iterable[int],
    inputs: Sequence[Any],
    outputs: Any,
    device: str | None,
) -> str | None:
    """Why the network does not run with fewer channels of these groups; None if it does."""
    shared: dict[int, Any] = {}
    for tensor in network.state_dict(keep_vars=True).values():
        moved = tensor if device is None else tensor.detach().to(device)
        shared[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    try:
        edit = narrow_edit(graph, {number: range(_some(number, graph.groups[number].size)) for number in groups})
        with torch.no_grad():
            found = narrow(copy.deepcopy(network, shared), edit)(*_to(inputs, device))
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__
    a, b = _shapes(outputs), _shapes(found)
    return None if a == b else f"its output becomes {b}, not {a}"


def _to(value: Any, device: str | None) -> Any:
    if isinstance(value, Tensor) and device is not None:
        return value.to(device)
    return type(value)(_to(item, device) for item in value) if type(value) in (list, tuple) else value


def _some(number: int, size: int) -> int:
    """From one to all but one, and for each group another share, so that no two lengths agree by chance."""
    return 1 + (size - 1) * (20 + 37 * number % 61) // 100


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return [_shapes(item) for item in value.values()]
    return [_shapes(item) for item in value] if isinstance(value, list | tuple) else None
