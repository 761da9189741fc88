"""What a run will take, before there is a GPU or a data set: its training step, traced on tensors without data.

The traced step is the one that is trained, so the numbers are those of the tracker on real CPU tensors, byte for byte.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from memexp import data, optim, runner
from memexp.backprop import Chain
from memexp.backprop.plan import has_inverse
from memexp.config import ConfigError
from memexp.memory.fake import channels_last, without_data
from memexp.memory.tracker import Report, Tracker
from memexp.training.precision import Precision
from memexp.training.step import train_step

STEPS = 2  # optimizer state is made in the first step and stands beside the activations in the second
NOT_IN_IT = (
    "scratch space inside kernels (cuDNN workspaces), reserved but unused memory of the allocator, the CUDA context, "
    "data sets held on the device, averaged weights"
)


@dataclass
class Trace:
    """A training step without data.

    parameters: their number. boundaries: bytes of the streams where they enter and leave a Chain and where they enter a
    step that cannot be undone, which is the least that a reversible network keeps.
    """

    report: Report
    parameters: int
    boundaries: int


def estimate(cfg: DictConfig) -> dict[str, Any]:
    """Memory and compute of one training step of `cfg`; nothing of it is allocated and no data set is read.

    Bytes: peak, at_peak (by category), by_module (at the peak), kept_for_backward, boundaries. Adds-multiplies of a step:
    macs_forward, macs_backward. recompute_ratio: forward passes done again in backward. operation: the one at the peak.
    plan: with backprop=budget, the stored steps of each Chain, chosen by MACs, the budget, and the least and the stored peak.

    Raises ConfigError where the model, the optimizer or the data set's description does not fit.
    """
    found, plan = trace(cfg), None
    if cfg.backprop.name == "budget":
        from memexp.memory import planner  # which traces, as this module does

        plan = planner.plan(cfg)
        found = trace(cfg, plan.apply)
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
    }


def trace(
    cfg: DictConfig,
    configure: Callable[[nn.Module], None] = lambda model: None,
    observe: Callable[[nn.Module, Tracker], AbstractContextManager[None]] = lambda model, tracker: nullcontext(),
) -> Trace:
    """Follows `STEPS` training steps of `cfg` on tensors without data.

    configure: called with the model once it is built. observe: a context around each training step.
    """
    classes, shape = data.describe(cfg.dataset)
    precision = Precision(cfg.precision.name, torch.device("cpu"))
    loss = functools.partial(functional.cross_entropy, label_smoothing=cfg.label_smoothing)
    with without_data():
        model = build(cfg, classes, shape)
        configure(model)
        try:
            optimizer = optim.build(cfg.optimizer, model)
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        tracker = Tracker(model, optimizer)
        latest: Tensor | None = None  # the loop holds the loss until the next step is done, as it reads it late
        with _boundaries(model) as boundaries:
            for _ in range(STEPS):
                batches = [_batch(cfg, classes, shape) for _ in range(cfg.accumulate)]
                tracker.add_inputs([tensor for batch in batches for tensor in batch])
                with observe(model, tracker), tracker:
                    latest = train_step(model, loss, optimizer, batches, precision, cfg.clip_grad)
        del latest
        return Trace(tracker.report(), sum(p.numel() for p in model.parameters()), sum(boundaries.values()))


def build(cfg: DictConfig, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network as it is trained, but without a file of weights: shapes are enough."""
    if cfg.model.get("weights"):
        cfg = OmegaConf.merge(cfg, {"model": {"weights": None}})  # type: ignore[assignment]
    model = runner.build_model(cfg, classes, shape)
    return channels_last(model) if cfg.channels_last else model


def by_depth(modules: dict[str, int], depth: int) -> dict[str, int]:
    """Bytes by module, those of modules nested deeper than `depth` names added to the module around them."""
    found: Counter[str] = Counter()
    for name, size in modules.items():
        found[".".join(name.split(".")[:depth])] += size
    return dict(found.most_common())


def _batch(cfg: DictConfig, classes: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """As the data sets give it; mixed images have a weight for each class instead of a label."""
    images = torch.empty(cfg.batch_size, *shape).contiguous(memory_format=torch.channels_last)
    if cfg.mixup or cfg.cutmix:
        return images, torch.empty(cfg.batch_size, classes)
    return images, torch.empty(cfg.batch_size, dtype=torch.int64)


@contextmanager
def _boundaries(model: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """Fills with the bytes of the streams that enter each step that cannot be undone, and that enter and leave Chains."""
    found: dict[nn.Module, int] = {}
    hooks = []

    def enters(module: nn.Module, streams: Any) -> None:
        found[module] = _bytes(streams)

    def leaves(module: nn.Module, streams: Any, outputs: Any) -> None:
        found[module] = _bytes(outputs)

    for chain in (module for module in model.modules() if isinstance(module, Chain)):
        for index, step in enumerate(chain):
            undoable = has_inverse(step, approximate=False) or has_inverse(step, approximate=True)
            if index == 0 or not undoable:
                hooks.append(step.register_forward_pre_hook(enters))
        hooks.append(chain.register_forward_hook(leaves))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _bytes(streams: Tensor | tuple[Tensor, ...]) -> int:
    tensors = (streams,) if isinstance(streams, Tensor) else streams
    return sum(t.numel() * t.element_size() for t in tensors)
