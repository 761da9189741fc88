"""One process or many: torchrun starts them, rank 0 composes the configuration and writes, all of them train."""

import atexit
import gc
import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memexp.training import synced
from memexp.training.signals import Interrupted, StopRequest

if dist.is_available():  # now: read while processes are joined, its defaults would hold their group for good
    import torch.distributed.nn.functional

T = TypeVar("T")
_joined = itertools.count()  # how often this process, and so each of them, has


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @staticmethod
    def from_environment() -> "World":
        """What torchrun set, or a single process."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        return World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))


def choose_device(name: str, world: World) -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU; with several processes, each its own accelerator."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        name = found.type if found is not None else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", found.type if found is not None else "cpu"):
            raise NotImplementedError(f"torch knows {device.type}, where nothing is computed")  # such as meta
        if device.type != "cpu":
            device = _own(device, world)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        has = f"cpu and {found.type}" if found is not None else "cpu only"
        raise ValueError(f"device: '{name}' is not to be had here ({has}); set device=auto") from error
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    return device


def _own(device: torch.device, world: World) -> torch.device:
    """The one that this process has for itself. Raises ValueError where processes of this machine would share one."""
    count, processes = torch.accelerator.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    each = f"each of the {processes} processes on this machine takes one for itself"
    if world.size > 1 and device.index is not None and processes > 1:
        raise ValueError(f"device: '{device}' is one device, and {each}; set device={device.type}")
    if device.index is not None:
        return device
    if world.size > 1 and world.local_rank >= count:
        raise ValueError(f"device: {device.type} counts {count} here, and {each}; start as many, or set device=cpu")
    return torch.device(device.type, world.local_rank)


def device_name(name: str, world: World) -> str:
    """For a run's record: what `auto` comes to; of a device that is not there, which ends the run, what it was asked for as."""
    try:
        return str(choose_device(name, world))
    except ValueError:
        return name


def start(world: World, address: str = "env://") -> None:
    """Joins the processes: gloo between CPUs, and between accelerators what is theirs (NCCL for CUDA, XCCL for XPU).

    address: where they find each other, as torch's init_method; by default as torchrun has set it.
    """
    if world.size > 1 and not dist.is_initialized():
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = found.type if found is not None else "cpu"
        more = f",{kind}:{dist.get_default_backend_for_device(kind)}" if kind != "cpu" else ""
        backend = f"cpu:gloo{more}" if more else "gloo"
        store, *_ = next(dist.rendezvous(address, world.rank, world.size))
        # in torchrun's there still is where each process was found in the run before, of a script that has several
        store = dist.PrefixStore(f"memexp-{next(_joined)}", store)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
        atexit.register(_let_go)


class ProcessLost(Exception):
    """Another process of the run has ended, or cannot be reached."""


def lost(error: BaseException, world: World) -> bool:
    """Whether that is what `error` says, in the words of gloo or NCCL."""
    words = (
        "closed by peer",
        "reset by peer",
        "Broken pipe",
        "remote process exited",
        "Socket Timeout",
        "Timed out waiting",
    )
    if world.size == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or any(word in str(error) for word in words)


def together(make: Callable[[], T], world: World) -> T:
    """What `make` gives, in every process. Where it fails in one of them it fails in all, and one says why: the first process
    its own error or, as ProcessLost, another's; what it has said the others end with, in silence.
    """
    made: list[T] = []
    error: Exception | None = None
    try:
        made.append(make())
    except Exception as raised:
        if world.size == 1:
            raise
        error = raised
    told = gather(None if error is None else str(error), world)
    if world.is_main and error is not None:
        raise error
    if world.is_main and any(told):
        number = next(rank for rank, text in enumerate(told) if text is not None)
        raise ProcessLost(f"process {number} of {world.size}: {told[number]}") from error
    if any(text is not None for text in told):
        raise SystemExit(1)
    return made[0]


def stop() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _let_go() -> None:
    """Ends the group's threads while Python still runs: one that lets go of a tensor later aborts the process ("terminate
    called without an active exception"). They end with the last that holds the group, and a network in a cycle may be it.
    """
    stop()
    gc.collect()


def share_text(text: str, world: World) -> str:
    """Rank 0's text, on every rank."""
    if world.size == 1:
        return text
    size = torch.tensor([len(text.encode())])
    dist.broadcast(size, src=0)
    data = torch.zeros(int(size), dtype=torch.uint8)
    if world.is_main:
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    dist.broadcast(data, src=0)
    return bytes(data.tolist()).decode()


def same_weights(network: nn.Module, world: World) -> None:
    """Gives every process the weights and buffers of the first one."""
    if world.size > 1:
        for tensor in network.state_dict().values():
            sent = tensor.contiguous()  # channels_last weights are not, and only rows in a row can be sent
            dist.broadcast(sent, src=0)
            if sent is not tensor:
                tensor.copy_(sent)


def total(values: Tensor, world: World) -> Tensor:
    """Sum over the processes."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def mean(value: Tensor, world: World) -> Tensor:
    """Over the processes."""
    return value if world.size == 1 else total(value, world) / world.size


def agreed(value: T, world: World) -> T:
    """Plain data as the first process has it, in every process."""
    if world.size == 1:
        return value
    shared: T = json.loads(share_text(json.dumps(value), world))
    return shared


def gather(value: T, world: World) -> list[T]:
    """What each process has, in the order of their ranks."""
    if world.size == 1:
        return [value]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, value)
    return found


def agree(flag: bool, world: World) -> bool:
    """Whether `flag` holds on any process: what ends a step on one must end it on all. Devices go on with their work."""
    if world.size == 1:
        return flag
    return bool(total(torch.tensor(int(flag)), world) > 0)


def heed(stop: StopRequest | None, world: World) -> None:
    """Raises Interrupted in all processes where one of them was asked to stop. All come here at the same place of the run: one
    that went its own way would leave the others waiting for it in what they do together.
    """
    if stop is not None and agree(stop.signum is not None, world):
        raise Interrupted(stop.signum or signal.SIGTERM)


def distribute(model: nn.Module, world: World, device: torch.device, sync_batchnorm: bool) -> nn.Module:
    """The model, with gradients averaged over processes where there are several.

    sync_batchnorm: with batch statistics of all of them. Raises ValueError where a normalisation cannot be so.
    """
    if world.size == 1:
        return model
    if sync_batchnorm:
        synced.synchronise(model, device)
    devices = None if device.type == "cpu" else [device.index]
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
