"""Studies: what an experiment measures without a training run, chosen by `case.study`.

A study is `study(cfg, directory) -> {figure: number}`; its figures go to results.json under "study" and into the report's
table, its plots to plots/ of the run directory.
"""

import importlib
from pathlib import Path

from omegaconf import DictConfig


def carry_out(cfg: DictConfig, directory: Path) -> dict[str, float]:
    """The study that `cfg.case.study` names, one of memexp.schema.STUDIES."""
    module = importlib.import_module(f"memexp.studies.{cfg.case.study}")
    figures: dict[str, float] = module.study(cfg, directory)
    return figures
