"""Networks of other people's making, small; and one for each way of holding blocks."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision import models
from torchvision.models.convnext import CNBlockConfig


class Looped(nn.Module):
    """Blocks in a list, called with keywords, a tuple of tensors and None among them; they give a tuple with None."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x, mask=None, *, rotary, cache=None):
            cos, sin = rotary
            y = nn.functional.gelu(self.up(self.norm(x * cos + x.flip(-1) * sin)))
            y = self.down(nn.functional.dropout(y, 0.1, self.training))
            return x + (y if mask is None else y * mask), cache

    def __init__(self):
        super().__init__()
        self.embed, self.turn = nn.Linear(12, 16), nn.Parameter(torch.ones(16))
        self.blocks, self.head = nn.ModuleList(self.Block() for _ in range(4)), nn.Linear(16, 5)

    def forward(self, images):
        x = self.embed(images.flatten(2).transpose(1, 2)[:, :, :3].repeat(1, 1, 4))
        mask = torch.ones(x.shape[1], 1)
        for block in self.blocks:
            x, nothing = block(x, mask, rotary=(self.turn.cos(), self.turn.sin()))
            assert nothing is None
        return self.head(x.mean(1))


class Named(nn.Module):
    """Layers in a row, with names and activations in place; a head that writes into what comes out of them."""

    def __init__(self):
        super().__init__()
        layers = []
        for i in range(3):
            layers += [(f"conv{i}", nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1)), (f"norm{i}", nn.BatchNorm2d(8))]
            layers += [(f"act{i}", nn.ReLU(inplace=True))] if i < 2 else []
        self.features, self.head = nn.Sequential(OrderedDict(layers)), nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.features(images).relu_().mean((2, 3)))


class Parametrised(nn.Module):
    """Layers whose weights are parametrised, within blocks and beside them."""

    def __init__(self):
        super().__init__()
        self.stem = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), self._conv(), nn.ReLU()) for _ in range(3))
        )
        self.beside, self.head = self._conv(), nn.Linear(8, 5)

    def _conv(self):
        return parametrizations.spectral_norm(parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))

    def forward(self, images):
        return self.head(self.beside(self.blocks(self.stem(images))).mean((2, 3)))


NETWORKS = {
    "parametrised": Parametrised,
    "looped": Looped,
    "named": Named,
    "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=5),
    "vit": lambda: models.VisionTransformer(32, 8, 3, 2, 16, 64, num_classes=5),
    "swin": lambda: models.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [2, 2], num_classes=5),
    "densenet": lambda: models.DenseNet(8, (2, 3), 16, num_classes=5, drop_rate=0.1),
    "convnext": lambda: models.ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], 0.2, num_classes=5),
    "mobilenet": lambda: models.MobileNetV2(num_classes=5, width_mult=0.25, inverted_residual_setting=[[3, 16, 3, 2]]),
    "squeezenet": lambda: models.SqueezeNet("1_1", num_classes=5),
}


def images(count=4):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for p in network.parameters():  # heads of torchvision's may start at zero, and gradients with them
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return network
