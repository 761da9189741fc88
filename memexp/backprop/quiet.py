"""Which modules draw no random numbers and write to no buffers but running statistics, so far as is known from their classes.

What is known need not be watched in the first pass, nor replayed in the second.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from torch import nn

# the files of torch.nn.modules whose layers are functions of their input, parameters and running statistics
QUIET = {
    "activation", "batchnorm", "container", "conv", "flatten", "fold", "instancenorm", "linear", "normalization", "padding",
    "pixelshuffle", "pooling", "upsampling",
}  # fmt: skip
STEPS = {f"memexp.backprop.{name}" for name in ("coupling", "euler", "heun")}
DRAWING = {nn.RReLU, nn.MultiheadAttention, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d}


@cache
def _home(kind: Any) -> str:
    """Of a class: "layer" of torch's that is known, or that says of itself that it is `quiet`, "step" of the engine, or ""."""
    if vars(kind).get("quiet") is True:
        return "layer"
    home, _, name = kind.__module__.rpartition(".")
    if home == "torch.nn.modules":
        return "layer" if name in QUIET and kind not in DRAWING else ""
    return "step" if kind.__module__ in STEPS else ""


def is_quiet(modules: Sequence[nn.Module], steps: Sequence[nn.Module]) -> bool:
    """Whether the modules draw no random numbers and write to no buffers but running statistics, so far as is known.

    A class says so of itself, but not of what it holds, by `quiet = True`. The engine's own steps do not, either; a branch that
    has some is another matter, as they would take it for theirs.
    """
    homes = {kind: _home(kind) for kind in set(map(type, modules))}
    if not all(homes.values()):
        return False
    # hooks, and a forward put in place of the class's own, are anybody's
    if any([m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules]):
        return False
    own = [module for module in modules if homes[type(module)] == "step"]
    return len(own) <= len(steps) and set(own) <= set(steps)


def survey(steps: Iterable[nn.Module]) -> list[nn.Module]:
    """All modules of the steps, as `modules()` gives them, without the names."""
    found: dict[nn.Module, None] = {}
    for step in steps:
        _collect(step, found)
    return list(found)


def _collect(part: nn.Module, found: dict[nn.Module, None]) -> None:
    if part in found:
        return
    found[part] = None
    for child in part._modules.values():
        if child is not None:
            _collect(child, found)
