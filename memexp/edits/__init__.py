"""Edits: what may change a built network, as plain data.

A network is its configuration plus edits. An edit is a dict of plain data (text, numbers, true, false, null, lists, dicts)
with a `kind`; `apply` carries it out. Whoever decides (a criterion, a fuser, a tuner) records the edit and calls `apply`, so
that the first time and every later time, on a network that is rebuilt from a file, are the same code. Nothing in an edit is
executed, and one that does not fit the network is a ValueError that names what does not fit.

One kind a module, `memexp.edits.KIND`, with one function `apply(network, edit) -> network` that works on real, fake and meta
tensors: on a network with weights it computes the new ones, on one without it leaves the shapes that a state dict is then
loaded into.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from memexp.channels.called import apart

Edit = Mapping[str, Any]
KINDS = ("narrow", "mask", "fold", "merge", "linearise", "grow", "partition", "discretise")


@apart()
def apply(network: nn.Module, edit: Edit) -> nn.Module:
    """`network` after the edit: the same object, changed, or another where its whole is replaced.

    Raises ValueError for a kind that there is not, for what is not plain data, and for an edit of another network.
    """
    kind = edit.get("kind") if isinstance(edit, Mapping) else None
    if kind not in KINDS:
        raise ValueError(f"edit: kind {kind!r} is not one of {', '.join(KINDS)}")
    if (found := _not_plain(edit)) is not None:
        raise ValueError(f"edit {kind}: {found} is no plain data")
    try:
        changed = importlib.import_module(f"memexp.edits.{kind}").apply(network, edit)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"edit {kind}: what it holds is no such edit, or is of another network ({error})") from error
    assert isinstance(changed, nn.Module)
    return changed


def apply_all(network: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    """`network` after each of `edits`, in order."""
    for edit in edits:
        network = apply(network, edit)
    return network


def _not_plain(value: Any) -> str | None:
    """What of `value` is neither text, number, true, false, null, list nor dict with texts as keys; None if all is."""
    if value is None or isinstance(value, bool | int | float | str):
        return None
    if isinstance(value, list | tuple):
        return next((found for item in value if (found := _not_plain(item)) is not None), None)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return _not_plain(list(value.values()))
    return repr(value)[:80]
