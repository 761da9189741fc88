"""What stands in a checkpoint, field by field. The file may be a stranger's, or another program's: what is not of this form is
told at the door, by its name, instead of wherever it is first used.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Test = Callable[[Any], bool]


def misfit(state: Mapping[str, Any]) -> str | None:
    """The first field of a checkpoint of schema 2 that is missing or is not what it should be; None for a sound one."""
    for name, holds in REQUIRED.items():
        if name not in state or not holds(state[name]):
            return name
    return next((name for name, holds in OPTIONAL.items() if name in state and not holds(state[name])), None)


def checksums(value: Any) -> bool:
    return _dict_of(lambda number: isinstance(number, int))(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _dict_of(holds: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and holds(v) for k, v in value.items())


def _list_of(holds: Test) -> Test:
    return lambda value: isinstance(value, list | tuple) and all(map(holds, value))


def _or_none(holds: Test) -> Test:
    return lambda value: value is None or holds(value)


def _stage(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("key"), str)
        and _or_none(_count)(value.get("steps"))
        and _or_none(_number)(value.get("epochs"))
        and all(_or_none(_any_dict)(value.get(name)) for name in ("memory", "time", "strategy", "accuracy"))
    )


def _training(value: Any) -> bool:
    progress = value.get("progress") if isinstance(value, dict) else None
    return (
        isinstance(progress, dict)
        and all(_count(progress.get(name)) for name in ("step", "epoch", "position"))
        and _or_none(_count)(progress.get("total"))
        and all(_or_none(_any_dict)(progress.get(name)) for name in ("memory", "time"))
    )


def _random(value: Any) -> bool:
    def of_process(states: Any) -> bool:
        return isinstance(states, dict) and isinstance(states.get("cpu"), Tensor) and states["cpu"].dtype == torch.uint8

    return isinstance(value, list) and len(value) > 0 and all(map(of_process, value))


def _any_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _finite(value: Any) -> bool:
    return _number(value) and math.isfinite(value)


_tensors = _dict_of(lambda value: isinstance(value, Tensor))
_names = _list_of(lambda value: isinstance(value, str))
REQUIRED: dict[str, Test] = {
    "model": _tensors,
    "config": _or_none(_any_dict),
    "classes": _or_none(_names),
    "edits": _list_of(_any_dict),
    "stage": lambda value: isinstance(value, str),
    "stages": _list_of(_stage),
    "training": _or_none(_training),
    "random": _or_none(_random),
    "appended": _or_none(_dict_of(_count)),
}
OPTIONAL: dict[str, Test] = {
    "deployed": _tensors,
    "shape": lambda value: _list_of(_count)(value) and len(value) == 3,
    "mean": _list_of(_finite),
    "std": _list_of(lambda value: _finite(value) and value > 0),
    "fingerprint": lambda value: isinstance(value, str),
    "teacher": _or_none(_count),
}
