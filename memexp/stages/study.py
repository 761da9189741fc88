"""A study: what an experiment measures without a training run (memexp.studies). It takes the place of all other stages."""

import importlib
import time
from typing import Any

from omegaconf import DictConfig

from memexp.record import RunDirectory


def carry_out(cfg: DictConfig, directory: RunDirectory, results: dict[str, Any]) -> None:
    """The study that `cfg.case.study` names; its figures go into the results."""
    started = time.perf_counter()
    figures: dict[str, Any] = importlib.import_module(f"memexp.studies.{cfg.case.study}").study(cfg, directory.path)
    results["accuracy"] = figures.pop("accuracy", None)  # of a study that classifies images
    results["study"] = figures
    results["parameters"] = figures.get("parameters")
    results["stages"] = [{"key": "study", "seconds": time.perf_counter() - started}]
