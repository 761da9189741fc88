"""Evaluation of the network as it stands on the test split, which no stage before it has seen where there is a val split."""

import time
from typing import Any

from memexp.stages.handed import Run
from memexp.training import evaluation
from memexp.training.precision import Precision


def carry_out(run: Run) -> dict[str, Any]:
    started = time.perf_counter()
    if run.evaluation is not None and run.evaluation[0] == "test":
        found = run.evaluation[1]
    else:
        precision = Precision(run.cfg.precision.name, run.device)
        with run.meter.aside():
            found = evaluation.evaluate(run.network, run.splits.test, precision, run.world, run.stop.check)
        run.evaluation = "test", found
    seconds = time.perf_counter() - started
    run.results["time"]["stages"][run.key] = seconds
    run.results["accuracy"] = {**found.as_dict(), "split": "test", "images": found.images}
    figures = {"accuracy": run.results["accuracy"], "seconds": seconds}
    run.finish(figures)
    return figures
