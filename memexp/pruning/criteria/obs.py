"""Optimal brain surgeon (Hassibi and Stork 1993): the full Hessian of a layer, and an update that makes up for what goes.

Removing the weights w_Q of a layer while its others move freely costs least, to second order,
    L_Q = 1/2 w_Q^T ([H^-1]_QQ)^-1 w_Q      with      dw = -H^-1[:, Q] ([H^-1]_QQ)^-1 w_Q,
which for one weight is the paper's w_q^2 / (2 [H^-1]_qq). H is that of the mean loss over all the data with respect to the
layer's weights, plus `damping` on its diagonal (the paper's is of the whole network, a sum of outer products of first
derivatives): N^2 numbers for N weights, so it fits small layers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memexp.channels import Group, Member
from memexp.pruning.calibration import Calibration, calibrating
from memexp.pruning.criteria.base import Criterion
from memexp.pruning.criteria.twice import check_twice, twice
from memexp.pruning.filters import combined, layer_of, rows, tensor_of, weights


@dataclass
class Obs(Criterion):
    """L_Q of each filter, and the compensating update once it is known which filters go.

    largest: weights of a layer up to which its Hessian is computed. Raises ValueError for a layer with more.
    """

    damping: float = 1e-4
    largest: int = 2000
    needs_data = True

    def scores(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> list[Tensor]:
        self._inverses: dict[str, Tensor] = {}
        self.check(network, groups, calibration)
        return [
            combined(
                self._of_member(network, name, member, calibration) for name, member in weights(network, group).items()
            )
            for group in groups
        ]

    def check(self, network: nn.Module, groups: Sequence[Group], calibration: Calibration) -> None:
        for group in groups:
            for name, member in weights(network, group).items():
                size = tensor_of(network, name).numel()
                if member.name not in (name, f"{name}_orig"):
                    raise ValueError(
                        f"criterion=obs moves the weights that stay, and those of layer {layer_of(name)} are made of "
                        f"{member.name}: make them plain first (torch.nn.utils.parametrize.remove_parametrizations), or use obd"
                    )
                if size > self.largest:
                    raise ValueError(
                        f"criterion=obs: layer {layer_of(name)} has {size} weights, and a Hessian of {size}^2 numbers is "
                        f"computed up to {self.largest}^2: name smaller layers in scope={{LAYER: ratio}}, raise largest, "
                        "or use obd"
                    )

    def compensate(self, network: nn.Module, group: Group, removed: Sequence[int]) -> None:
        """Moves the other weights of the group's layers, in place, as `removed` channels leave; call after `scores`."""
        for name, member in weights(network, group).items():
            weight = tensor_of(network, name)
            Q = _elements(weight, member)[list(removed)].flatten()
            inverse = self._inverses[name]
            w = weight.detach().flatten().double()
            dw = -inverse[:, Q] @ torch.linalg.solve(inverse[Q][:, Q], w[Q])
            with torch.no_grad():
                network.get_parameter(member.name).copy_((w + dw).view_as(weight))

    def _of_member(self, network: nn.Module, name: str, member: Member, calibration: Calibration) -> Tensor:
        H = hessian(network, name, calibration)
        inverse = torch.linalg.inv(H + self.damping * torch.eye(len(H), dtype=H.dtype, device=H.device))
        self._inverses[name] = inverse
        weight = tensor_of(network, name)
        w = weight.detach().flatten().double()
        return torch.stack([w[Q] @ torch.linalg.solve(inverse[Q][:, Q], w[Q]) / 2 for Q in _elements(weight, member)])


def hessian(network: nn.Module, name: str, calibration: Calibration) -> Tensor:
    """(N, N) float64: that of the mean loss over all the data with respect to the named weight's N elements."""
    with calibrating(network), torch.enable_grad(), twice("obs"):
        weight = tensor_of(network, name)
        total = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64, device=weight.device)
        samples = 0
        for loss, count in calibration.losses(network):
            check_twice(loss, "obs")
            (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
            if gradient.requires_grad:
                for row, element in zip(total, gradient.flatten(), strict=True):
                    (second,) = torch.autograd.grad(element, weight, retain_graph=True, allow_unused=True)
                    row += 0 if second is None else second.flatten()  # None: the loss is linear in it
            samples += count
    free = (weight != 0).flatten()  # what is zero has gone, by a mask or without one, and does not move
    return total / samples * (free[:, None] & free)


def _elements(weight: Tensor, member: Member) -> Tensor:
    """(channels, elements): where in the flattened weight each channel's elements are."""
    return rows(torch.arange(weight.numel(), device=weight.device).view(weight.shape), member.indices, member.dim)
