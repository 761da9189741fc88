"""Parameters that a trace's forward does not read: an auxiliary head, a branch for other inputs, a forgotten layer."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from memexp.channels.graph import Graph
from memexp.channels.skipping import ShapesOnly

log = logging.getLogger("memexp")


def unread(network: nn.Module, is_read: Callable[[Tensor], bool]) -> tuple[str, ...]:
    """Modules with parameters none of which was read, the outermost of each; and single parameters of other modules."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    ran = {place for name, parameter in parameters.items() if is_read(parameter) for place in _places(name)}
    found = (next(p for p in _places(name) if p not in ran) for name in parameters if name not in ran)
    return tuple(dict.fromkeys(found))


def _places(name: str) -> list[str]:
    """The modules that a parameter is in, from the outermost, and its name."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


class Reading(ShapesOnly):
    """Remembers by id what it is given, beside skipping what takes time."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return super().__torch_dispatch__(func, types, args, kwargs)


def warn_of_unread(graph: Graph) -> None:
    """Names what did not run and so stays as it is: for whoever has a network narrowed, once."""
    if graph.unread:
        log.warning(
            "%s: not run by the forward on the example, so it stays as it is; where something else runs it (training, another "
            "input), what it takes may have become narrower and no longer fit: put nn.Identity() or None in its place, or keep "
            "the layers that feed it (scope= of prune, groups= of convert)",
            few(graph.unread),
        )


def few(names: Sequence[str], most: int = 8) -> str:
    """The first of them for a message, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
