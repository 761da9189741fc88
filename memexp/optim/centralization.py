"""Gradient centralization (Yong, Huang, Hua, Zhang 2020, arXiv 2004.01461).

For a weight with more than one dimension, the mean of its gradient over all dimensions but the first is subtracted. The
first is the output dimension of linear and convolution weights and the input one of transposed convolutions, as the paper
has it. Biases and BN are left alone.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from memexp.optim import kernels
from memexp.optim.wrapper import Wrapper


def centralize_gradient(gradient: Tensor, conv_only: bool = False) -> Tensor:
    """`gradient` minus its mean over all dimensions but the first; a new tensor of the same shape and layout.

    One of fewer than two dimensions, or with `conv_only` than three, is returned as it is.
    """
    if gradient.ndim < (3 if conv_only else 2):
        return gradient
    return gradient - gradient.mean(tuple(range(1, gradient.ndim)), keepdim=True)


def centralized(gradients: Sequence[Tensor]) -> list[Tensor]:
    """`centralize_gradient` of many gradients in a few operations: those alike but for their outputs are put together."""
    found = list(gradients)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, g in enumerate(gradients):
        alike.setdefault((g.shape[1:], g.stride(), g.dtype, g.device), []).append(i)
    for members in alike.values():
        given = [gradients[i] for i in members]
        if kernels.order(given[0]) is None:
            given = [g.contiguous() for g in given]
        together = torch.cat(given)  # in the memory format of all
        together -= together.mean(tuple(range(1, together.ndim)), keepdim=True)
        for i, centred in zip(members, together.split([g.shape[0] for g in given]), strict=True):
            found[i] = centred
    return found


DECOUPLED = (torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Muon)  # whose groups do not say so themselves


class Centralized(Wrapper):
    """`optimizer` with centralized gradients, or with `where="update"` with centralized updates (for Adam-like methods).

    `p.grad` is left as it was. A group may have its own `gradient_centralization` (whether), `where` and `conv_only`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gradient_centralization: bool = True,
        where: Literal["gradient", "update"] = "gradient",
        conv_only: bool = False,
    ) -> None:
        defaults = {"gradient_centralization": gradient_centralization, "where": where, "conv_only": conv_only}
        super().__init__(optimizer, defaults)

    def check(self, group: dict[str, Any]) -> None:
        if group["where"] not in ("gradient", "update"):
            raise ValueError(f"where={group['where']!r} is not allowed: use gradient or update")

    def around(self, group_parameters: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        gradient: list[Tensor] = []
        update: list[tuple[Tensor, float]] = []
        for group, parameters in group_parameters:
            chosen = [p for p in parameters if p.ndim >= (3 if group["conv_only"] else 2)]
            if not group["gradient_centralization"]:
                continue
            if group["where"] == "gradient":
                gradient += chosen
            else:
                update += [(p, _decay(self.optimizer, group)) for p in chosen]
        own = [p.grad for p in gradient if p.grad is not None]
        if sparse := [g for g in own if g.layout is not torch.strided]:
            raise RuntimeError(
                f"the gradient of a parameter of shape {tuple(sparse[0].shape)} is sparse, which centralization cannot be: "
                "make it dense, or set gradient_centralization=False for its group"
            )
        for p, centred in zip(gradient, centralized(own), strict=True):
            p.grad = centred
        weights = [p for p, _ in update]
        before = torch._foreach_mul(weights, [decay for _, decay in update]) if update else ()
        try:
            self.step_inside()
        finally:
            for p, given in zip(gradient, own, strict=True):
                p.grad = given
        if update:
            torch._foreach_copy_(weights, torch._foreach_add(before, centralized(torch._foreach_sub(weights, before))))


def _decay(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """What decoupled weight decay multiplies the weights with in a step: that is no part of the update."""
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, DECOUPLED))
    return 1 - float(group["lr"]) * group["weight_decay"] if decoupled else 1.0
