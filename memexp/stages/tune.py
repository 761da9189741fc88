"""Tuning: training gone on with, from the network as it stands, by a small recipe of its own."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from memexp.stages import train
from memexp.stages.handed import Run


def carry_out(run: Run) -> dict[str, Any]:
    return train.carry_out(run, recipe(run.cfg))


def recipe(cfg: DictConfig) -> DictConfig:
    """The configuration of the stage: the keys of `tune`, and for the rest those of training."""
    tune = cfg.tune
    own = {"epochs": tune.epochs, "max_steps": tune.max_steps, "optimizer": {"lr": tune.lr}}
    merged = OmegaConf.merge(cfg, own, {"schedule": {"warmup": tune.warmup}})
    assert isinstance(merged, DictConfig)
    return merged
