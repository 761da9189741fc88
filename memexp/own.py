"""A user's own model, data set, optimizer or schedule: what `_target_` names is imported and called."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def named(path: str) -> Callable[..., Any]:
    """The class or function of a dotted path. Raises ValueError where there is none."""
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"_target_: {path!r} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise ValueError(f"_target_: {path!r} is a {type(found).__name__}, not a class or function")
    called: Callable[..., Any] = found
    return called


def bound(
    path: str, offered: Mapping[str, Any], settings: Mapping[str, Any], needs: Sequence[str] = ()
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What `path` names and the arguments to call it with: those `offered` that its signature has, and all `settings`.

    needs: what of `offered` it must take. Raises ValueError, naming the argument, where they do not fit.
    """
    build = named(path)
    try:
        signature = inspect.signature(build)
    except ValueError as error:
        raise ValueError(f"_target_: {path!r} has no signature that could be read: {error}") from error
    takes = signature.parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    unknown = [key for key in [*needs, *settings] if key not in takes]
    if unknown and not any_name:
        raise ValueError(f"{path} takes no {', '.join(unknown)}; it takes {', '.join(takes) or 'nothing'}")
    arguments = {key: value for key, value in offered.items() if key in takes or key in needs} | dict(settings)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{path}: {error}; it takes {', '.join(takes)}") from error
    return build, arguments


def made(
    path: str, offered: Mapping[str, Any], settings: Mapping[str, Any], kind: type, needs: Sequence[str] = ()
) -> Any:
    """What it makes, as `bound`. Raises ValueError where that is not of `kind`, too."""
    build, arguments = bound(path, offered, settings, needs)
    found = build(**arguments)
    if not isinstance(found, kind):
        raise ValueError(f"{path} made a {type(found).__name__}, not a {kind.__module__}.{kind.__qualname__}")
    return found
