"""The stages of a run, one a module: `carry_out(run) -> figures` for results.json. memexp.run calls them in order."""

import importlib
from typing import Any

from omegaconf import DictConfig

from memexp.models import families
from memexp.sequence import keys, stage_of
from memexp.stages.handed import Run

__all__ = ["Run", "carry_out", "check_images", "foresee"]


def foresee(cfg: DictConfig) -> None:
    """Raises ConfigError for what a stage of `cfg` would refuse whatever weights it is given, before anything is trained."""
    from memexp import build
    from memexp.stages import train

    train.foresee(cfg)
    if keys(cfg) != ["study"]:  # some measure a network alone
        check_images(cfg)
    build.foresee(cfg)
    edits = build.start_edits(cfg)
    integral = families.of(cfg.model).integral
    if cfg.prune is None and not integral and not {"deploy", "grow"} & set(map(stage_of, keys(cfg))):
        return
    from memexp.stages import deploy, discretise, prune

    for stage in (prune, discretise, deploy):
        stage.foresee(cfg, edits)


def check_images(cfg: DictConfig) -> None:
    """Raises ConfigError for what can be told of the data set of `cfg` before an image is read."""
    from memexp import data
    from memexp.config import ConfigError

    try:
        data.foresee(cfg.dataset)
    except data.DataError as error:
        raise ConfigError([str(error)]) from error


def carry_out(run: Run) -> dict[str, Any]:
    """The stage of `run.key`; its figures."""
    figures: dict[str, Any] = importlib.import_module(f"memexp.stages.{stage_of(run.key)}").carry_out(run)
    return figures
