"""A tensor that takes another's place lies in memory as that did: a network keeps the layout (NHWC) that it computes in."""

import torch
from torch import Tensor


def laid_as(old: Tensor, tensor: Tensor) -> Tensor:
    """A dense copy of `tensor`, its dimensions in memory in the order of those of `old`, of which there are as many.

    Kernels are chosen by strides, also of dimensions of length 1: they are what torch gives a new tensor of that layout.
    """
    strides = old.stride()
    order = sorted(range(old.ndim), key=lambda dim: (-strides[dim], -old.shape[dim]))
    dense = tensor.permute(order).clone(memory_format=torch.contiguous_format)
    return dense.permute([order.index(dim) for dim in range(old.ndim)])
