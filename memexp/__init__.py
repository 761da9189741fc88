"""memexp: trains networks deeper than the memory of a GPU, and records accuracy beside peak memory and step time.

The names here are what the command line is a thin user of; torch is imported by the function that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

__all__ = ["build_model", "compose", "estimate", "run"]


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()) -> DictConfig:
    """The validated configuration for these overrides. Raises memexp.config.ConfigError with every problem.

    config_dirs: directories of your own configs.
    """
    from memexp import config

    return config.compose(overrides, config_dirs=config_dirs)


def build_model(cfg: DictConfig) -> nn.Module:
    """The network that a configuration describes, on the CPU, freshly initialised."""
    from memexp import build

    return build.network(cfg)


def run(cfg: DictConfig, directory: Path | None = None) -> dict[str, Any]:
    """Trains and evaluates what `cfg` describes; returns what results.json of the run directory holds."""
    from memexp.run import run as carry_out

    return carry_out(cfg, directory)


def estimate(cfg: DictConfig) -> dict[str, Any]:
    """Peak memory and compute of one training step of `cfg`, of which nothing is allocated and no data set is read."""
    from memexp.memory.estimate import estimate

    return estimate(cfg)
