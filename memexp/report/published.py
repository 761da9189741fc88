"""The papers' own numbers, kept as data with their source, and beside them what was measured here."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memexp.report.collect import Group, varying
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
    rows = []
    small = False
    for entry in data["rows"]:
        found = [group for group in groups if _matches(group, entry["match"])]
        found = [group for group in found if group.figure(entry["quantity"])]
        small = small or any(group.first.get("scale") == "laptop" for group in found)
        rows += [_row(entry, group, found) for group in found] or [_row(entry, None, found)]
    table = Table(["network", "figure", "unit", "published", "measured here", "n", "difference"], rows, identifier)
    table.notes = [f"published: {data['source']}", *data.get("notes", [])]
    if small:
        table.notes.append("measured here: the small version (scale=laptop), not the published recipe.")
    return table


def _row(entry: dict[str, Any], group: Group | None, found: Sequence[Group]) -> list[str]:
    """found: all groups that this number speaks of; where there are several, each is named by what sets it apart."""
    apart = [f"{key}={group.first.setting(key)}" for key in varying([g.first for g in found])] if group else []
    measured = group.figure(entry["quantity"]) if group else None
    divisor, decimals = float(entry.get("divisor", 1)), int(entry.get("decimals", 2))
    return [
        ", ".join([entry["label"], *apart]),
        entry["quantity"],
        entry["unit"],
        f"{entry['value']:,.{decimals}f}",
        shown(measured, divisor, decimals) if measured else "not measured",
        str(measured.n) if measured else "0",
        f"{measured.mean / divisor - entry['value']:+,.{decimals}f}" if measured else "-",
    ]


def _matches(group: Group, wanted: dict[str, Any]) -> bool:
    return bool(group.done) and all(str(group.first.setting(key)) == str(value) for key, value in wanted.items())
