"""Goes back to a run that is on disk: to resume it, or to evaluate its checkpoint."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from memexp.config import CONFIG_NAME, ConfigError, compose
from memexp.record import RunDirectory, read_json

log = logging.getLogger("memexp")


def find(path: Path) -> Path:
    """`path` if it is a run directory. Raises ConfigError saying what is there instead."""
    if not path.is_dir():
        raise ConfigError([f"{path}: there is no such run directory"])
    if not (path / ".hydra" / "overrides.yaml").is_file():
        runs = sorted(found.parent.parent for found in path.glob("**/.hydra/overrides.yaml"))
        there = f" Below it are {len(runs)} runs, the last {runs[-1]}." if runs else ""
        raise ConfigError([f"{path}: no run was started here (it has no .hydra/overrides.yaml).{there}"])
    return path


def config_of(path: Path, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration of the run in `path` with further overrides, and all overrides in order."""
    before = list(OmegaConf.load(find(path) / ".hydra" / "overrides.yaml"))
    hydra = OmegaConf.load(path / ".hydra" / "hydra.yaml").hydra
    directories = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    every = [str(text) for text in before] + list(overrides)
    return compose(every, hydra.job.config_name or CONFIG_NAME, directories), every


def resume(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Goes on with the run in `path`, in its own directory; a finished run is left as it is unless overrides extend it."""
    cfg, every = config_of(path, overrides)
    results = read_json(path / "results.json")
    if results is not None and results.get("status") == "done" and not overrides:
        log.info("%s is done already: nothing to resume", path)
        return results
    from memexp.runner import run

    return run(cfg, path, every, go_on=True)


def evaluate(path: Path, overrides: Sequence[str], split: str, checkpoint: str) -> dict[str, Any]:
    """Accuracy of a run's checkpoint on a split; `overrides` may name other data. Nothing in the run is changed."""
    cfg, _ = config_of(path, overrides)
    from memexp.runner import prepare
    from memexp.training import checkpoint as checkpoints
    from memexp.training import evaluation
    from memexp.training.distribution import World
    from memexp.training.signals import StopRequest

    file = path / "checkpoints" / f"{checkpoint}.pt"
    with StopRequest() as stop:
        trainer = prepare(cfg, RunDirectory(path), World(), stop)
        if checkpoint == "last":
            trainer.load(file)
            batches = trainer.splits.named(split)
            result = trainer.evaluate(batches)
        else:
            # best.pt holds the weights as they were evaluated, averaged or slow ones included
            checkpoints.load_weights(trainer.network, checkpoints.load(file)["model"], file)
            batches = trainer.splits.named(split)
            result = evaluation.evaluate(trainer.network, batches, trainer.precision, trainer.world, stop.check)
    return {**result.as_dict(), "split": split, "images": result.images, "checkpoint": str(file)}
