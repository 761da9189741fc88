"""NetAdapt (Yang et al. 2018, arXiv 1804.03230): steps that each cut a given share of the latency, greedily.

A step asks of every layer how many of its channels, least scores first, must go for the predicted latency to fall by the step,
and takes the layer with which the loss on the data is then the least. Between steps the network may be tuned for a short time.
Loss is what the paper's accuracy is here, before tuning; the paper tunes every candidate. Steps are equal, where the paper's
may shrink, and a filter's score is the criterion's, where the paper's is its l2 norm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memexp import edits
from memexp.channels import Graph, narrow_edit, trace
from memexp.channels.hooked import twin
from memexp.modes import evaluating
from memexp.pruning.calibration import Calibration
from memexp.pruning.counting import Skeleton, skeleton
from memexp.pruning.criteria import Criterion, scored
from memexp.pruning.filters import key, layers
from memexp.pruning.latency import Table
from memexp.pruning.narrowing import carry_out, prunable
from memexp.pruning.selection import Kept, Sizes, at_least
from memexp.pruning.settings import Settings, Target

Tune = Callable[[nn.Module], None]


@dataclass
class Adapted:
    """network: the last step's. kept: in the whole network's channels. steps: what each took and what it left. check: the
    worst of all steps'."""

    network: nn.Module
    kept: Kept
    steps: list[dict[str, Any]]
    check: dict[str, Any]


def adapt(
    network: nn.Module,
    graph: Graph,
    inputs: Sequence[Tensor],
    criterion: Criterion,
    calibration: Calibration,
    settings: Settings,
    target: Target,
    table: Table,
    batches: Sequence[Sequence[Tensor]],
    tune: Tune | None,
    whole_sizes: Sizes,
) -> Adapted:
    """Steps of `settings.step` of the whole latency until `target` is met. whole_sizes: channels that floors are shares of.

    Raises ValueError where no layer can give the next step.
    """
    groups = prunable(network, graph)
    now = Adapted(twin(network), {n: list(range(g.size)) for n, g in groups.items()}, [], {"error": 0.0})
    with skeleton(network, graph, inputs) as bones:
        whole = latency = table.predict(bones, {})
    goal = target.share * whole
    while latency > goal * 1.005:
        wanted = max(goal, latency - settings.step * whole)
        current = trace(now.network, *inputs)
        numbers = {key(group): n for n, group in enumerate(current.groups)}
        here = {n: numbers[key(group)] for n, group in groups.items() if key(group) in numbers}
        scores = scored(criterion, now.network, [current.groups[m] for m in here.values()], calibration)
        ranked = {n: score.argsort(stable=True).tolist() for n, score in zip(here, scores, strict=True)}
        with skeleton(network, graph, inputs) as bones:
            options = {}
            for n, order in ranked.items():
                counts = _counts(whole_sizes.get(n, groups[n].size), len(order), settings.floor)
                if (found := _fewest(bones, table, now.kept, n, order, counts, wanted)) is not None:
                    options[n] = found
        if not options:
            raise ValueError(
                f"target={target} cannot be met: at {latency / whole:.3f} of the latency no layer can give another "
                f"{settings.step:g} of it; choose a larger share, a smaller step or a smaller floor"
            )
        left = {n: sorted(ranked[n][count:]) for n, (count, _) in options.items()}
        losses = {n: _loss(now.network, current, {here[n]: left[n]}, calibration) for n in options}
        best = min(losses, key=lambda n: (losses[n], n))
        narrowed, _, checked = carry_out(now.network, current, {here[best]: left[best]}, criterion, batches)
        latency = options[best][1]
        kept = now.kept | {best: [now.kept[best][channel] for channel in left[best]]}
        step = {
            "layers": layers(groups[best]),
            "removed": options[best][0],
            "predicted": latency,
            "loss": losses[best],
        }
        worst = max(now.check, checked, key=lambda figure: figure["error"])
        now = Adapted(narrowed, kept, [*now.steps, step], worst)
        if tune is not None:
            tune(now.network)
    now.kept = {n: channels for n, channels in now.kept.items() if len(channels) < groups[n].size}
    return now


def _counts(size: int, left: int, floor: float) -> list[int]:
    """How many of a layer's `left` channels may go: to widths in sixteenths of the whole, so that the table stays small."""
    unit = max(1, size // 16)
    return [left - width for width in range(left - 1, at_least(size, floor) - 1, -1) if width % unit == 0]


def _fewest(
    bones: Skeleton, table: Table, kept: Kept, number: int, order: Sequence[int], counts: Sequence[int], wanted: float
) -> tuple[int, float] | None:
    """The least of `counts` channels of a group with which the prediction is at most `wanted`, and it; None for none."""

    def after(count: int) -> float:
        return table.predict(bones, kept | {number: sorted(kept[number][c] for c in order[count:])})

    if not counts or (found := after(counts[-1])) > wanted:
        return None
    low, high = -1, len(counts) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if (value := after(counts[middle])) <= wanted:
            high, found = middle, value
        else:
            low = middle
    return counts[high], found


def _loss(network: nn.Module, graph: Graph, kept: Kept, calibration: Calibration) -> float:
    narrowed = edits.apply(twin(network), narrow_edit(graph, kept))
    total, samples = 0.0, 0
    with evaluating(narrowed), torch.no_grad():
        for loss, count in calibration.losses(narrowed):
            total, samples = total + float(loss), samples + count
    return total / samples
