"""What a run that ran out of memory is told: what it was estimated to take, and the settings that would fit."""

import os
import resource
from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.memory.limit import answer
from memexp.memory.trace import trace
from memexp.units import parse_bytes, shown_bytes


def brief(error: BaseException) -> str:
    """What is said of an error; of want of memory the beginning, as torch goes on with every process of the device."""
    text = str(error) or type(error).__name__
    return text.partition(" GPU ")[0] if isinstance(error, torch.OutOfMemoryError) else text


def after_out_of_memory(
    cfg: DictConfig, device: torch.device, edits: Sequence[Edit] = (), planned: int | None = None
) -> str:
    """The estimate beside what the process may have (or memory.limit), and overrides that the estimate says would fit.

    edits: what has changed the network that the configuration builds. planned: the peak in bytes of the plan that ran, with
    backprop=budget; None before there was one.
    """
    given, held = cfg.memory.limit, share(device) < 1
    of_device = f"what this process may have of {device}" if held else str(device)
    limit, source = (capacity(device), of_device) if given is None else (parse_bytes(given), "memory.limit")
    peak = trace(cfg, edits=edits).report.peak if planned is None else planned
    least = " of the least plan" if planned is None and cfg.backprop.name == "budget" else ""
    head = f"estimate: {shown_bytes(peak)} at the peak{least}, of {shown_bytes(limit)} ({source})"
    if peak <= limit:
        rest = "scratch space inside kernels or a fragmented allocator took the rest"
        fixed = device.type == "cuda" and not cfg.memory.enforce  # which has them grow already
        more = "; try PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" if fixed else ""
        if device.type == "cpu":
            rest = "the program and its libraries (about 1 GB of addresses) or scratch space took the rest"
        others = "" if held else "other processes, "  # have none of what one process is held to
        return f"{head}\nthat should fit: {others}{rest}{more}"
    try:
        found = answer(cfg, limit, edits)
    except ConfigError as error:
        return f"{head}\n{error}"
    options = []
    if 0 < found.batch < cfg.batch_size:
        options.append(
            f"batch_size={found.batch} ({shown_bytes(found.batch_peak)}); accumulate makes up for a smaller one"
        )
    options += [
        f"backprop={name} ({shown_bytes(peak)})"
        for name, peak, _ in sorted(found.strategies, key=lambda strategy: strategy[2])
        if peak <= limit and name != cfg.backprop.name
    ]
    if found.depth and found.depth < cfg.model.depth:
        options.append(f"model.depth={found.depth}")
    return "\n".join([head, *(f"would fit: {option}" for option in options)])


def share(device: torch.device) -> float:
    """Of a device's memory, what this process is held to (memory.enforce, or whoever has set it); 1 where to none."""
    return torch.cuda.get_per_process_memory_fraction(device) if device.type == "cuda" else 1.0


def capacity(device: torch.device) -> int:
    """Bytes of a device's memory that this process may have; of the CPU, the machine's, or less of them (`ulimit -v`)."""
    if device.type == "cpu":
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
        return machine if allowed == resource.RLIM_INFINITY else min(machine, allowed)
    _, total = torch.accelerator.get_memory_info(device) if hasattr(torch.accelerator, "get_memory_info") else (0, 0)
    return int(share(device) * (total or torch.get_device_module(device).get_device_properties(device).total_memory))
