"""Evaluation of the network as it stands on the test split, which no stage before it has seen where there is a val split."""

import time
from typing import Any

from memexp.stages.handed import Run


def carry_out(run: Run) -> dict[str, Any]:
    started = time.perf_counter()
    if run.evaluation is not None and run.evaluation[0] == "test":
        found = run.evaluation[1]
    else:
        found = run.evaluated(run.network, "test")
        run.evaluation = "test", found
    seconds = time.perf_counter() - started
    run.results["time"]["stages"][run.key] = seconds
    run.results["accuracy"] = {**found.as_dict(), "split": "test", "images": found.images}
    figures = {"accuracy": run.results["accuracy"], "seconds": seconds}
    if run.board is not None and not _is_on_a_curve(run):
        run.board.scalars(run.steps_before, {"accuracy/test_top1": found.top1, "loss/test": found.loss})
    run.finish(figures)
    return figures


def _is_on_a_curve(run: Run) -> bool:
    """Whether the network that is evaluated is the one whose training ended with this very evaluation."""
    last = run.finished[-1] if run.finished else {}
    return bool(last.get("steps")) and (last.get("accuracy") or {}).get("split") == "test"
