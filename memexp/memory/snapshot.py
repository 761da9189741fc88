"""Snapshots of CUDA's allocator, which https://pytorch.org/memory_viz opens: on request, and of the failure that ends a run.

When an allocation fails, the allocator calls an observer before the exception is raised, while everything still stands: that is
when a snapshot is taken. Not all failures end a run: cuDNN asks for scratch space and does with less. Which one did is known
when the run has ended, so the last snapshot is held in memory until then, and that of the fatal failure is written. It shows
what is allocated; who allocated it, and when, it shows where the history was recorded (`memory.snapshot=true`), which slows the
steps that are recorded.
"""

import functools
import logging
import pickle
from pathlib import Path
from typing import Any, Self

import torch

from memexp.record import write_bytes
from memexp.units import shown_bytes

log = logging.getLogger("memexp")
ENTRIES = 100_000  # events that the history holds; the oldest are dropped
VIEWER = "open it at https://pytorch.org/memory_viz"
_listening: "list[Failures]" = []  # the innermost run that is not over


class Snapshots:
    """Writes memory-snapshot-N.pickle of the first `steps` steps; N is the number of the device.

    prefix: of the file's name. memory: torch.cuda.memory, or a stand-in.
    """

    def __init__(
        self, device: torch.device, directory: Path, steps: int, prefix: str = "", memory: Any = torch.cuda.memory
    ) -> None:
        self.device, self.steps, self._memory = device.index or 0, steps, memory
        self._path = directory / f"{prefix}memory-snapshot-{self.device}.pickle"
        self._recording = True
        memory._record_memory_history(max_entries=ENTRIES)

    def after(self, number: int) -> None:
        """Called when step `number` (from 0) is done."""
        if number + 1 == self.steps:
            self.close()

    def close(self) -> None:
        """Writes what has been recorded; a stage may have fewer steps, or end before them."""
        if self._recording:
            self._recording = False
            _write(_taken(self._memory), self._path)
            self._memory._record_memory_history(enabled=None)


class Failures:
    """Allocations of CUDA devices that fail while a run lasts, from `with` to its end. memory: as for `Snapshots`."""

    def __init__(self, directory: Path, memory: Any = torch.cuda.memory) -> None:
        self.directory, self._memory = directory, memory
        self._survived = 0
        self._last: tuple[int, str, Any] | None = None  # device, what is told of it, the snapshot

    def __enter__(self) -> Self:
        _listening.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _listening.remove(self)
        if survived := self._survived + (self._last is not None):
            log.warning(
                "warning: %d allocation%s failed that the run did without: kernels had less scratch space than they asked for, "
                "and may have been slower",
                *(survived, "" if survived == 1 else "s"),
            )

    def fatal(self) -> str:
        """What is told of the last failure, which has ended the run: its snapshot is written. "" where there was none."""
        if self._last is None:
            return ""
        (device, told, snapshot), self._last = self._last, None
        _write(snapshot, self.directory / f"oom-snapshot-{device}.pickle")
        return told

    def add(self, device: int, wanted: int, allowed: int, free: int) -> None:
        """A failure. wanted: bytes that the allocator would have reserved. allowed: what this process may have, all of the
        device or what it is held to. free: of the device, whoever may have it.
        """
        self._survived += self._last is not None
        told = (
            f"cuda:{device}: {shown_bytes(wanted)} more were asked for than the "
            f"{shown_bytes(self._memory.memory_reserved(device))} that this process has reserved; it may have "
            f"{shown_bytes(allowed)}, and {shown_bytes(free)} of the device are free"
        )
        self._last = device, told, _taken(self._memory)


def listen(device: torch.device) -> None:
    """To failures of this device, for the `Failures` of the run that lasts; nothing where it is not CUDA's."""
    if device.type == "cuda":
        _attach()


@functools.cache  # torch takes no observer off again: there is one a process, and it listens for the run that lasts
def _attach() -> None:
    # looked up here, as builds without CUDA do not have it
    getattr(torch._C, "_cuda_attach_out_of_memory_observer")(_observe)  # noqa: B009


def _observe(device: int, wanted: int, allowed: int, free: int) -> None:
    if _listening:
        _listening[-1].add(device, wanted, allowed, free)


def _taken(memory: Any) -> Any:
    try:
        return memory._snapshot()
    except RuntimeError as error:  # the run, or its own error, matters more than a picture of it
        log.debug("no snapshot of the allocator: %s", error)
        return None


def _write(snapshot: Any, path: Path) -> None:
    if snapshot is None:
        return
    try:
        write_bytes(path, pickle.dumps(snapshot))
    except OSError as error:
        log.warning("%s could not be written: %s", path, error)
    else:
        log.info("memory snapshot: %s (%s)", path, VIEWER)
