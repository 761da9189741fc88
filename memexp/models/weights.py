"""Weights from a local file, read without executing anything in it."""

import logging
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger("memexp")


def load_file(network: nn.Module, path: Path, head: str) -> None:
    """Loads a state_dict (or a memexp checkpoint) into `network`.

    head: prefix of the classifier; where its shape differs in the file, it keeps its fresh weights and that is said.
    Raises ValueError naming the file when it cannot be read or is of another network.
    """
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"weights={path} cannot be read as PyTorch weights: {reason}") from error
    state = state.get("model", state)  # type: ignore[assignment]
    own = network.state_dict()
    for key in [k for k in state if k.startswith(f"{head}.") and k in own and state[k].shape != own[k].shape]:
        log.info("%s of %s has shape %s, not %s: freshly initialised", key, path, *map(_shape, (state[key], own[key])))
        state[key] = own[key]
    differing = [key for key in own.keys() | state.keys() if key not in own or key not in state]
    differing += [key for key in own if key in state and state[key].shape != own[key].shape]
    if differing:
        raise ValueError(f"weights={path} are of another network: {', '.join(sorted(differing)[:3])} differ")
    network.load_state_dict(state)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
