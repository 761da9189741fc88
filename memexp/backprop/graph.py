"""What a recomputation has read, found in its graph: a gradient is never lost in silence."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from memexp.backprop.errors import StepError


def leaves(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], parameters: Sequence[Tensor], known: set[int]
) -> set[int]:
    """The leaves of the outputs' graph, by id: inputs, and parameters of which there may be none but the `known`.

    Args:
        parameters: of these, one may itself be a result, as torch.func.functional_call gives; it ends the graph.

    Raises:
        StepError: the graph leads to another tensor, whose gradient would be lost.
    """
    allowed = known.union(map(id, inputs))
    found: set[int] = set()
    ends: dict[Any, list[int]] = {}
    for p in parameters:
        if p.grad_fn is not None:
            ends.setdefault(p.grad_fn, []).append(id(p))
    seen: set[Any] = set()
    waiting: list[Any] = []
    for y in outputs:
        if y.grad_fn is not None:
            waiting.append(y.grad_fn)
        elif id(y) not in allowed:
            _refuse(y)
        else:
            found.add(id(y))
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if ends and node in ends:
            found.update(ends[node])
            continue
        below = node.next_functions
        if below:
            waiting += [function for function, _ in below if function is not None]
            continue
        leaf = getattr(node, "variable", None)
        if leaf is None:
            continue
        if id(leaf) not in allowed:
            _refuse(leaf)
        found.add(id(leaf))
    return found


def _refuse(leaf: Tensor) -> None:
    raise StepError(
        f"its recomputation reads a tensor of shape {tuple(leaf.shape)} that needs a gradient, or depends on one that "
        "does, and is neither a stream nor a registered parameter of the step, so its gradient would be lost: hand it "
        "in as a keyword of the Chain's call, chain(x1, x2, context=t), to a forward that takes `context` (or register "
        "the module that owns it; shard with fully_shard at the root only), or use backprop=stored"
    )
