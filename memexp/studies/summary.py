"""torchsummary's layer table of a network, and its totals, for one image in float32."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from memexp import data
from memexp.memory.fake import without_data
from memexp.memory.trace import network
from memexp.record import write_text
from memexp.report.layers import summarise, text

log = logging.getLogger("memexp")


def study(cfg: DictConfig, directory: Path) -> dict[str, float]:
    """Nothing is allocated and no data set is read. The table is written to summary.txt; MB is 2^20 bytes, as it is there."""
    classes, shape = data.describe(cfg.dataset)
    with without_data():
        built = network(cfg, classes, shape)
    found = summarise(built, shape)
    write_text(directory / "summary.txt", text(found) + "\n")
    log.info("%s", text(found))
    return {
        "parameters": found.parameters,
        "input_MB": found.input_mb,
        "forward_backward_MB": found.forward_backward_mb,
        "parameters_MB": found.parameters_mb,
        "total_MB": found.total_mb,
    }
