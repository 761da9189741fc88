"""Any block of any network as a Chain of one step, where it stands: its calls go through the Chain, its names stay.

The block stays registered where it is, so keys of the state dict, names of parameters, and code that loops over a list of
blocks are as before. Every tensor that it is called with, however deep in lists and keywords, is a stream of the Chain. A call
without any is made as the block was written: there is nothing to recompute it from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from memexp.backprop.chain import Chain
from memexp.backprop.errors import StepError

Maker = Callable[[Sequence[nn.Module]], Chain]


@dataclass(slots=True)
class Passed:
    """What a block is called with or gives, without its tensors: structure, and leaves, some of which are places of tensors.

    A tensor that stands in several places does so again: a block may ask whether its keys are its queries.

    original: while the first pass runs, the very lists and dicts, which a block may change, and their tensors.
    """

    structure: Any = None
    leaves: Sequence[Any] = ()
    original: tuple[Any, tuple[Tensor, ...]] | None = None

    @staticmethod
    def of(tree: Any) -> tuple["Passed", tuple[Tensor, ...]]:
        leaves, structure = tree_flatten(tree)
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        places = {key: _Place(number) for number, key in enumerate(tensors)}
        return Passed(structure, [places.get(id(leaf), leaf) for leaf in leaves]), tuple(tensors.values())

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        if self.original is not None and all(a is b for a, b in zip(tensors, self.original[1], strict=True)):
            return self.original[0]
        leaves = [tensors[leaf.number] if isinstance(leaf, _Place) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self.structure)

    def held(self) -> list[Any]:
        return [*self.leaves, *(self.original[0] if self.original is not None else ())]


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a tensor. number: which of them."""

    number: int


class Body(nn.Module):
    """A block's own forward, as a step on the tensors that it is called with."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def _get_name(self) -> str:
        return self.block._get_name()

    def forward(self, *streams: Tensor, given: Passed, say: Callable[[Passed], None]) -> tuple[Tensor, ...]:
        """given: its arguments. say: is told by every evaluation what it gives beside tensors, which is always the same."""
        args, kwargs = given.with_tensors(streams)
        result, tensors = Passed.of(type(self.block).forward(self.block, *args, **kwargs))
        say(result)
        return tensors


class Wrapped:
    """Stands before a block's forward. chain: the Chain of one step, which the network does not register.

    Raises:
        StepError: the block has a forward of its own instance already.
    """

    def __init__(self, block: nn.Module, make: Maker) -> None:
        if "forward" in vars(block):
            raise StepError(
                f"a {type(block).__name__} has its forward replaced already: give the network as it was built"
            )
        self.block = block
        self.chain = make([Body(block)])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return type(self.block).forward(self.block, *args, **kwargs)
        given, streams = Passed.of((args, kwargs))
        if not streams:
            return type(self.block).forward(self.block, *args, **kwargs)
        given.original = (args, kwargs), streams
        said: list[Passed] = []

        def say(result: Passed) -> None:
            said[:] = [result]

        self.chain.training = self.block.training
        try:
            outputs = self.chain(*streams, given=given, say=say)
        finally:
            given.original = None
        return said[0].with_tensors((outputs,) if isinstance(outputs, Tensor) else outputs)


def wrapped(module: nn.Module) -> Wrapped | None:
    """What stands before the module's forward, if anything."""
    owner = getattr(vars(module).get("forward"), "__self__", None)
    return owner if isinstance(owner, Wrapped) else None


def is_taken(module: nn.Module) -> bool:
    """Whether it is a Chain or stands behind one."""
    return isinstance(module, Chain) or wrapped(module) is not None


def chains(network: nn.Module) -> list[Chain]:
    """All Chains of a network, also those before the forward of a block, in the order of registration."""
    found = []
    for module in network.modules():
        before = wrapped(module)
        if before is not None:
            found.append(before.chain)
        elif isinstance(module, Chain):
            found.append(module)
    return found
