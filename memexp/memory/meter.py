"""What a run used: the one seam over the accelerator's own counters, and the tracker where a device has none."""

import logging
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from memexp.backprop.compiled import uncompiled
from memexp.backprop.untouched import untouched
from memexp.config import ConfigError
from memexp.memory.fake import without_data
from memexp.memory.snapshot import Snapshots
from memexp.memory.tracked import Report
from memexp.memory.tracker import Tracker, track
from memexp.modes import evaluating

log = logging.getLogger("memexp")


class Meter:
    """Measures a run's memory. `step` goes around every training step; `results` is the "memory" of results.json."""

    tracked_steps = 0

    @staticmethod
    def for_device(
        device: torch.device,
        steps: int,
        timeline: bool = False,
        snapshots: Snapshots | None = None,
        held: Sequence[Tensor] = (),
    ) -> "Meter":
        """The device's own counters, or the tracker over the first `steps` training steps.

        timeline: follow these steps with the tracker on any device. snapshots: of a CUDA device. held: tensors of the data set,
        of a teacher, averaged weights, that stay on the device; an accelerator's peak holds them, the tracker's does not, as it
        follows the training step.
        """
        if device.type == "cpu":
            return TrackingMeter(steps, held)
        tracked = TrackingMeter(steps, held) if timeline else None
        return AcceleratorMeter(device, snapshots=snapshots, tracked=tracked, held=held)

    @contextmanager
    def step(
        self,
        number: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Sequence[tuple[Tensor, Any]],
    ) -> Iterator[None]:
        """Around step `number` (from 0) of this process."""
        yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around work beside training, such as evaluation, whose memory is not the training step's."""
        yield

    def go_on(self, steps: int, figures: dict[str, Any] | None) -> None:
        """Of training that is gone on with, whose `results` were `figures`, which stay those of it if no further step is taken.
        steps: that are not to be followed once more.
        """

    def close(self) -> None:
        """The stage is over."""

    def peak(self) -> int:
        """Bytes at the peak so far."""
        raise NotImplementedError

    def results(self) -> dict[str, Any]:
        """The split of the peak in bytes and how it was measured."""
        raise NotImplementedError

    @property
    def tracked(self) -> Report | None:
        """What the tracker has seen of the steps that it followed, if it did."""
        return None


class TrackingMeter(Meter):
    """Follows the storages of the first steps, which are like all others once the optimizer has its state."""

    def __init__(self, steps: int, held: Sequence[Tensor] = ()) -> None:
        self.tracked_steps = steps
        self._data = storage_bytes(held)
        self._tracker: Tracker | None = None
        self._report: Report | None = None
        self._before: dict[str, Any] | None = None
        self._uncompiled = False

    @contextmanager
    def step(
        self,
        number: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Sequence[tuple[Tensor, Any]],
    ) -> Iterator[None]:
        if number >= self.tracked_steps:
            yield
            return
        inputs = [tensor for tensor in tree_iter(list(batches)) if isinstance(tensor, Tensor)]
        if self._tracker is None:
            self._tracker = Tracker(model, optimizer)
        self._tracker.add_inputs(inputs)
        with uncompiled(model) as self._uncompiled, self._tracker:  # compiled code tells nobody what it allocates
            yield
        self._report = self._tracker.report()
        if number + 1 == self.tracked_steps:
            self._tracker = None

    def go_on(self, steps: int, figures: dict[str, Any] | None) -> None:
        self.tracked_steps, self._before = max(0, self.tracked_steps - steps), figures

    def peak(self) -> int:
        return self._report.peak if self._report else 0

    @property
    def tracked(self) -> Report | None:
        return self._report

    def results(self) -> dict[str, Any]:
        if self._report is None and self._before is not None:
            return self._before | {"rss_peak": resident_peak()}
        held = dict(self._report.at_peak) if self._report else {}
        named = {key: held.get(key, 0) for key in ("parameters", "gradients", "optimizer")}
        # kept and recomputed alike, as measurements on accelerators cannot tell them apart
        named["activations"] = held.get("activations", 0) + held.get("temporary", 0)
        return {
            "device": "cpu",
            "how": "tracked over uncompiled steps" if self._uncompiled else "tracked",
            "peak": self.peak(),
            "reserved": None,
            **named,
            "other": self.peak() - sum(named.values()),
            "data": self._data,  # beside the peak
            "kept_for_backward": self._report.kept if self._report else 0,
            "rss_peak": resident_peak(),
        }


class AcceleratorMeter(Meter):
    """Reads the counters of the accelerator's allocator through torch.accelerator.

    tracked: follows its first steps as well, for a timeline; this slows them, but takes none of the device's memory.
    """

    def __init__(
        self,
        device: torch.device,
        counters: Any = torch.accelerator,
        snapshots: Snapshots | None = None,
        tracked: TrackingMeter | None = None,
        held: Sequence[Tensor] = (),
    ) -> None:
        self.device, self._counters = device, counters
        self._snapshots, self._tracking = snapshots, tracked or TrackingMeter(0)
        self.tracked_steps = max(self._tracking.tracked_steps, snapshots.steps if snapshots else 0)
        self._model: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._before = (0, 0)
        self._figures: dict[str, Any] | None = None
        self._data = storage_bytes([tensor for tensor in held if tensor.device.type == device.type])
        counters.reset_peak_memory_stats(device)

    @contextmanager
    def step(
        self,
        number: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Sequence[tuple[Tensor, Any]],
    ) -> Iterator[None]:
        self._model, self._optimizer = model, optimizer
        with self._tracking.step(number, model, optimizer, batches):
            yield
        if self._snapshots is not None:
            self._snapshots.after(number)

    @property
    def tracked(self) -> Report | None:
        return self._tracking.tracked

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._before = (self.peak(), self._reserved())
        try:
            yield
        finally:
            self._counters.reset_peak_memory_stats(self.device)

    def go_on(self, steps: int, figures: dict[str, Any] | None) -> None:
        self._figures = figures

    def close(self) -> None:
        if self._snapshots is not None:
            self._snapshots.close()

    def peak(self) -> int:
        return max(self._before[0], int(self._counters.max_memory_allocated(self.device)))

    def _reserved(self) -> int:
        return max(self._before[1], int(self._counters.max_memory_reserved(self.device)))

    def results(self) -> dict[str, Any]:
        """Parameters, gradients, optimizer state and data are counted; activations are what of the peak is left beside them."""
        if self._model is None and self._figures is not None:
            return self._figures | {"rss_peak": resident_peak()}
        parameters = list(self._model.parameters()) if self._model is not None else []
        state = self._optimizer.state.values() if self._optimizer is not None else ()
        named = {
            "parameters": sum(map(_bytes, parameters)),
            "gradients": sum(_bytes(p) for p in parameters if p.requires_grad),
            "optimizer": sum(_bytes(v) for entry in state for v in entry.values() if isinstance(v, Tensor)),
            "data": self._data,
        }
        peak = self.peak()
        statistics = self._counters.memory_stats(self.device)
        return {
            "device": str(self.device),
            "how": f"{self.device.type}_max_memory_allocated",
            "peak": peak,
            "reserved": self._reserved(),
            **named,
            "activations": max(0, peak - sum(named.values())),
            "other": 0,
            "retries": statistics.get("num_alloc_retries"),
            "ooms": statistics.get("num_ooms"),
            "rss_peak": resident_peak(),
        }


def macs_per_image(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Adds-multiplies of one image's forward pass in eval mode, counted without data: nothing is computed.

    A network whose shapes depend on values is evaluated on one real image, of zeros. What has no formula is named in the log.
    Of an integral network it is the plain one's of its size, as weights are sampled for a whole batch.
    """
    if getattr(model, "sizes_vary", False):
        plain: nn.Module = model.discretize()  # type: ignore[operator]
        return macs_per_image(plain, shape)
    device = next(model.parameters()).device

    def forward(made: Callable[..., Tensor]) -> Report:
        image = made(1, *shape, device=device)
        return track(lambda: model(image))

    with evaluating(model), untouched(model), torch.no_grad():
        try:
            with without_data():
                report = forward(torch.empty)
        except ConfigError:
            with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
                report = forward(torch.zeros)
    if report.uncounted:
        log.warning(
            "warning: no formula for the adds-multiplies of %s, which are left out of macs", ", ".join(report.uncounted)
        )
    return report.macs_forward


def resident_peak() -> int:
    """The most memory that this process has had in RAM, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Of tensors that may share memory."""
    storages = {storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
