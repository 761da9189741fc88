"""Finds runs on disk and groups those that differ by seed only."""

import functools
import json
import os
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memexp.record import READABLE, read_json
from memexp.report.settings import GROUPS, varying
from memexp.unread import unread
from memexp.visible import all_visible, visible


@dataclass(frozen=True)
class Run:
    """One results.json, whose texts can be shown as they are."""

    path: Path
    results: dict[str, Any]

    def get(self, key: str) -> Any:
        """A value by its dotted path, such as memory.peak or stages.prune.seconds; None where it is not there."""
        node: Any = self.results
        for part in key.split("."):
            if isinstance(node, list):  # the stages, by their keys
                node = next((item for item in node if isinstance(item, dict) and item.get("key") == part), None)
            else:
                node = node.get(part) if isinstance(node, dict) else None
        return node

    @property
    def name(self) -> str:
        """Its directory's."""
        return visible(self.path.name)

    @property
    def status(self) -> str:
        return str(self.results.get("status", "unknown"))

    @property
    def seed(self) -> Any:
        return self.results.get("seed", self.setting("seed"))

    def setting(self, key: str) -> Any:
        """What the run was told about `key`: from its configuration, or from its command line if it never got one.

        device: the one that it measured on. None for what nothing has read.
        """
        if key in GROUPS:
            return _option(self.get(key)) or _option(self.get(f"config.{key}")) or _option(self.overrides.get(key))
        if key in self.unread:
            return None
        if key == "device" and self.get("memory.device") is not None:
            return self.get("memory.device")
        found = self.get(f"config.{key}")
        if found is None and key in self._told:
            found = self.overrides[key] if self.composed else _as_composed(self._told[key])
        return None if found == "null" or (key == "device" and found == "auto") else found

    @functools.cached_property
    def unread(self) -> dict[str, str]:
        config = self.get("config")
        return unread(config) if isinstance(config, dict) else {}

    @property
    def overrides(self) -> dict[str, str]:
        return {key: _unquoted(value) for key, value in self._told.items()}

    @property
    def _told(self) -> dict[str, str]:
        told = self.results.get("overrides")
        pairs = (str(text).lstrip("+~").partition("=") for text in (told if isinstance(told, list) else []))
        return {key: value for key, _, value in pairs}

    @property
    def composed(self) -> bool:
        """Whether it has a configuration; one that was refused has none, and what it was not told is not known."""
        return isinstance(self.get("config"), dict)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The figures of its stages, in order; those of schema 1 stand at the top level only."""
        found = self.results.get("stages")
        return [stage for stage in found if isinstance(stage, dict)] if isinstance(found, list) else []

    @property
    def studied(self) -> dict[str, Any]:
        """The figures of a study, which takes no training."""
        found = self.results.get("study")
        return found if isinstance(found, dict) else {}

    @property
    def watched(self) -> str:
        """The split that was evaluated during training."""
        if isinstance(self.results.get("stages"), dict):  # schema 1
            return str(self.get("stages.train.split") or "test")
        found = (Run(self.path, stage).get("accuracy.split") for stage in self.stages)
        return next((str(split) for split in found if split), "test")

    @property
    def environment(self) -> dict[str, Any]:
        """Where it took place, as environment.json has it."""
        found: dict[str, Any] = all_visible(read_json(self.path / "environment.json") or {})
        return found

    def curve(self, split: str, key: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of a figure that was logged during training."""
        xs: list[float] = []
        ys: list[float] = []
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return xs, ys
        for line in lines:
            try:
                entry = json.loads(line)
                x, y = (number(entry[name]) for name in ("epoch", key)) if entry["split"] == split else (None, None)
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a kill, or without this figure
            if x is not None and y is not None:
                xs.append(x)
                ys.append(y)
        return xs, ys


@dataclass(frozen=True)
class Figure:
    """Mean and sample standard deviation of n measurements, each of a seed of its own."""

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

    @property
    def seeds(self) -> dict[str, list[Run]]:
        """The runs that are done, by seed."""
        found: dict[str, list[Run]] = {}
        for run in self.done:
            found.setdefault(str(run.seed), []).append(run)
        return found

    def figure(self, key: str) -> Figure | None:
        """Over the seeds of runs that are done, one that was run several times with its mean; None where none has it."""
        found = [[value for run in runs if (value := number(run.get(key))) is not None] for runs in self.seeds.values()]
        return over(found)

    @property
    def status(self) -> str:
        counts = {
            status: sum(run.status == status for run in self.runs)
            for status in dict.fromkeys(r.status for r in self.runs)
        }
        if len(self.runs) == 1:
            return self.first.status
        return ", ".join(f"{count} {status}" for status, count in counts.items())


def _unquoted(value: str) -> str:
    """The value of an override without Hydra's quotes and escapes, as a configuration would have it."""
    quote = value[:1]
    if len(value) > 1 and quote == value[-1] and quote in "'\"":
        # inside, a backslash stands for itself but before a quote
        return re.sub(rf"(\\+)({quote}|\Z)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1])
    return re.sub(r"\\(.)", r"\1", value)


def _as_composed(value: str) -> str | None:
    """The value of an override as a configuration has it: 1e-1 is 0.1 and [1,1] is [1, 1]; None where that is not known."""
    from hydra.core.override_parser.overrides_parser import OverridesParser  # which takes its time to import
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return _unquoted(value)
    text = found.text if isinstance(found, QuotedString) else found
    return None if text is None or "${" in str(text) else str(text)


def _option(told: Any) -> str | None:
    """What a group's option is called."""
    if isinstance(told, dict):
        told = told.get("name") or told.get("_target_")
    return None if told in (None, "null", "none") else str(told)


def number(value: Any) -> float | None:
    """A figure, if it is one."""
    sound = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if sound else None


def over(seeds: Iterable[Sequence[float]]) -> Figure | None:
    """Of the values of each seed."""
    values = [statistics.fmean(of_one) for of_one in seeds if of_one]
    if not values:
        return None
    return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def find(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every run at or below `paths`, once however often it is named, and what could not be read, in words."""
    runs: dict[Path, Run] = {}
    notes: list[str] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(below(path), key=_natural)
        if not files:
            missing = "no results.json there" if path.exists() else "there is no such path"
            notes.append(visible(f"{path}: {missing}"))
        for file in files:
            results = read_json(file)
            if results is None:
                notes.append(visible(f"{file}: damaged, left out"))
            elif results.get("schema") not in READABLE:
                readable = " and ".join(map(str, READABLE))
                notes.append(
                    visible(f"{file}: schema {results.get('schema')!r}, this version reads {readable}; left out")
                )
            else:
                runs.setdefault(file.resolve(), Run(file.parent, all_visible(_as_then(results))))
    return list(runs.values()), list(dict.fromkeys(notes))


def below(folder: Path) -> Iterator[Path]:
    """Each results.json in a folder and in those in it, links followed; what several ways lead to is looked at once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        if "results.json" in files:
            yield Path(place, "results.json")


def _as_then(results: dict[str, Any]) -> dict[str, Any]:
    """With what a run of an earlier version did, for which there was no key yet, where that is not what runs do today."""
    config = results.get("config")
    if isinstance(config, dict) and isinstance(dataset := config.get("dataset"), dict):
        then = {"precise_batchnorm": False, **config, "dataset": {"draw": "by its seed", **dataset}}
        return {**results, "config": then}
    return results


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order in which depth=32 stands before depth=110."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs with the same settings but the seed, in the order of their first."""
    keys = varying(runs)
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(str(run.setting(key)) for key in keys), []).append(run)
    return [Group(tuple(members)) for members in found.values()]


def repeats(groups: Sequence[Group]) -> list[str]:
    """Says which runs repeat the settings and the seed of another."""
    return [
        f"seed {seed} was run {len(runs)} times with the same settings and counts once, with the mean: "
        f"{', '.join(run.name for run in runs)}"
        for members in groups
        for seed, runs in members.seeds.items()
        if len(runs) > 1
    ]
