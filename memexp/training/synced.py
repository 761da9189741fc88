"""Batch normalisation over the batches of all processes, as one process with the whole batch would compute it.

On an accelerator torch's SyncBatchNorm does it; torch has none for the CPU, so here is one. A layer keeps its parameters, its
buffers and their names: what changes is its class, for as long as it is trained.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(_BatchNorm):
    """Mean and variance in two passes, each summed over all processes; at least float32."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        over = [dim for dim in range(x.ndim) if dim != 1]
        form = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        own = values.new_full((1,), x.numel() / x.shape[1])
        sums: Tensor = _Sum.apply(torch.cat([values.sum(over), own]))
        count = float(sums[-1])
        mean = sums[:-1] / count
        centred = values - mean.view(form)
        var: Tensor = _Sum.apply(centred.square().sum(over)) / count
        self._move(mean.detach(), var.detach() * (count / max(count - 1, 1)))
        y = centred * torch.rsqrt(var + self.eps).view(form)
        if self.affine:
            y = y * self.weight.view(form) + self.bias.view(form)
        return y.to(x.dtype)

    def _move(self, mean: Tensor, var: Tensor) -> None:
        """The running statistics, towards those of this batch."""
        if self.running_mean is None or self.running_var is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum or 0.0)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum or 0.0)


class SyncedBatchNorm1d(SyncedBatchNorm, nn.BatchNorm1d):
    """On (n, channels) and (n, channels, length)."""


class SyncedBatchNorm2d(SyncedBatchNorm, nn.BatchNorm2d):
    """On (n, channels, height, width)."""


ON_CPU: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
}


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Makes the batch normalisations of `network` those of all processes.

    Raises ValueError for one of another kind, such as an integral network's, whose statistics would not be.
    """
    for name, layer in network.named_modules():
        if not isinstance(layer, _BatchNorm) or isinstance(layer, SyncedBatchNorm | nn.SyncBatchNorm):
            continue
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            raise ValueError(
                f"sync_batchnorm: true, but {name} is a {type(layer).__name__}, whose statistics cannot be those of all "
                "processes; set sync_batchnorm=false"
            )
        vars(layer)["alone"] = type(layer)
        vars(layer)["process_group"] = None
        layer.__class__ = ON_CPU[type(layer)] if device.type == "cpu" else nn.SyncBatchNorm  # type: ignore[assignment]


def restore(network: nn.Module) -> None:
    """Makes them ordinary again, once the network is trained."""
    for layer in network.modules():
        if isinstance(layer, SyncedBatchNorm | nn.SyncBatchNorm) and (alone := layer.__dict__.pop("alone", None)):
            layer.__class__ = alone
