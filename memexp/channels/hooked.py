"""Weights that are no parameters: torch.nn.utils.prune, weight_norm and spectral_norm make them in a hook before a forward."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from memexp.rebinding import copy_of

Make = Callable[[nn.Module], Tensor]
ENDINGS = ("_orig", "_mask", "_g", "_v", "_u")  # of what they are made of


def makers(module: nn.Module) -> dict[str, Make]:
    """By name, how each weight that a hook makes for `module` comes of the parameters that it has now."""
    found: dict[str, Make] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            found[hook._tensor_name] = hook.apply_mask
        elif isinstance(hook, WeightNorm):
            found[hook.name] = hook.compute_weight
        elif isinstance(hook, SpectralNorm):
            found[hook.name] = partial(hook.compute_weight, do_power_iteration=False)
    return found


def made_of(module: nn.Module, name: str) -> str:
    """The weight that a hook makes of the parameter or buffer `name`, or `name` itself."""
    return next((weight for weight in makers(module) for ending in ENDINGS if name == weight + ending), name)


@torch.no_grad()
def make(module: nn.Module) -> None:
    """Such weights are made now, as before a forward."""
    for name, weight in makers(module).items():
        setattr(module, name, weight(module))


def duplicate(network: nn.Module) -> nn.Module:
    """A deep copy, for which such weights are made now: with the graph of a forward, as it has left them, torch copies none."""
    for module in network.modules():
        make(module)
    return twin(network)


def twin(network: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy, in which tensors that a forward has left in attributes are without their graph: torch copies none with it.
    Its functions (attributes, hooks) are of its own modules.

    memo: by id, what takes the place of a tensor.
    """
    held = [leaf for module in network.modules() for leaf in tree_leaves(list(vars(module).values()))]
    graphs = {id(x): x.detach().clone() for x in held if isinstance(x, Tensor) and x.grad_fn is not None}
    return copy_of(network, graphs | dict(memo or {}))


@contextmanager
def cached(network: nn.Module) -> Iterator[None]:
    """Inside, each such weight is a tensor of its own, of which a gradient can be taken; afterwards it is made again."""
    before = [(module, dict(module._forward_pre_hooks), makers(module)) for module in network.modules()]
    try:
        for module, hooks, weights in before:
            make(module)
            for name in weights:
                getattr(module, name).requires_grad_()
            for key, hook in hooks.items():
                if isinstance(hook, BasePruningMethod | WeightNorm | SpectralNorm):
                    del module._forward_pre_hooks[key]
        yield
    finally:
        for module, hooks, _ in before:
            module._forward_pre_hooks.update(hooks)
            make(module)
