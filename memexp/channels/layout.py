"""A tensor that takes another's place lies in memory as that did: a network keeps the layout (NHWC) that it computes in."""

from torch import Tensor


def laid_as(old: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, dense, its dimensions in memory in the order of those of `old`, of which there are as many."""
    order = sorted(range(old.ndim), key=lambda dim: -old.stride()[dim])
    return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(old.ndim)])
