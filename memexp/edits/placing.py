"""Modules that take the place of others, under all of their names."""

from collections.abc import Mapping

from torch import nn


def put(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`network` itself, in which each module that is a key is the new one; or another, where the whole is replaced."""
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and child in new:
                setattr(module, name, new[child])
    return new.get(network, network)


def hooks(module: nn.Module) -> bool:
    """Whether its call has any, which would not be called where another module is in its place."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
