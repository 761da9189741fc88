"""Modules that take the place of others, under all of their names."""

from collections.abc import Mapping

from torch import nn

from memexp.rebinding import replace


def put(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`network` itself, in which each module that is a key is the new one, also where a list, a table or a function among its
    attributes holds it; or another, where the whole is replaced."""
    replace(network, {id(module): other for module, other in new.items()})
    return new.get(network, network)


def hooks(module: nn.Module) -> bool:
    """Whether its call has any, which would not be called where another module is in its place."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
