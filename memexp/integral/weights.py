"""Integral layers: a convolution, fully connected layer or BatchNorm whose parameters are samples of continuous ones.

An integral layer is the discrete layer with another forward: its parameters have the names and the native shapes of the
discrete one's and hold lambda h (memexp.integral.axis); each forward samples them once, from the layer's own parameters alone,
so a recomputation in backward finds all that it reads. Positions of a kernel stay discrete.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from memexp.channels.layout import laid_as
from memexp.edits.fold import activates
from memexp.integral.axis import Axis


def _own_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Whatever autocast says: rounding weights to half precision before they are sampled would be done twice."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


class Integral(nn.Module):
    """What integral layers share: `axes`, the continuous dimensions of each of their tensors.

    held: whether the layer is in evaluation mode within a network that is trained. discrete: what it is a form of.
    """

    discrete: type[nn.Module]
    axes: Mapping[str, tuple[Axis, ...]]
    held = False

    @property
    def drawn(self) -> bool:
        """Whether its size is that of a training step."""
        return self.training or self.held

    def sampled(self, name: str) -> Tensor | None:
        """The parameter or buffer of that name at the present size, in its own precision whatever autocast says."""
        value: Tensor | None = getattr(self, name)
        if value is None or not self.axes.get(name):
            return value
        with _own_precision(value):
            for axis in self.axes[name]:
                value = axis.sample(value, self.drawn)
        return value


class _IntegralConv(Integral, _ConvNd):
    """F of (x_out, x_in) for each position of the kernel; depthwise and grouped too."""

    convolve: ClassVar[Callable[..., Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        W, bias = self.sampled("weight"), self.sampled("bias")
        assert W is not None
        padding: str | tuple[int, ...] | int = self.padding
        if self.padding_mode != "zeros":
            x = functional.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        groups = x.shape[1 - W.ndim] // W.shape[1]  # with and without a batch
        return type(self).convolve(x, W, bias, self.stride, padding, self.dilation, groups)


class IntegralConv1d(_IntegralConv, nn.Conv1d):
    discrete, convolve = nn.Conv1d, functional.conv1d


class IntegralConv2d(_IntegralConv, nn.Conv2d):
    discrete, convolve = nn.Conv2d, functional.conv2d


class IntegralConv3d(_IntegralConv, nn.Conv3d):
    discrete, convolve = nn.Conv3d, functional.conv3d


class IntegralLinear(Integral, nn.Linear):
    """F of (x_out, x_in)."""

    discrete = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        W = self.sampled("weight")
        assert W is not None
        return functional.linear(x, W, self.sampled("bias"))


class _IntegralBatchNorm(Integral, nn.modules.batchnorm._BatchNorm):
    """BatchNorm that was not folded: weight, bias and running statistics are functions of the channel.

    A training step moves the running statistics at their native nodes towards the batch's, which are drawn out between the
    present ones (Continuum.drawn_out).
    """

    def sampled(self, name: str) -> Tensor | None:
        value = super().sampled(name)
        return value if name != "running_var" or value is None else self._positive(value)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        axis = next(axes for axes in self.axes.values())[0]
        if axis.native(self.drawn):
            return super().forward(x)
        if not self.training or self.running_mean is None or self.running_var is None:
            weight, bias, mean, var = self._together(axis, ("weight", "bias", "running_mean", "running_var"))
            if mean is not None and var is not None:
                mean, var = mean.detach(), self._positive(var.detach())
            return functional.batch_norm(x, mean, var, weight, bias, self.training or mean is None, 0.0, self.eps)
        weight, bias = self._together(axis, ("weight", "bias"))
        mean, var = (self.running_mean.new_zeros(x.shape[1]) for _ in range(2))
        # with momentum 1 what comes back as running statistics is the batch's
        y = functional.batch_norm(x, mean, var, weight, bias, True, 1.0, self.eps)
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        assert momentum is not None
        batch = list(axis.spread(torch.stack((mean, var)), self.training).unbind(0))
        if not axis.even(self.training):  # straight lines do not overshoot
            batch[1] = batch[1].maximum(var.min() / 10)
        torch._foreach_lerp_([self.running_mean, self.running_var], batch, momentum)
        return y

    def _together(self, axis: Axis, names: Sequence[str]) -> list[Tensor | None]:
        """The tensors of these names in one product."""
        tensors = [getattr(self, name) for name in names]
        given = [tensor for tensor in tensors if tensor is not None]
        if not given:
            return [None for _ in tensors]
        with _own_precision(given[0]):
            # in rows: backward of BN on channels_last images reads a weight with strides as if it had none (torch 2.14)
            rows = axis.sample(torch.stack(given, 1), self.drawn).t().contiguous()
            columns = iter(rows.unbind(0))
        return [None if tensor is None else next(columns) for tensor in tensors]

    def _positive(self, var: Tensor) -> Tensor:
        """Between nodes u overshoots, and a variance must not."""
        assert self.running_var is not None
        axis = self.axes["running_var"][0]
        if axis.native(self.drawn):
            return var  # of the native nodes, what it was made continuous from
        # lambda is that, too, but for Gauss-Legendre, whose lambda may reach below what is sampled of it, or not as far
        least = axis.at_native().sample(self.running_var, False).min()
        return var.maximum(torch.where(least > 0, least, self.running_var.min().clamp_min(0)))


class IntegralBatchNorm1d(_IntegralBatchNorm, nn.BatchNorm1d):
    discrete = nn.BatchNorm1d


class IntegralBatchNorm2d(_IntegralBatchNorm, nn.BatchNorm2d):
    discrete = nn.BatchNorm2d


class IntegralBatchNorm3d(_IntegralBatchNorm, nn.BatchNorm3d):
    discrete = nn.BatchNorm3d


class IntegralBatchNormAct2d(_IntegralBatchNorm, nn.BatchNorm2d):
    """timm's, with dropout and an activation in it. As timm may not be there, `discrete` is the layer's own."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


KINDS: tuple[type[Integral], ...] = (
    *(IntegralConv1d, IntegralConv2d, IntegralConv3d, IntegralLinear),
    *(IntegralBatchNorm1d, IntegralBatchNorm2d, IntegralBatchNorm3d),
)
LAYERS: dict[type[nn.Module], type[Integral]] = {kind.discrete: kind for kind in KINDS}


def form(layer: nn.Module) -> type[Integral] | None:
    """The kind of integral layer that it becomes; None for one that has no integral form."""
    return IntegralBatchNormAct2d if activates(layer) else LAYERS.get(type(layer))


def continue_(layer: nn.Module, axes: Mapping[str, tuple[Axis, ...]]) -> Integral:
    """The discrete `layer` itself, made integral: its tensors become lambda h, so that at native size its outputs stay.

    Raises ValueError for a layer of another kind.
    """
    kind = form(layer)
    if kind is None:
        raise ValueError(f"{type(layer).__name__} has no integral form; {', '.join(k.__name__ for k in LAYERS)} have")
    with torch.no_grad():
        for name, parts in axes.items():
            value = getattr(layer, name)
            if value is None or value.is_meta:
                continue
            restored = value.double()
            for axis in parts:
                restored = axis.restore(restored)
            value.copy_(restored)
    discrete, layer.__class__ = type(layer), kind
    assert isinstance(layer, Integral)
    layer.axes, layer.discrete = dict(axes), discrete
    return layer


def discretise_(layer: Integral) -> nn.Module:
    """The integral `layer` itself, made an ordinary one of its present evaluation size."""
    tensors = {name: layer.sampled(name) for name in layer.axes}
    for name, value in tensors.items():
        if value is None:
            continue
        old = getattr(layer, name)
        value = laid_as(old, value.detach())
        setattr(layer, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
    axes = layer.axes
    layer.__class__ = layer.discrete  # type: ignore[assignment]
    del layer.axes, layer.discrete
    vars(layer).pop("held", None)
    layer._modules.pop("partitions", None)
    # the layer's figures become those of its tensors
    if isinstance(layer, _ConvNd):
        if layer.groups > 1 and _whole_groups(layer, axes.get("weight", ())):
            layer.groups = layer.groups * layer.weight.shape[0] // layer.out_channels
        layer.in_channels, layer.out_channels = layer.groups * layer.weight.shape[1], layer.weight.shape[0]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        sized = layer.weight if layer.affine else layer.running_mean
        assert sized is not None
        layer.num_features = len(sized)
    return layer


def _whole_groups(layer: _ConvNd, axes: tuple[Axis, ...]) -> bool:
    """Whether a channel of the continuous group is a whole group of the convolution (depthwise), and not one within each."""
    return all(axis.dim == 0 and any(s.group and s.outer % layer.groups for s in axis.segments) for axis in axes)
