"""Configurations that a file of a run holds. They are data, perhaps a stranger's: checked like a command line, and nothing
they name is imported unless the user has named it again.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from memexp.choices import FIRST_WEIGHTS, GROUPS, INTEGRAL
from memexp.config import CONFIG_NAME, ConfigError, check_data, compose_unchecked, keys_of, validate
from memexp.record import as_json
from memexp.schema import nearest


def of_run(
    run: Path, overrides: Sequence[str] = (), trusted: Collection[str] = (), config_dirs: Sequence[str | Path] = ()
) -> DictConfig:
    """The configuration of the run in `run`, with `overrides`, as its results.json has it.

    Raises ConfigError for what is no run, and for every problem of its configuration.
    """
    path = run / "results.json"
    if not run.is_dir():
        raise ConfigError([f"{run}: there is no such run directory"])
    if not path.is_file():
        runs = [found for found in run.glob("**/results.json") if found.is_file()]
        last = max(runs, key=lambda found: found.stat().st_mtime, default=path).parent
        there = f" Below it are {len(runs)} runs, the last {last}." if runs else ""
        raise ConfigError([f"{run}: no run was started here (it has no results.json).{there}"])
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path} cannot be read: {str(error).splitlines()[0]}"]) from error
    plain = results.get("config") if isinstance(results, dict) else None
    if not isinstance(plain, dict):
        raise ConfigError([f"{path}: it holds no configuration, so the run was refused or is not of memexp"])
    if (own := targets(plain)) and own <= set(trusted):  # whose keys may hold anything
        plain = _typed(plain, run / ".hydra" / "config.yaml")
    return from_plain(plain, trusted, str(path), overrides, config_dirs)


def _typed(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    """`plain` as the YAML beside it has it, where that is the same: JSON has no infinities, and no keys but texts."""
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
    except Exception:  # gone, or changed by hand
        return plain
    return found if as_json(found) == plain else plain


def as_config(given: DictConfig | Mapping[str, Any]) -> DictConfig:
    """The validated configuration that a user's program gives: one that was composed, or a dict.

    A dict has groups by their option ("model": "resnet") or by their keys, nested or dotted. Raises ConfigError.
    """
    if OmegaConf.is_config(given):
        assert isinstance(given, DictConfig)
        validate(given)
        check_data(given)
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            [f"a configuration is what memexp.compose gives or a dict, and not {type(given).__name__} {given!r}"]
        )
    plain: dict[str, Any] = {}
    for key, value in sorted(((str(key), value) for key, value in given.items()), key=lambda item: item[0].count(".")):
        *way, last = key.split(".")
        node = plain
        for part in way:
            if not isinstance(node := node.setdefault(part, {}), dict):
                raise ConfigError(
                    [f"{key}: {part} is given as {node!r} already, which holds no keys; give one of them."]
                )
        node[last] = {"name": value} if not way and key in GROUPS and isinstance(value, str) else _plain(value)
    cfg = from_plain(plain, targets(plain), "the dict", new=True)
    check_data(cfg)
    return cfg


def _plain(value: Any) -> Any:
    """Paths as texts, numbers of numpy and torch as Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0:
        return value.item()
    return str(value) if isinstance(value, Path) else value


def from_plain(
    plain: Mapping[str, Any],
    trusted: Collection[str],
    source: str,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str | Path] = (),
    new: bool = False,
) -> DictConfig:
    """The validated configuration of plain data that was read from `source`; keys that are newer than it get their defaults.

    new: a run that is to begin; else one that is there, and did what its version did with these keys. trusted: targets
    (`_target_`) of the user's own that may be imported. overrides: GROUP=OPTION and KEY=VALUE of what is there. Raises
    ConfigError.
    """
    strange = sorted(targets(plain) - set(trusted))
    if strange:
        raise ConfigError(
            [
                f"{source} names {', '.join(map(repr, strange))}, which would be imported. If it is yours, name it again: "
                "--config-dir DIR with the config that names it, or --trust"
            ]
        )
    if (text := next((text for text in _texts(plain) if "${" in text), None)) is not None:
        raise ConfigError([f"{source} holds {text[:60]!r}; the configuration of a run has values only"])
    cfg = _completed(plain if new else _as_then(plain), source, {} if new else _before(plain))
    # a group as a whole, then its keys, in whatever order they were typed
    ordered = sorted(overrides, key=lambda text: text.partition("=")[0] not in GROUPS)
    problems = [problem for text in ordered if (problem := _amend(cfg, text, config_dirs)) is not None]
    if problems:
        raise ConfigError(problems)
    validate(cfg)
    return cfg


def targets(node: Any) -> set[str]:
    """Every `_target_` in nested dicts and lists."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, Mapping):
        own = {str(node["_target_"])} if "_target_" in node else set()
        return own.union(*(targets(value) for value in node.values()))
    if isinstance(node, list | tuple):
        return set().union(*(targets(item) for item in node))
    return set()


def targets_in(config_dirs: Sequence[str | Path]) -> set[str]:
    """Every `_target_` that the YAML files of the user's directories name."""
    found: set[str] = set()
    for directory in config_dirs:
        for path in Path(directory).rglob("*.yaml"):
            try:
                found |= targets(yaml.safe_load(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, yaml.YAMLError):
                continue  # what is wrong with it is told where it is composed
    return found


def _renamed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """`plain` with the keys of today for those that once had another name: prune=integral was discretise.keep."""
    found = dict(plain)
    discretise = found.get("discretise")
    if isinstance(discretise, Mapping) and "keep" in discretise:
        found["discretise"] = {key: value for key, value in discretise.items() if key != "keep"}
        if discretise["keep"] is not None and found.get("prune") is None:
            found["prune"] = {"name": INTEGRAL, "keep": discretise["keep"]}
    return found


def _as_then(plain: Mapping[str, Any]) -> dict[str, Any]:
    """`plain` without the first weights of a model that an earlier version allowed beside init_from, and did not read."""
    model = plain.get("model")
    if plain.get("init_from") is None or not isinstance(model, Mapping):
        return dict(plain)
    return {**plain, "model": {key: None if key in FIRST_WEIGHTS else model[key] for key in model}}


def _before(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What a run did that was written before there was the key, where that is not the default."""
    return {"precise_batchnorm": False, "dataset": {"draw": plain.get("seed", 0)}}  # its seed drew its images


def _completed(plain: Mapping[str, Any], source: str, before: Mapping[str, Any]) -> DictConfig:
    """`plain` with the defaults of the keys that it does not have, those of its own group options."""
    plain = _renamed(plain)
    options = [
        f"{group}={node['name']}"
        for group, known in GROUPS.items()
        if isinstance(node := plain.get(group), Mapping) and "_target_" not in node and node.get("name") in known
    ]
    # of a user's own, what every option has
    options += [f"~{group}" for group in GROUPS if isinstance(node := plain.get(group), Mapping) and "_target_" in node]
    base = _defaults(*options)
    try:
        merged = OmegaConf.merge(base, dict(before), dict(plain))
        resolved = OmegaConf.to_container(merged, resolve=True)
    except Exception as error:  # OmegaConf's exceptions have no common ancestor of their own
        raise ConfigError([f"{source}: its configuration cannot be read: {str(error).splitlines()[0]}"]) from error
    assert isinstance(resolved, dict)
    resolved.pop("hydra", None)
    return OmegaConf.create(resolved)


@cache
def _defaults(*options: str) -> DictConfig:
    """What these group options set, composed once however many runs are read; not to be changed."""
    found = compose_unchecked(options)
    OmegaConf.set_struct(found, False)  # a key that there is not is told by validation
    return found


def _amend(cfg: DictConfig, text: str, config_dirs: Sequence[str | Path]) -> str | None:
    """Carries one override out on `cfg`; what is wrong with it, or None."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        return f"'{text}' is not an override (key=value): {str(error).splitlines()[0]}"
    key = override.key_or_group
    if override.is_add() or override.is_force_add() or override.is_delete() or override.is_sweep_override():
        return f"'{text}' is not allowed for a run that is there: use key=value"
    value = override.value()
    if key in GROUPS:
        try:
            cfg[key] = compose_unchecked([f"{key}={value}"], CONFIG_NAME, config_dirs)[key]
        except ConfigError as error:
            return str(error)
        return None
    known = list(keys_of(cfg))
    if key not in known:
        return f"{key}: unknown key (from '{text}').{nearest(key, known)}"
    OmegaConf.update(cfg, key, value, merge=False)
    return None


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(str(key))
            yield from _texts(value)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _texts(item)
