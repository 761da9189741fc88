"""How long a training step takes, and the forward pass of each step of its Chains in it."""

import time
from collections.abc import Callable
from itertools import chain

import torch
from torch import nn

from memexp.backprop import chains


def measure(model: nn.Module, step: Callable[[], object], repeats: int = 3) -> tuple[float, list[float]]:
    """Median seconds of `step()`, a forward and backward pass of `model`, and of each Chain step's forward in it.

    The first call is warm-up and left out.
    """
    device = next(model.parameters()).device
    synchronise = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    rounds: list[tuple[float, list[float]]] = []
    steps = list(chain.from_iterable(chains(model)))
    spans = [0.0] * len(steps)

    def begin(index: int) -> None:
        if torch._C._current_graph_task_id() == -1:
            synchronise()
            spans[index] -= time.perf_counter()

    def end(index: int) -> None:
        if torch._C._current_graph_task_id() == -1:
            synchronise()
            spans[index] += time.perf_counter()

    hooks = []
    for index, module in enumerate(steps):
        hooks.append(module.register_forward_pre_hook(lambda *_, i=index: begin(i)))
        hooks.append(module.register_forward_hook(lambda *_, i=index: end(i)))
    try:
        for _ in range(repeats + 1):
            spans[:] = [0.0] * len(steps)
            synchronise()
            started = time.perf_counter()
            step()
            synchronise()
            rounds.append((time.perf_counter() - started, list(spans)))
    finally:
        for hook in hooks:
            hook.remove()
    rounds = rounds[1:]
    middle = len(rounds) // 2
    whole = sorted(seconds for seconds, _ in rounds)[middle]
    return whole, [sorted(column)[middle] for column in zip(*(spans for _, spans in rounds), strict=True)]
