"""What torch's allocator gives out, by its own figures: a second measurement, which sees compiled code, too."""

import gc
from collections.abc import Callable

import torch


def allocated(function: Callable[[], object], device: torch.device | None = None) -> tuple[int, int]:
    """Bytes beyond those before the call: at the peak of `function()`, and with what it returns still held.

    device: a GPU of NVIDIA's, whose caching allocator counts in blocks of 512 bytes; else the CPU, in sizes as they were asked
    for, by the profiler. Takes longer than the call itself: not for timing.
    """
    gc.collect()  # garbage of an earlier measurement, freed during the call, would count for it
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = function()
        found = torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
        del kept
        return found
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = function()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    del kept
    return peak, total
