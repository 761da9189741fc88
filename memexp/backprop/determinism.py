"""With `exact`, an undone stream equals the original bit for bit, or a branch has not repeated itself.

A fingerprint of 8 bytes a stream, taken of the inputs of each run of undone steps, tells which of the two it is.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Streams = tuple[Tensor, ...]


def fingerprint(streams: Streams) -> Tensor:
    """Sum of the bits of each stream, read as integers: changes if any one element changes."""
    integers = {4: torch.int32, 8: torch.int64}
    return torch.stack([x.detach().view(integers[x.element_size()]).sum() for x in streams])


def explain(steps: Iterable[tuple[str, Callable[[Streams], Streams]]], inputs: Streams) -> str:
    """Which of the steps gives another result when it is evaluated twice on the same streams: an error's message."""
    names = []
    for name, step in steps:
        names.append(name)
        outputs = step(inputs)
        if not all(torch.equal(a, b) for a, b in zip(outputs, step(inputs), strict=True)):
            return (
                f"{name}: a branch is not deterministic (two evaluations on the same input differ), so exact cannot "
                "undo it: does it draw from a torch.Generator of its own or from Python's random, keep state outside of "
                "its modules, or use a kernel that is not deterministic? Draw from torch's global generator, set "
                "torch.use_deterministic_algorithms(True), or use exact=false"
            )
        inputs = outputs
    return altered(f"{names[0]} to {names[-1]}")


def altered(name: str) -> str:
    """The message of steps that are not known one by one."""
    return (
        f"{name}: the undone streams differ from the original ones, so a branch was not evaluated "
        "as in the first pass (does it depend on something that changed since, or on a kernel that is not "
        "deterministic?): set torch.use_deterministic_algorithms(True), or use exact=false"
    )


def check_unaltered(name: str, found: Tensor, expected: Tensor) -> None:
    """Raises RuntimeError where two fingerprints differ."""
    if not torch.equal(found, expected):
        raise RuntimeError(altered(name))
