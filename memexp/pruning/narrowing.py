"""From a choice of channels to the smaller network: which groups can be chosen from, and the removal with its check."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from memexp import edits
from memexp.channels import Graph, Group, masked, narrow_edit
from memexp.channels.comparing import WHY, changing
from memexp.channels.hooked import twin
from memexp.pruning.checking import CheckFailed, check
from memexp.pruning.criteria import Criterion
from memexp.pruning.criteria.obs import Obs
from memexp.pruning.filters import check_plain, label, layers, weights
from memexp.pruning.selection import Kept


def prunable(network: nn.Module, graph: Graph) -> dict[int, Group]:
    """The groups whose channels some layer of the network makes.

    Raises ValueError where there is none, and for an integral network, whose layers have no channels of their own.
    """
    check_plain(network)
    found = {number: group for number, group in enumerate(graph.groups) if weights(network, group)}
    if not found:
        why = graph.why_fixed() or "its inputs and outputs are fixed"
        raise ValueError(f"no layer of this network has channels that can be removed: {why}")
    return found


def listed(network: nn.Module, graph: Graph, ratios: Mapping[str, float]) -> dict[int, float]:
    """The share of each group that a list of layers names.

    Raises ValueError for a layer that there is not, one whose channels cannot go, and two shares for coupled layers.
    """
    groups = prunable(network, graph)
    found: dict[int, tuple[str, float]] = {}
    for layer, ratio in ratios.items():
        mine = [number for number, group in groups.items() if layer in layers(group)]
        if not mine:
            raise ValueError(_unknown(network, graph, layer, groups.values()))
        for number in mine:
            other, before = found.setdefault(number, (layer, ratio))
            if before != ratio:
                raise ValueError(
                    f"scope: layers {other} and {layer} share channels, so they cannot give {before:g} and {ratio:g} of "
                    "them: name one of the two, or the same share for both"
                )
    return {number: ratio for number, (_, ratio) in found.items()}


def _unknown(network: nn.Module, graph: Graph, layer: str, groups: Iterable[Group]) -> str:
    names = list(dict.fromkeys(name for group in groups for name in layers(group)))
    reasons = [why for (name, dim), why in graph.frozen.items() if label(name) == layer and dim == 0]
    if reasons:
        return f"scope: the channels of layer {layer} cannot go: {reasons[0]}"
    if layer in dict(network.named_modules()):
        return f"scope: {layer} makes no channels that can go; layers that do: {', '.join(names[:8])}, ..."
    near = difflib.get_close_matches(layer, names, n=3)
    return f"scope: there is no layer {layer!r}; nearest: {', '.join(near or names[:3])}"


def carry_out(
    network: nn.Module, graph: Graph, kept: Kept, criterion: Criterion, batches: Iterable[Sequence[Tensor]]
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """A narrowed copy of `network`, the edit that makes it, and the check against the masked network on `batches`.

    Raises CheckFailed where the two are not the same function.
    """
    changed = twin(network)
    if isinstance(criterion, Obs):
        for number, left in kept.items():
            group = graph.groups[number]
            criterion.compensate(changed, group, sorted(set(range(group.size)) - set(left)))
    reference = masked(changed, graph, kept)
    edit = narrow_edit(graph, kept)
    narrowed = edits.apply(changed, edit)
    every = list(batches)
    try:
        return narrowed, edit, check(narrowed, reference, every)
    except CheckFailed as failed:
        if faulty := [", ".join(layers(graph.groups[n])) for n in changing(network, graph, *every[0]) if n in kept]:
            raise CheckFailed(f"{failed}; of the channels of {'; '.join(faulty)}: {WHY}") from None
        raise
