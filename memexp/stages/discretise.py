"""Discretisation of an integral network: a plain one of each size that is asked for, evaluated without any tuning."""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from memexp import build, sequence
from memexp.choices import INTEGRAL
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.fusing.measure import costs
from memexp.integral import IntegralNetwork
from memexp.integral.sizing import sizes_for
from memexp.memory.meter import macs_per_image
from memexp.models import families
from memexp.pruning.counting import parameters_of
from memexp.pruning.settings import Target
from memexp.sequence import stage_of
from memexp.stages.handed import Run
from memexp.stages.prune import LARGE
from memexp.training import statistics

log = logging.getLogger("memexp")


def carry_out(run: Run) -> dict[str, Any]:
    """The run goes on with the integral network itself, unless prune=integral says at what size it is left as a plain one."""
    started, asked = time.perf_counter(), run.cfg.discretise
    network = integral(run.network)
    network.eval()
    images = next(iter(run.splits.test.epoch(0)))[0]
    sizes = []
    for share in asked.sizes or ():
        plain = network.discretize(float(share))
        measured = costs({"plain": plain}, [images[:1], images[:LARGE]])["plain"]
        with statistics_of(run, plain):
            found = run.watched(plain)
        sizes.append({"size": float(share), "accuracy": found, **measured})
        log.info(
            "size %3.0f %%: top-1 %.2f %%, %s parameters, %s MACs an image",
            *(100 * share, found["top1"], f"{measured['parameters']:,}", f"{measured['macs']:,}"),
        )
    figures: dict[str, Any] = {"sizes": sizes} if sizes else {}
    if resampled(run.cfg):
        figures |= _left(run, network, [images[:1], images[:LARGE]])
    accuracy = run.watched()
    run.results["time"]["stages"][run.key] = seconds = time.perf_counter() - started
    figures |= {
        "accuracy": accuracy,
        "seconds": seconds,
        "continuous": {name: int(n) for name, n in network.groups.items()},
        "not_continuous": dict(network.discrete),
    }
    run.finish(figures)
    return figures


def resampled(cfg: DictConfig) -> bool:
    """Whether the integral network is left as a plain one of another size."""
    return cfg.prune is not None and cfg.prune.name == INTEGRAL


def foresee(cfg: DictConfig, edits: Sequence[Edit] = ()) -> None:
    """Raises ConfigError for groups and a base that cannot be continuous, a size that the network cannot have, and nodes that
    cannot be trained, before it is trained.

    edits: of the network that the run begins with.
    """
    names = [name for name in map(stage_of, sequence.keys(cfg)) if name in ("partition", "discretise")]
    if resampled(cfg) and names:
        found, shape = build.at_start(cfg, edits)
        network = integral(found)
        sizes = sizes_of(cfg, network, shape)
        if "partition" in names:
            try:
                network.train_partitions(sizes)
            except ValueError as error:
                raise ConfigError([f"model.{error}"]) from error
    elif families.of(cfg.model).integral and (cfg.model.groups is not None or "/" in cfg.model.base):
        with torch.random.fork_rng(devices=[]):  # what a network of ours has in it is known without
            build.weightless(build.without_files(cfg), edits)


def integral(network: nn.Module) -> IntegralNetwork:
    """The network. Raises ConfigError for one that is not integral any more."""
    if not isinstance(network, IntegralNetwork):
        raise ConfigError(
            [
                "prune: the network is a plain one already, with nothing left to sample; take a run that is still integral"
            ]
        )
    return network


def sizes_of(cfg: DictConfig, network: IntegralNetwork, shape: tuple[int, int, int]) -> Any:
    """The size that prune=integral asks for, as IntegralNetwork.discretize takes it.

    Raises ConfigError for one that is impossible.
    """
    keep, target = cfg.prune.keep, cfg.prune.target
    try:
        if target is not None:
            wanted = Target.parse(target)
            counts = {"params": parameters_of, "macs": lambda plain: macs_per_image(plain, shape)}
            return sizes_for(network, wanted.share, counts[wanted.measure])
        sizes = dict(keep) if OmegaConf.is_dict(keep) else float(keep)
        network.partitions(sizes)
    except ValueError as error:
        raise ConfigError([f"prune: {error}"]) from error
    return sizes


def _left(run: Run, network: IntegralNetwork, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Leaves the network at the size that is asked for, at nodes that were trained if they are of it; the figures."""
    native = network.discretize(1.0)
    sizes = sizes_of(run.cfg, network, run.splits.shape)
    counts = network.counts(sizes)
    trained = any(edit["kind"] == "partition" for edit in run.edits) and network.sizes == counts
    change = network.edit(None if trained else sizes)
    with statistics_of(run, native):
        before = run.watched(native)
    run.edit(change)
    with statistics_of(run, run.network):
        weights = {key: value.clone() for key, value in run.network.state_dict().items()}
    run.network.load_state_dict(weights)
    measured = costs({"before": native, "after": run.network}, inputs)
    log.info(
        "left at %s of %s parameters, its nodes %s",
        *(f"{measured[when]['parameters']:,}" for when in ("after", "before")),
        "trained" if trained else "uniform",
    )
    record: dict[str, Any] = {"criterion": INTEGRAL, "nodes": "trained" if trained else "uniform", "costs": measured}
    record |= {"widths": {name: [network.groups[name], n] for name, n in counts.items()}}
    record |= {name: {when: measured[when][name] for when in ("before", "after")} for name in ("parameters", "macs")}
    return {"before": before, "prune": record}


def statistics_of(run: Run, network: nn.Module) -> Any:
    """Running statistics of a training over many sizes are of none of them, so those of this one are estimated anew."""
    if not statistics.momenta(network) or not run.cfg.precise_batchnorm:
        return nullcontext()
    return run.own_statistics(network)
