"""Weights from a local file, whoever wrote it, read without executing anything in it."""

import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("memexp")

INSIDE = ("model", "state_dict", "model_state_dict")  # where training scripts keep the weights in their checkpoints
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, DistributedDataParallel and averaged models; of torch.compile
# torchvision's DenseNet files are of a time when names might have dots in them
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception v3 for training alone


def load_file(network: nn.Module, path: Path, head: str) -> None:
    """Loads a state_dict, torchvision's or one of a memexp or other checkpoint, into `network`.

    head: prefix of the classifier; where its shape differs in the file, it keeps its fresh weights. That, names that were
    brought to today's form and tensors that are left out are said.
    Raises ValueError naming the file when it cannot be read or is of another network.
    """
    state = _renamed(_read(path), path)
    own = network.state_dict()
    for key in [k for k in state if k.startswith(f"{head}.") and k in own and state[k].shape != own[k].shape]:
        log.info("%s of %s has shape %s, not %s: freshly initialised", key, path, *map(_shape, (state[key], own[key])))
        state[key] = own[key]
    for key in own:  # files of before PyTorch 0.4.1 have none
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, own[key])
    if not hasattr(state, "_metadata") and state.keys() == own.keys():
        state._metadata = own._metadata  # type: ignore[attr-defined]  # today's names are of today's versions
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except (
        RuntimeError,
        ValueError,
    ) as error:  # shapes, and what a network of torchvision says of a version of its own
        differing = [key for key in own if key in state and state[key].shape != own[key].shape]
        reason = f"{_some(differing)} differ" if differing else str(error).splitlines()[-1].strip()
        raise ValueError(f"weights={path} are of another network: {reason}") from error
    spare = [key for key in unexpected if key.split(".")[0] in AUXILIARY or key == "n_averaged"]
    if differing := [*missing, *(key for key in unexpected if key not in spare)]:
        raise ValueError(f"weights={path} are of another network: {_some(differing)} differ")
    if spare:
        names = ", ".join(sorted({key.split(".")[0] for key in spare}))
        log.info("weights=%s: %s left out (%d tensors), as this network has none", path, names, len(spare))
    if any(key != "n_averaged" for key in spare):
        log.warning(
            "weights=%s: torchvision's own weights with such heads are for images of mean and deviation 0.5; if these are "
            "they, set dataset.mean=[0.5,0.5,0.5] dataset.std=[0.5,0.5,0.5]",
            path,
        )


def _read(path: Path) -> Mapping[str, Tensor]:
    """The state_dict of a file, wherever in it."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"weights={path} cannot be read as PyTorch weights: {reason}") from error
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"weights={path} hold a {type(found).__name__}, not a state_dict (names and their tensors)")
    if others := [key for key, value in found.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"weights={path} are no state_dict: {_some(others)} hold no tensor; the state_dict is looked for in "
            f"{', '.join(INSIDE)} and at the top"
        )
    return found


def _renamed(state: Mapping[str, Tensor], path: Path) -> OrderedDict[str, Tensor]:
    """`state` under today's names; the versions of its modules, which torch keeps beside it, stay with it."""
    prefix, names = "", [key for key in state if key != "n_averaged"]
    while more := [p for p in PREFIXES if names and all(key.startswith(prefix + p) for key in names)]:
        prefix += more[0]

    def today(key: str) -> str:
        return OLD_DENSENET.sub(r"\1\2", key.removeprefix(prefix))

    found = OrderedDict((today(key), value) for key, value in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        found._metadata = {today(f"{key}.").removesuffix("."): value for key, value in versions.items()}  # type: ignore[attr-defined]
    if changed := [(old, new) for old, new in zip(state, found, strict=False) if old != new]:
        log.info("weights=%s: %d names changed, such as %s to %s", path, len(changed), *changed[0])
    return found


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _some(keys: list[str]) -> str:
    return ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
