"""From a choice of channels to the edit that carries it out, and the network in which the others are zero."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memexp.channels.graph import ChannelError, Graph, Group, Member
from memexp.channels.hooked import twin
from memexp.channels.tensors import tensors_of

Kept = Mapping[int, Sequence[int]]
NORMS: dict[Any, tuple[str, int]] = {  # by function: how it calls what it is over, and the channels' dimension
    nn.functional.layer_norm: ("normalized_shape", -1),
    torch.layer_norm: ("normalized_shape", -1),
    nn.functional.group_norm: ("num_groups", 1),
    torch.group_norm: ("num_groups", 1),
}


def narrow_edit(graph: Graph, kept: Kept) -> dict[str, Any]:
    """The edit `narrow` (plain data) that keeps these channels of these groups, and all of the others.

    kept: group index -> sorted channels. Raises ChannelError for a group or channel that is not there, for none, and for a
    list that is not sorted or holds one twice.
    """
    entries: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for (name, dim), left in _left(graph, kept).items():
        entries[name][str(dim)] = np.flatnonzero(left).tolist()
    attributes: dict[str, dict[str, Any]] = defaultdict(dict)
    sets = {group: set(channels) for group, channels in kept.items()}
    for number in graph.numbers:
        value = sum(c is None or c[0] not in sets or c[1] in sets[c[0]] for c in number.channels)
        key = number.name if number.index is None else f"{number.name}.{number.index}"
        if attributes[number.module].setdefault(key, value) != value:
            raise ChannelError(
                f"{number.module}.{key} would have to be both {attributes[number.module][key]} and {value}: keep as "
                "many channels wherever it is used"
            )
    return {"kind": "narrow", "kept": dict(entries), "attributes": dict(attributes)}


def _zeroed(group: Group, member: Member) -> bool:
    """Whether its entries of a channel that is masked are zero: what makes it, where that may be; what takes it, if need be."""
    if group.divided:
        return member.role == "in"
    return member.role in ("out", "bias", "norm") or (group.nonzero and member.role == "in")


def _left(
    graph: Graph, kept: Kept, chosen: Callable[[Group, Member], bool] = lambda group, member: True
) -> dict[tuple[str, int], NDArray[np.bool_]]:
    """Of each (parameter, dimension) that loses something: which of its indices stay. chosen: members that are looked at."""
    found: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for number, channels in kept.items():
        if not 0 <= number < len(graph.groups):
            raise ChannelError(f"group {number} is not in this graph: it has {len(graph.groups)}")
        group = graph.groups[number]
        if not channels or list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= group.size:
            raise ChannelError(
                f"group {number}: keep a sorted list of at least one of its channels 0 to {group.size - 1}, each once; "
                f"got {list(channels)[:8]}"
            )
        gone = sorted(set(range(group.size)).difference(channels))
        for member in group.members:
            if gone and chosen(group, member):
                key = member.name, member.dim
                left = found.setdefault(key, np.ones(graph.sizes[key], dtype=bool))
                left[list(chain.from_iterable(member.indices[channel] for channel in gone))] = False
    return found


class masked(nn.Module):  # noqa: N801  (it reads as what it returns)
    """A copy of `network` in which the channels that are not kept are zero: what the narrowed network must compute.

    Filters, biases and entries of normalisations are zero; where a channel may yet not be zero (a sigmoid of it), the weights
    that take it are too, and they alone where it would be no number (a filter that is divided by its norm). A LayerNorm over
    channels, and a GroupNorm of one group, has the statistics of those that are kept. Buffers are left as they are, but for
    those that add to a channel.
    """

    def __init__(self, network: nn.Module, graph: Graph, kept: Kept) -> None:
        super().__init__()
        self.network = twin(network)
        tensors = tensors_of(self.network)
        makers = {m.name for group in graph.groups for m in group.members if m.role in ("out", "bias")}
        self._kept: dict[str, Tensor] = {}  # by name, which a copy has too
        with torch.no_grad():
            for (name, dim), left in _left(graph, kept, _zeroed).items():
                tensor = tensors[name]
                if isinstance(tensor, nn.Parameter) or name in makers:
                    gone = torch.from_numpy(np.flatnonzero(~left)).to(tensor.device)
                    tensor.index_fill_(dim, gone, 0)
        for (name, _), left in _left(graph, kept, lambda group, member: member.role == "norm").items():
            if tensors[name].ndim == 1:  # also where no filter may be zero
                self._kept[name] = torch.from_numpy(np.flatnonzero(left))

    def forward(self, *inputs: Any) -> Any:
        tensors = tensors_of(self.network)
        with KeptStatistics({id(tensors[name]): kept.to(tensors[name].device) for name, kept in self._kept.items()}):
            return self.network(*inputs)


class KeptStatistics(TorchFunctionMode):
    """layer_norm, and group_norm of one group, over the channels that are kept alone."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in NORMS:
            size, dim = NORMS[func]
            names = ("input", size, "weight", "bias", "eps")
            given = {"weight": None, "bias": None, "eps": 1e-5, **dict(zip(names, args, strict=False)), **kwargs}
            kept = self.kept.get(id(given["weight"]))
            if kept is not None and (dim == -1 or given[size] == 1):
                x, weight, bias = given["input"], given["weight"][kept], given["bias"]
                bias, new = None if bias is None else bias[kept], (len(kept),) if dim == -1 else 1
                y = func(x.index_select(dim, kept), new, weight, bias, given["eps"])
                return torch.zeros_like(x).index_copy_(dim, kept, y)
        return func(*args, **kwargs)
