"""A host that goes ahead of its device: it launches a step before it reads what the one before has come to.

On a GPU of NVIDIA's a read waits for all that its stream holds, the step launched a moment ago included. On a stream of its
own, which waits for an event alone, it does not: the device has that step to do meanwhile.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memexp.backprop import late


class Mark:
    """A point in the work of `device`: what has been launched so far. ahead: whether the host may be; never of the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.ahead = device.type != "cpu"
        self._device, self._event = device, None
        if self.ahead and hasattr(torch.get_device_module(device), "Stream"):  # MPS has one, and no names for it
            self._event = torch.get_device_module(device).Event()
            self._event.record()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, the host waits for the device as far as this mark. What is computed inside is to be read there, too."""
        if self._event is None:
            yield
            return
        stream = _stream(self._device)
        stream.wait_event(self._event)
        with torch.get_device_module(self._device).stream(stream):
            yield


@functools.cache
def _stream(device: torch.device) -> Any:
    return torch.get_device_module(device).Stream(device)


@dataclass
class Taken:
    """A training step that the device may still be at.

    loss: on the device. verdicts: what the engine says of the step. value: the loss, once it was read.
    """

    number: int
    loss: Tensor
    verdicts: late.Verdicts
    mark: Mark
    value: float | None = None

    def read(self) -> float:
        """The loss, waited for. Raises what the engine finds wrong with the step."""
        with self.mark.reading():
            value = float(self.loss)
            late.judge(self.verdicts)
        self.value = value
        return value
