"""What a user's program hands to the functions of the package: texts, paths and lists of them, as the command line types them.

What is of another kind is a ConfigError that names the argument, its value and what it takes.
"""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn


def words(overrides: Any) -> list[str]:
    """Overrides as a list: of texts, or of one as it would be typed."""
    if isinstance(overrides, str):
        try:
            overrides = shlex.split(overrides)
        except ValueError as error:
            refuse("overrides", overrides, f"a text whose quotes are closed ({error})")
    found = texts("overrides", overrides, "texts such as 'seed=3', in a list or as one text")
    from memexp.overriding import readable  # Hydra takes its time to import

    return list(map(readable, found))


def texts(name: str, values: Any, takes: str) -> list[str]:
    """A list of texts."""
    several = isinstance(values, Iterable) and not isinstance(values, str | Mapping)
    found: list[Any] = list(values) if several else [None]
    if not all(isinstance(value, str) for value in found):
        refuse(name, values, takes)
    return found


def text(name: str, value: Any) -> str:
    """One text."""
    if not isinstance(value, str):
        refuse(name, value, "a text")
    return value


def path(name: str, value: Any) -> Path:
    """One path."""
    if not isinstance(value, str | os.PathLike):
        refuse(name, value, "a path")
    return Path(value)


def paths(name: str, values: Any) -> list[Path]:
    """One path or several."""
    several = not isinstance(values, str | os.PathLike) and isinstance(values, Iterable)
    return [path(name, value) for value in (values if several else [values])]


def directories(name: str, values: Any) -> list[Path]:
    """One directory that is there, or several."""
    found = paths(name, values)
    for directory in found:
        if not directory.is_dir():
            refuse(name, str(directory), "directories that are there")
    return found


def count(name: str, value: Any, least: int) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        refuse(name, value, f"a whole number, at least {least}")
    return value


def refuse(name: str, value: Any, takes: str) -> NoReturn:
    """Raises the ConfigError."""
    from memexp.config import ConfigError  # Hydra takes its time to import

    told = repr(value)
    raise ConfigError([f"{name}: {told if len(told) <= 80 else f'{told[:77]}...'} is not allowed; it takes {takes}."])
