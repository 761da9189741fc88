"""Criteria that read weights alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memexp.channels import Group
from memexp.pruning.calibration import Calibration
from memexp.pruning.criteria.base import Criterion, OfElements, OfWeights
from memexp.pruning.filters import combined, is_scale, normalised, rows, tensor_of


class L1Norm(OfElements):
    """sum |w| (Li et al. 2017, arXiv 1608.08710)."""

    comparable = False

    def terms(self, network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        return {name: tensor_of(network, name).detach().abs() for name in names}


class L2Norm(OfWeights):
    """sqrt(sum w^2) (Li et al. 2017, section 4.4)."""

    def of(self, filters: Tensor) -> Tensor:
        return filters.square().sum(1).sqrt()


class SignedSum(OfWeights):
    """sum w: filters whose weights are large and negative, which a ReLU would silence, go first."""

    def of(self, filters: Tensor) -> Tensor:
        return filters.sum(1)


class Mean(OfWeights):
    """The mean weight: signed_sum over the filter's size."""

    def of(self, filters: Tensor) -> Tensor:
        return filters.mean(1)


class Std(OfWeights):
    """The standard deviation of the filter's weights, over their number."""

    def of(self, filters: Tensor) -> Tensor:
        return filters.std(1, correction=0)


class Fpgm(OfWeights):
    """sum_j ||F_i - F_j||_2, the distances to the layer's other filters: what they can replace goes first.

    He et al. 2019, arXiv 1811.00250.
    """

    def of(self, filters: Tensor) -> Tensor:
        # by one product of matrices, which takes a twentieth of the time: seconds, not minutes, for a layer of 4096 units
        centred = filters - filters.mean(0)
        squares = centred.square().sum(1)
        both = squares[:, None] + squares
        apart = both - 2 * centred @ centred.T
        # nothing lies between equal filters but rounding, and two are as far from each other both ways
        distances = apart.masked_fill_(apart <= 1e-12 * both, 0).sqrt_().triu_(1)
        return distances.sum(0) + distances.sum(1)


class Lamp(OfWeights):
    """||F_i||^2 / sum of ||F_j||^2 over the layer's filters with j no smaller than i: 1 for a layer's largest.

    Lee et al. 2021, arXiv 2010.07611, whose score of a weight is here that of a filter. Comparable over layers by design.
    """

    comparable = True

    def of(self, filters: Tensor) -> Tensor:
        squares, order = filters.square().sum(1).sort(stable=True)
        at_least = squares.flip(0).cumsum(0).flip(0)
        ranked = torch.where(at_least > 0, squares / at_least, 0)
        return torch.empty_like(ranked).scatter(0, order, ranked)


class BnScale(Criterion):
    """|gamma|, the scale of the normalisation behind the filter (Liu et al. 2017, arXiv 1708.06519).

    Raises ValueError for a group of channels that nothing normalises.
    """

    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        return [
            combined(
                rows(tensor_of(network, name), member.indices, member.dim).double().abs().sum(1)
                for name, member in normalised(network, group, "bn_scale").items()
                if is_scale(name)
            )
            for group in groups
        ]

    def check(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> None:
        self.scores(network, groups, calibration)


class Random(OfElements):
    """Uniform in [0, 1), from the calibration's seed alone."""

    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        generator = torch.Generator().manual_seed(calibration.seed)
        return [torch.rand(group.size, generator=generator, dtype=torch.float64) for group in groups]

    def terms(self, network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(calibration.seed)
        found = {name: tensor_of(network, name) for name in names}
        return {name: torch.rand(t.shape, generator=generator).to(t.device) for name, t in found.items()}
