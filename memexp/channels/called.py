"""How a network is called by who only looks at it: on copies of inputs that a forward may write to."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from memexp.channels.outputs import tensors_in

Inputs = Tensor | Sequence[Any]


def arguments(inputs: Inputs) -> tuple[Any, ...]:
    """What a network is called with: several in a tuple or list, else one."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def mapped(make: Callable[[Tensor], Tensor], inputs: Inputs) -> tuple[Any, ...]:
    """The arguments with what `make` makes of each tensor, also in dicts and lists; one that is given twice is made once."""
    made: dict[int, Tensor] = {}

    def one(value: Any) -> Any:
        if isinstance(value, Tensor) and id(value) not in made:
            made[id(value)] = make(value)
        return made.get(id(value), value)

    return tuple(tree_map(one, value) for value in arguments(inputs))


def copied(inputs: Inputs) -> tuple[Any, ...]:
    """What a network is called with that may write to it."""
    return mapped(lambda x: x.detach().clone(), inputs)


def rows(inputs: Inputs) -> int:
    """The samples of a batch: the length of its first tensor that has one."""
    return next((len(x) for x in tensors_in(arguments(inputs)) if x.ndim), 1)


def samples(inputs: Inputs, outputs: Any) -> int:
    """Of how many samples a call was: its rows where what came out has as many, else of one (an image alone, a graph)."""
    return rows(inputs) if rows(inputs) == rows((outputs,)) else 1


@contextmanager
def apart() -> Iterator[None]:
    """Inside there is neither inference mode nor autocast: what is made can be trained, and sums have their precision."""
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in {"cpu", *([accelerator.type] if accelerator else [])}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        yield
