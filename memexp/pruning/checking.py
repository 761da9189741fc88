"""The check after every removal: the narrowed network's outputs equal those of the network in which what went is zero."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop.untouched import untouched
from memexp.channels.called import copied
from memexp.channels.comparing import difference as apart
from memexp.channels.drawing import drawn_alike
from memexp.channels.outputs import tensors_in
from memexp.channels.settling import fault_of
from memexp.modes import evaluating

# by dtype: how far the two may be, relative to the largest output; sums over fewer channels round differently
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}  # 2e-15 and 5e-7 were the most on eleven networks up to RevNet-218
HALF_LIMIT = 5e-2


class CheckFailed(ValueError):
    """The narrowed network is not the same function as the masked one."""


def limit_of(network: nn.Module) -> float:
    """The largest relative error that is rounding, for this network's parameters."""
    return max((LIMITS.get(p.dtype, HALF_LIMIT) for p in network.parameters() if p.is_floating_point()), default=0.0)


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, batches: Iterable[Sequence[Tensor]]) -> float:
    """The largest difference of the two networks' outputs in eval mode, relative to the largest output of `other`.

    Raises CheckFailed where `one` cannot be called with what `other` takes.
    """
    worst, compared = 0.0, 0
    with evaluating(one), evaluating(other), untouched(one), _full_precision(), drawn_alike():
        for inputs in batches:
            expected = tensors_in(other(*copied(inputs)))
            try:
                found = tensors_in(one(*copied(inputs)))
            except torch.OutOfMemoryError:
                raise
            except Exception as fault:
                raise CheckFailed(
                    f"the narrowed network's forward fails where the network's does not ({fault_of(fault)}): "
                    "which way it takes depends on values, or it leaves torch; nothing was pruned"
                ) from fault
            for a, b in zip(found, expected, strict=True):
                if a.shape != b.shape:
                    raise CheckFailed(
                        f"the narrowed network's output is of shape {tuple(a.shape)}, the masked one's {tuple(b.shape)}: it "
                        "depends on values, so the two cannot be compared; prune the part before that (a backbone)"
                    )
                if not a.numel():
                    continue
                compared += a.numel()
                if b.isnan().any():
                    raise CheckFailed(
                        "the network's outputs are no numbers (nan) on what they are checked on: it has diverged, or the "
                        "inputs hold nan; nothing was pruned"
                    )
                error = apart(a, b)
                worst = error if not error <= worst else worst  # a NaN stays
    if not compared:
        raise CheckFailed(
            "the network's outputs hold no number on what they are checked on, so nothing can be compared: give inputs "
            "(check_on=) for which they do; nothing was pruned"
        )
    return worst


def check(narrowed: nn.Module, masked: nn.Module, batches: Iterable[Sequence[Tensor]]) -> dict[str, Any]:
    """Error and limit for the record. Raises CheckFailed where the error is above the limit."""
    error, limit = difference(narrowed, masked, batches), limit_of(narrowed)
    if not error <= limit:
        raise CheckFailed(
            f"the narrowed network's outputs differ from the masked network's by {error:.1e} of the largest (allowed: "
            f"{limit:.0e}): nothing was pruned; leave the layers at fault out by scope={{LAYER: ratio}}"
        )
    return {"error": error, "limit": limit}


def _full_precision() -> AbstractContextManager[Any]:
    """Convolutions of float32 in float32, not in TF32, which rounds to ten bits."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
