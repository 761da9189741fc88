"""Decoded images on disk, found again by what they were decoded from."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def folder() -> Path:
    """$MEMEXP_CACHE, or memexp in the user's cache directory."""
    if named := os.environ.get("MEMEXP_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memexp"


def key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:24]


def cached(name: str, make: Callable[[], dict[str, np.ndarray]], notes: list[str]) -> dict[str, np.ndarray]:
    """What `make` gives, kept under `name`. A damaged file is made again; a full disk costs the cache, not the run."""
    path = folder() / f"{name}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return {entry: file[entry] for entry in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            notes.append(f"the cache {path} is damaged ({error}) and is made again")
    arrays = make()
    aside = path.with_name(f"{path.name}.{os.getpid()}.aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(aside, path)
        notes.append(f"decoded images are cached in {path}")
    except OSError as error:
        aside.unlink(missing_ok=True)
        notes.append(f"decoded images could not be cached in {path.parent} ({error.strerror}); set MEMEXP_CACHE")
    return arrays
