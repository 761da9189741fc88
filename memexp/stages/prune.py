"""Pruning: channels of the network as it stands are scored, removed and checked, or single weights set to zero."""

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn

from memexp.fusing.measure import costs
from memexp.pruning import Removal, Settings, mask_weights, remove
from memexp.pruning.settings import Target
from memexp.sequence import stage_of
from memexp.stages import tune
from memexp.stages.handed import Run
from memexp.training import distribution, recipe, statistics

log = logging.getLogger("memexp")
KEYS = ("ratio", "target", "scope", "floor", "order", "step")  # of memexp.pruning.Settings
LARGE = 64  # images of the larger batch on which latency is measured
TIMES = ("before", "after")
TUNED = 10  # steps of training between two removals of order=latency


def carry_out(run: Run) -> dict[str, Any]:
    cfg, prune, started = run.cfg, run.cfg.prune, time.perf_counter()
    before = run.watched()
    data = list(islice(statistics.in_random_order(run.splits.plain_train).epoch(0), prune.batches))
    loss_fn = recipe.make(tune.recipe(cfg), run.network, run.device, len(run.splits.classes)).loss_fn
    arguments: dict[str, Any] = {"data": data, "loss_fn": loss_fn, "options": _options(run)}
    run.network.eval()
    if prune.unstructured:
        ratio, scope = _masked_share(run)
        masked, _, record = mask_weights(
            run.network, criterion=prune.name, ratio=ratio, scope=scope, floor=prune.floor, seed=cfg.seed, **arguments
        )
        run.edit({"kind": "mask"})
        run.network.load_state_dict(masked.state_dict())
        distribution.same_weights(run.network, run.world)
        figures: dict[str, Any] = record
    else:
        figures = _removed(run, arguments, data)
    after = run.watched()
    run.results["time"]["stages"][run.key] = seconds = time.perf_counter() - started
    log.info(
        "pruned by %s: top-1 %.2f %% -> %.2f %%, %s -> %s parameters",
        *(prune.name, before["top1"], after["top1"]),
        *(f"{figures['parameters'][when]:,}" if isinstance(figures.get("parameters"), dict) else "-" for when in TIMES),
    )
    figures = {
        "accuracy": after,
        "before": before,
        "seconds": seconds,
        "parameters": run.parameters,
        "prune": figures,
    }
    run.finish(figures)
    return figures


def _removed(run: Run, arguments: dict[str, Any], data: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Removes channels, by the first of the draws where there are several; the figures."""
    cfg, prune = run.cfg, run.cfg.prune
    images = data[0][0]
    settings = _of_round(run)
    whole = run.network

    def tuned(network: nn.Module) -> None:
        _briefly(run, network, data)

    def removal(seed: int) -> Removal:
        return remove(whole, images, prune.name, settings, seed=seed, check_on=images, tune=tuned, **arguments)

    first, *others = (removal(cfg.seed + number) for number in range(prune.draws if prune.name == "random" else 1))
    figures = first.record
    figures["costs"] = costs({"before": whole, "after": first.network}, [images[:1], images[:LARGE]])
    before = {key: value.clone() for key, value in whole.state_dict().items()}  # the edit changes the network itself
    run.edit(distribution.agreed(first.edit, run.world))  # whose images and clock decide
    if run.world.is_main:  # a criterion may have changed what stays
        run.network.load_state_dict(first.network.state_dict())
    distribution.same_weights(run.network, run.world)
    if others:
        figures["draws"] = [run.watched(other.network) | {"seed": cfg.seed + n} for n, other in enumerate(others, 1)]
    if run.world.is_main:
        _pictures(run, before, first)
    return figures


def _pictures(run: Run, before: Mapping[str, Tensor], removal: Removal) -> None:
    """Of each layer: its scores in order, and its weights before and after."""
    from memexp.report import files, scores, weights  # matplotlib takes its time to import

    title = f"{run.cfg.prune.name}, {run.key}"
    files.save(scores.draw(removal.groups, title), run.directory.plots, f"{run.key}-scores")
    picture = weights.draw(removal.groups, before, run.network.state_dict(), title)
    files.save(picture, run.directory.plots, f"{run.key}-weights")


def _of_round(run: Run) -> Settings:
    """What this removal is asked for: of several rounds each its part."""
    settings = Settings(**{key: run.cfg.prune[key] for key in KEYS})
    done = [stage for stage in run.finished if stage_of(str(stage["key"])) == "prune"]
    rounds = int(run.cfg.prune.rounds)
    if rounds == 1 or len(done) >= rounds:
        return settings
    left = 1.0
    if settings.target is not None:
        measure = Target.parse(settings.target).measure
        name = {"params": "parameters", "macs": "macs", "latency": "latency"}[measure]
        for stage in done:
            left *= stage["prune"][name]["after"] / stage["prune"][name]["before"]
    return settings.of_round(rounds, left, len(done) + 1)


def _masked_share(run: Run) -> tuple[float | None, Any]:
    """The share of all weights that is zero after this round, those of the rounds before included; and the scope."""
    settings = _of_round(run)
    rounds = int(run.cfg.prune.rounds)
    number = min(rounds, 1 + sum(stage_of(str(stage["key"])) == "prune" for stage in run.finished))

    def so_far(part: float) -> float:
        return 1 - (1 - part) ** (number if rounds > 1 else 1)

    ratio = None if settings.ratio is None else so_far(settings.ratio)
    scope = settings.scope
    return ratio, {k: so_far(v) for k, v in scope.items()} if isinstance(scope, Mapping) else scope


def _options(run: Run) -> dict[str, Any]:
    """The criterion's own settings: what is not common to all."""
    common = (*KEYS, "name", "rounds", "draws", "batches", "unstructured")
    return {str(key): value for key, value in run.cfg.prune.items() if key not in common}


def _briefly(run: Run, network: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> None:
    """A few steps of training by the recipe of `tune`, on the batches that the criterion reads."""
    made = recipe.make(tune.recipe(run.cfg), network, run.device, len(run.splits.classes))
    network.train()
    for number in range(TUNED):
        made.step(network, [data[number % len(data)]])
    network.eval()
