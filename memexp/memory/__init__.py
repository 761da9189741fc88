"""Memory: measured, tracked, estimated and planned."""

from memexp.memory.meter import Meter
from memexp.memory.tracker import Report, Tracker, track

__all__ = ["Meter", "Report", "Tracker", "track"]
