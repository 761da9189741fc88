"""Pruning: channels of the network as it stands are scored, removed and checked, or single weights set to zero."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from memexp import build, sequence
from memexp.channels import ChannelError
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.fusing.measure import costs
from memexp.pruning import Removal, Settings, mask_weights, removal, remove, unstructured
from memexp.pruning.settings import Target
from memexp.sequence import stage_of
from memexp.stages import tune
from memexp.stages.handed import Run
from memexp.training import distribution, recipe, statistics

log = logging.getLogger("memexp")
KEYS = ("ratio", "target", "scope", "floor", "order", "step")  # of memexp.pruning.Settings
LARGE = 64  # images of the larger batch on which latency is measured
TUNED = 10  # steps of training between two removals of order=latency


class PruneError(Exception):
    """A removal that the trained network does not allow. The message names the file that keeps the network as it was."""


def foresee(cfg: DictConfig, edits: Sequence[Edit] = ()) -> None:
    """Raises ConfigError for what the first stage `prune` of `cfg` would refuse whatever weights it is given, before training.

    edits: of the network that the run begins with. A network that a stage before it makes another one is not looked at.
    """
    names = [stage_of(key) for key in sequence.keys(cfg)]
    if cfg.prune is None or "prune" not in names or {"discretise", "deploy"} & set(names[: names.index("prune")]):
        return
    settings, options = _settings(cfg), _options(cfg)
    try:
        network, shape = build.at_start(cfg, edits)
        example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        if cfg.prune.unstructured:
            unstructured.foresee_mask(network, ratio=settings.ratio, scope=settings.scope, floor=settings.floor)
        else:
            removal.foresee(network, example, cfg.prune.name, settings, options=options, rounds=int(cfg.prune.rounds))
    except (ValueError, ChannelError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([_named(error)]) from error


def _named(error: Exception) -> str:
    """What is wrong, with the key that says so in front."""
    return f"prune.{error}" if str(error).split("=")[0].split(":")[0] in KEYS else f"prune: {error}"


@contextmanager
def _kept(run: Run) -> Iterator[None]:
    """Inside, what only the trained network shows is told with the file that keeps it."""
    try:
        yield
    except (ValueError, ChannelError) as error:
        kept = f"; the network as it was before is kept in {run.last}: init_from={run.directory.path} starts from it"
        raise PruneError(_named(error) + (kept if run.last.exists() else "")) from error


def carry_out(run: Run) -> dict[str, Any]:
    """Raises PruneError for what only the trained network shows."""
    cfg, prune, started = run.cfg, run.cfg.prune, time.perf_counter()
    before = run.watched()
    read = list(islice(statistics.in_random_order(run.splits.plain_train).epoch(0), prune.batches))
    loss_fn = recipe.make(tune.recipe(cfg), run.network, run.device, len(run.splits.classes)).loss_fn
    arguments: dict[str, Any] = {"data": read, "loss_fn": loss_fn, "options": _options(cfg)}
    run.network.eval()
    if prune.unstructured:
        settings = _of_round(run)
        with _kept(run):
            masked, _, record = mask_weights(
                run.network,
                criterion=prune.name,
                ratio=settings.ratio,
                scope=settings.scope,
                floor=settings.floor,
                seed=cfg.seed,
                **arguments,
            )
        run.edit({"kind": "mask"})
        run.network.load_state_dict(masked.state_dict())
        distribution.same_weights(run.network, run.world)
        figures: dict[str, Any] = record
    else:
        figures = _removed(run, arguments, read)
    after = run.watched()
    if statistics.momenta(run.network):  # running statistics are those of the whole network
        with run.own_statistics(run.network):
            figures["recalibrated"] = run.watched(run.network)
    run.results["time"]["stages"][run.key] = seconds = time.perf_counter() - started
    log.info("pruned by %s: top-1 %.2f %% -> %.2f %%, %s", prune.name, before["top1"], after["top1"], _told(figures))
    figures = {
        "accuracy": after,
        "before": before,
        "seconds": seconds,
        "prune": figures,
    }
    run.finish(figures)
    return figures


def _told(figures: Mapping[str, Any]) -> str:
    """What has gone."""
    if "sparsity" in figures:
        return f"{100 * figures['sparsity']['masked']:.1f} % of the weights of convolutions and linear layers are zero"
    return f"{figures['parameters']['before']:,} -> {figures['parameters']['after']:,} parameters"


def _removed(run: Run, arguments: dict[str, Any], read: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Removes channels, by the first of the draws where there are several; the figures."""
    cfg, prune = run.cfg, run.cfg.prune
    images = read[0][0]
    settings, before_rounds = _of_round(run), _before_rounds(run)
    whole = run.network

    def tuned(network: nn.Module) -> None:
        _briefly(run, network, read)

    def removed(seed: int) -> Removal:
        with _kept(run):
            asked = {"seed": seed, "check_on": images, "tune": tuned, "whole": before_rounds, **arguments}
            return remove(whole, images, prune.name, settings, **asked)

    first, *others = (removed(cfg.seed + number) for number in range(prune.draws if prune.name == "random" else 1))
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


def _done(run: Run) -> list[dict[str, Any]]:
    """Figures of the removals before this one."""
    return [stage for stage in run.finished if stage_of(str(stage["key"])) == "prune"]


def _before_rounds(run: Run) -> nn.Module | None:
    """The network before the first of several rounds, with weights of no meaning; None in the first, and after the last."""
    done = len(_done(run))
    if not 0 < done < int(run.cfg.prune.rounds):
        return None
    first = [number for number, edit in enumerate(run.edits) if edit["kind"] == "narrow"][-done]
    return build.at_start(run.cfg, run.edits[:first])[0].to(run.device)


def _of_round(run: Run) -> Settings:
    """What this removal is asked for: of several rounds each its part."""
    settings, done = _settings(run.cfg), _done(run)
    rounds = int(run.cfg.prune.rounds)
    if len(done) >= rounds:
        return settings
    left = 1.0
    if settings.target is not None:
        measure = Target.parse(settings.target).measure
        name = {"params": "parameters", "macs": "macs", "latency": "latency"}[measure]
        before = "before_at_end" if measure == "latency" else "before"  # beside "after", on a machine as busy as then
        for stage in done:
            left *= stage["prune"][name]["after"] / stage["prune"][name][before]
    return settings.of_round(rounds, left, len(done) + 1)


def _settings(cfg: DictConfig) -> Settings:
    return Settings(**{key: cfg.prune[key] for key in KEYS})


def _options(cfg: DictConfig) -> dict[str, Any]:
    """The criterion's own settings: what is not common to all."""
    common = (*KEYS, "name", "rounds", "draws", "batches", "unstructured")
    return {str(key): value for key, value in cfg.prune.items() if key not in common}


def _briefly(run: Run, network: nn.Module, read: Sequence[tuple[Tensor, Tensor]]) -> None:
    """A few steps of training by the recipe of `tune`, on the batches that the criterion reads."""
    made = recipe.make(tune.recipe(run.cfg), network, run.device, len(run.splits.classes))
    network.train()
    for number in range(TUNED):
        made.step(network, [read[number % len(read)]])
    network.eval()
