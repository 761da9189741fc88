"""Tensors that steps and branches read beside their streams: keywords of the Chain's call.

`chain(x1, x2, context=t)` hands `t` to every step, and within the engine's steps to every branch, whose forward takes a
`context`. A recomputation sees it as an input, so that its gradient is obtained under every strategy.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.step import Step

Context = dict[str, Any]


def takes(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has that keyword, or it is a step of the engine with a branch that does."""
    if isinstance(module, nn.ModuleList):
        return any(takes(part, name) for part in module)
    # while it compiles, torch warns of caches
    keywords = _keywords.__wrapped__ if torch.compiler.is_dynamo_compiling() else _keywords
    names, anything = keywords(getattr(module.forward, "__func__", module.forward))
    if name in names or not isinstance(module, Step):
        return name in names or anything
    return any(takes(part, name) for part in module.children())


def taken(module: nn.Module, context: Context) -> Context:
    """The keywords that `module` takes.

    Where autograd records, each tensor is an alias of its own: contributions to its gradient are then summed within a
    branch, then within a step, then over the steps, in the same order under every strategy.
    """
    return {name: _alias(value) for name, value in context.items() if takes(module, name)}


def _alias(value: Any) -> Any:
    recorded = isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
    return value.view_as(value) if recorded else value


@lru_cache(maxsize=1024)
def _keywords(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of a forward's keywords, and whether it takes any."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # a function without a signature, written in C
        return frozenset(), False
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(named), any(p.kind is p.VAR_KEYWORD for p in parameters)
