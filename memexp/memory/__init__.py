"""Memory: measured, tracked, estimated and planned."""

from typing import Any

from memexp.memory.meter import Meter
from memexp.memory.tracked import Report
from memexp.memory.tracker import Tracker, track

__all__ = ["Meter", "Report", "Tracker", "fit", "track"]


def __getattr__(name: str) -> Any:
    if name == "fit":  # what plans stands above what trains, and that above what measures
        from memexp.memory.fitting import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
