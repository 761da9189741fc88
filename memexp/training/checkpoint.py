"""Checkpoints: written aside, synced to disk and renamed, so that a reader sees the old file or the new one, never half.

Schema 2, a dict of tensors and plain data:

    config, classes, shape   of the run: they and the edits build the network that `model` is the state of
    fingerprint, mean, std   of the data that it was trained on; images are normalised by its mean and std of each channel
    teacher                  a number that stands for the weights of the network that it learns from, if any
    edits                    what has changed that network, in order (memexp.edits)
    stage, stages            key of the stage under way (None between two), and the figures of those that are done
    model, deployed          weights as training left them; as they are deployed, where they were averaged from those
    training                 of the stage under way: optimizer, scaler, average, progress (memexp.training.progress)
    random                   random states of every process
    appended                 bytes of the files that grow, at this moment: a resumed run goes back to exactly these
    checksums                of every tensor, by its place

A file of schema 1 is read as one of schema 2.
"""

import logging
import os
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memexp.training import form

SCHEMA = 2
log = logging.getLogger("memexp")


class CheckpointError(Exception):
    """A checkpoint that cannot be written, cannot be read, or is of another network. The message names the file."""


class Unreadable(CheckpointError):
    """A file that is not there, was cut short or is no checkpoint at all."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain data) to `path`; on any failure the file that was there stays as it was."""
    aside = path.with_name(path.name + ".aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)  # a link there would be followed
        with open(aside, "xb") as file:
            torch.save(state | {"checksums": checksums(state)}, file)
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
        raise Unreadable(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):  # whose words are how to execute what is in it
            reason = "it holds other things than tensors and plain data, and those are not read"
        raise Unreadable(
            f"checkpoint {path} cannot be read: it was cut short, damaged or not written by memexp ({reason})"
        ) from error
    if not isinstance(state, dict) or "model" not in state:
        raise CheckpointError(f"checkpoint {path} holds no 'model': it was not written by memexp")
    if state.get("schema") not in (None, 1, SCHEMA):
        raise CheckpointError(
            f"checkpoint {path} has schema {state['schema']!r}; this version reads 1 and {SCHEMA}: it is of a newer memexp"
        )
    expected = state.pop("checksums", None)
    if expected is not None and not form.checksums(expected):
        raise CheckpointError(_foreign(path, "checksums"))
    if expected is not None:
        found = checksums(state)
        if damaged := [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]:
            others = ", ".join(other.name for other in before(path)) or "none"
            raise CheckpointError(
                f"checkpoint {path} is damaged: {sorted(damaged)[0]} is not what was saved. Other checkpoints of the run, the "
                f"latest first: {others}; evaluate one with --checkpoint NAME, or go on from its copy as last.pt"
            )
    state = upgraded(state)
    if (field := form.misfit(state)) is not None:
        raise CheckpointError(_foreign(path, field))
    return state


def _foreign(path: Path, field: str) -> str:
    return f"checkpoint {path}: its field {field!r} is not one that memexp writes; it was changed, or is of another program"


def before(path: Path) -> list[Path]:
    """The other checkpoints beside `path`, the latest first, best.pt behind those that training goes on from."""
    others = [other for other in path.parent.glob("*.pt") if other != path]
    return sorted(others, key=lambda other: (other.name != "best.pt", other.stat().st_mtime_ns), reverse=True)


def load_last(path: Path, to_train: bool) -> tuple[Path, dict[str, Any]]:
    """The checkpoint `path`, or where it is gone or was cut short the latest other one of the run, which is said.

    to_train: only those that training can go on from. Raises CheckpointError where none can be read.
    """
    try:
        return path, load(path)
    except Unreadable as error:
        for other in before(path):
            if other.name == "best.pt" and to_train:
                continue
            try:
                state = load(other)
            except CheckpointError:
                continue
            log.warning("warning: %s; taking %s instead", error, other.name)
            return other, state
        remedy = "; start again with overwrite=true, or from best.pt's weights with init_from" if to_train else ""
        raise Unreadable(f"{error}; there is no other to go on from{remedy}") from error


def checksums(state: dict[str, Any]) -> dict[str, int]:
    """CRC-32 of each tensor's bytes, by its place in `state`."""
    return {name: zlib.crc32(_bytes(tensor)) for name, tensor in _tensors(state, "")}


def number_of(network: nn.Module) -> int:
    """One number that stands for all weights of a network."""
    return zlib.crc32(repr(sorted(checksums(dict(network.state_dict())).items())).encode())


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """`state` in the terms of schema 2."""
    if state.get("schema") == SCHEMA:
        return state
    training = {key: state.get(key) for key in ("optimizer", "scaler", "average", "progress")}
    random = state.get("random")
    return {
        "schema": SCHEMA,
        "config": None,
        "classes": None,
        "edits": [],
        "stage": "train",
        "stages": [],
        "model": state["model"],
        "training": training if state.get("progress") is not None else None,
        "random": [random] if random is not None else None,
        "appended": None,
    }


def _tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{place}.{index}")


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path, assign: bool = False) -> None:
    """Loads `weights` into `model`, or says how the two differ. assign: its tensors become the model's, without a copy."""
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is not in this network" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems += [  # an assigned tensor would change what the network computes in
        f"{key} is {weights[key].dtype}, not {own[key].dtype}"
        for key in own
        if key in weights and weights[key].dtype != own[key].dtype
    ]
    if problems:
        listed = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise CheckpointError(f"checkpoint {path} is of another network: {listed}")
    model.load_state_dict(weights, assign=assign)
