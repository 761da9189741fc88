"""What a shell offers when a person presses TAB behind `memexp`: commands, flags, paths, keys and their values."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from memexp import config, options, overriding, schema
from memexp.choices import GROUPS

PATHS = ("resume", "evaluate", "report", "export")  # commands that take run directories
NO_KEYS = ("report", "experiments")
FLAGS = {
    "train": ("--multirun", "--cfg", "--info", "--config-dir", "--config-name", "--help"),
    "estimate": ("--multirun", "--summary", "--json", "--config-dir", "--config-name", "--trust", "--help"),
    "bench": ("--strategies", "--budgets", "--steps", "--output", "--config-dir", "--config-name", "--help"),
    "resume": ("--config-dir", "--trust", "--help"),
    "evaluate": ("--split", "--checkpoint", "--config-dir", "--trust", "--help"),
    "export": ("--checkpoint", "--output", "--merge", "--config-dir", "--trust", "--help"),
    "report": ("--paper", "--format", "--output", "--no-plots", "--config-dir", "--help"),
    "experiments": ("--config-dir", "--help"),
}


def words(line: str, commands: Iterable[str]) -> list[str]:
    """The words that the last one of `line`, perhaps empty, may become; none where that is not known."""
    typed = line.split(" ")
    last, before = typed[-1], [word for word in typed[1:-1] if word]
    if not before:
        return [command for command in commands if command.startswith(last)]
    command = before[0]
    if last.startswith("-"):
        return [flag for flag in FLAGS.get(command, ("--help",)) if flag.startswith(last)]
    if before[-1] in ("--config-dir", "-cd", "--output"):
        return _paths(last)
    named = command in PATHS and (len(before) == 1 or command == "report")
    if "=" not in last and (named or "/" in last):
        return _paths(last)
    return [] if command in NO_KEYS else _overrides(last, _directories(before))


def _directories(before: list[str]) -> list[str]:
    pairs = itertools.pairwise(before)
    return [value for flag, value in pairs if flag in ("--config-dir", "-cd") and Path(value).is_dir()]


def _paths(start: str) -> list[str]:
    """Folders and files that begin so; a folder ends with a slash, so that one can go on."""
    folder, _, name = start.rpartition("/")
    place = Path(folder + "/" if start.startswith("/") else folder or ".").expanduser()
    if not place.is_dir():
        return []
    prefix = f"{folder}/" if "/" in start else ""
    hidden = name.startswith(".")
    found = sorted(path for path in place.iterdir() if path.name.startswith(name) and (hidden or path.name[0] != "."))
    return [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in found]


def _overrides(start: str, directories: list[str]) -> list[str]:
    key, equals, value = start.partition("=")
    if equals:
        *others, part = value.split(",")
        done = "".join(f"{other}," for other in others)
        return [f"{key}={done}{found}" for found in _values(key, directories) if found.startswith(part)]
    keys = [*overriding.groups(directories), *config.keys_of(config.compose_unchecked([], config_dirs=directories))]
    near = [found for found in dict.fromkeys(keys) if found.startswith(key) and not found.startswith("hydra")]
    depth = key.count(".")
    return sorted(
        {".".join(found.split(".")[: depth + 1]) + ("=" if found.count(".") == depth else ".") for found in near}
    )


def _values(key: str, directories: list[str]) -> list[str]:
    """Options of a group, or the values that a key may have where they are few."""
    if found := overriding.options_of(key, directories):
        return found
    cfg = config.compose_unchecked([], config_dirs=directories)
    group, _, name = key.rpartition(".")
    node = cfg.get(group) if group in GROUPS else None
    kind = GROUPS[group].get(str(node.get("name"))) if node is not None else options.Config
    return schema.choices(kind, name) if kind is not None else []
