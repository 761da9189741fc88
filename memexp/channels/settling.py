"""A graph is tried out: what the forward cannot do with fewer channels, for a length written into it, is frozen.

Only where a length is written next to channels: views, slices, splits, pads. The network is run once more, for its shapes, with
another share of each group's channels. Where that fails, the groups that fail by themselves are found by halves and frozen with
the error as the reason, and the rest is tried again.

The forward in training mode is tried likewise, where that in evaluation mode does not run all or a module asks which it is in:
what an auxiliary head takes stays, and what noise of a written width is added to in training alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from memexp.channels.applying import narrow
from memexp.channels.assembling import assemble
from memexp.channels.called import copied
from memexp.channels.graph import NOT_RUN, ChannelError, Graph
from memexp.channels.hooked import twin
from memexp.channels.narrowing import narrow_edit
from memexp.channels.outputs import tensors_in
from memexp.channels.skipping import ShapesOnly
from memexp.channels.tape import Tape
from memexp.channels.tensors import tensors_of
from memexp.channels.unread import Reading, unread


def settle(network: nn.Module, tape: Tape, inputs: Sequence[Any], outputs: Any) -> Graph:
    """The graph of what a trace wrote down, in which each group can be narrowed.

    Raises ChannelError if groups can be narrowed one by one, but not together.
    """
    graph, why = assemble(tape), "the forward does not run with fewer of them"
    if tape.doubtful:
        graph, fault = _tried(tape, graph, partial(_fault, network, inputs, outputs), why)
        if fault is not None:
            raise ChannelError(f"each group of channels can be narrowed by itself, but not all together: {fault}")
    never = unread(network, lambda tensor: tape.known(tensor).read)
    if never or _asks(network):
        graph, never = _trained(network, tape, graph, inputs, never)
        tensors = tensors_of(network)
        idle = {key for key in graph.frozen if not tape.known(tensors[key[0]]).read}
        graph = replace(graph, frozen=graph.frozen | dict.fromkeys(idle, NOT_RUN), unread=never)
    return graph


def _trained(
    network: nn.Module, tape: Tape, graph: Graph, inputs: Sequence[Any], never: tuple[str, ...]
) -> tuple[Graph, tuple[str, ...]]:
    """What the forward in training mode does not run with fewer of stays; and those of `never` that it does not run either.

    Where that forward asks for more than the inputs, nothing is known of it.
    """
    try:
        reading = Reading()
        outputs = _run(network, None, inputs, True, reading)
    except Exception:
        return graph, never
    left = unread(network, lambda tensor: tape.known(tensor).read or id(tensor) in reading.read)
    if left == never and not _asks(network):
        return graph, never
    run = ", ".join(name for name in never if name not in left)
    which = f", which runs {run}," if run else ""
    why = f"the forward in training mode{which} does not run with fewer of them"
    graph, fault = _tried(tape, graph, partial(_fault, network, inputs, outputs, training=True), why)
    return graph, left if fault is None else never


def _asks(network: nn.Module) -> bool:
    """Whether a class of the user's own reads the mode, be it to hand it to dropout: a second forward takes its time."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    own = [kind for kind in kinds if not kind.__module__.startswith("torch.nn.")]
    code = [getattr(value, "__code__", None) for kind in own for value in vars(kind).values()]
    return any("training" in found.co_names for found in code if found is not None)


def _tried(
    tape: Tape, graph: Graph, fault_with: Callable[[Graph, Iterable[int]], str | None], why: str
) -> tuple[Graph, str | None]:
    """The graph in which each group that has a fault by itself is frozen, and the fault that all others have together."""
    every = range(len(graph.groups))
    if fault_with(graph, every) is None:
        return graph, None
    for number, fault in _alone(every, partial(fault_with, graph)):
        for member in graph.groups[number].members:
            entries = tape.entries[member.name, member.dim]
            for own in member.indices:
                tape.atoms.freeze(entries[list(own)], f"{why}: {fault}")
    graph = assemble(tape)
    return graph, fault_with(graph, range(len(graph.groups)))


def _alone(groups: range, fault_with: Callable[[range], str | None]) -> Iterator[tuple[int, str]]:
    """Of groups that have a fault together, those that have one by themselves, and it: found by halves, as most have none."""
    middle = len(groups) // 2
    for half in (groups[:middle], groups[middle:]):
        fault = fault_with(half) if half else None
        if fault is not None and len(half) == 1:
            yield half[0], fault
        elif fault is not None:
            yield from _alone(half, fault_with)


def _fault(
    network: nn.Module,
    inputs: Sequence[Any],
    outputs: Any,
    graph: Graph,
    groups: Iterable[int],
    training: bool = False,
) -> str | None:
    """Why the network does not run with fewer channels of these groups; None if it does."""
    try:
        edit = narrow_edit(graph, {number: range(some(number, graph.groups[number].size)) for number in groups})
        found = _run(network, edit, inputs, training)
    except Exception as error:  # whatever the forward raises, be it a KeyError for a table by width
        return fault_of(error)
    a, b = _shapes(outputs), _shapes(found)
    return None if a == b else f"its output becomes {b}, not {a}"


def _run(
    network: nn.Module,
    edit: Mapping[str, Any] | None,
    inputs: Sequence[Any],
    training: bool,
    mode: ShapesOnly | None = None,
) -> Any:
    """What a copy returns, narrowed by `edit`. In training mode it has buffers of its own, as statistics are written there."""
    tensors = tensors_of(network).values()
    shared: dict[int, Any] = {id(t): t for t in tensors if not training or isinstance(t, nn.Parameter)}
    tried = twin(network, shared)
    if edit is not None:
        narrow(tried, edit)
    devices = {t.device.index for t in tensors if t.is_cuda}
    with torch.no_grad(), mode or ShapesOnly(), torch.random.fork_rng(devices, enabled=training):
        return tried.train(training)(*copied(inputs))


def fault_of(error: Exception) -> str:
    """What an error says, in one line: a KeyError says no more than its key."""
    words = str(error).strip().partition("\n")[0][:200]
    plain = isinstance(error, RuntimeError | ValueError | AssertionError | TypeError)
    return words if words and plain else f"{type(error).__name__} {words}".strip()


def some(number: int, size: int) -> int:
    """From one to all but one, and for each group another share, so that no two lengths agree by chance."""
    return 1 + (size - 1) * (20 + 37 * number % 61) // 100


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors_in(value)]
