"""Errors of the engine name the step that they are about."""

import torch
from torch import nn


class StepError(ValueError):
    """A step of a Chain, or what it was given, does not fit; the message names the step."""


def describe(index: int, step: nn.Module) -> str:
    """How errors name a step."""
    return f"step {index} ({step._get_name()})"


def not_here(name: str) -> str:
    """The message of a backward pass of steps where recomputing is not possible."""
    if torch.is_inference_mode_enabled():
        return f"backward of {name} inside torch.inference_mode(): a recomputation is recorded, and there nothing is"
    if torch._C._are_functorch_transforms_active():
        return (
            f"backward of {name} inside torch.func (vmap, grad), which no recomputation goes through: for many gradients at "
            "once use torch.autograd.grad(..., is_grads_batched=True), or backprop=stored or light"
        )
    return (
        f"double backward (create_graph=True) through {name}: recomputing strategies give first derivatives only; use "
        "backprop=stored or light for second derivatives"
    )


def parameter_changed(name: str, within: bool) -> str:
    """The message of a backward pass of steps with other parameters. within: their own forward has changed them."""
    if within:
        return (
            f"{name} changes a parameter in place in its own forward, so that a recomputation would begin with another one: do "
            "so outside of the forward, or use backprop=stored or light"
        )
    return (
        f"a parameter of {name} was changed in place between forward and backward (an optimizer step?); its recomputation "
        "would give another gradient: run backward first"
    )
