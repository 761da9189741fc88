"""The papers' own numbers, kept as data with their source, and beside them what was measured here."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memexp.report.collect import Group
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
    """A row for each published number: published, measured here, and the difference."""
    data = load(identifier)
    rows = []
    small = False
    for entry in data["rows"]:
        found = [group for group in groups if _matches(group, entry["match"])]
        measured = found[0].figure(entry["quantity"]) if found else None
        unit, divisor = entry["unit"], float(entry.get("divisor", 1))
        decimals = int(entry.get("decimals", 2))
        difference = f"{measured.mean / divisor - entry['value']:+,.{decimals}f}" if measured else "-"
        small = small or bool(found and measured and found[0].first.get("scale") == "laptop")
        rows.append(
            [
                entry["label"],
                entry["quantity"],
                unit,
                f"{entry['value']:,.{decimals}f}",
                shown(measured, divisor, decimals) if measured else "not measured",
                str(measured.n) if measured else "0",
                difference,
            ]
        )
    table = Table(["network", "figure", "unit", "published", "measured here", "n", "difference"], rows, identifier)
    table.notes = [f"published: {data['source']}", *data.get("notes", [])]
    if small:
        table.notes.append("measured here: the small version (scale=laptop), not the published recipe.")
    return table


def _matches(group: Group, wanted: dict[str, Any]) -> bool:
    return bool(group.done) and all(str(group.first.setting(key)) == str(value) for key, value in wanted.items())
