"""A strategy for any network: the blocks that follow one another in it become steps of Chains, and no name changes.

An nn.Sequential becomes a Chain in its place; blocks in an nn.ModuleList or ModuleDict, which a forward loops over, and blocks
beside such bodies are each a Chain of one step (wrapped.py), and so is a Sequential with more to it than its layers. What is
nested in a block belongs to the block.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from memexp.backprop.budget import together
from memexp.backprop.chain import Chain
from memexp.backprop.plan import is_single
from memexp.backprop.strategies import make_strategy
from memexp.backprop.wrapped import Maker, Wrapped, chains, is_taken, wrapped

log = logging.getLogger("memexp")


def apply(
    network: nn.Module, backprop: str, *, blocks: Sequence[str | type[nn.Module]] | None = None, **options: object
) -> nn.Module:
    """Gives the network's blocks a strategy, in place; keys of its state dict stay. Returns it (a Chain for a Sequential).

    Applied again, it changes the strategy. A network with Chains of its own has those, and of its other blocks those that are
    named. Where it raises, the network is as before.
    An in-place activation or dropout that is a step by itself works out of place from then on; for such a dropout torch draws
    other random numbers on a GPU. A block that is called without any tensor (with an int, or an object that holds tensors) is
    called as it was written.
    A language model's cache of keys may be filled while it trains; it takes memory until backward (use_cache=False).

    >>> network = memexp.backprop.apply(torchvision.models.resnet50(), "light")

    Args:
        backprop, options: as of a Chain.
        blocks: names of modules of the network (of an nn.ModuleList: all that is in it), or classes, to be taken as blocks; by
            default they are searched for.

    Raises:
        ValueError: the strategy does not fit, or the network has no such blocks; it says what to wrap.
    """
    make_strategy(backprop, dict(options))
    make: Maker = functools.partial(Chain, backprop=backprop, **options)  # type: ignore[arg-type]
    put_back = as_it_is(network)
    try:
        if not (existing := chains(network)):
            return take(network, make, blocks)
        if blocks is None:
            _say_what_is_left(network)
        else:
            _replace(_not_taken(network, _named(network, blocks)), make)
        for chain in existing:
            chain.choose(backprop, **options)
        return network
    except BaseException:
        put_back()
        raise


def take(network: nn.Module, make: Maker, blocks: Sequence[str | type[nn.Module]] | None = None) -> nn.Module:
    """`apply` with a function that makes Chains, to a network without any."""
    if blocks is None and _is_bare(network) and _units(network) > 1 and not _has_lists(network):
        return _chain(network, make)
    found = list(_bodies(network)) if blocks is None else _named(network, blocks)
    if not found and _is_sequential(network) and _units(network) > 1:
        found = [Body(network, "", network, False)]
    if not found:
        parts = ", ".join(name for name, child in network.named_children() if not is_single(child)) or "none"
        raise ValueError(
            f"{type(network).__name__} has no nn.Sequential and no nn.ModuleList of blocks, so there is nothing to recompute "
            f"by itself: name its blocks, memexp.backprop.apply(network, ..., blocks=[names or classes]) (of its parts with "
            f"layers inside: {parts}), or put them into an nn.Sequential or a memexp.backprop.Chain"
        )
    _replace(found, make)
    return network


def as_it_is(network: nn.Module) -> Callable[[], None]:
    """A function that puts back the blocks that a network has now, and their strategies."""
    before = []
    for module in dict.fromkeys([*network.modules(), *chains(network)]):
        changed = ("backprop", "options", "strategy") if isinstance(module, Chain) else ("forward", "inplace")
        values = {key: vars(module)[key] for key in changed if key in vars(module)}
        before.append((module, dict(module._modules), changed, values))

    def put_back() -> None:
        for module, children, changed, values in before:
            if dict(module._modules) != children:  # a scripted one lets nobody
                module._modules.clear()
                module._modules.update(children)
            for key in changed:
                vars(module).pop(key, None)
            vars(module).update(values)

    return put_back


@dataclass(frozen=True)
class Body:
    """Something to be taken: an nn.Sequential as a Chain, or a block as a Chain of one step."""

    parent: nn.Module
    name: str
    module: nn.Module
    sequential: bool


def _replace(found: Sequence[Body], make: Maker) -> None:
    """Puts Chains where these stand."""
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


def _bodies(parent: nn.Module) -> Iterator[Body]:
    """Below `parent`, outermost first, but where there are lists of blocks inside, these."""
    blocks = isinstance(parent, nn.ModuleList | nn.ModuleDict) or _is_sequential(parent)
    for name, child in parent._modules.items():  # under each name of one that has two
        if child is None or is_taken(child):
            continue
        layers = _is_sequential(child) and all(map(is_single, child.children())) and _units(child) > 1
        if _has_lists(child) or not _has_forward(child) or (_is_list(child) and not _is_bare(child)):
            yield from _bodies(child)
        elif _is_bare(child) and (_units(child) > 1 or not is_single(next(child.children()))):
            yield Body(parent, name, child, True)
        elif not is_single(child) and (blocks or layers):
            yield Body(parent, name, child, False)
        elif not is_single(child):
            yield from _bodies(child)


def _named(network: nn.Module, blocks: Sequence[str | type[nn.Module]]) -> list[Body]:
    known = dict(network.named_modules())
    if isinstance(blocks, str | type) or not all(isinstance(b, str | type) for b in blocks):
        raise ValueError(
            f"blocks={blocks!r}: use a list of names of modules and of classes, such as ['layer1', nn.Linear]"
        )
    if missing := [b for b in blocks if isinstance(b, str) and b not in known]:
        raise ValueError(f"blocks={missing}: the network has no module of that name")
    kinds = tuple(b for b in blocks if not isinstance(b, str))
    if absent := [kind.__name__ for kind in kinds if not any(isinstance(module, kind) for module in known.values())]:
        raise ValueError(f"blocks: the network has no module of the class {', '.join(absent)}")
    chosen = [name for name, module in known.items() if name in blocks or isinstance(module, kinds)]
    outer = [n for n in chosen if not any(_is_within(n, other) for other in chosen)]
    return [Body(network, *found, False) for name in outer for found in _called(name, known[name])]


def _called(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What is called where this is: the module, or what it holds if it has no forward, as an nn.ModuleList."""
    if _has_forward(module):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _called(f"{name}.{key}" if name else key, child)


def _has_forward(module: nn.Module) -> bool:
    return "forward" in vars(module) or type(module).forward is not nn.Module.forward


def _is_within(name: str, other: str) -> bool:
    """Whether the module of that name is inside of the other. The network's own name is empty."""
    return name != other and (not other or name.startswith(f"{other}."))


def _not_taken(network: nn.Module, found: Sequence[Body]) -> list[Body]:
    """Those that are no Chain and no step of one yet.

    Raises:
        ValueError: one is a part of a block of a Chain, or has a Chain inside.
    """
    taken = [name for name, module in network.named_modules() if is_taken(module)]
    new = []
    for body in found:
        parent = network.get_submodule(body.name.rpartition(".")[0])
        if is_taken(body.module) or isinstance(parent, Chain):
            continue
        if near := [n for n in taken if _is_within(body.name, n) or _is_within(n, body.name)]:
            raise ValueError(
                f"blocks: {body.name!r} is inside of {near[0]!r}, or has it inside, which is a block or a Chain already: what "
                "the network has of these is given the strategy, and blocks= names others beside them; leave it out, or apply "
                "to the network as it was built"
            )
        new.append(body)
    return new


def _say_what_is_left(network: nn.Module) -> None:
    """Warns of blocks beside a network's own Chains; where `apply` took some before, it took what it should."""
    if is_taken(network) or any(map(wrapped, network.modules())):
        return
    names = {module: name for name, module in network.named_modules()}
    if left := [names[body.module] for body in _bodies(network) if not chains(body.module)]:
        log.warning(
            "warning: the network has Chains of its own, which alone are given the strategy; the blocks %s stay stored: to "
            "take them, too, name them, memexp.backprop.apply(network, ..., blocks=[...])",
            ", ".join(left),
        )


def _chain(sequential: nn.Module, make: Maker) -> Chain:
    """A Chain of its steps, with its names, attributes and hooks."""
    steps = dict(sequential.named_children())
    if len(steps) < len(sequential._modules):  # a layer that stands in it twice
        steps = {name: module for name, module in sequential._modules.items() if module is not None}
    chain = make(list(steps.values()))
    chain.rename(list(steps))
    for step in steps.values():
        if is_single(step) and getattr(step, "inplace", False) is True:
            step.inplace = False  # type: ignore[assignment]
    tables = ("_modules", "_parameters", "_buffers")
    vars(chain).update(_of_its_class(sequential))
    vars(chain).update({key: value for key, value in vars(sequential).items() if key not in tables})
    return chain


def _of_its_class(sequential: nn.Module) -> dict[str, object]:
    """What its class has beside nn.Sequential and __init__."""
    kinds = [kind for kind in reversed(type(sequential).__mro__) if kind not in nn.Sequential.__mro__]
    found = {key: value for kind in kinds for key, value in vars(kind).items()}
    return {key: value for key, value in found.items() if not key.startswith(("__", "_abc_")) or _is_method(key, value)}


def _is_method(key: str, value: object) -> bool:
    """Or a property."""
    return hasattr(value, "__get__") and key not in ("__init__", "__dict__", "__weakref__", "__annotate_func__")


def _is_sequential(module: nn.Module) -> bool:
    """An nn.Sequential, or one of a class that calls its layers as it does."""
    own = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return own and len(module._modules) > 0


def _is_bare(module: nn.Module) -> bool:
    """A Sequential that has its layers and plain attributes only, so that a Chain can stand for it."""
    if not _is_sequential(module) or module._parameters or module._buffers:
        return False
    of_class = _of_its_class(module)
    own = {*of_class, *vars(module)} - vars(nn.Sequential()).keys()
    if any(_is_method(key, value) for key, value in of_class.items()):
        return False
    # a name that a Chain has for something else: a forward put on the instance, an attribute `strategy`
    empty = Chain([])
    return not any(hasattr(empty, key) for key in own - {"_version"})


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
