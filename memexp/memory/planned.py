"""A run with backprop=budget: measured, planned, and set up before its first step."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from memexp.backprop.monitor import gradient
from memexp.edits import Edit
from memexp.memory.planner import plan, store
from memexp.memory.scratch import scratch
from memexp.memory.timed import measure
from memexp.training.precision import Precision
from memexp.training.step import Loss
from memexp.units import shown_bytes

log = logging.getLogger("memexp")


def set_up(
    cfg: DictConfig,
    model: nn.Module,
    loss_fn: Loss,
    batch: tuple[Tensor, Tensor],
    precision: Precision,
    before: Mapping[str, Any],
    edits: Sequence[Edit] = (),
    beside: int = 0,
) -> dict[str, Any]:
    """Chooses the steps to store and sets the Chains of `model`; returns the figures of results.json's "strategy".

    before: these figures of a run that is resumed, which keeps its choice, as another would change the last bits. edits: what
    has changed the network that `cfg` builds. beside: bytes on the device that are not the training step's.
    """
    if "stored_steps" in before:
        follow(model, before)
        return dict(before)
    images, labels = batch

    def step() -> None:
        def loss() -> Tensor:
            with precision.autocast():
                return loss_fn(model(images), labels)

        gradient(model, loss)

    once, times = measure(model, step)
    chosen = plan(cfg, times, edits, beside, scratch(step, images.device))
    chosen.apply(model)
    stored, light = sum(map(len, chosen.stored)), sum(map(len, chosen.light))
    seconds = cfg.accumulate * (once - chosen.saved)
    log.info(
        "budget %s (stored takes %s, the least is %s): of %d steps %d stored and %d light, predicted peak %s, step %.3f s",
        *map(shown_bytes, (chosen.budget, chosen.most, chosen.least)),
        len(times),
        stored,
        light,
        shown_bytes(chosen.peak),
        seconds,
    )
    if chosen.scratch:
        log.info("each of these peaks has %s for kernels' scratch space, as measured here", shown_bytes(chosen.scratch))
    if chosen.least == chosen.most:
        log.warning("warning: no choice takes less than storing every step does; all are stored")
    elif chosen.peak > chosen.budget:
        log.warning("warning: the budget is below the least that this run takes; it is run with the least")
    return {
        "budget": chosen.budget,
        "predicted": {"peak": chosen.peak, "step_ms": 1e3 * seconds, "scratch": chosen.scratch},
        "least_peak": chosen.least,
        "stored_peak": chosen.most,
        **chosen.steps(),
    }


def follow(model: nn.Module, figures: Mapping[str, Any]) -> None:
    """Sets the Chains of `model` to the plan that `figures`, what `set_up` returned, hold."""
    stored = figures["stored_steps"]
    light = figures.get("light_steps") or [[] for _ in stored]  # a run of an earlier version had none
    store(model, list(map(frozenset, stored)), list(map(frozenset, light)))
