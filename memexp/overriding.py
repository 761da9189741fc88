"""Overrides as they are typed: what each sets, to which values, what a sweep makes of several. Nothing here imports torch."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from memexp.choices import OPTIONAL
from memexp.paths import CONF, PACKAGE, PART
from memexp.schema import nearest

# What is typed of one value without quotes: no list or table, no choice(...), no ${...}, no comma.
ONE_VALUE = re.compile(r"""(?![\[{'"]|\w+\()[^,$\n]*""")
# Hydra finds plugins by walking the namespace package hydra_plugins over sys.path.
sys.path.append(str(PACKAGE / "plugins"))


class ConfigError(ValueError):
    """One or more problems in the configuration."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


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


def quoted(text: str) -> str:
    """The text as a value of an override, whatever is in it. A backslash stands for itself, but for those before a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), text) + "'"


def readable(text: str) -> str:
    """An override as it was typed, for Hydra: in quotes where its grammar has no place for the value, as ~/data or a=b. Lists,
    tables, functions, interpolations and several values stay as they are, and so does what is no override for its key.
    """
    key, equals, value = text.partition("=")
    parser = OverridesParser.create()
    for found in (text, f"{key}={quoted(value)}"):
        try:
            parser.parse_override(found)
        except HydraException:
            if not (equals and ONE_VALUE.fullmatch(value)):
                return text
        else:
            return found
    return text


OmegaConf.register_new_resolver("memexp.quoted", quoted, replace=True)  # for the cases of experiments


@contextmanager
def loading(config_dirs: Sequence[str | Path]) -> Iterator[ConfigLoader]:
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


def sorted_out(loader: ConfigLoader, overrides: list[str]) -> tuple[list[str], list[str], list[tuple[str, Override]]]:
    """Problems with syntax and group options; the sound group overrides; the overrides of values."""
    problems: list[str] = []
    groups: list[str] = []
    values: list[tuple[str, Override]] = []
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            told = one_line(error)
            remedy = "; in quotes any text can stand, as in key=['a=b',c]" if "token recognition" in told else ""
            problems.append(f"'{text}' is not an override (key=value): {told}{remedy}")
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
            if override.value() is None and group in OPTIONAL:
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
    return [name for name in own if name != PART] + nested


def groups(config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """The names of the groups, the user's own among them."""
    with loading(config_dirs) as loader:
        return loader.get_group_options("", results_filter=ObjectType.GROUP)


def options_of(group: str, config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """The options of a group; none where it is not one."""
    with loading(config_dirs) as loader:
        return _options(loader, group) if group else []


def parser(config_dirs: Sequence[str | Path] = ()) -> OverridesParser:
    """It knows the options of groups, for a glob."""
    with loading(config_dirs) as loader:
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


def jobs(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> list[list[str]]:
    """The overrides of each job of a basic sweep; an interval stands there with its ends."""
    choices: list[list[str]] = [[]]
    known = parser(config_dirs)
    for text in overrides:
        choices = [job + [value] for job in choices for value in values_of(known, text, ends=True)]
    return choices


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
