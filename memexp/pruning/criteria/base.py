"""What every criterion is: a score for each channel of each group, of which the least is removed first."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from memexp.channels import Group
from memexp.pruning.calibration import Calibration
from memexp.pruning.filters import combined, rows, tensor_of, weights


class Criterion(ABC):
    """A way to score channels.

    needs_data: whether it reads batches. comparable: whether a score means the same in every layer; where it does not,
    scope=global divides each group's scores by their root mean square.
    """

    needs_data: ClassVar[bool] = False
    comparable: ClassVar[bool] = True

    @abstractmethod
    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        """For each group a float64 tensor (channels,)."""

    def check(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> None:
        """Raises ValueError where these groups cannot be scored, whatever the weights and the data are."""
        if self.needs_data:
            self.scores(network, groups, calibration)


class OfWeights(Criterion):
    """A function of each filter of a layer."""

    comparable = False

    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        return [
            combined(
                self.of(rows(tensor_of(network, name), member.indices, member.dim).double())
                for name, member in weights(network, group).items()
            )
            for group in groups
        ]

    @abstractmethod
    def of(self, filters: Tensor) -> Tensor:
        """(filters, elements) of one layer -> (filters,)."""


class OfElements(Criterion):
    """A term for each single weight: a filter's score sums its terms, and unstructured masks score each by itself."""

    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        found = [weights(network, group) for group in groups]
        terms = self.terms(network, list(dict.fromkeys(name for names in found for name in names)), calibration)
        return [
            combined(self.of_sum(rows(terms[name], m.indices, m.dim).double().sum(1)) for name, m in names.items())
            for names in found
        ]

    def elements(self, network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        """For each named weight the scores of its elements, of the same shape."""
        return {name: self.of_sum(term) for name, term in self.terms(network, names, calibration).items()}

    @abstractmethod
    def terms(self, network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        """For each named weight the terms of its elements, of the same shape."""

    def of_sum(self, terms: Tensor) -> Tensor:
        """The score of sums of terms."""
        return terms
