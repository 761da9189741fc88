"""From a choice of channels to the edit that carries it out, and the network in which the others are zero."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memexp.channels.graph import ChannelError, Graph

Kept = Mapping[int, Sequence[int]]


def narrow_edit(graph: Graph, kept: Kept) -> dict[str, Any]:
    """The edit `narrow` (plain data) that keeps these channels of these groups, and all of the others.

    kept: group index -> sorted channels. Raises ChannelError for a group or channel that is not there, for none, and for a
    list that is not sorted or holds one twice.
    """
    removed = _removed(graph, kept)
    entries: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for (name, dim), gone in removed.items():
        entries[name][str(dim)] = [i for i in range(graph.sizes[name, dim]) if i not in gone]
    attributes: dict[str, dict[str, Any]] = defaultdict(dict)
    for number in graph.numbers:
        value = sum(c is None or c[0] not in kept or c[1] in kept[c[0]] for c in number.channels)
        if value != len(number.channels):
            key = number.name if number.index is None else f"{number.name}.{number.index}"
            if attributes[number.module].setdefault(key, value) != value:
                raise ChannelError(
                    f"{number.module}.{key} would have to be both {attributes[number.module][key]} and {value}: keep as "
                    "many channels wherever it is used"
                )
    return {"kind": "narrow", "kept": dict(entries), "attributes": {k: v for k, v in attributes.items() if v}}


def _removed(graph: Graph, kept: Kept, roles: Sequence[str] = ("out", "in", "norm")) -> dict[tuple[str, int], set[int]]:
    removed: dict[tuple[str, int], set[int]] = defaultdict(set)
    for number, channels in kept.items():
        if not 0 <= number < len(graph.groups):
            raise ChannelError(f"group {number} is not in this graph: it has {len(graph.groups)}")
        group = graph.groups[number]
        if not channels or list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= group.size:
            raise ChannelError(
                f"group {number}: keep a sorted list of at least one of its channels 0 to {group.size - 1}, each once; "
                f"got {list(channels)[:8]}"
            )
        gone = sorted(set(range(group.size)) - set(channels))
        for member in group.members:
            if gone and (member.role in roles or group.nonzero):
                removed[member.name, member.dim].update(i for channel in gone for i in member.indices[channel])
    return removed


class masked(nn.Module):  # noqa: N801  (it reads as what it returns)
    """A copy of `network` in which the channels that are not kept are zero: what the narrowed network must compute.

    Filters, biases and entries of normalisations are zero; where a channel may yet not be zero (a sigmoid of it), the weights
    that take it are too. A LayerNorm over channels has the statistics of those that are kept. Buffers are left as they are.
    """

    def __init__(self, network: nn.Module, graph: Graph, kept: Kept) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        tensors = self.network.state_dict(keep_vars=True)
        self._kept: dict[int, Tensor] = {}
        removed = _removed(graph, kept, ("out", "norm"))
        with torch.no_grad():
            for (name, dim), gone in removed.items():
                tensor = tensors[name]
                if isinstance(tensor, nn.Parameter):
                    tensor.index_fill_(dim, torch.tensor(sorted(gone), device=tensor.device), 0)
                    if tensor.ndim == 1:
                        left = [i for i in range(len(tensor)) if i not in gone]
                        self._kept[id(tensor)] = torch.tensor(left, device=tensor.device)

    def forward(self, *inputs: Any) -> Any:
        with _KeptStatistics(self._kept):
            return self.network(*inputs)


class _KeptStatistics(TorchFunctionMode):
    """layer_norm over the channels that are kept alone."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.functional.layer_norm, torch.layer_norm):
            names = ("input", "normalized_shape", "weight", "bias", "eps")
            given = {"bias": None, "eps": 1e-5, **dict(zip(names, args, strict=False)), **kwargs}
            kept = self.kept.get(id(given["weight"]))
            if kept is not None:
                x, bias = given["input"], given["bias"]
                narrow = None if bias is None else bias[kept]
                y = nn.functional.layer_norm(x[..., kept], (len(kept),), given["weight"][kept], narrow, given["eps"])
                return torch.zeros_like(x).index_copy_(-1, kept, y)
        return func(*args, **kwargs)
