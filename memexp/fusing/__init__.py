"""Fusing: what of a trained network can be merged, exactly, into fewer and smaller layers, and the check of it."""

from memexp.fusing.foldable import folds
from memexp.fusing.fused import Comparison, Fused, FusingError, check, compare, fuse

__all__ = ["Comparison", "Fused", "FusingError", "check", "compare", "folds", "fuse"]
