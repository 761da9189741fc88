"""How several processes agree, tried in one: what each would send stands in for what all have sent."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from memexp.config import ConfigError
from memexp.prepared import keep_batch
from memexp.training import distribution
from memexp.training.distribution import ProcessLost, World


def refuse() -> int:
    raise ValueError("no images")


@pytest.mark.parametrize(
    ("rank", "mine", "told", "ends"),
    [
        (0, refuse, ["no images", "no images"], (ValueError, "no images")),
        (1, refuse, ["no images", "no images"], (SystemExit, "1")),
        (0, lambda: 3, [None, "no images"], (ProcessLost, "process 1 of 2: no images")),
        (1, refuse, [None, "no images"], (SystemExit, "1")),
        (1, lambda: 3, ["no images", None], (SystemExit, "1")),
    ],
)
def test_what_one_process_refuses_ends_all_and_is_told_once(monkeypatch, rank, mine, told, ends):
    sent = []
    monkeypatch.setattr(distribution, "gather", lambda value, world: sent.append(value) or told)
    with pytest.raises(ends[0], match=ends[1]):
        distribution.together(mine, World(rank, 2))
    assert sent == [told[rank]]


def test_what_all_can_do_is_done():
    assert distribution.together(lambda: 3, World()) == 3
    with pytest.raises(ValueError, match="no images"):
        distribution.together(refuse, World())


@pytest.mark.parametrize(
    ("before", "then", "now", "after"),  # images per forward, accumulated; processes; processes; as the first
    [
        ((16, 1), 2, 2, (16, 1)),
        ((16, 1), 2, 1, (16, 2)),
        ((16, 2), 1, 2, (16, 1)),
        ((16, 1), 1, 2, (8, 1)),
        ((8, 1), 2, 1, (16, 1)),
        ((16, 3), 4, 6, (16, 2)),
        ((16, 1), 2, 3, None),
    ],
)
def test_with_another_number_of_processes_a_step_is_of_as_many_images(before, then, now, after):
    """Else a run of one process that goes on with two has done all its steps in the middle."""
    cfg = OmegaConf.create({"batch_size": 16, "accumulate": 3 if before[1] == 3 else 1})  # as the run began
    state = {"config": {"batch_size": before[0], "accumulate": before[1]}, "random": [{}] * then}
    if after is None:
        with pytest.raises(ConfigError, match="32 images in a step, which 3 cannot share evenly; go on with 2"):
            keep_batch(cfg, state, Path("last.pt"), World(0, now))
    else:
        keep_batch(cfg, state, Path("last.pt"), World(0, now))
        assert (cfg.batch_size, cfg.accumulate) == after


def test_weights_in_any_layout_are_sent(monkeypatch):
    """gloo and NCCL take contiguous tensors only."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    first = {key: torch.randn_like(value.float()).to(value.dtype) for key, value in network.state_dict().items()}
    left = list(first.values())

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert tensor.is_contiguous()
        tensor.copy_(left.pop(0))

    monkeypatch.setattr(distribution.dist, "broadcast", broadcast)
    distribution.same_weights(network, World(1, 2))
    assert all(torch.equal(value, first[key]) for key, value in network.state_dict().items())
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
