"""The number of parameters of a network, without its weights."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from memexp import build, data


def study(cfg: DictConfig, directory: Path) -> dict[str, float]:
    """Builds the network on the meta device, where nothing is allocated; no data set is read."""
    with torch.device("meta"):
        network = build.network(cfg, (), *data.describe(cfg.dataset))
    return {"parameters": sum(p.numel() for p in network.parameters())}
