"""Growing back: plain convolutions, such as deployment leaves, become wide blocks that compute the same and can be trained on.

Its training lets lambda of the new activations rise from 0 and fall to 0 again (memexp.models.vanishing.returning).
"""

import logging
import time
from itertools import islice
from typing import Any

from memexp import fusing
from memexp.config import ConfigError
from memexp.stages.handed import Run
from memexp.training import distribution, statistics

log = logging.getLogger("memexp")
BATCHES = 8  # whose statistics stand in the new normalisations


def carry_out(run: Run) -> dict[str, Any]:
    started, before, parameters = time.perf_counter(), run.watched(), run.parameters
    macs = run.macs
    if any(edit["kind"] == "mask" for edit in run.edits):
        log.warning(
            "warning: grow: weights that pruning has set to zero do not stay so: the blocks that grow are dense"
        )
    run.network.eval()
    images = [batch for batch, _ in islice(statistics.in_random_order(run.splits.plain_train).epoch(0), BATCHES)]
    try:
        grown = fusing.grow(run.network, images, float(run.cfg.grow.expansion), seed=run.cfg.seed)
    except fusing.FusingError:
        raise
    except ValueError as error:
        raise ConfigError([f"stages: {error}"]) from error
    for edit in grown.edits:
        run.edit(edit)
    run.network.load_state_dict(grown.network.state_dict())
    distribution.same_weights(run.network, run.world)
    after = run.watched()
    run.results["time"]["stages"][run.key] = seconds = time.perf_counter() - started
    layers = len(grown.edits[0]["layers"])
    log.info(
        "grown: %d convolutions, %s -> %s parameters; outputs differ by %.1e of the largest",
        *(layers, f"{parameters:,}", f"{run.parameters:,}", grown.error),
    )
    figures = {
        "accuracy": after,
        "before": before,
        "seconds": seconds,
        "grow": {
            "layers": layers,
            "error": grown.error,
            "parameters": {"before": parameters, "after": run.parameters},
            "macs": {"before": macs, "after": run.macs},
        },
    }
    run.finish(figures)
    return figures
