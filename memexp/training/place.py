"""What the loop is given of the run around it: the run itself stands above training, which knows no more of it than this."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memexp.data import Splits
from memexp.record import RunDirectory
from memexp.training.board import Board
from memexp.training.distribution import World
from memexp.training.signals import StopRequest


class Meter(Protocol):
    """Measures a run's memory; memexp.memory.meter has the two that there are."""

    tracked_steps: int  # how many of the first steps it slows

    def step(
        self, number: int, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[tuple[Tensor, Tensor]]
    ) -> AbstractContextManager[None]:
        """Around step `number` (from 0) of this process."""

    def aside(self) -> AbstractContextManager[None]:
        """Around work whose memory is not the training step's."""

    def peak(self) -> int:
        """Bytes at the peak so far."""

    def results(self) -> dict[str, Any]:
        """The split of the peak in bytes."""


class Place(Protocol):
    """The run as a stage of training sees it.

    steps_before, epochs_before: of the stages that are done, so that curves go on where the last ended. key: of the stage.
    """

    network: nn.Module
    world: World
    device: torch.device
    directory: RunDirectory
    splits: Splits

    @property
    def meter(self) -> Meter:
        """Of the whole run."""

    stop: StopRequest
    board: Board | None
    key: str
    steps_before: int
    epochs_before: float

    def save(self, training: dict[str, Any] | None) -> None:
        """Writes checkpoints/last.pt; training: what decides the future of this stage, None where it is at an end."""

    def save_best(self, weights: dict[str, Tensor], top1: float) -> None:
        """Writes checkpoints/best.pt."""
