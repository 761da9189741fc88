"""What a run will take, before there is a GPU or a data set: its training step, traced on tensors without data."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from memexp import build
from memexp.edits import Edit
from memexp.memory import planner
from memexp.memory.trace import STEPS, trace

NOT_IN_IT = (
    "scratch space inside kernels (cuDNN workspaces), reserved but unused memory of the allocator, the CUDA context, "
    "data sets held on the device, averaged weights, the teacher of a distillation"
)


def estimate(cfg: DictConfig, edits: Sequence[Edit] | None = None) -> dict[str, Any]:
    """Memory and compute of one training step of `cfg`; nothing of it is allocated and no data set is read.

    edits: what has changed the network that the configuration builds; None: as the run that it starts from has, if any.

    Bytes: peak, at_peak (by category), by_module (at the peak), kept_for_backward, boundaries. Adds-multiplies of a step:
    macs_forward, macs_backward. recompute_ratio: forward passes done again in backward. operation: the one at the peak.
    plan: with backprop=budget, the stored steps of each Chain, chosen by MACs, the budget, and the least and the stored peak.
    notes: what may make a figure wrong, such as an operation whose adds-multiplies no formula counts.

    Raises ConfigError where the model, the optimizer or the data set's description does not fit.
    """
    edits = build.start_edits(cfg) if edits is None else edits
    found, plan = trace(cfg, edits=edits), None
    if cfg.backprop.name == "budget":
        plan = planner.plan(cfg, edits=edits)
        found = trace(cfg, plan.apply, edits=edits)
    report = found.report
    return {
        "peak": report.peak,
        "at_peak": report.at_peak,
        "by_module": by_depth(report.by_module, 2),
        "operation": report.operation,
        "kept_for_backward": report.kept,
        "boundaries": found.boundaries,
        "parameters": found.parameters,
        "macs_forward": report.macs_forward // STEPS,
        "macs_backward": report.macs_backward // STEPS,
        "recompute_ratio": report.recompute_ratio,
        "batch_size": cfg.batch_size,
        "accumulate": cfg.accumulate,
        "plan": plan.as_dict() if plan else None,
        "notes": found.notes,
    }


def by_depth(modules: dict[str, int], depth: int) -> dict[str, int]:
    """Bytes by module, those of modules nested deeper than `depth` names added to the module around them."""
    found: Counter[str] = Counter()
    for name, size in modules.items():
        found[".".join(name.split(".")[:depth])] += size
    return dict(found.most_common())
