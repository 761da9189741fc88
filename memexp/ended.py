"""What a run ended with, as its record has it."""

import errno
from pathlib import Path

import torch

from memexp.backprop import StepError
from memexp.channels import ChannelError
from memexp.config import ConfigError
from memexp.data import DataError
from memexp.fusing import ExportError, FusingError
from memexp.record import RunDirectoryError
from memexp.stages import prune
from memexp.training import distribution
from memexp.training.checkpoint import CheckpointError
from memexp.training.distribution import ProcessLost, World
from memexp.training.loop import NotFinite
from memexp.training.signals import Interrupted

# What a run may end with that its message explains in full; anything else is a fault and shows its traceback.
EXPLAINED: tuple[type[Exception], ...] = (ConfigError, StepError, DataError, CheckpointError, RunDirectoryError)
EXPLAINED += (NotFinite, Interrupted, ProcessLost)
EXPLAINED += (ChannelError, prune.PruneError, FusingError, ExportError)
AGREED = (NotFinite, Interrupted)  # what ends all processes of a run at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a disk, whatever was being written
STATUS = {Interrupted: "interrupted", NotFinite: "nan", torch.OutOfMemoryError: "oom", MemoryError: "oom"}


def status(error: BaseException) -> str:
    """Of memexp.record.STATUSES."""
    for kind, found in STATUS.items():
        if isinstance(error, kind):
            return found
    # the CPU's allocators have no exception type of their own
    words = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")
    out_of_memory = isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    return "oom" if out_of_memory else "failed"


def told(error: BaseException, world: World, directory: Path) -> BaseException:
    """The error itself, or the one that says what it means to this run: a process that is lost, a disk that is full."""
    if distribution.lost(error, world):
        return ProcessLost(
            f"another of the {world.size} processes of this run has ended or cannot be reached; its own messages say "
            f"why. Start all of them again with `torchrun ... -m memexp resume {directory}`"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return RunDirectoryError(
            f"{directory} cannot be written any more: {error.strerror}. What its last checkpoint holds is kept: "
            f"free space, then go on with `memexp resume {directory}`"
        )
    return error
