"""Arrays on disk that would take long to make again. Whatever goes wrong with it costs time, not the run."""

import contextlib
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from memexp.data.errors import reason, shown

Contents = dict[str, np.ndarray]


def folder() -> Path | None:
    """$MEMEXP_CACHE, or memexp in the user's cache directory; None for a user without a home."""
    try:
        if named := os.environ.get("MEMEXP_CACHE"):
            return Path(named).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memexp"
    except RuntimeError:
        return None


def key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:24]


def cached(name: str, make: Callable[[], Contents], notes: list[str], sound: Callable[[Contents], bool]) -> Contents:
    """What `make` gives, kept under `name`. What is not `sound` is made again."""
    if (found := load(name, notes)) is not None:
        try:
            if sound(found):
                return found
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            pass
        notes.append(f"the cache {name} in {folder()} is not what it should be and is made again")
    arrays = make()
    if (path := save(name, arrays, notes)) is not None:
        notes.append(f"decoded images are cached in {shown(path)}")
    return arrays


def load(name: str, notes: list[str]) -> Contents | None:
    """What was kept under `name`, or None, with a note where something is there that cannot be read."""
    if (place := folder()) is None:
        return None
    path = place / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {entry: file[entry] for entry in file.files}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        notes.append(f"the cache {shown(path)} cannot be read ({reason(error)}) and is not used")
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        notes.append(f"the cache {shown(path)} is damaged ({reason(error)}) and is made again")
    return None


def save(name: str, arrays: Contents, notes: list[str]) -> Path | None:
    """Keeps arrays under `name`; returns where, or None with a note where there is no place for them."""
    if (place := folder()) is None:
        notes.append(
            "nothing is cached, as this user has no home directory; set MEMEXP_CACHE=DIR to be faster next time"
        )
        return None
    path = place / f"{name}.npz"
    aside = place / f"{name}.{secrets.token_hex(4)}.aside"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with open(aside, "xb") as file:  # a file of its own, whatever lies or links there
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(aside, path)
        return path
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        notes.append(
            f"nothing could be cached in {shown(place)} ({reason(error)}); set MEMEXP_CACHE to a place to write"
        )
        return None
