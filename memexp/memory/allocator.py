"""What torch's allocator on the CPU gives out, by its own events: a second measurement, which sees compiled code, too."""

from collections.abc import Callable

import torch


def allocated(function: Callable[[], object]) -> tuple[int, int]:
    """Bytes on the CPU beyond those before the call: at the peak of `function()`, and with what it returns still held.

    Sizes as they were asked for. Takes longer than the call itself: not for timing.
    """
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
