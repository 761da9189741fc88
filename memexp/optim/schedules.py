"""Learning-rate schedules as pure functions of the step, so that there is no state to save.

Each gives the factor on the optimizer's lr for one step. Warm-up rises linearly to 1 over the first steps, the schedule
proper covers the rest.
"""

import math
from typing import Any, Protocol

from omegaconf import OmegaConf

from memexp import own
from memexp.choices import arguments


class Schedule(Protocol):
    """The keys of conf/schedule/*.yaml; warmup, and milestones, below 1 are shares of the run, others count steps."""

    name: str
    warmup: float


def factor(schedule: Schedule, step: int, total: int) -> float:
    """What multiplies the learning rate at `step` (from 0) of `total` steps.

    Raises ValueError for a schedule that is unknown or whose warm-up is longer than the run.
    """
    users = "_target_" in schedule  # type: ignore[operator]
    if not users and schedule.name not in SHAPES:
        raise ValueError(f"schedule={schedule.name!r}: there are {', '.join(SHAPES)}")
    warmup = _steps(schedule.warmup, total)
    if warmup > total:
        raise ValueError(f"schedule.warmup: {schedule.warmup} is longer than the {total} steps; set at most that many")
    if step < warmup:
        return (step + 1) / warmup
    return (_own if users else SHAPES[schedule.name])(schedule, step - warmup, max(1, total - warmup), warmup)


def _own(schedule: Any, step: int, total: int, warmup: int) -> float:
    """A user's own: a function of `step` and `total`, both without the warm-up."""
    path = schedule["_target_"]
    given = arguments("schedule", OmegaConf.to_container(schedule, resolve=True))  # type: ignore[arg-type]
    try:
        found = own.made(path, {"step": step, "total": total}, given, object, needs=("step", "total"))
        value = float(found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"schedule: {error}") from error
    if not math.isfinite(value):
        raise ValueError(f"schedule: {path} gives {value} at step {step} of {total}")
    return value


def _steps(amount: float, total: int) -> int:
    return round(amount * total) if 0 < amount < 1 else int(amount)


def _constant(schedule: Schedule, step: int, total: int, warmup: int) -> float:
    return 1.0


def _step(schedule: Schedule, step: int, total: int, warmup: int) -> float:
    passed = sum(step + warmup >= _steps(milestone, total + warmup) for milestone in schedule.milestones)  # type: ignore
    gamma: float = schedule.gamma  # type: ignore[attr-defined]
    return gamma**passed


def _cosine(schedule: Schedule, step: int, total: int, warmup: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def _flat_cosine(schedule: Schedule, step: int, total: int, warmup: int) -> float:
    flat: float = schedule.flat  # type: ignore[attr-defined]
    share = step / total
    if share < flat or flat == 1:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((share - flat) / (1 - flat), 1)))


SHAPES = {"constant": _constant, "step": _step, "cosine": _cosine, "flat_cosine": _flat_cosine}
