"""The stages of a run, one a module: `carry_out(run) -> figures` for results.json. memexp.run calls them in order."""

import importlib
from typing import Any

from memexp.sequence import stage_of
from memexp.stages.handed import Run

__all__ = ["Run", "carry_out"]


def carry_out(run: Run) -> dict[str, Any]:
    """The stage of `run.key`; its figures."""
    figures: dict[str, Any] = importlib.import_module(f"memexp.stages.{stage_of(run.key)}").carry_out(run)
    return figures
