"""Networks of a few blocks that memexp.memory.fit is tried on."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain

sys.path.insert(0, str(Path(__file__).parents[1] / "backprop"))


def layers():
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 16))


def two_streams(**options):
    return Chain((AdditiveCoupling(nn.Linear(16, 16), nn.Linear(16, 16)) for _ in range(3)), **options)


class Block(nn.Module):
    """forward: of its layer and x, may be replaced."""

    def __init__(self, forward=lambda block, x: block.layer(x)):
        super().__init__()
        self.layer, self.way, self.calls = nn.Linear(16, 16), forward, 0
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x):
        return x + self.way(self, x).tanh()


class Looped(nn.Module):
    def __init__(self, blocks, skip=lambda index: False):
        super().__init__()
        self.blocks, self.skip = nn.ModuleList(blocks), skip

    def forward(self, x):
        for index, block in enumerate(self.blocks):
            if not self.skip(index):
                x = block(x)
        return x


class Streams(nn.Module):
    def __init__(self, chain):
        super().__init__()
        self.chain, self.after = chain, Chain([layers()])

    def forward(self, x):
        a, b = self.chain(x, x.flip(0))
        return self.after(a + b)


def square(y):
    return y.square().sum()


@dataclass
class Note:
    of: torch.Tensor


def noted(block, x):
    block.seen = 0.9 * block.seen + x.detach().mean(0)
    block.calls += 1
    block.latest = [block.layer(x)]
    return block.latest[0]


def big():
    """Networks, and images of 64 pixels at which half of stored's peak is activations within blocks."""
    import timm
    from torchvision import models

    return {
        "resnet50": (models.resnet50, 96),
        "vgg16_bn": (models.vgg16_bn, 512),
        "convnext_tiny": (models.convnext_tiny, 64),
        "swin_t": (models.swin_t, 32),
        "vit_b_16": (lambda: models.vit_b_16(image_size=64), 128),
        "densenet121": (models.densenet121, 32),
        "efficientnet_b0": (models.efficientnet_b0, 32),
        "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), 64),
        "edgenext_xx_small": (lambda: timm.create_model("edgenext_xx_small"), 32),
        "resnet10t": (lambda: timm.create_model("resnet10t"), 96),
    }
