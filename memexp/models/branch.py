"""The pre-activation residual branch that ResNet and RevNet share (He et al. 2016, arXiv 1603.05027; Gomez et al. 2017).

basic        [BN-ReLU] - conv3x3(stride) - BN-ReLU - conv3x3
bottleneck   [BN-ReLU] - conv1x1(stride, out/4) - BN-ReLU - conv3x3 - BN-ReLU - conv1x1(out)
"""

import math

from torch import Tensor, nn
from torch.nn import functional


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, padded to keep the resolution at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def normalised(channels: int, inplace: bool = True) -> list[nn.Module]:
    """BN-ReLU with the paper's constants; in place, as nothing else reads what BN gives out."""
    return [nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.ReLU(inplace)]


def branch(inputs: int, outputs: int, stride: int, bottleneck: bool, activated: bool) -> nn.Sequential:
    """(n, inputs, h, w) -> (n, outputs, h/stride, w/stride). activated: whether it opens with BN-ReLU."""
    layers = normalised(inputs) if activated else []
    if bottleneck:
        middle = outputs // 4
        layers += [convolution(inputs, middle, 1, stride), *normalised(middle), convolution(middle, middle, 3)]
        layers += [*normalised(middle), convolution(middle, outputs, 1)]
    else:
        layers += [convolution(inputs, outputs, 3, stride), *normalised(outputs), convolution(outputs, outputs, 3)]
    return nn.Sequential(*layers)


class PadShortcut(nn.Module):
    """s of a basic unit: average pool by the stride, then zero channels on both sides (Gomez et al. 2017).

    Of an odd side the last row is averaged alone: the 3x3 convolution beside it, padded by 1, has one more there, too.
    """

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            odd = any(side % self.stride for side in x.shape[-2:])
            x = functional.avg_pool2d(x, self.stride, ceil_mode=odd)
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


def shortcut(inputs: int, outputs: int, stride: int, bottleneck: bool) -> nn.Module:
    """s of a unit that changes shape; of a bottleneck a 1x1 convolution of the raw stream, without BN."""
    return convolution(inputs, outputs, 1, stride) if bottleneck else PadShortcut(inputs, outputs, stride)


def stem(inputs: int, outputs: int, large: bool) -> nn.Sequential:
    """conv-BN-ReLU: 3x3 for small images; 7x7 stride 2 and a 3x3 stride-2 max pool for large ones."""
    if not large:
        return nn.Sequential(convolution(inputs, outputs, 3), *normalised(outputs))
    return nn.Sequential(convolution(inputs, outputs, 7, 2), *normalised(outputs), nn.MaxPool2d(3, 2, padding=1))


def initialise(network: nn.Module) -> None:
    """Conv: normal of standard deviation sqrt(2 / (k k out)), truncated at two of them; FC: uniform +-sqrt(3 / in)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, nn.Linear):
            bound = math.sqrt(3 / module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def head(channels: int, classes: int) -> nn.Sequential:
    """BN-ReLU-global average-FC."""
    return nn.Sequential(*normalised(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
