"""Which images a network can take and how many scores it gives, found by sending some without data through it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from memexp.models.layout import Shape
from memexp.rebinding import copy_of

COMMON = (32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)  # pixels a side


def check(network: nn.Module, shape: Shape, classes: int | None = None) -> None:
    """Raises ValueError, with the sizes that do, where `network` fails on images of this size and not on some of another; and
    where what it gives is not a score for each of `classes`.

    One forward pass of a copy without data; more of them only where it fails.
    """
    with _disable_current_modes():
        bare = _copied(_without_data, network)
        scores, error = _tried(bare, shape)
        if error is not None:
            assert bare is not None
            _check_size(bare, shape, error)
        if classes is None:
            return
        if bare is None or error is not None:  # it reads values
            scores, error = _tried(_copied(copy_of, network), shape, "cpu")
        if error is None and scores is not None:
            _check_scores(scores, classes)


def check_alone(network: nn.Module, shape: Shape) -> None:
    """Raises ValueError where `network` can be trained on two images at a time and not on one, of which batch normalisation has
    a single value of a channel.
    """
    with _disable_current_modes():
        bare = _copied(_without_data, network)
        if bare is None:
            return
        bare.train()
        _, error = _tried(bare, shape, images=1)
        if error is not None and _tried(bare, shape)[1] is None:
            raise ValueError(
                f"batch_size: 1 image at a time does not train this network ({' '.join(str(error).split())[:200]}); set 2 or "
                "more"
            )


def settle(network: nn.Module, shape: Shape) -> None:
    """A lazy network takes its sizes from its first images, which are these; an optimizer needs to know them before.

    Raises ValueError where it fails on them.
    """
    if not any(map(is_lazy, network.parameters())):
        return
    network.eval()
    _, error = _tried(network, shape, None)
    network.train()
    if error is not None:
        raise ValueError(f"this network has lazy layers and fails on images of {'x'.join(map(str, shape))}: {error}")


def _check_size(network: nn.Module, shape: Shape, error: Exception) -> None:
    does = [size for size in COMMON if _tried(network, (shape[0], size, size))[1] is None]
    if not does:
        return  # it is not the size; the run will say what
    reason = " ".join(str(error).split()) or type(error).__name__
    pixels = f"{shape[1]}x{shape[2]}"
    raise ValueError(
        f"this network cannot take images of {pixels} ({reason[:200]}); "
        f"it takes {_in_words(network, shape, does)}: set dataset.image_size"
    )


def _check_scores(scores: Any, classes: int) -> None:
    if not isinstance(scores, Tensor):
        raise ValueError(
            f"this network gives a {type(scores).__name__}; it must give a tensor of scores, ({classes}) an image"
        )
    if scores.shape != (2, classes):
        raise ValueError(
            f"this network gives {' x '.join(map(str, scores.shape[1:])) or 'no'} scores an image, and the data set has "
            f"{classes} classes; give it as many outputs (it is told how many where it takes an argument `classes`)"
        )


def _in_words(network: nn.Module, shape: Shape, does: Sequence[int]) -> str:
    """The sizes that do: from the least on, or one by one."""
    first = does[0]
    if list(does) != [size for size in COMMON if size >= first] or len(does) == 1:
        return "those of " + ", ".join(f"{size}x{size}" for size in does)
    low, high = max([size for size in COMMON if size < first], default=0), first  # fails, does
    while high - low > 1:
        middle = (low + high) // 2
        if _tried(network, (shape[0], middle, middle))[1] is None:
            high = middle
        else:
            low = middle
    return f"those of at least {high}x{high}"


def _tried(
    network: nn.Module | None, shape: Shape, device: str | None = "meta", images: int = 2
) -> tuple[Any, Exception | None]:
    """What a forward pass gives, and what it raises."""
    if network is None:
        return None, None
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return network(torch.zeros(images, *shape, device=device)), None
    except Exception as error:  # a user's own network may raise anything
        return None, error


def _copied(copier: Callable[[nn.Module], nn.Module], network: nn.Module) -> nn.Module | None:
    """A copy for evaluation; None of what holds things that cannot be copied, which is tried on the first images."""
    try:
        return copier(network).eval()
    except Exception:
        return None


def _without_data(network: nn.Module) -> nn.Module:
    """A copy on the meta device; `network` itself is not touched, and none of its data is copied."""
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
    return copy_of(network, memo)
