"""Partitions: of an integral network at the size that it is to be left at, the nodes are trained, by the recipe of `tune`."""

from typing import Any

from memexp.stages import tune
from memexp.stages.discretise import integral, sizes_of
from memexp.stages.handed import Run


def carry_out(run: Run) -> dict[str, Any]:
    if run.unfinished is None:  # a stage that goes on is of the edited network already
        network = integral(run.network)
        sizes = sizes_of(run.cfg, network, run.splits.shape)
        run.edit({"kind": "partition", "partitions": network.counts(sizes)})
    return tune.carry_out(run)
