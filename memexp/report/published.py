"""The papers' own numbers, kept as data with their source, and beside them what was measured here."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from memexp.report.collect import Figure, Group
from memexp.report.settings import varying
from memexp.report.tables import Table, shown

DATA = Path(__file__).resolve().parent / "published"


def identifiers() -> list[str]:
    return sorted(str(path.relative_to(DATA).with_suffix("")) for path in DATA.rglob("*.yaml"))


def load(identifier: str) -> dict[str, Any]:
    """The published rows of an experiment. Raises ValueError naming the nearest for an unknown one."""
    known = identifiers()
    if identifier not in known:
        near = difflib.get_close_matches(identifier, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"--paper: '{identifier}' has no published numbers here; there are {', '.join(known)}.{hint}")
    data = yaml.safe_load((DATA / f"{identifier}.yaml").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def compare(identifier: str, groups: Sequence[Group]) -> Table:
    """Rows of published, measured here and the difference: one for each published number and each group it speaks of."""
    data = load(identifier)
    found = list(_pairs(data, groups))
    table = Table(
        ["network", "figure", "unit", "published", "measured here", "n", "difference"],
        [_row(*pair) for pair in found],
        identifier,
    )
    table.notes = [f"published: {data['source']}", *data.get("notes", [])]
    if any(group is not None and group.first.get("scale") == "laptop" for _, _, group in found):
        table.notes.append("measured here: the small version (scale=laptop), not the published recipe.")
    return table


def records(identifier: str, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The same for programs: plain numbers in the paper's units."""
    found = []
    for entry, label, group in _pairs(load(identifier), groups):
        measured, divisor = _measured(entry, group), float(entry.get("divisor", 1))
        found.append(
            {
                "network": label,
                "figure": entry["quantity"],
                "unit": entry["unit"],
                "published": entry["value"],
                "measured": measured.mean / divisor if measured else None,
                "deviation": measured.deviation / divisor if measured and measured.deviation is not None else None,
                "n": measured.n if measured else 0,
                "difference": measured.mean / divisor - entry["value"] if measured else None,
            }
        )
    return found


def _pairs(data: dict[str, Any], groups: Sequence[Group]) -> Iterator[tuple[dict[str, Any], str, Group | None]]:
    """(published number, label, group it speaks of); where it speaks of several, each is named by what sets it apart."""
    for entry in data["rows"]:
        found = [group for group in groups if _matches(group, entry["match"]) and group.figure(entry["quantity"])]
        keys = varying([group.first for group in found]) if len(found) > 1 else []
        for group in found:
            yield entry, ", ".join([entry["label"], *(f"{key}={group.first.setting(key)}" for key in keys)]), group
        if not found:
            yield entry, entry["label"], None


def _measured(entry: dict[str, Any], group: Group | None) -> Figure | None:
    return group.figure(entry["quantity"]) if group else None


def _row(entry: dict[str, Any], label: str, group: Group | None) -> list[str]:
    measured = _measured(entry, group)
    divisor, decimals = float(entry.get("divisor", 1)), int(entry.get("decimals", 2))
    return [
        label,
        entry["quantity"],
        entry["unit"],
        f"{entry['value']:,.{decimals}f}",
        shown(measured, divisor, decimals) if measured else "not measured",
        str(measured.n) if measured else "0",
        f"{measured.mean / divisor - entry['value']:+,.{decimals}f}" if measured else "-",
    ]


def _matches(group: Group, wanted: dict[str, Any]) -> bool:
    return bool(group.done) and all(str(group.first.setting(key)) == str(value) for key, value in wanted.items())
