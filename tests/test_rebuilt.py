"""A network comes back from its checkpoint, also where its constructor reads values, or keeps what no checkpoint holds."""

from pathlib import Path

import pytest
import torch

from memexp import build
from memexp.config import compose

# regnet: widths computed on tensors; swin_v2_t: coordinates in a buffer that is not saved
ARCHES = ["regnet_x_400mf", "swin_v2_t", "squeezenet1_1", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("arch", ARCHES)
def test_a_network_of_torchvision_comes_back(arch):
    cfg = compose(["model=torchvision", f"model.arch={arch}", "dataset=synthetic"])
    trained = build.network(cfg, (), 3, (3, 64, 64)).eval()
    state = {"classes": list("abc"), "shape": (3, 64, 64), "edits": [], "model": trained.state_dict()}
    found = build.from_checkpoint(cfg, state, Path("last.pt")).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(found(x), trained(x))
