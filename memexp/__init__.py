"""memexp: trains networks deeper than the memory of a GPU, and records accuracy beside peak memory and step time.

The names here are what the command line is a thin user of; torch is imported by the function that needs it. A configuration is
what `compose` gives, or a dict: groups by their option, keys nested or dotted, {"model": "resnet", "model.depth": 20}; what it
leaves out is as on the command line. `run`, `report` and `bench` are the functions of the modules of these names.
The library beside it, `memexp.backprop.apply` and all else in LIBRARY, needs no import of its own either.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from memexp.bench import bench
    from memexp.report import report
    from memexp.run import run

__all__ = ["bench", "build_model", "compose", "estimate", "evaluate", "experiments", "report", "resume", "run"]
LIBRARY = ("backprop", "fusing", "integral", "memory", "optim", "pruning")
__version__: str


def __getattr__(name: str) -> Any:
    """The library, and the modules that are called like functions (memexp.calling), imported when they are asked for."""
    if name in ("bench", "report", "run", *LIBRARY):
        return importlib.import_module(f"memexp.{name}")
    if name == "__version__":
        from memexp.version import version

        return version()
    raise AttributeError(f"module 'memexp' has no attribute {name!r}; there are {', '.join([*__all__, *LIBRARY])}")


def compose(
    overrides: Sequence[str] | str = (),
    config_dir: str | Path | Sequence[str | Path] = (),
    config_name: str = "config",
) -> DictConfig:
    """The validated configuration for these overrides, as `memexp train` would run it.

    overrides: ["model=resnet", "model.depth=20"], or as typed, "model=resnet model.depth=20". config_dir: one or several
    directories of your own configs. Raises memexp.config.ConfigError with every problem.
    """
    from memexp import config, given
    from memexp.sweeper import with_arm

    directories, name = given.directories("config_dir", config_dir), given.text("config_name", config_name)
    return config.compose(with_arm(given.words(overrides), name, directories), name, directories)


def build_model(cfg: DictConfig | Mapping[str, Any]) -> nn.Module:
    """The network that a configuration describes, on the CPU, freshly initialised."""
    from memexp import build
    from memexp.recorded import as_config

    return build.network(as_config(cfg))


def estimate(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Peak memory (bytes) and compute (MACs) of one training step of `cfg`; nothing is allocated and no data set is read."""
    from memexp.memory.estimate import estimate
    from memexp.recorded import as_config

    return estimate(as_config(cfg))


def resume(
    run: str | Path,
    overrides: Sequence[str] | str = (),
    config_dir: str | Path | Sequence[str | Path] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Goes on with the run in the directory `run`, as `memexp resume`; returns its results.

    config_dir, trust: where the run has classes or functions of your own. Raises ConfigError, with nothing changed, for an
    override that would make it another run.
    """
    from memexp import given, saved

    own = saved.Own(list(map(str, given.directories("config_dir", config_dir))), trust)
    there, words = given.path("run", run), given.words(overrides)
    from memexp.training.console import spoken

    with spoken():
        return saved.resume(there, words, own)


def evaluate(
    run: str | Path,
    overrides: Sequence[str] | str = (),
    split: str = "test",
    checkpoint: str = "last",
    config_dir: str | Path | Sequence[str | Path] = (),
    trust: bool = False,
) -> dict[str, Any]:
    """Accuracy (top1, top5 in per cent, loss) of a run's checkpoint on a split; `overrides` may name other data.

    checkpoint: last, best, or the key of a stage. Nothing in the run is changed. Otherwise as `resume`.
    """
    from memexp import given, saved

    own = saved.Own(list(map(str, given.directories("config_dir", config_dir))), trust)
    there, words = given.path("run", run), given.words(overrides)
    from memexp.training.console import spoken

    with spoken():
        return saved.evaluate(there, words, split, checkpoint, own)


def experiments(config_dir: str | Path | Sequence[str | Path] = ()) -> dict[str, str]:
    """The published results that are one command each: id -> what it is, those of your own directories of configs among them.

    Run one with compose("experiment=ID ...").
    """
    from memexp import given
    from memexp.paths import CONF
    from memexp.report.experiments import listing

    return dict(found for conf in (CONF, *given.directories("config_dir", config_dir)) for found in listing(conf))
