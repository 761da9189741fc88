"""Fusing: what of a trained network can be merged, exactly, into fewer and smaller layers, and the check of it."""

from memexp.fusing.exported import ExportError, export
from memexp.fusing.foldable import folds
from memexp.fusing.fused import Comparison, Fused, FusingError, check, compare, fuse
from memexp.fusing.grown import grow, growable

__all__ = [
    "Comparison",
    "ExportError",
    "Fused",
    "FusingError",
    "check",
    "compare",
    "export",
    "folds",
    "fuse",
    "grow",
    "growable",
]
