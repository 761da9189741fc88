"""Random numbers that a forward draws in evaluation mode too: a generator's noise, a code's, dropout that is never off.

Two networks that are compared have to draw the same. With equal seeds they do not: one that is narrower draws fewer, one in
float64 draws others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
NUMBERS = (  # by name, without the underscores of those in place: what draws each number by itself
    *("rand", "rand_like", "randn", "randn_like", "normal", "normal_functional", "uniform", "bernoulli", "exponential"),
    *("cauchy", "log_normal"),
)


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Inside, each random number is a half (true, where it is a truth value), or follows what tensors say of it: half a
    deviation above its mean, its probability. Permutations and the like are those of one seed. Afterwards random numbers go on
    as if none had been drawn, those of a generator of the network's own too."""
    there = torch.accelerator.current_accelerator()
    kind = "cuda" if there is None else there.type
    count = 0 if there is None else torch.accelerator.device_count()
    with torch.random.fork_rng(range(count), device_type=kind), _Alike():
        yield


class _Alike(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").strip("_")
        if name == "native_dropout":  # without a share of zeros
            x = args[0]
            return x.clone(), torch.ones_like(x, dtype=torch.bool)
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
            kwargs = {key: None if key == "generator" else value for key, value in kwargs.items()}
        value = _given(func, args)
        out = func(*args, **kwargs)
        if name in NUMBERS:
            for tensor in tree_iter(out):
                if isinstance(tensor, Tensor):
                    tensor.copy_(value) if isinstance(value, Tensor) else tensor.fill_(value)
        return out


def _given(func: Any, args: Any) -> Tensor | float:
    """What each number is."""
    if func in (aten.normal.Tensor_float, aten.normal.float_Tensor, aten.normal.Tensor_Tensor):
        mean, deviation = (*args, 1.0)[:2]
        return cast(Tensor, mean + 0.5 * deviation)
    if func is aten.bernoulli.default:
        return cast(Tensor, args[0])
    if func is aten.bernoulli_.Tensor:
        return cast(Tensor, args[1])
    return 0.5
