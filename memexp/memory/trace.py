"""The training step of a configuration, followed on tensors without data.

The step is the one that is trained, so the numbers are those of the tracker on real CPU tensors, byte for byte.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from memexp import build, data
from memexp.backprop import Chain
from memexp.backprop.plan import has_inverse
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.memory.fake import channels_last, without_data
from memexp.memory.tracker import Report, Tracker
from memexp.training import recipe

STEPS = 2  # optimizer state is made in the first step and stands beside the activations in the second


@dataclass
class Trace:
    """A training step without data.

    parameters: their number. boundaries: bytes of the streams where they enter and leave a Chain and where they enter a
    step that cannot be undone, which is the least that a reversible network keeps.
    """

    report: Report
    parameters: int
    boundaries: int


def trace(
    cfg: DictConfig,
    configure: Callable[[nn.Module], None] = lambda model: None,
    observe: Callable[[nn.Module, Tracker], AbstractContextManager[None]] = lambda model, tracker: nullcontext(),
    edits: Sequence[Edit] = (),
) -> Trace:
    """Follows `STEPS` training steps of `cfg` on tensors without data.

    configure: called with the model once it is built. observe: a context around each training step. edits: of the network.
    """
    classes, shape = data.describe(cfg.dataset)
    with without_data():
        model = network(cfg, classes, shape, edits)
        configure(model)
        try:
            made = recipe.make(OmegaConf.merge(cfg, {"ema": 0.0}), model, torch.device("cpu"), classes)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        tracker = Tracker(model, made.optimizer)
        latest: Tensor | None = None  # the loop holds the loss until the next step is done, as it reads it late
        with _boundaries(model) as boundaries:
            for _ in range(STEPS):
                batches = [_batch(cfg, classes, shape) for _ in range(cfg.accumulate)]
                tracker.add_inputs([tensor for batch in batches for tensor in batch])
                with observe(model, tracker), tracker:
                    latest = made.step(model, batches)
        del latest
        return Trace(tracker.report(), sum(p.numel() for p in model.parameters()), sum(boundaries.values()))


def network(cfg: DictConfig, classes: int, shape: tuple[int, int, int], edits: Sequence[Edit] = ()) -> nn.Module:
    """The network as it is trained, but without the files and runs that its weights come from: shapes are enough."""
    model = build.network(build.without_files(cfg), edits, classes, shape)
    return channels_last(model) if cfg.channels_last else model


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
