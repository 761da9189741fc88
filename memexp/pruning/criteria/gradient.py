"""Criteria that read the loss's gradient, or its curvature, at the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memexp.channels import Group
from memexp.pruning.calibration import Calibration, calibrating, gradients
from memexp.pruning.criteria.base import OfElements
from memexp.pruning.criteria.twice import check_twice, twice
from memexp.pruning.filters import combined, layer_of, normalised, rows, tensor_of


@dataclass
class TaylorWeight(OfElements):
    """(sum w dL/dw)^2, with the gradient of the mean loss over all the data (Molchanov et al. 2019, arXiv 1906.10771, eq. 8).

    The paper averages the squares of many minibatches while it trains; of all data at once no score depends on their size.
    gates: of a gate behind each normalisation in place of the filter: (gamma dL/dgamma + beta dL/dbeta)^2, the paper's
    Taylor-FO-BN.
    """

    gates: bool = False
    needs_data = True

    def terms(self, network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        found = gradients(network, names, calibration)
        return {name: tensor_of(network, name).detach() * gradient for name, gradient in found.items()}

    def of_sum(self, terms: Tensor) -> Tensor:
        return terms.square()

    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        if not self.gates:
            return super().scores(network, groups, calibration)
        found = [normalised(network, group, "taylor_weight") for group in groups]
        terms = self.terms(network, list(dict.fromkeys(name for names in found for name in names)), calibration)
        scores = []
        for names in found:
            gates: dict[str, Tensor] = {}
            for name, member in names.items():
                term = rows(terms[name], member.indices, member.dim).sum(1)
                gates[layer_of(name)] = gates.get(layer_of(name), 0) + term
            scores.append(combined(map(self.of_sum, gates.values())))
        return scores


class Snip(OfElements):
    """sum |w dL/dw| at initialisation, before any training (Lee et al. 2019, arXiv 1810.02340).

    Without the paper's division by the sum over all weights, which changes no order. As there, BN that has not been trained
    normalises each batch by itself, so that scores depend on the batches' size as training does; where it has, in eval mode.
    """

    needs_data = True

    def terms(self, network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        found = gradients(network, names, calibration, untrained=True)
        return {name: (tensor_of(network, name).detach() * gradient).abs() for name, gradient in found.items()}


@dataclass
class Obd(OfElements):
    """sum h_ii w_i^2 / 2 with the diagonal of the loss's Hessian (LeCun, Denker, Solla 1990).

    The diagonal is the mean of v * (H v) over `probes` vectors v of random signs (Hutchinson 1990), the same for every batch:
    unbiased, and H v is summed over all the data. It is of the Hessian itself, not of the paper's approximation without the
    activations' curvature, so away from a minimum a score may be negative.
    """

    probes: int = 8
    needs_data = True

    def terms(self, network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
        diagonal = hessian_diagonal(network, names, calibration, self.probes)
        return {name: tensor_of(network, name).detach().square() * h / 2 for name, h in diagonal.items()}


def hessian_diagonal(
    network: nn.Module, names: Sequence[str], calibration: Calibration, probes: int
) -> dict[str, Tensor]:
    """The estimated diagonal of the mean loss's Hessian with respect to the named weights."""
    with calibrating(network), torch.enable_grad(), twice("obd"):
        tensors = [tensor_of(network, name) for name in names]
        generator = torch.Generator().manual_seed(calibration.seed)
        signs = [
            [(torch.randint(0, 2, t.shape, generator=generator) * 2 - 1).to(t) for t in tensors] for _ in range(probes)
        ]
        totals = [torch.zeros_like(t, dtype=torch.float64) for t in tensors]
        samples = 0
        for loss, count in calibration.losses(network):
            check_twice(loss, "obd")
            first = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
            # a loss that is linear in all of them, or does not reach them, has no second derivative
            for v in signs if any(g.requires_grad for g in first) else ():
                second = torch.autograd.grad(first, tensors, v, retain_graph=True, allow_unused=True)
                for total, sign, product in zip(totals, v, second, strict=True):
                    if product is not None:
                        total += sign * product
            samples += count
    return {name: total / (samples * probes) for name, total in zip(names, totals, strict=True)}
