"""What a report hands to programs: records with plain numbers, as CSV (a table a file) and as JSON (all tables in one)."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memexp.record import write_text

FORMS = ("csv", "json")
Records = Sequence[Mapping[str, Any]]


def text(tables: Mapping[str, Records], form: str) -> str:
    """All tables as JSON; as CSV the first one, since a file of it holds one table."""
    if form == "json":
        return json.dumps(tables, indent=1)
    return comma_separated(next(iter(tables.values())))


def write(tables: Mapping[str, Records], form: str, directory: Path) -> None:
    """report.json, or NAME.csv for each table that has rows."""
    if form == "json":
        write_text(directory / "report.json", text(tables, form) + "\n")
    elif form == "csv":
        for name, records in tables.items():
            if records:
                write_text(directory / f"{name}.csv", comma_separated(records) + "\n")


def comma_separated(records: Records) -> str:
    """A line of keys and a line a record; what a record does not have is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for record in records for key in record)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().rstrip("\n")
