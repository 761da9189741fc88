"""The tensors that a network gives, in whatever they come."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in it, in order: in dicts, lists, tuples and dataclasses, but not in other objects, such as caches."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        return []
    return [tensor for part in parts for tensor in tensors_in(part)]
