"""The number of parameters of a network, without its weights."""

from pathlib import Path

from omegaconf import DictConfig

from memexp import build, data


def study(cfg: DictConfig, directory: Path) -> dict[str, float]:
    """No data set is read."""
    network = build.weightless(cfg, (), *data.describe(cfg.dataset))
    return {"parameters": sum(p.numel() for p in network.parameters())}
