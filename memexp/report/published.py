"""The papers' own numbers, kept as data with their source, and beside them what was measured here.

published/ID.yaml, here or in a directory of a user's own configs: source, notes, match (settings of the runs that all numbers
are of, such as the data set), and rows of label, match (those that one is of), quantity (a key of results.json), unit, value,
divisor, decimals.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from memexp.report.collect import Figure, Group
from memexp.report.settings import varying
from memexp.report.tables import Table, shown

DATA = Path(__file__).resolve().parent / "published"


def _known(directories: Sequence[str | Path]) -> dict[str, Path]:
    """id -> file; one of the user's own comes before the package's."""
    places = [DATA, *(Path(directory) / "published" for directory in directories)]
    return {str(path.relative_to(at).with_suffix("")): path for at in places for path in sorted(at.rglob("*.yaml"))}


def identifiers(directories: Sequence[str | Path] = ()) -> list[str]:
    """The experiments with published numbers, those of the user's own `directories` among them."""
    return sorted(_known(directories))


def load(identifier: str, directories: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The published rows of an experiment. Raises ValueError for an unknown one, naming the nearest, and another file."""
    known = _known(directories)
    if identifier not in known:
        near = difflib.get_close_matches(identifier, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"--paper: '{identifier}' has no published numbers here; there are {', '.join(known)}.{hint}")
    path = known[identifier]
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--paper: {path} cannot be read: {' '.join(str(error).split())}") from error
    needed = ("label", "match", "quantity", "unit", "value")
    rows = data.get("rows") if isinstance(data, dict) and "source" in data else None
    if (
        not isinstance(rows, list)
        or not all(isinstance(row, dict) and row.keys() >= set(needed) for row in rows)
        or not all(isinstance(of.get("match", {}), dict) for of in (data, *rows))
    ):
        raise ValueError(
            f"--paper: {path} is not of published numbers: it takes source, match, and rows of {', '.join(needed)}"
        )
    return {**data, "rows": [{**row, "match": {**data.get("match", {}), **row["match"]}} for row in rows]}


def compare(identifier: str, groups: Sequence[Group], directories: Sequence[str | Path] = ()) -> Table:
    """Rows of published, measured here and the difference: one for each published number and each group it speaks of."""
    data = load(identifier, directories)
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


def records(identifier: str, groups: Sequence[Group], directories: Sequence[str | Path] = ()) -> list[dict[str, Any]]:
    """The same for programs: plain numbers in the paper's units."""
    found = []
    for entry, label, group in _pairs(load(identifier, directories), groups):
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
