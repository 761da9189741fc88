"""results.json of a run: every field from the beginning, what is known of its network, what earlier stages have measured."""

import logging
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from memexp.choices import name_of
from memexp.config import config_hash
from memexp.memory.estimate import estimate
from memexp.record import SCHEMA
from memexp.stages.handed import Run

log = logging.getLogger("memexp")


def skeleton(cfg: DictConfig, overrides: Sequence[str] | None) -> dict[str, Any]:
    """results.json before anything has been measured: every field is there, whatever happens next."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "error": None,
        "name": cfg.name,
        "experiment": cfg.case.get("id") if cfg.case else None,
        "scale": cfg.scale if cfg.case else None,
        "config_hash": config_hash(cfg),
        "seed": cfg.seed,
        "overrides": None if overrides is None else list(overrides),  # of a program's run there are none
        "config": OmegaConf.to_container(cfg, resolve=True),
        **{group: name_of(cfg[group]) for group in ("model", "dataset", "backprop", "optimizer", "precision")},
        **{group: name_of(cfg[group]) if cfg[group] is not None else None for group in ("prune", "deploy")},
        "parameters": None,
        "macs": None,
        "steps": 0,
        "epochs": 0.0,
        "batch_size": cfg.batch_size,
        "effective_batch_size": None,  # images of an optimizer step, in all processes
        "accuracy": None,
        "before": None,
        "stages": [],
        "memory": None,
        "time": {"wall": 0.0, "step_median": None, "steps_measured": 0, "images_per_second": None, "stages": {}},
        "strategy": {},
        "permutation": None,  # of an integral network's channels: what it did to the total variation of their weights
        "study": None,
    }


def remember(current: Run) -> bool:
    """What the stages before a resumed one have measured, into the results of the whole; whether one of them has trained."""
    results = current.results
    results["steps"], results["epochs"] = current.steps_before, current.epochs_before
    plan = results["strategy"].get("stage")  # of a budget: that of the stage under way was made and is kept
    planned = plan is not None and plan not in {figures["key"] for figures in current.finished}
    for figures in current.finished:
        results["time"]["stages"][figures["key"]] = figures.get("seconds")
        if "memory" in figures:  # of the last stage that has trained, as in a run that was never stopped
            results["memory"] = dict(figures["memory"])
            results["time"] |= figures["time"]
            results["effective_batch_size"] = figures.get("effective_batch_size")
            if not planned:
                results["strategy"] = dict(figures.get("strategy") or {})
    return any("memory" in figures for figures in current.finished)


def describe(current: Run) -> None:
    """What is known of the network as it stands."""
    results = current.results
    results["parameters"], results["macs"] = current.parameters, current.macs
    log.info(
        "model: %s, %s parameters, backprop %s", results["model"], f"{results['parameters']:,}", results["backprop"]
    )
    variation = getattr(current.network, "variation", None)
    if variation is not None and results["permutation"] is None:
        results["permutation"] = {"before": variation.before, "after": variation.after, "ratio": variation.ratio}
        log.info(
            "permuted: the total variation of the weights along their channels is %.1f %% of what it was",
            100 * variation.ratio,
        )


def estimated_peak(current: Run) -> int | None:
    """Bytes at the peak of a training step, traced without data; None for a network that cannot be traced.

    Takes 0.3 s (RevNet-38) to 1.6 s (RevNet-164) on a CPU core.
    """
    if current.cfg.backprop.name == "budget":
        return None  # its plan is an estimate already, made with times that are measured
    try:
        return int(estimate(current.taken(current.cfg), current.edits)["peak"])
    except Exception as error:  # a user's own network may do anything; the run does not depend on its estimate
        log.warning("memory: no estimate, as the network cannot be traced without data: %s", error)
        return None
