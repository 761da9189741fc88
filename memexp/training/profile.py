"""A trace of a few training steps: what ran when, on the CPU and on the device. TensorBoard (its plugin torch-tb-profiler) and
ui.perfetto.dev open the file.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

log = logging.getLogger("memexp")


class Trace:
    """Follows `steps` training steps from the step `first` on (from 0, of this process) and writes `path` after the last."""

    def __init__(self, path: Path, first: int, steps: int, device: torch.device) -> None:
        activities = {ProfilerActivity.CPU}
        activities |= {"cuda": {ProfilerActivity.CUDA}, "xpu": {ProfilerActivity.XPU}}.get(device.type, set())
        self.steps = steps
        self.followed = False  # any step
        self._path, self._first, self._last = path, first, first + steps - 1
        self._profiler = profile(activities=activities)
        self._open = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`."""
        if not self._first <= number <= self._last:
            yield
            return
        if not self._open:
            self._profiler.start()
            self._open = self.followed = True
        with record_function(f"training step {number + 1}"):
            yield
        if number == self._last:
            self.close()

    def close(self) -> None:
        """Writes what has been followed; a run may end before all its steps were."""
        if not self._open:
            return
        self._open = False
        self._profiler.stop()
        aside = self._path.with_name(self._path.name + ".aside")
        aside.unlink(missing_ok=True)  # a link there would be followed
        self._profiler.export_chrome_trace(str(aside))
        os.replace(aside, self._path)
        log.info("trace: %s, for TensorBoard's profiler plugin and ui.perfetto.dev", self._path)
