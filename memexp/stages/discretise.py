"""Discretisation of an integral network: a plain one of each size that is asked for, evaluated without any tuning."""

import logging
import time
from contextlib import nullcontext
from typing import Any

from torch import nn

from memexp.config import ConfigError
from memexp.fusing.measure import costs
from memexp.integral import IntegralNetwork
from memexp.stages.handed import Run
from memexp.stages.prune import LARGE
from memexp.training import statistics
from memexp.training.precision import Precision

log = logging.getLogger("memexp")


def carry_out(run: Run) -> dict[str, Any]:
    """The run goes on with the integral network itself, but for `discretise.keep`, the size that it is left at."""
    started, asked = time.perf_counter(), run.cfg.discretise
    network = run.network
    if not isinstance(network, IntegralNetwork):
        raise ConfigError(["stages: discretise needs an integral network, and this one has been made plain before."])
    network.eval()
    images = next(iter(run.splits.test.epoch(0)))[0]
    sizes = []
    for share in asked.sizes:
        plain = network.discretize(float(share))
        measured = costs({"plain": plain}, [images[:1], images[:LARGE]])["plain"]
        with _statistics(run, plain):
            found = run.watched(plain)
        sizes.append({"size": float(share), "accuracy": found, **measured})
        log.info(
            "size %3.0f %%: top-1 %.2f %%, %s parameters, %s MACs an image",
            *(100 * share, found["top1"], f"{measured['parameters']:,}", f"{measured['macs']:,}"),
        )
    if asked.keep is not None:
        run.edit(network.edit(float(asked.keep)))
        with _statistics(run, run.network):
            weights = {key: value.clone() for key, value in run.network.state_dict().items()}
        run.network.load_state_dict(weights)
    accuracy = run.watched()
    run.results["time"]["stages"][run.key] = seconds = time.perf_counter() - started
    figures = {
        "accuracy": accuracy,
        "seconds": seconds,
        "parameters": run.parameters,
        "sizes": sizes,
        "continuous": {name: int(n) for name, n in network.groups.items()},
        "discrete": dict(network.discrete),
    }
    run.finish(figures)
    return figures


def _statistics(run: Run, network: nn.Module) -> Any:
    """Running statistics of a training over many sizes are of none of them, so those of this one are estimated anew."""
    if not statistics.momenta(network) or not run.cfg.precise_batchnorm:
        return nullcontext()
    precision = Precision(run.cfg.precision.name, run.device)
    order = statistics.in_random_order(run.splits.plain_train)
    return statistics.estimated_statistics(network, order, statistics.IMAGES, precision, run.world, run.stop.check)
