"""Passes over data that a criterion reads: always in eval mode, and nothing of the network is changed by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from memexp.backprop import chains
from memexp.backprop.untouched import untouched
from memexp.channels import hooked
from memexp.channels.called import copied, rows
from memexp.modes import evaluating, trained_normalisations
from memexp.pruning.filters import tensor_of

Batch = tuple[Tensor | Sequence[Tensor], Tensor]  # of a network of several inputs, as many tensors
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Calibration:
    """What a criterion may read.

    data: batches of (inputs, targets) on the network's device, to be gone through more than once: a list or a loader; inputs
    are a tensor, or a list of those that the network is called with.
    loss_fn: (outputs, targets) -> the mean over the batch's samples. seed: of what is drawn.
    """

    data: Iterable[Batch] = ()
    loss_fn: Loss = functional.cross_entropy
    seed: int = 0

    def losses(self, network: nn.Module) -> Iterator[tuple[Tensor, int]]:
        """For each batch the sum of its samples' losses, and how many they are."""
        for inputs, targets in self.data:
            samples = rows(inputs)
            yield self.loss(network(*copied(inputs)), targets) * samples, samples

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean over a batch's samples. Raises ValueError where loss_fn gives something else."""
        found: Any = self.loss_fn(outputs, targets)
        if not isinstance(found, Tensor) or found.numel() != 1:
            what = (
                f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            )
            raise ValueError(f"loss_fn gives {what}: return the mean over the batch's samples, a tensor of one number")
        return found


def given(reader: str, needed: bool, data: Iterable[Batch] | None, loss_fn: Loss, seed: int) -> Calibration:
    """The calibration for `reader`. Raises ValueError where it needs data and has none, or data that can be read only once, and
    for batches that are no (inputs, targets)."""
    if data is None and needed:
        raise ValueError(f"{reader} reads data, and there is none: give data=[(inputs, targets), ...]")
    if data is not None and iter(data) is data:
        raise ValueError("data can be gone through only once: give a list or a loader of batches, not a generator")
    if data is not None:
        first: Any = next(iter(data), None)
        if first is None:
            raise ValueError("data holds no batch: give at least one (inputs, targets)")
        if not isinstance(first, tuple | list) or len(first) != 2:
            what = f"of {len(first)} items" if isinstance(first, tuple | list) else f"that is a {type(first).__name__}"
            raise ValueError(
                f"data holds a batch {what}, and each is a pair (inputs, targets): give data=[(inputs, targets), ...], with a "
                "list for inputs where the network takes several"
            )
    return Calibration(() if data is None else data, loss_fn, seed)


@contextmanager
def calibrating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode (BN uses its running statistics), every Chain stores, every parameter has a gradient.

    So samples of a batch do not see each other, and scores depend neither on the batches' order nor on their sizes.
    Weights that parametrisations or hooks make are computed once, to be the tensors that gradients are taken of. Attention has
    second derivatives. Attributes and buffers that a forward or a hook of the user's sets are as before afterwards.
    """
    frozen = [p for p in network.parameters() if not p.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(untouched(network))
        stack.enter_context(evaluating(network))
        for chain in chains(network):
            stack.enter_context(chain.using("stored"))
        stack.enter_context(parametrize.cached())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            for p in frozen:
                p.requires_grad_(True)
            with hooked.cached(network):
                yield
        finally:
            for p in frozen:
                p.requires_grad_(False)


@contextmanager
def normalising_batches(network: nn.Module) -> Iterator[None]:
    """Inside, batch normalisations whose running statistics are as they were made (0 and 1) take those of each batch, as in
    training; nothing of theirs moves. Entered within `calibrating`. Layers that do not train so are left alone.

    In eval mode they normalise nothing before they have been trained: the scores of a ResNet-110 are then in the thousands.
    """
    layers = trained_normalisations(network)
    made = [layer for layer in layers if layer.track_running_stats and _as_made(layer)]
    hooks = [layer.register_forward_pre_hook(_by_batch) for layer in made]
    for layer in made:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, hook in zip(made, hooks, strict=True):
            hook.remove()
            layer.training, layer.track_running_stats = False, True


def _by_batch(layer: nn.Module, inputs: tuple[Tensor]) -> None:
    """One value a channel (a last batch of one sample, behind all pooling) has no variance."""
    layer.training = inputs[0].numel() > inputs[0].shape[1]


def _as_made(layer: _BatchNorm) -> bool:
    mean, variance = layer.running_mean, layer.running_var
    return mean is not None and variance is not None and not mean.any() and bool((variance == 1).all())


def gradients(
    network: nn.Module, names: Sequence[str], calibration: Calibration, untrained: bool = False
) -> dict[str, Tensor]:
    """The gradient of the mean loss over all samples of the data, by effective name; `p.grad` is left alone.

    untrained: what BN knows nothing of yet, it takes from each batch (normalising_batches).
    """
    inside = normalising_batches(network) if untrained else nullcontext()
    with calibrating(network), inside, torch.enable_grad():
        tensors = [tensor_of(network, name) for name in names]
        totals = [torch.zeros_like(t, dtype=torch.float64) for t in tensors]
        samples = 0
        for loss, count in calibration.losses(network):
            found = torch.autograd.grad(loss, tensors, allow_unused=True)
            for total, gradient in zip(totals, found, strict=True):
                if gradient is not None:
                    total += gradient
            samples += count
    return {name: total / samples for name, total in zip(names, totals, strict=True)}
