"""A network that computes in NHWC does so after every edit: it is no slower, and a resumed run has the same bits."""

import pytest
import torch
from torch import nn

from memexp import edits, fusing, integral, pruning

X = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
MERGE = {"into": "1", "gone": ["0"], "inputs": 3, "chain": ["0", "1"]}
EDITED = {
    "narrow": lambda network: pruning.prune(network, X, ratio=0.5)[0],
    "fold": lambda network: fusing.fuse(network, X, "none").network,
    "grow": lambda network: edits.apply(network, {"kind": "grow", "layers": ["2", "4"], "expansion": 2, "seed": 0}),
    "discretise": lambda network: integral.convert(network, X).discretize(0.5),
}
LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", EDITED)
def test_kernels_lie_as_they_did(kind, layout):
    torch.manual_seed(0)
    deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3), deep
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2)).eval().to(memory_format=LAYOUTS[layout])
    edited = EDITED[kind](network)
    kernels = [p for p in edited.parameters() if p.ndim == 4]
    assert len(kernels) >= 4
    for kernel in kernels:  # by strides, also where the layout is the same by them all: kernels are chosen by these
        assert kernel.stride() == torch.empty(kernel.shape, memory_format=LAYOUTS[layout]).stride()


def test_a_merged_kernel_lies_as_the_first_kernel_did():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)).eval().to(memory_format=torch.channels_last)
    merged = edits.apply(network, {"kind": "merge", "merges": [MERGE]})
    assert merged[1].weight.is_contiguous(memory_format=torch.channels_last)
