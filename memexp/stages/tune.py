"""Tuning: training gone on with, from the network as it stands, by a small recipe of its own."""

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf

from memexp import build
from memexp.stages import train
from memexp.stages.handed import Run
from memexp.training import distribution

log = logging.getLogger("memexp")


def carry_out(run: Run) -> dict[str, Any]:
    if run.cfg.tune.scratch and run.unfinished is None:
        _forget(run)
    return train.carry_out(run, recipe(run.cfg))


def recipe(cfg: DictConfig) -> DictConfig:
    """The configuration of the stage: the keys of `tune`, and for the rest those of training."""
    tune = cfg.tune
    own = {"epochs": tune.epochs, "max_steps": tune.max_steps, "optimizer": {"lr": tune.lr}}
    merged = OmegaConf.merge(cfg, own, {"schedule": {"warmup": tune.warmup}})
    assert isinstance(merged, DictConfig)
    return merged


def _forget(run: Run) -> None:
    """New weights for the network of these shapes: its family's, drawn anew and narrowed; masked ones stay zero."""
    new = build.network(build.without_files(run.cfg), run.edits)
    if any(edit["kind"] == "mask" for edit in run.edits):
        weights = dict(new.named_parameters())
        for name, weight in run.network.named_parameters():
            weights[name].data.masked_fill_(weight.detach().cpu() == 0, 0.0)
    run.network.load_state_dict(new.state_dict())
    distribution.same_weights(run.network, run.world)
    run.evaluation = run.trained = None
    log.info("new weights for the %s parameters that are left", f"{run.parameters:,}")
