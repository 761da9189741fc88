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
# the same of blocks of torchvision's
BLOCKS = {f"torchvision.{name}" for name in ("models.resnet", "models.mobilenetv2", "models.regnet", "ops.misc")}
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
    if kind.__module__ in BLOCKS and kind.forward.__module__.startswith(("torch.nn.", "torchvision.")):  # not replaced
        return "layer"
    return "step" if kind.__module__ in STEPS else ""


def is_quiet(modules: Sequence[nn.Module], steps: Sequence[nn.Module]) -> bool:
    """Whether the modules draw no random numbers and write to no buffers but running statistics, so far as is known.

    A class says so of itself, but not of what it holds, by `quiet = True`. The engine's own steps do not, either; a branch that
    has some is another matter, as they would take it for theirs.
    """
    types = list(map(type, modules))
    kinds = set(types)
    if not all(map(_home, kinds)):
        return False
    # hooks, and what stands in place of the class's own forward or of a parameter (computed from others, maybe), are anybody's
    if any([m._forward_hooks or m._forward_pre_hooks for m in modules]):
        return False
    places = [m.__dict__ for m in modules] + [m._buffers for m in modules if m._buffers]
    if any(["forward" in own or "weight" in own or "bias" in own for own in places]):
        return False
    of_engine = {kind for kind in kinds if _home(kind) == "step"}
    return sum(map(types.count, of_engine)) == sum([type(step) in of_engine for step in set(steps)])


def survey(steps: Iterable[nn.Module]) -> dict[nn.Module, slice | None]:
    """All modules of the steps, in the order of `modules()`; with each where in that order all that it holds stands, itself
    first, or None where some of it stands elsewhere, too.
    """
    found: dict[nn.Module, slice | None] = {}
    for step in steps:
        if step not in found:
            _collect(step, found)
    return found


def _collect(part: nn.Module, found: dict[nn.Module, slice | None]) -> bool:
    start, whole = len(found), True
    found[part] = None
    for child in part._modules.values():
        if child is None:
            continue
        if child in found:
            whole = False
        elif child._modules:
            whole = _collect(child, found) and whole
        else:
            found[child] = slice(len(found), len(found) + 1)
    if whole:
        found[part] = slice(start, len(found))
    return whole
