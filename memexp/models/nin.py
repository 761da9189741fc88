"""Network in Network for small images (Lin, Chen, Yan 2014, arXiv 1312.4400): three convolutions, each with two 1x1 ones.

966,986 parameters at 10 classes; no BatchNorm and no fully connected layer: the last 1x1 convolution gives the classes,
averaged over the image. Activation memory with stored backprop: O(n) in the layers; a step of the Chain is one layer.
"""

from torch import Tensor, nn

from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape


class NIN(nn.Module):
    """(n, channels, h, w) images -> (n, classes) scores."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.body(images).mean((2, 3))
        return scores


def nin(*, classes: int, shape: Shape, chain: ChainFactory) -> NIN:
    """NIN: 192-160-96, pool, 192-192-192, pool, 192-192-classes."""
    layers: list[nn.Module] = []
    inputs = shape[0]
    for stage, (size, widths) in enumerate(((5, (192, 160, 96)), (5, (192, 192, 192)), (3, (192, 192, classes)))):
        if stage:
            pool = nn.MaxPool2d if stage == 1 else nn.AvgPool2d
            layers += [pool(3, 2, padding=1), nn.Dropout(0.5)]
        for position, width in enumerate(widths):
            kernel = 1 if position else size
            layers += [nn.Conv2d(inputs, width, kernel, padding=kernel // 2), nn.ReLU()]
            inputs = width
    network = NIN(chain(layers[:-1]))  # scores may be negative
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network
