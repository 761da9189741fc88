"""Composes the configuration of a run and checks all of it. Nothing here imports torch.

`compose` turns overrides into a configuration; `validate` finds every problem in one; `first_valid` looks at the jobs of a
sweep. All problems come in one `ConfigError`, each with the key, its value, what is allowed and, for a misspelling, the nearest
name.
"""

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from memexp import contradictions, userfiles
from memexp.choices import STARTS
from memexp.overriding import ConfigError, loading, one_line, sorted_out
from memexp.schema import nearest
from memexp.unread import unread

CONFIG_NAME = "config"
# What Hydra and OmegaConf raise for a configuration that cannot be composed, and what they let through.
REFUSED = (HydraException, OmegaConfBaseException, ValueError, TypeError, OSError, yaml.YAMLError, RecursionError)


def compose(
    overrides: Sequence[str] = (), config_name: str = CONFIG_NAME, config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """The validated configuration for these overrides, as `memexp train` would run it.

    `config_dirs` are directories of a user's own configs. Raises ConfigError with every problem found.
    """
    problems, cfg = _try_compose(list(overrides), config_name, config_dirs)
    if cfg is not None:
        problems += [*_problems(cfg), *_missing_start(cfg), *_missing_data(cfg)]
    if problems or cfg is None:
        raise ConfigError(_located(problems, overrides, config_name, config_dirs))
    return cfg


def _located(
    problems: Sequence[str], overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]
) -> list[str]:
    """The problems, with the user's own files and their lines."""
    chosen = (text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    names = [config_name, *("/".join((key.partition("@")[0], option)) for key, option in chosen)]
    return userfiles.located(problems, names, config_dirs)


def _missing_start(cfg: DictConfig) -> list[str]:
    """Of a new run alone: one that is on disk has its own checkpoints, wherever that run has gone since."""
    groups = {key: cfg.get(key.partition(".")[0]) if "." in key else cfg for key in STARTS}
    named = {key: OmegaConf.select(cfg, key) for key, group in groups.items() if isinstance(group, DictConfig)}
    missing = [
        f"{key}: there is no run in {start!r}; name a run directory, which has a results.json."
        for key, start in named.items()
        if isinstance(start, str) and not (Path(start) / "results.json").is_file()
    ]
    weights = OmegaConf.select(cfg, "model.weights") if isinstance(cfg.get("model"), DictConfig) else None
    if isinstance(weights, str) and "_target_" not in cfg.model and not Path(weights).is_file():
        missing.append(f"model.weights: there is no file {weights!r}; name the one that holds the weights.")
    return missing


def _missing_data(cfg: DictConfig) -> list[str]:
    dataset = cfg.get("dataset")
    if not isinstance(dataset, DictConfig) or "_target_" in dataset or dataset.get("download"):
        return []
    root = dataset.get("root")
    if not isinstance(root, str) or Path(root).expanduser().is_dir():
        return []
    name = dataset.get("name")
    return [f"dataset.root: there is no folder {root!r}; name the one that holds the images of dataset={name}."]


def check_data(cfg: DictConfig) -> None:
    """Raises ConfigError where images are to be read and their folder is not there. A run whose images have gone since, or that
    was trained on another machine, is sound nevertheless: others start and learn from it, and it is evaluated on what is named.
    """
    if problems := _missing_data(cfg):
        raise ConfigError(problems)


def compose_unchecked(
    overrides: Sequence[str], config_name: str = CONFIG_NAME, config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """The configuration for these overrides, whatever its values. Raises ConfigError where it cannot be composed."""
    problems, cfg = _try_compose(list(overrides), config_name, config_dirs)
    problems = _located(problems, overrides, config_name, config_dirs)
    if problems or cfg is None:
        raise ConfigError(problems)
    return cfg


def validate(cfg: DictConfig) -> None:
    """Raises ConfigError with every problem of an already composed configuration."""
    if problems := _problems(cfg):
        raise ConfigError(problems)


def first_valid(
    planned: Iterable[Sequence[str]], config_name: str = CONFIG_NAME, config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """The configuration of the first of a sweep's jobs that has a valid one. Raises ConfigError with every problem of all; that
    a run to start from is not there is none where another of the jobs makes it.

    Where any of them is valid, the invalid ones are recorded as failed, and the others go on.
    """
    problems: list[str] = []
    jobs = list(map(list, planned))
    folders = {text.partition("=")[2] for job in jobs for text in job if text.startswith("hydra.sweep.subdir=")}
    for job in jobs:
        try:
            return compose(job, config_name, config_dirs)
        except ConfigError as error:
            named = (text.partition("=") for text in job)
            made = tuple(
                f"{key}: there is no run"
                for key, _, start in named
                if key in STARTS and any(start.strip("'").endswith(f"/{folder}") for folder in folders)
            )
            problems += [problem for problem in error.problems if not problem.startswith(made)]
    raise ConfigError(problems)


def sweeper_of(overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]) -> dict[str, Any]:
    """The settings of `hydra.sweeper`; none where they cannot be composed, of which `compose` tells."""
    try:
        found = _sweeper_of(overrides, config_name, config_dirs)
    except REFUSED:
        left = of_no_option(overrides, config_name, config_dirs)
        try:
            found = (
                _sweeper_of([text for text in overrides if text not in left], config_name, config_dirs) if left else {}
            )
        except REFUSED:
            return {}
    return {str(key): value for key, value in found.items()}


def _sweeper_of(overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]) -> dict[Any, Any]:
    with loading(config_dirs):
        settings = hydra_compose(config_name, list(overrides), return_hydra_config=True).hydra.sweeper
        found = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(found, dict)
    return found


def of_no_option(overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]) -> list[str]:
    """The overrides whose keys nothing that is chosen has: those of options that only a sweep's jobs choose, such as
    prune.ratio=0.2 of an experiment whose cases choose the criteria, and misspelt ones.
    """
    with loading(config_dirs) as loader:
        try:
            hydra_compose(config_name, list(overrides))
        except REFUSED:
            _, groups, values = sorted_out(loader, list(overrides))
        else:
            return []
        try:
            known = set(keys_of(hydra_compose(config_name, groups)))
        except REFUSED:
            return []
    return [text for text, override in values if _is_new(override, known)]


def _is_new(override: Override, known: Collection[str]) -> bool:
    """Whether it sets a key that is not there, without the + that would add it."""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    return plain and override.key_or_group not in known and not override.key_or_group.startswith("hydra.")


def config_hash(cfg: DictConfig) -> str:
    """Eight hex digits that stand for everything in the configuration that makes it this run."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    for key in ("hydra", "overwrite"):
        plain.pop(key, None)
    resolved = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, default=str).encode()).hexdigest()[:8]


def run_name(cfg: DictConfig) -> str:
    """<time>-<model>-<depth>-<strategy>-<hash>: the directory of a single run, by which TensorBoard tells curves apart."""
    depth = None if "model.depth" in unread(cfg) else cfg.model.get("depth")
    parts = (cfg.model.get("name") or cfg.model.get("_target_"), depth, cfg.backprop.name)
    told = "-".join(re.sub(r"[^\w.]+", "_", str(part)) for part in parts if part is not None)
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{told[:80]}-{config_hash(cfg)}"


def _try_compose(
    overrides: list[str], config_name: str, config_dirs: Sequence[str | Path]
) -> tuple[list[str], DictConfig | None]:
    """The configuration, and the problems that kept overrides out of it."""
    missing = [f"--config-dir: there is no directory {path}" for path in config_dirs if not Path(path).is_dir()]
    missing += _lists(overrides)
    if missing:
        return missing, None
    with loading(config_dirs) as loader:
        try:
            return [], hydra_compose(config_name, overrides)
        except REFUSED as error:
            first = one_line(error)
        problems, groups, values = sorted_out(loader, overrides)
        try:
            cfg = hydra_compose(config_name, groups)
        except REFUSED as error:
            return [*problems, one_line(error)], None
        known = list(keys_of(cfg))
        accepted = []
        for text, override in values:
            key = override.key_or_group
            if _is_new(override, known):
                problems.append(f"{key}: unknown key (from '{text}').{nearest(key, known)}")
            else:
                accepted.append(text)
        try:
            cfg = hydra_compose(config_name, groups + accepted)
        except REFUSED as error:
            problems.append(one_line(error))
        return problems or [first], cfg


def _lists(overrides: Sequence[str]) -> Iterator[str]:
    """Groups that are given a list: Hydra would lay its options one over the other, and the last would win unseen."""
    for text in overrides:
        key, _, value = text.partition("=")
        if key in (*contradictions.GROUPS, "experiment") and value.lstrip().startswith("["):
            yield f"{key}: {value} is a list of options; choose one, or sweep over them with -m {key}={value.strip(' []')}."


def keys_of(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration, by its dotted path."""
    for key in map(str, node):
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none():
                yield from keys_of(child, f"{prefix}{key}.")


def _problems(cfg: DictConfig) -> list[str]:
    """Everything wrong with the values; an interpolation that leads nowhere is told once, by its key."""
    found: list[str] = []
    resolved: dict[str, Any] = {}
    unresolved = []
    for key in map(str, cfg):
        if key == "hydra":
            continue
        try:
            value = "???" if OmegaConf.is_missing(cfg, key) else cfg[key]
            resolved[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            found.append(one_line(error))
            unresolved.append(key)
    told = contradictions.problems(resolved)
    if any(problem.startswith("scale:") for problem in told):  # what an experiment has for each scale, too
        found = [problem for problem in found if "'case." not in problem]
    known = [problem for problem in told if problem.split(":")[0] not in unresolved]
    # what a key takes over from another is told at the other
    own = [problem for problem in known if not _taken_over(cfg, problem.split(":")[0])]
    return [*found, *(own or known)]


def _taken_over(cfg: DictConfig, key: str) -> bool:
    group, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, group, throw_on_missing=False) if group else cfg
    return isinstance(node, DictConfig) and name in node and OmegaConf.is_interpolation(node, name)
