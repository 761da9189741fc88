"""Pruning: score, choose, remove, check. The network that is given stays as it is, whatever happens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.backprop.untouched import untouched
from memexp.channels import Graph, Group, narrow_edit, trace, warn_of_unread
from memexp.channels.called import apart, arguments, copied
from memexp.channels.tensors import check_values
from memexp.modes import evaluating
from memexp.pruning import energy, selection
from memexp.pruning.calibration import Batch, Loss, given
from memexp.pruning.counting import macs_of, parameters_of, skeleton
from memexp.pruning.criteria import Criterion, create, name_of, scored
from memexp.pruning.filters import key, label, layers, tensor_of, weights
from memexp.pruning.latency import Measure, Table, measured
from memexp.pruning.narrowing import carry_out, listed, prunable
from memexp.pruning.netadapt import Tune, adapt
from memexp.pruning.selection import Kept
from memexp.pruning.settings import Settings, Target


@dataclass
class Removal:
    """What `remove` returns.

    network: the pruned one. edit: what makes it from the one that was given (memexp.edits.apply). record: plain data for
    results.json. groups: for each group that could lose channels its layers, scores and kept channels, as plain data.
    """

    network: nn.Module
    edit: dict[str, Any]
    record: dict[str, Any]
    groups: list[dict[str, Any]]


@apart()
def remove(
    network: nn.Module,
    example_input: Tensor | Sequence[Tensor],
    criterion: str | Criterion,
    settings: Settings,
    *,
    options: Mapping[str, Any] | None = None,
    data: Iterable[Batch] | None = None,
    loss_fn: Loss = functional.cross_entropy,
    seed: int = 0,
    check_on: Tensor | Sequence[Tensor] | None = None,
    tune: Tune | None = None,
    measure: Measure = measured,
    whole: nn.Module | None = None,
) -> Removal:
    """A pruned copy of `network` and a record of how it came about.

    example_input: what the network is called with, (samples, ...), or several such; latency is measured on it.
    options: of the criterion. data: batches of (inputs, targets) for criteria and orders that read them, to be gone through
    more than once. loss_fn: the mean over a batch's samples. seed: of criteria that draw. check_on: a real batch of inputs for
    the check of narrowed against masked; by default data's first, else example_input. tune: trains a network in place for a
    short time, between the steps of order=latency. measure: (module, inputs) -> seconds. whole: of a removal that is one of
    several rounds (Settings.of_round), the network before the first: ratio and floor are shares of its channels.

    Raises ValueError for settings that are not allowed, for a layer that is not there, for a target that cannot be met, and
    for missing data; CheckFailed where narrowed and masked network differ.
    """
    made = create(criterion, options)
    target = settings.check()
    check_values(network)
    inputs = arguments(example_input)
    reader = f"order={settings.order}" if settings.order == "latency" else f"criterion={name_of(made)}"
    calibration = given(reader, made.needs_data or settings.order == "latency", data, loss_fn, seed)
    batch = inputs
    if check_on is not None or data is not None:
        batch = arguments(next(iter(calibration.data))[0] if check_on is None else check_on)
    graph = trace(network, *inputs)
    warn_of_unread(graph)
    groups = prunable(network, graph)
    if isinstance(settings.scope, Mapping):
        chosen = listed(network, graph, settings.scope)
        groups = {number: group for number, group in groups.items() if number in chosen}
    sizes = _whole_sizes(groups, graph, graph if whole is None else trace(whole, *inputs))
    found = scored(made, network, list(groups.values()), calibration)
    scores = {n: score.tolist() for n, score in zip(groups, found, strict=True)}
    timed = target is not None and target.measure == "latency"
    table = Table(network, inputs, measure) if timed else None
    figures: dict[str, Any] = {}
    if settings.order == "latency":
        assert target is not None
        assert table is not None
        adapted = adapt(network, graph, inputs, made, calibration, settings, target, table, [batch], tune, sizes)
        kept, pruned, checked = adapted.kept, adapted.network, adapted.check
        edit = narrow_edit(graph, kept)
        figures["steps"] = adapted.steps
    else:
        kept = _choose(network, graph, inputs, scores, sizes, made, settings, target, table)
        pruned, edit, checked = carry_out(network, graph, kept, made, [batch])
    if table is not None:
        with skeleton(network, graph, inputs) as bones:
            predicted = table.predict(bones, kept)
        figures["latency"] = {"before": table.whole, "predicted": predicted}
        # both once more, as a machine is not always equally busy
        with (
            evaluating(network),
            evaluating(pruned),
            untouched(network),
            untouched(pruned),
        ):
            figures["latency"] |= {"before_at_end": measure(network, inputs), "after": measure(pruned, inputs)}
    channels = sum(group.size for group in groups.values())
    gone = sum(groups[n].size - len(left) for n, left in kept.items())
    record = {
        "criterion": name_of(made),
        **asdict(settings),
        "scope": settings.scope if isinstance(settings.scope, str) else dict(settings.scope),
        "seed": seed,
        "channels": {"before": channels, "after": channels - gone},
        "parameters": {"before": parameters_of(network), "after": parameters_of(pruned)},
        "macs": {"before": _macs(network, inputs), "after": _macs(pruned, inputs)},
        "widths": _widths(network, pruned, groups.values()),
        "check": checked,
        **figures,
    }
    ranked = [
        {"layers": layers(group), "scores": scores[n], "kept": kept.get(n, list(range(group.size)))}
        for n, group in groups.items()
    ]
    return Removal(pruned, edit, record, ranked)


def foresee(
    network: nn.Module,
    example_input: Tensor,
    criterion: str,
    settings: Settings,
    *,
    options: Mapping[str, Any] | None = None,
    rounds: int = 1,
) -> None:
    """Raises what `remove` would raise whatever weights training gives the network, by rounds: ValueError for a layer that is
    not there, a target that cannot be met and a criterion that cannot score it, ChannelError for an operation without a rule.

    example_input: (2 samples, ...). Not known before is what latency and the order of scores over all layers decide.
    """
    made, whole, first = create(criterion, options), settings.check(), settings.of_round(rounds)
    target = first.check()
    graph = trace(network, example_input)
    groups = prunable(network, graph)
    if isinstance(settings.scope, Mapping):
        chosen = listed(network, graph, settings.scope)
        groups = {number: group for number, group in groups.items() if number in chosen}
    batch = example_input, torch.zeros(len(example_input), dtype=torch.long)
    made.check(network, list(groups.values()), given(criterion, made.needs_data, [batch], functional.cross_entropy, 0))
    if target is not None and target.measure == "latency":
        return
    scores = {n: [0.0] * group.size for n, group in groups.items()}
    sizes = {n: group.size for n, group in groups.items()}
    if whole is not None and settings.order == "sequential":  # the whole of it, which rounds reach together
        narrowest = settings.floor if settings.scope == "global" else 0.0
        removals = selection.over_all(scores, sizes, narrowest, comparable=True)
        with skeleton(network, graph, (example_input,)) as bones, _told_what_stays(graph):
            cost = bones.macs if whole.measure == "macs" else bones.parameters
            selection.reach(str(whole), whole.share, removals, sizes, cost)
    if target is None or settings.scope != "global":
        _choose(network, graph, (example_input,), scores, sizes, made, first, target, None)


def prune(
    network: nn.Module,
    example_input: Tensor | Sequence[Tensor],
    *,
    criterion: str | Criterion = "l1_norm",
    ratio: float | None = None,
    target: str | None = None,
    scope: str | Mapping[str, float] = "layer",
    order: str = "sequential",
    floor: float = 0.1,
    step: float = 0.05,
    **rest: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """A pruned copy of `network`, a plain network of the same classes, and the edit that makes it (`memexp.edits.apply`).

    >>> from memexp.pruning import prune
    >>> pruned, edit = prune(network, images, criterion="l1_norm", target="macs:0.5")
    >>> pruned, edit = prune(network, images, criterion="fisher", ratio=0.3, scope="global", data=batches)
    >>> pruned, edit = prune(network, images, scope={"features.0": 0.5})

    criterion: a name of `memexp.pruning.CRITERIA`, or an instance with its options. ratio, target, scope, order, floor, step:
    memexp.pruning.settings.Settings. rest: data, loss_fn, seed and others of `remove`, whose errors it raises.
    """
    settings = Settings(ratio=ratio, target=target, scope=scope, order=order, floor=floor, step=step)
    removal = remove(network, example_input, criterion, settings, **rest)
    return removal.network, removal.edit


def _choose(
    network: nn.Module,
    graph: Graph,
    inputs: Sequence[Tensor],
    scores: selection.Scores,
    whole: selection.Sizes,
    criterion: Criterion,
    settings: Settings,
    target: Target | None,
    table: Table | None,
) -> Kept:
    """The channels that stay, by scope, order and target. whole: channels of each group before the first round."""
    sizes = {number: len(score) for number, score in scores.items()}
    if isinstance(settings.scope, Mapping):
        return selection.kept(selection.shares(scores, whole, listed(network, graph, settings.scope)), sizes)
    if settings.scope == "global":
        removals = selection.over_all(scores, whole, settings.floor, criterion.comparable)
        if settings.ratio is not None:
            return selection.kept(selection.share_of_all(removals, sizes, whole, settings.ratio), sizes)
    elif target is None:
        assert settings.ratio is not None
        return selection.kept(selection.shares(scores, whole, dict.fromkeys(scores, settings.ratio)), sizes)
    else:
        removals = selection.by_layer(scores, whole)
    assert target is not None
    with skeleton(network, graph, inputs) as bones:
        if settings.order == "energy":
            spent = energy.by_layer(bones.uses({}), bones.samples())
            own = {n: sum(spent.get(layer, 0.0) for layer in layers(graph.groups[n])) for n in scores}
            ratio, floor = settings.ratio, settings.floor
            staying = {
                n: selection.at_least(whole[n], floor) if ratio is None else selection.left(whole[n], ratio)
                for n in sorted(own, key=lambda n: (-own[n], n))
            }
            removals = selection.layer_by_layer(scores, staying)

        known: dict[tuple[tuple[int, int], ...], float] = {}

        def cost(kept: Kept) -> float:
            key = tuple((number, len(left)) for number, left in kept.items())  # whichever they are
            if key not in known:
                if table is not None:
                    known[key] = table.predict(bones, kept)
                else:
                    known[key] = bones.macs(kept) if target.measure == "macs" else bones.parameters(kept)
            return known[key]

        with _told_what_stays(graph):
            return selection.meet(str(target), target.share, removals, sizes, cost)


@contextmanager
def _told_what_stays(graph: Graph) -> Iterator[None]:
    """Inside, a target that is out of reach is told with the reasons for which layers keep their channels."""
    try:
        yield
    except selection.OutOfReach as error:
        why = graph.why_fixed()
        raise ValueError(f"{error}; layers that keep all of theirs: {why}" if why else str(error)) from None


def _whole_sizes(groups: Mapping[int, Group], graph: Graph, before: Graph) -> dict[int, int]:
    """How many channels each group has in `before`, of the network before the first round, where it is one; else as many
    times its own as the layer that makes it was wider: of two groups of a GroupNorm one goes whole, the other's channels are
    then single ones."""
    sizes = {key(group): group.size for group in before.groups}
    found: dict[int, int] = {}
    for number, group in groups.items():
        place = next((member.name, member.dim) for member in group.members if member.role == "out")
        found[number] = sizes.get(key(group), group.size * before.sizes[place] // graph.sizes[place])
    return found


def _macs(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    with evaluating(network), untouched(network):
        return macs_of(network, copied(inputs))


def _widths(before: nn.Module, after: nn.Module, groups: Iterable[Group]) -> dict[str, list[int]]:
    """[before, after] of each layer that could lose channels."""
    return {
        label(name): [tensor_of(network, name).shape[member.dim] for network in (before, after)]
        for group in groups
        for name, member in weights(before, group).items()
    }
