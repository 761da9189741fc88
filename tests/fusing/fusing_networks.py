"""Networks in the state that training leaves them in, and blocks of branches side by side."""

import torch
from torch import Tensor, nn

from memexp.backprop import Chain
from memexp.models.reducenet import ReduceNet, reducenet


def settled(network: nn.Module) -> nn.Module:
    """In eval, with statistics and affine parameters that are not those of a fresh BN."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def build(**settings) -> ReduceNet:
    return reducenet(classes=10, shape=(3, 32, 32), chain=Chain, **{"depth": 8} | settings)


def vanished(**settings) -> nn.Module:
    network = settled(build(**settings))
    network.set_lambda(0.0)
    return network


class Parallel(nn.Module):
    """RepVGG's block (Ding et al. 2021): relu of the sum of its branches; `functional` calls it in another way."""

    def __init__(self, *branches: nn.Module, act: nn.Module | None = None, functional: bool = False) -> None:
        super().__init__()
        self.branches, self.act, self.functional = nn.ModuleList(branches), act, functional

    def forward(self, x: Tensor) -> Tensor:
        y = sum(branch(x) for branch in self.branches)
        if self.functional:
            return torch.relu_(y)
        return y if self.act is None else self.act(y)


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's batch normalisation with an activation in it, by its name and its parts."""

    __module__ = "timm.layers.norm_act"

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, padding: int | None = None):
    padding = size // 2 if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]
