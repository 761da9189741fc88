"""The training step of a configuration, followed on tensors without data.

The step is the one that is trained, so the numbers are those of the tracker on real CPU tensors, byte for byte.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_iter

from memexp import build, data
from memexp.backprop import chains
from memexp.backprop.plan import has_inverse
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.memory.fake import emptied, without_data
from memexp.memory.tracked import Report
from memexp.memory.tracker import Tracker
from memexp.training import recipe
from memexp.training.distillation import Taught
from memexp.training.step import Batch

STEPS = 2  # optimizer state is made in the first step and stands beside the activations in the second


@dataclass
class Trace:
    """A training step without data.

    parameters: their number. boundaries: bytes of the streams where they enter and leave a Chain and where they enter a
    step that cannot be undone, which is the least that a reversible network keeps. notes: what may make the figures wrong.
    """

    report: Report
    parameters: int
    boundaries: int
    notes: list[str]


class Training:
    """A network without data and what trains it."""

    def __init__(self, cfg: DictConfig, edits: Sequence[Edit] = ()) -> None:
        """Raises ConfigError for what does not fit; to be used inside `without_data`."""
        self._cfg = cfg
        with _disable_current_modes():  # a data set of one's own is made to be described, and has values
            self._classes, self._shape = data.describe(cfg.dataset)
        self.model = network(cfg, self._classes, self._shape, edits)
        try:
            self._recipe = recipe.make(
                OmegaConf.merge(cfg, {"ema": 0.0, "mixup": 0.0, "cutmix": 0.0}),  # type: ignore[arg-type]
                self.model,
                torch.device("cpu"),
                self._classes,
            )
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        self.tracker = Tracker(self.model, self._recipe.optimizer)
        self._latest: Tensor | None = None  # the loop holds the loss until the next step is done, as it reads it late

    def step(self) -> None:
        """One training step, tracked."""
        batches = [_batch(self._cfg, self._classes, self._shape) for _ in range(self._cfg.accumulate)]
        self.tracker.add_inputs([tensor for tensor in tree_iter(batches) if isinstance(tensor, Tensor)])
        with self.tracker:
            self._latest = self._recipe.step(self.model, batches)


def trace(
    cfg: DictConfig, configure: Callable[[nn.Module], None] = lambda model: None, edits: Sequence[Edit] = ()
) -> Trace:
    """Follows `STEPS` training steps of `cfg` on tensors without data.

    configure: called with the model once it is built. edits: of the network.

    Raises ConfigError for what does not fit, and for a network whose shapes depend on values.
    """
    try:
        with without_data() as read:
            training = Training(cfg, edits)
            configure(training.model)
            with _boundaries(training.model) as boundaries:
                for _ in range(STEPS):
                    training.step()
            report = training.tracker.report()
            count = sum(p.numel() for p in training.model.parameters())
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error):
            raise
        raise ConfigError(
            [
                f"batch_size: {cfg.batch_size} images of this size take more bytes than can be counted; set fewer or smaller"
            ]
        ) from error
    notes = [f"no formula for the adds-multiplies of {name}, which are left out" for name in report.uncounted]
    notes += [f"a value read at {place} was taken to be 0: there are none without data" for place in read]
    return Trace(report, count, sum(boundaries.values()), notes)


def network(cfg: DictConfig, classes: int, shape: tuple[int, int, int], edits: Sequence[Edit] = ()) -> nn.Module:
    """The network as it is trained, but without the files and runs that its weights come from: shapes are enough.

    To be called inside `without_data`. It is built outside, as constructors may read values and copy modules.
    """
    with _disable_current_modes(), torch.random.fork_rng(devices=[]):
        model = build.weightless(build.without_files(cfg), edits, classes, shape)
        if cfg.channels_last:
            model = model.to(memory_format=torch.channels_last)
    return emptied(model)


def _batch(cfg: DictConfig, classes: int, shape: tuple[int, int, int]) -> Batch:
    """As the data sets give it; mixed images have a weight for each class instead of a label, taught ones scores beside it."""
    images = torch.empty(cfg.batch_size, *shape).contiguous(memory_format=torch.channels_last)
    mixed = cfg.mixup or cfg.cutmix
    labels = torch.empty(cfg.batch_size, classes) if mixed else torch.empty(cfg.batch_size, dtype=torch.int64)
    return images, labels if cfg.distill.teacher is None else Taught(labels, torch.empty(cfg.batch_size, classes))


@contextmanager
def _boundaries(model: nn.Module) -> Iterator[dict[nn.Module, int]]:
    """Fills with the bytes of the streams that enter each step that cannot be undone, and that enter and leave Chains."""
    found: dict[nn.Module, int] = {}
    hooks = []

    def enters(module: nn.Module, streams: Any) -> None:
        found[module] = _bytes(streams)

    def leaves(module: nn.Module, streams: Any, outputs: Any) -> None:
        found[module] = _bytes(outputs)

    for chain in chains(model):
        for index, step in enumerate(chain):
            undoable = has_inverse(step)
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
