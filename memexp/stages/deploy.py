"""Deployment: the trained network is fused, exactly, and compared with what it was on real batches."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from memexp import sequence
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.fusing.fused import FusingError, check, compare, fuse
from memexp.fusing.measure import costs
from memexp.models import families
from memexp.sequence import stage_of
from memexp.stages import discretise
from memexp.stages.handed import Run
from memexp.training import distribution

log = logging.getLogger("memexp")
KEYS = ("parameters", "macs")
CHECKED = 2  # batches on which the outputs are compared, beside the first
LARGE = 256  # images of the larger batch on which latency is measured, where those batches have so many


def foresee(cfg: DictConfig, edits: Sequence[Edit] = ()) -> None:
    """Raises ConfigError for a network that is still integral when it is to be fused, or grown.

    edits: of the network that the run begins with.
    """
    names = [stage_of(key) for key in sequence.keys(cfg)]
    first = next((index for index, name in enumerate(names) if name in ("deploy", "grow")), None)
    if first is None or not families.of(cfg.model).integral:
        return
    sized = "discretise" in names[:first] and discretise.resampled(cfg)
    if not sized and not any(edit["kind"] == "discretise" for edit in edits):
        raise ConfigError(
            [
                f"{names[first]}: the network is still integral when this stage comes; leave it at a size before, its own "
                f"with prune=integral prune.keep=1.0, or leave {names[first]} out: `memexp export` fuses an integral network "
                "at its own size"
            ]
        )


def carry_out(run: Run) -> dict[str, Any]:
    started, deploy = time.perf_counter(), run.cfg.deploy
    batches = _batches(run)
    before = run.watched()
    run.network.eval()
    example, sizes = batches[0][: deploy.batch], [batches[0][:1], torch.cat(batches)[:LARGE]]
    figures: dict[str, Any] = {}
    try:
        if deploy.merge == "auto":
            found = compare(run.network, example, inputs=sizes, batches=batches)
            fused, figures = found.fused["auto"], {"refused": found.refused}
            measured = found.costs
        else:
            fused = fuse(run.network, example, deploy.merge, batches)
            networks = {"trained": run.network, deploy.merge: fused.network}
            measured = costs(networks, sizes)
    except FusingError:
        raise
    except ValueError as error:
        raise ConfigError([f"deploy: {error}"]) from error
    figures |= {"costs": measured, "merge": deploy.merge}
    figures |= {key: {"before": measured["trained"][key], "after": measured[deploy.merge][key]} for key in KEYS}
    # which merges are taken may be measured, and is then the first process's choice
    for edit in distribution.agreed(fused.edits, run.world):
        run.edit(edit)
    figures["error"] = check(fused.network, run.network, batches[:1]) if run.world.size > 1 else fused.error
    after = run.watched()
    run.results["time"]["stages"][run.key] = seconds = time.perf_counter() - started
    log.info("deployed by merge=%s: outputs differ by %.1e of the largest", deploy.merge, fused.error)
    for name, cost in measured.items():
        times = ", ".join(f"{size}: {cost[f'latency_{size}'] * 1e3:.2f} ms" for size in _sizes(cost))
        log.info(
            "  %-8s %s parameters, %s MACs an image; by batch %s",
            name,
            f"{cost['parameters']:,}",
            f"{cost['macs']:,}",
            times,
        )
    result = {
        "accuracy": after,
        "before": before,
        "seconds": seconds,
        "parameters": run.parameters,
        "deploy": figures,
    }
    run.finish(result)
    return result


def _batches(run: Run) -> list[Tensor]:
    found = []
    for images, _ in run.splits.test.epoch(0):
        found.append(images)
        if len(found) > CHECKED:
            break
    return found


def _sizes(cost: dict[str, Any]) -> list[int]:
    return sorted(int(name.removeprefix("latency_")) for name in cost if name.startswith("latency_"))
