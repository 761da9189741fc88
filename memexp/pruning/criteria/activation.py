"""Criteria that read a channel's activation a, or its product with the loss's gradient, sample by sample.

The activation is the one behind the activation function that follows (memexp.pruning.activations). The product summed over
the positions of a map is the gradient of a gate that multiplies the channel: sum_hw a dL/da = dL/dgate at gate = 1, for each
sample by itself.
"""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from memexp.channels import Group, Member, called
from memexp.pruning.activations import Activations, Place, check_rows, gives_channels, places
from memexp.pruning.calibration import Batch, Calibration, calibrating
from memexp.pruning.criteria.base import Criterion
from memexp.pruning.filters import combined, layer_of, layers, rows, weights


class OfActivations(Criterion):
    """A figure for each sample and channel at each activation of a group; its mean over the samples is the score there."""

    needs_data = True
    zeros: ClassVar[bool] = False  # whether it is read after a ReLU alone

    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        makers = [
            {
                layer_of(name): m
                for name, m in weights(network, group).items()
                if gives_channels(network.get_submodule(layer_of(name)), m.dim)
            }
            for group in groups
        ]
        inputs, _ = next(iter(calibration.data))
        kept: dict[tuple[int, Place], list[Tensor]] = defaultdict(list)
        samples = 0
        with calibrating(network):
            after, own = places(network, [list(members) for members in makers], inputs, self.zeros)
            for members, group in zip(makers, groups, strict=True):
                if not members.keys() & (after | own):
                    raise ValueError(
                        f"layer {layers(group)[0]} never gave an activation of its own (a module's output with a row for "
                        "each sample): choose a criterion that reads weights"
                    )
            for batch in calibration.data:
                for place, figures in self.figures(network, after, own, batch, calibration).items():
                    for number, members in enumerate(makers):
                        if maker := next((layer for layer in place if layer in members), None):
                            kept[number, place].append(self.keep(_owned(figures, members[maker])))
                samples += called.rows(batch[0])
        return [
            combined(self.over_samples(torch.cat(found), samples) for (of, _), found in kept.items() if of == number)
            for number in range(len(groups))
        ]

    @abstractmethod
    def figures(
        self, network: nn.Module, after: set[str], own: set[str], batch: Batch, calibration: Calibration
    ) -> dict[Place, Tensor]:
        """(samples, width) at each activation, for one batch."""

    def keep(self, figures: Tensor) -> Tensor:
        """What is kept of a batch's (samples, channels) figures: (rows, channels)."""
        return figures.sum(0, keepdim=True)

    def over_samples(self, kept: Tensor, samples: int) -> Tensor:
        """The score from all that was kept: (rows, channels) -> (channels,)."""
        return kept.sum(0) / samples


class OfValues(OfActivations):
    """A function of each sample's map."""

    def figures(
        self, network: nn.Module, after: set[str], own: set[str], batch: Batch, calibration: Calibration
    ) -> dict[Place, Tensor]:
        maps: dict[Place, list[Tensor]] = defaultdict(list)
        inputs, samples = called.copied(batch[0]), called.rows(batch[0])

        def read(place: Place, activation: Tensor) -> Tensor:
            check_rows(place, activation, samples)
            maps[place].append(self.of(activation[..., None].flatten(2)).double())
            return activation

        with torch.no_grad(), Activations(network, after, own, read, self.zeros):
            network(*inputs)
        return {place: torch.stack(found).mean(0) for place, found in maps.items()}

    @abstractmethod
    def of(self, maps: Tensor) -> Tensor:
        """(samples, channels, positions) -> (samples, channels)."""


class Apoz(OfValues):
    """1 - APoZ, the average share of the activation that is not zero (Hu et al. 2016, arXiv 1607.03250).

    The paper removes what has the highest percentage of zeros: here, as everywhere, the least score. Raises ValueError for a
    group behind which no ReLU follows.
    """

    zeros = True

    def of(self, maps: Tensor) -> Tensor:
        return (maps != 0).double().mean(2)

    def figures(
        self, network: nn.Module, after: set[str], own: set[str], batch: Batch, calibration: Calibration
    ) -> dict[Place, Tensor]:
        if own:
            raise ValueError(
                f"criterion=apoz counts zeros after a ReLU, and none follows layer {sorted(own)[0]}: choose another "
                "criterion, or leave that layer out by scope={LAYER: ratio}"
            )
        return super().figures(network, after, own, batch, calibration)


@dataclass
class Entropy(OfValues):
    """-sum p log p of the channel's averaged activation over the data, in nats (Luo and Wu 2017, arXiv 1706.05791).

    p are the shares of the samples in `bins` bins of equal width between the channel's smallest and largest value; a channel
    that is the same for every sample has entropy 0.
    """

    bins: int = 100

    def of(self, maps: Tensor) -> Tensor:
        return maps.double().mean(2)

    def keep(self, figures: Tensor) -> Tensor:
        return figures

    def over_samples(self, kept: Tensor, samples: int) -> Tensor:
        low, high = kept.min(0).values, kept.max(0).values
        width = (high - low).clamp_min(torch.finfo(kept.dtype).tiny) / self.bins
        bin_of = ((kept - low) / width).nan_to_num(0).long().clamp_max(self.bins - 1)
        counts = torch.zeros(self.bins, kept.shape[1], dtype=kept.dtype, device=kept.device)
        p = counts.scatter_add_(0, bin_of, torch.ones_like(kept)) / samples
        return -torch.special.xlogy(p, p).sum(0).masked_fill(~kept.isfinite().all(0), torch.nan)


class OfProducts(OfActivations):
    """A function of each sample's sum over the map of a dL/da, L that sample's loss."""

    def figures(
        self, network: nn.Module, after: set[str], own: set[str], batch: Batch, calibration: Calibration
    ) -> dict[Place, Tensor]:
        inputs, samples = called.copied(batch[0]), called.rows(batch[0])
        gates: dict[Place, list[tuple[Tensor, int]]] = defaultdict(list)

        def read(place: Place, activation: Tensor) -> Tensor:
            check_rows(place, activation, samples)
            gate = activation.new_ones(activation.shape[:2]).requires_grad_()
            gates[place].append((gate, activation[0, 0].numel()))
            return activation * gate.view(gate.shape + (1,) * (activation.ndim - 2))

        with torch.enable_grad(), Activations(network, after, own, read, self.zeros):
            loss = calibration.loss(network(*inputs), batch[1]) * samples
        flat = [gate for found in gates.values() for gate, _ in found]
        gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        products: dict[Place, Tensor] = {}
        for place, found in gates.items():
            own_gradients = list(islice(gradients, len(found)))
            if any(gradient is None for gradient in own_gradients):
                raise ValueError(
                    f"the loss does not depend on the activation of layer {place[0]} as its function returned it: choose a "
                    "criterion that reads weights"
                )
            total = torch.stack([gradient.double() for gradient in own_gradients]).sum(0)
            products[place] = self.of(total, sum(positions for _, positions in found))
        return products

    @abstractmethod
    def of(self, products: Tensor, positions: int) -> Tensor:
        """(samples, channels) sums over `positions` positions -> (samples, channels)."""


class TaylorActivation(OfProducts):
    """|mean over the map of a dL/da|, averaged over samples (Molchanov et al. 2017, arXiv 1611.06440, eq. 8).

    To compare layers the paper divides by the l2 norm of a layer's scores, scope=global by their root mean square: the norm
    divided by the root of the layer's width, so that a layer does not lose more for being wide.
    """

    comparable = False

    def of(self, products: Tensor, positions: int) -> Tensor:
        return (products / positions).abs()


class Fisher(OfProducts):
    """(sum over the map of a dL/da)^2 / 2, averaged over samples (Theis et al. 2018, arXiv 1801.05787, eq. 10)."""

    def of(self, products: Tensor, positions: int) -> Tensor:
        return products.square() / 2


class Skeletonization(OfProducts):
    """-sum over the map of a dL/da, averaged over samples (Mozer and Smolensky 1988).

    To first order what the loss grows by without the channel, -dL/dgate at gate = 1: where it is negative, the loss is less
    without it, and it goes first. The paper takes the sum of absolute errors for L, as the squared one's slope vanishes where
    targets are met, and averages over training with a decay; here L is the loss, and the weights are those given.
    """

    def of(self, products: Tensor, positions: int) -> Tensor:
        return -products


def _owned(figures: Tensor, member: Member) -> Tensor:
    """(samples, width) of a layer -> (samples, channels), the mean over what each channel owns of it."""
    samples = len(figures)
    return rows(figures.T.contiguous(), member.indices, 0).view(len(member.indices), -1, samples).mean(1).T
