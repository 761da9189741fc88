"""Errors of the engine name the step that they are about."""

from torch import nn


class StepError(ValueError):
    """A step of a Chain, or what it was given, does not fit; the message names the step."""


def describe(index: int, step: nn.Module) -> str:
    """How errors name a step."""
    return f"step {index} ({step._get_name()})"
