"""The graph of a recomputation: what it has read, and the gradients of that. None is lost in silence."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd import Variable

from memexp.backprop.errors import StepError
from memexp.backprop.escaping import lost

Streams = tuple[Tensor, ...]
Grads = tuple[Tensor | None, ...]


class Known:
    """The parameters of a group of steps, as they may be found in the graph of its recomputation.

    Attributes:
        ids: of all of them, frozen ones too.
        unwanted: ids of those whose gradients nobody asks for.
        plain: all of them are wanted, none is in two places, and all are leaves without hooks.
        ends: those that are themselves results, as torch.func.functional_call may give; such a one ends the graph.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        every = list(parameters)
        self.ids = set(map(id, every))
        self.unwanted: set[int] = set()
        self.plain = False
        self.ends: dict[Any, list[Tensor]] = {}
        for p in every:
            if p.grad_fn is not None:
                self.ends.setdefault(p.grad_fn, []).append(p)

    def wants(self, parameter: Tensor) -> bool:
        """Whether its gradient is asked for."""
        return parameter.requires_grad and id(parameter) not in self.unwanted


def leaves(outputs: Sequence[Tensor], inputs: Sequence[Tensor], known: Known) -> list[Tensor]:
    """The leaves of the outputs' graph: inputs, and known parameters.

    Raises:
        StepError: the graph leads to another tensor, whose gradient would be lost.
    """
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    waiting: list[Any] = []
    for y in outputs:
        if y.grad_fn is None:
            found[id(y)] = y
        else:
            waiting.append(y.grad_fn)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if known.ends and node in known.ends:
            found.update({id(p): p for p in known.ends[node]})
            continue
        below = node.next_functions
        if below:
            waiting += [function for function, _ in below if function is not None]
        elif (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
    if not known.ids.issuperset(found):
        own = set(map(id, inputs))
        for key, leaf in found.items():
            if key not in own and key not in known.ids:
                _refuse(leaf)
    return list(found.values())


def _refuse(leaf: Tensor) -> None:
    if (name := getattr(leaf, "left_by", None)) is not None:
        raise lost(name)
    raise StepError(
        f"its recomputation reads a tensor of shape {tuple(leaf.shape)} that needs a gradient, or depends on one that "
        "does, and is neither a stream nor a registered parameter of the step, so its gradient would be lost: hand it "
        "in as a keyword of the Chain's call, chain(x1, x2, context=t), to a forward that takes `context` (or register "
        "the module that owns it; shard with fully_shard at the root only), or use backprop=stored"
    )


def pull_back(outputs: Sequence[Tensor], grads: Grads, inputs: Streams, known: Known) -> dict[int, Tensor]:
    """Gradients by id of inputs and known parameters, in one call of autograd.

    Raises:
        StepError: the outputs depend on another tensor that needs a gradient.
    """
    values, given = [], []
    for y, grad in zip(outputs, grads, strict=True):
        if grad is not None and y.requires_grad:
            values.append(y)
            given.append(grad if grad.dtype is y.dtype else grad.to(y.dtype))
    if not values:
        return {}
    targets = leaves(values, inputs, known)
    if known.unwanted:
        targets = [t for t in targets if id(t) not in known.unwanted]
    if not targets:
        return {}
    found = differentiate(tuple(values), tuple(given), tuple(targets))
    return {id(t): g for t, g in zip(targets, found, strict=True) if g is not None}


def differentiate(values: Streams, grads: Streams, targets: Streams, plain: bool = False) -> Grads:
    """torch.autograd.grad without what it does before and after, which takes as long as a small layer.

    plain: the targets are known to be leaves without hooks.
    """
    # a parameter that is a result keeps its gradient where that was asked for (retain_grad), and a tensor hook of the user's
    # on a parameter sees it: once, when it leaves the engine
    retained = [] if plain else [(p, p.grad) for p in targets if p.retains_grad]
    attached = [] if plain else [(p, dict(p._backward_hooks)) for p in targets if p._backward_hooks]
    for p, _ in attached:
        p._backward_hooks.clear()  # type: ignore[union-attr]
    try:
        found: Grads = Variable._execution_engine.run_backward(
            values, grads, False, False, targets, allow_unreachable=True, accumulate_grad=False
        )
    finally:
        for p, kept in attached:
            p._backward_hooks.update(kept)  # type: ignore[union-attr]
        for p, before in retained:
            p.grad = before
    return found
