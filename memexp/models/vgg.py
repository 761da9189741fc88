"""VGG16 (Simonyan and Zisserman 2015, arXiv 1409.1556), as torchvision lays it out and as CIFAR papers do.

imagenet: 13 convolutions with bias, 4096-4096-classes head; torchvision's names, so its weights load; 138,357,544 parameters
at 1000 classes. cifar: conv-BN, 512-512-classes head (Li et al. 2017, arXiv 1608.08710: 1.5e7 parameters, 3.13e8 MACs).
Activation memory with stored backprop: O(n) in the layers. A step of the Chain is one layer, so checkpointed saves memory from
backprop.every=4 on.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from memexp.models import layout as layouts
from memexp.models.chain import ChainFactory
from memexp.models.layout import Shape
from memexp.models.weights import load_file

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """(n, channels, h, w) images -> (n, classes) scores. The names are torchvision's."""

    quiet = True  # draws no random numbers, writes to no buffers

    def __init__(self, features: nn.Module, pooled: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return scores


def vgg16(
    *,
    classes: int,
    shape: Shape,
    chain: ChainFactory,
    layout: str | None = None,
    weights: str | None = None,
    width: float = 1,
    widths: Sequence[Sequence[int]] = WIDTHS,
) -> VGG:
    """VGG16; layout "imagenet" or "cifar", by default the one for images of this size. weights: a torchvision file.

    width: share of the channels that each convolution has, and of a small head's. widths: of the convolutions of each of the
    five stages, another VGG's.

    Raises ValueError for an image too small for five poolings, and for weights of another network.
    """
    normalised = layouts.vgg(shape, layout) == "cifar"
    layers: list[nn.Module] = []
    inputs = shape[0]
    for stage in widths:
        for channels in stage:
            outputs = max(1, round(width * channels))
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normalised))
            if normalised:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())  # a step of its own, so not in place; ReLU keeps its output, not its input
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    if normalised:
        head = [nn.Linear(inputs, inputs, bias=False), nn.BatchNorm1d(inputs), nn.ReLU(inplace=True)]
        head.append(nn.Linear(inputs, classes))
        network = VGG(chain(layers), 1, nn.Sequential(*head))
    else:
        hidden: list[nn.Module] = [nn.Linear(inputs * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout()]
        hidden += [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, classes)]
        network = VGG(chain(layers), 7, nn.Sequential(*hidden))
    _initialise(network)
    if weights is not None:
        load_file(network, Path(weights), head="classifier.6" if not normalised else "classifier.3")
    return network


def _initialise(network: nn.Module) -> None:
    """torchvision's: conv He et al. 2015 over the outputs, FC normal of standard deviation 0.01 without BN behind it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
