"""Snapshots of CUDA's allocator, which https://pytorch.org/memory_viz opens: on request, and always when memory runs out.

When an allocation fails, the allocator calls an observer before the exception is raised, while everything still stands: that
is when the snapshot of an out-of-memory run is taken. It shows what is allocated; who allocated it, and when, it shows where
the history was recorded (`memory.snapshot=true`), which slows the steps that are recorded.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("memexp")
ENTRIES = 100_000  # events that the history holds; the oldest are dropped


class Snapshots:
    """Writes memory-snapshot-N.pickle of the first `steps` steps, if asked to, and oom-snapshot-N.pickle of a failed
    allocation; N is the number of the device.

    memory: torch.cuda.memory, or a stand-in. observe: registers what is called as (device, wanted, total, free) in bytes when
    an allocation fails.
    """

    def __init__(
        self,
        device: torch.device,
        directory: Path,
        steps: int,
        memory: Any = torch.cuda.memory,
        observe: Callable[[Callable[[int, int, int, int], None]], None] | None = None,
    ) -> None:
        self.device, self.directory, self.steps, self._memory = device.index or 0, directory, steps, memory
        if steps:
            memory._record_memory_history(max_entries=ENTRIES)
        # looked up here, as builds without CUDA do not have it
        (observe or getattr(torch._C, "_cuda_attach_out_of_memory_observer"))(self._out_of_memory)  # noqa: B009

    def after(self, number: int) -> None:
        """Called when step `number` (from 0) is done."""
        if number + 1 == self.steps:
            self._write(f"memory-snapshot-{self.device}.pickle")
            self._memory._record_memory_history(enabled=None)

    def _out_of_memory(self, device: int, wanted: int, total: int, free: int) -> None:
        log.error("device %d: %d bytes were asked for, %d of %d are free", device, wanted, free, total)
        self._write(f"oom-snapshot-{device}.pickle")

    def _write(self, name: str) -> None:
        path = self.directory / name
        try:
            self._memory._dump_snapshot(str(path))
        except (OSError, RuntimeError) as error:  # the run, or its own error, matters more than a picture of it
            log.warning("%s could not be written: %s", path, error)
        else:
            log.info("memory snapshot: %s (open it at https://pytorch.org/memory_viz)", path)
