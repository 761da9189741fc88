"""Which images a network can take, found by sending some without data through it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from memexp.models.layout import Shape

COMMON = (32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)  # pixels a side


def check(network: nn.Module, shape: Shape) -> None:
    """Raises ValueError, with the sizes that do, where `network` fails on images of this size and not on some of another.

    One forward pass of a copy without data; more of them only where it fails.
    """
    if any(map(is_lazy, network.parameters())):
        return  # such a network takes its sizes from the first images
    with _disable_current_modes():
        _check(network, shape)


def _check(network: nn.Module, shape: Shape) -> None:
    try:
        network = _without_data(network)
    except Exception:  # what holds things that cannot be copied is tried on the first images
        return
    if (error := _failure(network, shape)) is None:
        return
    does = [size for size in COMMON if _failure(network, (shape[0], size, size)) is None]
    if not does:
        return  # it is not the size; the run will say what
    reason = " ".join(str(error).split()) or type(error).__name__
    pixels = f"{shape[1]}x{shape[2]}"
    raise ValueError(
        f"this network cannot take images of {pixels} ({reason[:200]}); "
        f"it takes {_in_words(network, shape, does)}: set dataset.image_size"
    )


def _in_words(network: nn.Module, shape: Shape, does: Sequence[int]) -> str:
    """The sizes that do: from the least on, or one by one."""
    first = does[0]
    if list(does) != [size for size in COMMON if size >= first] or len(does) == 1:
        return "those of " + ", ".join(f"{size}x{size}" for size in does)
    low, high = max([size for size in COMMON if size < first], default=0), first  # fails, does
    while high - low > 1:
        middle = (low + high) // 2
        if _failure(network, (shape[0], middle, middle)) is None:
            high = middle
        else:
            low = middle
    return f"those of at least {high}x{high}"


def _failure(network: nn.Module, shape: Shape) -> Exception | None:
    """What a forward pass of two images raises on the network of `_without_data`."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network(torch.empty(2, *shape, device="meta"))
    except Exception as error:  # a user's own network may raise anything
        return error
    return None


def _without_data(network: nn.Module) -> nn.Module:
    """A copy for evaluation on the meta device; `network` itself is not touched, and none of its data is copied."""
    tensors = [
        value
        for module in network.modules()
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        if isinstance(value, Tensor)
    ]
    bare = {id(t): torch.empty(t.shape, dtype=t.dtype, device="meta") for t in tensors}
    memo = {
        id(t): nn.Parameter(bare[id(t)], t.requires_grad) if isinstance(t, nn.Parameter) else bare[id(t)]
        for t in tensors
    }
    return copy.deepcopy(network, memo).eval()
