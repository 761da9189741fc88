"""Finds finished runs on disk and groups those that differ by seed only."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memexp.record import READABLE, read_json

GROUPS = ("model", "dataset", "backprop", "optimizer", "precision", "prune")


@dataclass(frozen=True)
class Run:
    """One results.json."""

    path: Path
    results: dict[str, Any]

    def get(self, key: str) -> Any:
        """A value by its dotted path, such as memory.peak; None where it is not there."""
        node: Any = self.results
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    @property
    def status(self) -> str:
        return str(self.results.get("status", "unknown"))

    def setting(self, key: str) -> Any:
        """What the run was told about `key`: from its configuration, or from its command line if it never got one."""
        if key in GROUPS and self.get(key) is not None:
            return self.get(key)
        found = self.get(f"config.{key}")
        told = self.overrides.get(key) if found is None else found
        return None if told == "null" else told

    @property
    def overrides(self) -> dict[str, str]:
        pairs = (text.lstrip("+~").partition("=") for text in self.results.get("overrides") or [])
        return {key: value for key, _, value in pairs}

    @property
    def watched(self) -> str:
        """The split that was evaluated during training."""
        stages = self.results.get("stages")
        if isinstance(stages, dict):  # schema 1
            return str(self.get("stages.train.split") or "test")
        found = ((stage.get("accuracy") or {}).get("split") for stage in stages or [] if isinstance(stage, dict))
        return next((str(split) for split in found if split), "test")

    def curve(self, split: str, key: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of a figure that was logged during training."""
        xs: list[float] = []
        ys: list[float] = []
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return xs, ys
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            if entry.get("split") == split and entry.get(key) is not None:
                xs.append(entry["epoch"])
                ys.append(entry[key])
        return xs, ys


@dataclass(frozen=True)
class Figure:
    """Mean and sample standard deviation of n measurements."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs that differ by seed only."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.status == "done"]

    def figure(self, key: str) -> Figure | None:
        """Over the runs that are done; None where none of them has the figure."""
        values = [float(v) for run in self.done if isinstance(v := run.get(key), int | float)]
        if not values:
            return None
        return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def status(self) -> str:
        counts = {
            status: sum(run.status == status for run in self.runs)
            for status in dict.fromkeys(r.status for r in self.runs)
        }
        if len(self.runs) == 1:
            return self.first.status
        return ", ".join(f"{count} {status}" for status, count in counts.items())


def find(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every run at or below `paths`, and what could not be read, in words."""
    runs: list[Run] = []
    notes: list[str] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("results.json"))
        if not files:
            notes.append(f"{path}: no results.json there" if path.exists() else f"{path}: there is no such path")
        for file in files:
            results = read_json(file)
            if results is None:
                notes.append(f"{file}: damaged, left out")
            elif results.get("schema") not in READABLE:
                notes.append(f"{file}: schema {results.get('schema')!r}, this version reads {READABLE}; left out")
            else:
                runs.append(Run(file.parent, results))
    return runs, notes


def varying(runs: Sequence[Run]) -> list[str]:
    """The settings, groups first, in which the runs differ; not the seed."""
    named = dict.fromkeys([*GROUPS, *(key for run in runs for key in run.overrides)])
    ignored = ("seed", "name", "experiment")
    keys = [key for key in named if key not in ignored and not key.startswith("hydra.")]
    return [key for key in keys if len({str(run.setting(key)) for run in runs}) > 1]


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs with the same settings but the seed, in the order of their first."""
    keys = varying(runs)
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(str(run.setting(key)) for key in keys), []).append(run)
    return [Group(tuple(members)) for members in found.values()]
