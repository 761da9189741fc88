"""A strategy for any network: the blocks that follow one another in it become steps of Chains, and no name changes.

An nn.Sequential becomes a Chain in its place; blocks in an nn.ModuleList or ModuleDict, which a forward loops over, and blocks
beside such bodies are each a Chain of one step (wrapped.py). What is nested in a block belongs to the block.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from memexp.backprop.budget import together
from memexp.backprop.chain import Chain
from memexp.backprop.plan import is_single
from memexp.backprop.strategies import make_strategy
from memexp.backprop.wrapped import Maker, Wrapped, chains


def apply(
    network: nn.Module, backprop: str, *, blocks: Sequence[str | type[nn.Module]] | None = None, **options: object
) -> nn.Module:
    """Gives the network's blocks a strategy, in place; keys of its state dict stay. Returns it (a Chain for a Sequential).

    Applied again, it changes the strategy. An in-place activation or dropout that is a step by itself works out of place from
    then on; for such a dropout torch draws other random numbers on a GPU.
    A language model's cache of keys may be filled while it trains; it takes memory until backward (use_cache=False).

    >>> network = memexp.backprop.apply(torchvision.models.resnet50(), "light")

    Args:
        backprop, options: as of a Chain.
        blocks: names of modules of the network, or classes, to be taken as blocks; by default they are searched for.

    Raises:
        ValueError: the strategy does not fit, or the network has no such blocks; it says what to wrap.
    """
    make_strategy(backprop, dict(options))
    if existing := chains(network):
        for chain in existing:
            chain.choose(backprop, **options)
        return network
    return take(network, functools.partial(Chain, backprop=backprop, **options), blocks)  # type: ignore[arg-type]


def take(network: nn.Module, make: Maker, blocks: Sequence[str | type[nn.Module]] | None = None) -> nn.Module:
    """`apply` with a function that makes Chains."""
    if blocks is None and _is_sequential(network) and _units(network) > 1 and not _has_lists(network):
        return _chain(network, make)
    found = list(_bodies(network)) if blocks is None else _named(network, blocks)
    if not found:
        parts = ", ".join(name for name, child in network.named_children() if not is_single(child)) or "none"
        raise ValueError(
            f"{type(network).__name__} has no nn.Sequential and no nn.ModuleList of blocks, so there is nothing to recompute "
            f"by itself: name its blocks, memexp.backprop.apply(network, ..., blocks=[names or classes]) (of its parts with "
            f"layers inside: {parts}), or put them into an nn.Sequential or a memexp.backprop.Chain"
        )
    new: dict[nn.Module, nn.Module | Wrapped] = {}
    for body in found:
        if body.module not in new:
            new[body.module] = _chain(body.module, make) if body.sequential else Wrapped(body.module, make)
    for body in found:
        made = new[body.module]
        if isinstance(made, Wrapped):
            vars(body.module)["forward"] = made.forward
        else:
            body.parent._modules[body.name] = made
    return network


@dataclass(frozen=True)
class Body:
    """Something to be taken: an nn.Sequential as a Chain, or a block as a Chain of one step."""

    parent: nn.Module
    name: str
    module: nn.Module
    sequential: bool


def _bodies(parent: nn.Module) -> Iterator[Body]:
    """Below `parent`, outermost first, but where there are lists of blocks inside, these."""
    blocks = isinstance(parent, nn.ModuleList | nn.ModuleDict) or _is_sequential(parent)
    for name, child in parent.named_children():
        if _has_lists(child) or (_is_list(child) and not _is_sequential(child)):
            yield from _bodies(child)
        elif _is_sequential(child) and (_units(child) > 1 or not is_single(next(child.children()))):
            yield Body(parent, name, child, True)
        elif blocks and not is_single(child):
            yield Body(parent, name, child, False)
        elif not blocks and not is_single(child):
            yield from _bodies(child)


def _named(network: nn.Module, blocks: Sequence[str | type[nn.Module]]) -> list[Body]:
    known = dict(network.named_modules())
    if missing := [b for b in blocks if isinstance(b, str) and b not in known]:
        raise ValueError(f"blocks={missing}: the network has no module of that name")
    kinds = tuple(b for b in blocks if not isinstance(b, str))
    chosen = [name for name, module in known.items() if name in blocks or isinstance(module, kinds)]
    outer = [n for n in chosen if not any(n.startswith(f"{other}.") for other in chosen if other != n)]
    return [Body(network, name, known[name], False) for name in outer]


def _chain(sequential: nn.Module, make: Maker) -> Chain:
    """A Chain of its steps, with its names and hooks."""
    steps = dict(sequential.named_children())
    if len(steps) < len(sequential._modules):  # a layer that stands in it twice
        steps = {name: module for name, module in sequential._modules.items() if module is not None}
    chain = make(list(steps.values()))
    chain.rename(list(steps))
    for step in steps.values():
        if is_single(step) and getattr(step, "inplace", False) is True:
            step.inplace = False  # type: ignore[assignment]
    for key, value in vars(sequential).items():
        if key == "training" or "_hooks" in key:
            vars(chain)[key] = value
    return chain


def _is_sequential(module: nn.Module) -> bool:
    """An nn.Sequential, or one of a class that calls its layers as it does."""
    own = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return own and len(module._modules) > 0


def _units(sequential: nn.Module) -> int:
    return len(together(list(sequential.children())))


def _is_list(module: nn.Module) -> bool:
    """Blocks of one kind, one after the other."""
    holds = isinstance(module, nn.ModuleList | nn.ModuleDict) and not isinstance(module, ParametrizationList)
    if not (holds or _is_sequential(module)):
        return False
    kinds = {type(child) for child in module.children()}
    return len(kinds) == 1 and len(module._modules) > 1 and not any(map(is_single, module.children()))


def _has_lists(module: nn.Module) -> bool:
    """Whether there are such lists inside."""
    return any(_is_list(inner) for inner in module.modules() if inner is not module)
