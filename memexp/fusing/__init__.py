"""Fusing: what of a trained network can be merged, exactly, into fewer and smaller layers, and the check of it."""

from memexp.fusing.foldable import folds

__all__ = ["folds"]
