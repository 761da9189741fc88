"""Checkpoints: written aside, synced to disk and renamed, so that a reader sees the old file or the new one, never half."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn


class CheckpointError(Exception):
    """A checkpoint that cannot be written, cannot be read, or is of another network. The message names the file."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain data) to `path`; on any failure the file that was there stays as it was."""
    aside = path.with_name(path.name + ".aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_directory(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        aside.unlink(missing_ok=True)
        raise CheckpointError(
            f"checkpoint {path} could not be written ({error}); the one before it is untouched. "
            "Free space or choose another output directory, then `memexp resume` the run."
        ) from error


def sync_directory(path: Path) -> None:
    """Makes a rename in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU with `weights_only=True`: nothing in the file is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"checkpoint {path} cannot be read: it was cut short, damaged or not written by memexp ({reason})"
        ) from error
    if not isinstance(state, dict) or "model" not in state:
        raise CheckpointError(f"checkpoint {path} holds no 'model': it was not written by memexp")
    return state


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Loads `weights` into `model`, or says how the two differ."""
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is not in this network" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        listed = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise CheckpointError(f"checkpoint {path} is of another network: {listed}")
    model.load_state_dict(weights)
