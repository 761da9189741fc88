"""Composes the configuration of a run and checks all of it. Nothing here imports torch.

`compose` turns overrides into a configuration; `validate` finds every problem in one; `first_valid` looks at the jobs of a
sweep. All problems come in one `ConfigError`, each with the key, its value, what is allowed and, for a misspelling, the nearest
name.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from memexp import contradictions, userfiles
from memexp.options import STARTS
from memexp.paths import CONF, PACKAGE
from memexp.schema import nearest
from memexp.unread import unread

CONFIG_NAME = "config"
# What Hydra and OmegaConf raise for a configuration that cannot be composed, and what they let through.
REFUSED = (HydraException, OmegaConfBaseException, ValueError, TypeError, OSError, yaml.YAMLError, RecursionError)
# Hydra finds plugins by walking the namespace package hydra_plugins over sys.path.
sys.path.append(str(PACKAGE / "plugins"))


class ConfigError(ValueError):
    """One or more problems in the configuration."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


def compose(
    overrides: Sequence[str] = (), config_name: str = CONFIG_NAME, config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """The validated configuration for these overrides, as `memexp train` would run it.

    `config_dirs` are directories of a user's own configs. Raises ConfigError with every problem found.
    """
    problems, cfg = _try_compose(list(overrides), config_name, config_dirs)
    if cfg is not None:
        problems += [*_problems(cfg), *_missing_start(cfg)]
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
    """The configuration of the first of a sweep's jobs that has a valid one. Raises ConfigError with every problem of all.

    Where any of them is valid, the invalid ones are recorded as failed, and the others go on.
    """
    problems: list[str] = []
    for job in planned:
        try:
            return compose(job, config_name, config_dirs)
        except ConfigError as error:
            problems += error.problems
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
    with _hydra(config_dirs):
        settings = hydra_compose(config_name, list(overrides), return_hydra_config=True).hydra.sweeper
        found = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(found, dict)
    return found


def of_no_option(overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]) -> list[str]:
    """The overrides whose keys nothing that is chosen has: those of options that only a sweep's jobs choose, such as
    prune.ratio=0.2 of an experiment whose cases choose the criteria, and misspelt ones.
    """
    with _hydra(config_dirs) as loader:
        try:
            hydra_compose(config_name, list(overrides))
        except REFUSED:
            _, groups, values = _sorted_out(loader, list(overrides))
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


def quoted(text: str) -> str:
    """The text as a value of an override, whatever is in it. A backslash stands for itself, but for those before a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), text) + "'"


OmegaConf.register_new_resolver("memexp.quoted", quoted, replace=True)  # for the cases of experiments


@contextmanager
def _hydra(config_dirs: Sequence[str | Path]) -> Iterator[ConfigLoader]:
    """Hydra's loader over conf/ and the user's directories."""
    state = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search = create_config_search_path(str(CONF))
    for directory in config_dirs:  # absolute, as one may be given relative to where the command was typed
        search.prepend("command-line", f"file://{Path(directory).absolute()}", anchor="schema")
    try:
        Hydra.create_main_hydra2("memexp", search)
        yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = state  # what a caller had initialised is theirs


def _try_compose(
    overrides: list[str], config_name: str, config_dirs: Sequence[str | Path]
) -> tuple[list[str], DictConfig | None]:
    """The configuration, and the problems that kept overrides out of it."""
    missing = [f"--config-dir: there is no directory {path}" for path in config_dirs if not Path(path).is_dir()]
    missing += _lists(overrides)
    if missing:
        return missing, None
    with _hydra(config_dirs) as loader:
        try:
            return [], hydra_compose(config_name, overrides)
        except REFUSED as error:
            first = one_line(error)
        problems, groups, values = _sorted_out(loader, overrides)
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


def _sorted_out(loader: ConfigLoader, overrides: list[str]) -> tuple[list[str], list[str], list[tuple[str, Override]]]:
    """Problems with syntax and group options; the sound group overrides; the overrides of values."""
    problems: list[str] = []
    groups: list[str] = []
    values: list[tuple[str, Override]] = []
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            problems.append(f"'{text}' is not an override (key=value): {one_line(error)}")
            continue
        group = override.key_or_group
        if not group:
            problems.append(f"'{text}' is not an override (key=value): it names no key.")
            continue
        if override.is_sweep_override():
            told = text.partition("=")[2]
            problems.append(f"{group}: {told!r} is several values; -m sweeps over them, and [{told}] would be a list.")
            continue
        options = _options(loader, group)
        if not options or "." in group:
            values.append((text, override))
        elif override.is_delete() or str(override.value()) in options:
            groups.append(text)
        else:
            if override.value() is None and group in contradictions.OPTIONAL:
                problems.append(
                    f"{group}: null is no option; leave {group} out, or take an experiment's away with ~{group}."
                )
                continue
            word = str(override.value())
            problems.append(f"{group}: '{word}' is not one of {', '.join(options)}.{nearest(word, options)}")
    return problems, groups, values


def _options(loader: ConfigLoader, group: str) -> list[str]:
    """The options of a group, those in folders below it (experiment=revnet/table3) included."""
    nested = [
        f"{folder}/{option}"
        for folder in loader.get_group_options(group, results_filter=ObjectType.GROUP)
        for option in _options(loader, f"{group}/{folder}")
    ]
    own = loader.get_group_options(group, results_filter=ObjectType.CONFIG)
    return [name for name in own if name != "settings"] + nested  # which is a part of the others


def groups(config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """The names of the groups, the user's own among them."""
    with _hydra(config_dirs) as loader:
        return loader.get_group_options("", results_filter=ObjectType.GROUP)


def options_of(group: str, config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """The options of a group; none where it is not one."""
    with _hydra(config_dirs) as loader:
        return _options(loader, group) if group else []


def jobs(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> list[list[str]]:
    """The overrides of each job of a basic sweep; an interval stands there with its ends."""
    choices: list[list[str]] = [[]]
    known = parser(config_dirs)
    for text in overrides:
        choices = [job + [value] for job in choices for value in values_of(known, text, ends=True)]
    return choices


def parser(config_dirs: Sequence[str | Path] = ()) -> OverridesParser:
    """It knows the options of groups, for a glob."""
    with _hydra(config_dirs) as loader:
        return OverridesParser.create(config_loader=loader)


def key_of(parser: OverridesParser, text: str) -> str:
    """The key of an override as it was typed, "+" and "~" included; the text itself where it is none."""
    try:
        return str(parser.parse_override(text).get_key_element())
    except HydraException:
        return text


def values_of(parser: OverridesParser, text: str, ends: bool = False) -> list[str]:
    """Each value of one override, as an override. ends: of an interval its two ends; else it is refused by a ConfigError."""
    try:
        (override,) = parser.parse_overrides([text])  # which knows the loader, for a glob
        if not override.is_sweep_override():
            return [text]
        key = override.get_key_element()
        if isinstance(interval := override.value(), IntervalSweep):
            if ends:
                return [f"{key}={end}" for end in (interval.start, interval.end)]
            advice = "give a list, or choose hydra/sweeper=optuna"
            raise ConfigError([f"{key}: an interval cannot be swept in full; {advice}."])
        values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException:
        return [text]  # compose says what is wrong with it
    if not values:
        raise ConfigError([f"{key}: nothing fits '{text}', so that there are no jobs."])
    return values


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that are given several values, each once."""
    return list(dict.fromkeys(key for key, swept in _keys(overrides) if swept))


def constant_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that have the same value in every job of a sweep."""
    found = list(_keys(overrides))
    swept = {key for key, several in found if several}
    return list(dict.fromkeys(key for key, _ in found if key not in swept))


def _keys(overrides: Sequence[str]) -> Iterator[tuple[str, bool]]:
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            continue  # compose says what is wrong with it
        yield override.key_or_group, override.is_sweep_override()


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


def one_line(error: Exception) -> str:
    """What Hydra or OmegaConf says, without its own notes."""
    if isinstance(error, RecursionError):
        return "the defaults lists of the configs lead in a circle: one of them names a config that names it again"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: no YAML: {error.problem}"
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and "full_key" not in line and not line.startswith("object_type="))
    if text.startswith("Error merging override") and isinstance(error.__cause__, OmegaConfBaseException):
        text += f": {str(error.__cause__).splitlines()[0]}"
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key and key not in text else text or type(error).__name__
