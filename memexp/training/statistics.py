"""Population statistics of batch normalisation, estimated anew for an evaluation (Wu and Johnson 2021, arXiv 2105.07576).

BN's running averages trail the weights by some 1 / momentum steps, and in a short run still hold much of their start. Here
they are replaced by what they stand for, section 3 of the paper: mean and variance of each channel over many training
images at the weights that are evaluated,

    mean = E_B[mean_B]        var = E_B[var_B + mean_B^2] - mean^2

over batches B as in training, augmentation included, each weighted with its number of values, and var without bias, as PyTorch
keeps it. Images as they are in evaluation would have other statistics than the weights have learnt to live with: crops with
a border of zeros are darker and flatter. A ResNet-20 of 82.9 % with its running statistics after 5,000 steps had 83.1 % over
1,000 training images with augmentation, and 79.3 % over 1,000 or 4,000 without.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from memexp.backprop.compiled import uncompiled
from memexp.data import Batches
from memexp.modes import evaluating, trained_normalisations
from memexp.training import distribution
from memexp.training.distribution import World
from memexp.training.precision import Precision
from memexp.training.signals import StopRequest
from memexp.training.synced import SyncedBatchNorm

IMAGES = 1000  # enough: the paper takes 1,000 to 10,000, and a loss on CIFAR-10 is the same from 500 on to three digits
SETTLED = 20  # times 1 / momentum steps: the start's share of a running average is then below 1e-8
ALONE = World()


def needed(steps: int, momenta: Sequence[float]) -> bool:
    """Whether running averages of these momenta are not to be trusted, `steps` after they or the network began anew."""
    return any(steps < SETTLED / momentum for momentum in momenta)


def momenta(network: nn.Module) -> list[float]:
    """The momenta of the BN layers of `network` whose running averages move; none of plain averages over all steps."""
    return sorted({layer.momentum for layer in _layers(network) if layer.momentum is not None})


def distrusted(network: nn.Module, steps: int) -> str | None:
    """Why the running averages of `network` are not those of what is evaluated after `steps`; None where they are.

    A network that has had another size in each step says so by an attribute `sizes_vary`.
    """
    own = momenta(network)
    if own and any(getattr(module, "sizes_vary", False) for module in network.modules()):
        return "its running statistics are of no one size"
    return f"{steps} steps are few for a momentum of {own[0]:g}" if needed(steps, own) else None


@contextmanager
@torch.no_grad()
def estimated_statistics(
    network: nn.Module,
    batches: Batches,
    images: int,
    precision: Precision,
    world: World = ALONE,
    stop: StopRequest | None = None,
) -> Iterator[int]:
    """Inside, BN's running mean and variance are those of the population; afterwards they are bitwise what they were.

    batches: training images as they are trained on. images: how many of them to use, in all processes
    together; fewer where there are no more. Yields how many were used. All but BN is in eval mode, so no dropout. Layers
    whose averages are kept fixed, by momentum 0 or by a network that trains with them in eval mode, are left alone. Raises
    Interrupted where `stop` has come. Random states and training are not touched. Raises ValueError where there are no batches.
    """
    layers = _layers(network)
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]
    try:
        used = _collect(network, layers, batches, images, precision, world, stop) if layers else 0
        yield used
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            for name, buffer in buffers.items():
                layer.get_buffer(name).copy_(buffer)


def in_random_order(batches: Batches) -> Batches:
    """The images of a split that is read in order (by class, in folders) in the order of its first epoch of training."""
    shuffled: Any = copy.copy(batches)
    shuffled.training = True  # of the order alone: its transformation was chosen when it was made
    return shuffled


@dataclass
class _Moments:
    """Mean and sum of squared deviations of `count` values a channel, merged batch by batch (Chan et al. 1979)."""

    mean: Tensor
    squares: Tensor
    count: int = 0

    def add(self, mean: Tensor, squares: Tensor, count: int) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.squares += squares + apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total


def _collect(
    network: nn.Module,
    layers: list[_BatchNorm],
    batches: Batches,
    images: int,
    precision: Precision,
    world: World,
    stop: StopRequest | None,
) -> int:
    """Sets the running mean and variance of `layers`; returns the number of images in all processes."""
    momentum = [layer.momentum for layer in layers]
    counted = [layer.num_batches_tracked for layer in layers]
    found = {layer: _Moments(torch.zeros_like(_mean(layer)), torch.zeros_like(_mean(layer))) for layer in layers}
    hooks = [layer.register_forward_hook(_reader(found[layer], world)) for layer in layers]
    seen, wanted = 0, -(-images // world.size)
    try:
        with evaluating(network):
            for layer in layers:
                layer.train()
                layer.momentum = 1.0  # the running mean and variance are then those of the batch
                layer.num_batches_tracked = None
            with uncompiled(network), _random_state_kept(precision.device):  # whose layers can be listened to
                for batch, _ in batches.epoch(0):
                    if world.size == 1:  # several may need each other in every batch (SyncBatchNorm)
                        distribution.heed(stop, world)
                    with precision.autocast():
                        network(batch)
                    seen += len(batch)
                    if seen >= wanted:
                        break
    finally:
        for hook in hooks:
            hook.remove()
        for layer, value, count in zip(layers, momentum, counted, strict=True):
            layer.momentum, layer.num_batches_tracked = value, count
    distribution.heed(stop, world)
    if not seen:
        raise ValueError("there are no training images to estimate the statistics of batch normalisation over")
    for layer, moments in found.items():
        if moments.count:  # else the layer took no part
            _set(layer, moments, world)
    return int(distribution.total(torch.tensor(seen), world))


def _reader(moments: _Moments, world: World) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def read(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own = inputs[0].numel() // inputs[0].shape[1]
        count = own * world.size if isinstance(layer, SyncedBatchNorm | nn.SyncBatchNorm) else own
        moments.add(_mean(layer), _variance(layer) * (count - 1) * (own / count), own)  # of what all have, its share

    return read


def _set(layer: nn.Module, moments: _Moments, world: World) -> None:
    """Over all processes; on the host and in float64, as not every accelerator has it."""
    mean, squares = moments.mean.cpu().double(), moments.squares.cpu().double()
    sums = torch.stack(
        [torch.full_like(mean, moments.count), mean * moments.count, squares + mean.square() * moments.count]
    )
    count, first, second = distribution.total(sums, world)
    _mean(layer).copy_(first / count)
    _variance(layer).copy_((second - first.square() / count) / (count - 1))


def _layers(network: nn.Module) -> list[_BatchNorm]:
    """Those whose running averages move in training."""
    found = trained_normalisations(network)
    return [layer for layer in found if layer.running_mean is not None and layer.momentum != 0]


def _mean(layer: nn.Module) -> Tensor:
    return layer.get_buffer("running_mean")


def _variance(layer: nn.Module) -> Tensor:
    return layer.get_buffer("running_var")


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    devices = [] if device.type == "cpu" else [device]
    kind = {} if device.type == "cpu" else {"device_type": device.type}
    with torch.random.fork_rng(devices=devices, **kind):
        yield
