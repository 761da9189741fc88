"""The checker: values against dataclasses whose annotations are types and ranges. What the keys are stands in options.py."""

import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple

from memexp.units import parse_bytes

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of float32's normal numbers


class Rule(NamedTuple):
    """A range: what it allows, in words, and the test."""

    allows: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    return Rule(f"at least {low}", lambda value: value >= low)


def between(low: float, high: float) -> Rule:
    return Rule(f"between {low} and {high}", lambda value: low <= value <= high)


def is_bytes(value: Any) -> bool:
    """Whether it is a number of bytes, such as 11GB or 900MiB."""
    try:
        return parse_bytes(value) > 0
    except ValueError:
        return False


Positive = Annotated[int, at_least(1)]
Count = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, Rule("above 0", lambda value: value > 0)]
NonNegative = Annotated[float, at_least(0)]
Share = Annotated[float, between(0, 1)]
ShareBelow1 = Annotated[float, Rule("at least 0 and below 1", lambda value: 0 <= value < 1)]


def nearest(word: str, allowed: typing.Iterable[str]) -> str:
    """' Did you mean ...?' for a misspelt word, or nothing."""
    allowed = list(allowed)
    last = word.split(".")[-1]  # which may be right under another group
    same = [name for name in allowed if name.split(".")[-1] == last]
    if same and "." not in word:
        return f" Did you mean {' or '.join(map(repr, same))}?"
    found = difflib.get_close_matches(word, allowed, n=1, cutoff=0.55) or same
    return f" Did you mean '{found[0]}'?" if found else ""


def mismatches(
    node: Mapping[str, Any], kind: type, prefix: str, extra: typing.Iterable[str] = ()
) -> typing.Iterator[str]:
    """Unknown, missing and mistyped keys of one node."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    for key in node:
        if key not in names:
            yield f"{prefix}{key}: unknown key.{nearest(f'{prefix}{key}', [prefix + n for n in [*names, *extra]])}"
    for name in names:
        if name not in node:
            if name in optional:
                continue
            yield f"{prefix}{name}: missing; set {prefix}{name}=..."
            continue
        value, hint = node[name], hints[name]
        if value == "???":
            yield f"{prefix}{name}: has no value; set {prefix}{name}=..."
        elif is_dataclass(hint) and isinstance(hint, type):
            if isinstance(value, Mapping):
                yield from mismatches(value, hint, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}: {value!r} is not a node of keys"
        elif not _fits(value, hint):
            yield f"{prefix}{name}: {value!r} is not allowed; it takes {_words(hint)}.{_near(value, hint)}"


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, arguments[0]) and all(rule.holds(value) for rule in arguments[1:])
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _in_float32(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, origin or hint)


def _in_float32(value: float) -> bool:
    """Whether it is 0 or a normal number of what networks are computed in: others would be there as 0 or infinity."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_words(arguments[0])} {' and '.join(rule.allows for rule in arguments[1:])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(option) for option in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        return f"a list, each {_words(arguments[0])}"
    if origin is dict:
        return "a table such as {NAME:VALUE}"
    return {int: "a whole number", float: "a finite float32 number", bool: "true or false", str: "a text"}.get(
        hint, "null"
    )


def choices(kind: type, name: str) -> list[str]:
    """The values of a field, where they are words that can be listed: of a Literal, or true and false."""
    hint = typing.get_type_hints(kind, include_extras=True).get(name)
    if hint is bool:
        return ["true", "false"]
    parts = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is Literal]
    return [str(option) for part in parts for option in typing.get_args(part)]


def _near(value: Any, hint: Any) -> str:
    options = [option for part in (hint, *typing.get_args(hint)) for option in typing.get_args(part)]
    return nearest(value, [option for option in options if isinstance(option, str)]) if isinstance(value, str) else ""
