"""Collects runs into tables and plots, beside published numbers where a paper has some."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from memexp import given
from memexp.calling import CallableModule
from memexp.record import NotWritten, write_text, writing
from memexp.report import claims, exports, published, stages, tables
from memexp.report.collect import Group, find, group
from memexp.report.document import document
from memexp.visible import visible

__all__ = ["report", "write_report"]


def report(
    paths: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    *,
    paper: str | None = None,
    plots: bool = True,
    config_dir: str | Path | Iterable[str | Path] = (),
) -> dict[str, list[dict[str, Any]]]:
    """`memexp report`: the tables of all runs at or below `paths` as records, plain numbers under the keys of results.json.

    runs: a record a run. stages: one for each stage of a run. sizes: one for each that an integral network was evaluated at, if
    any was. published: with `paper`, measured beside published.
    config_dir: directories of your own configs, whose published/ID.yaml `paper` may name, too. output: the folder that
    report.md and plots/ are written to; nothing is written where it is None.

    Raises ConfigError where there are no runs and for an unknown paper, NotWritten as write_report.
    """
    found, own = given.paths("paths", paths), given.directories("config_dir", config_dir)
    folder = None if output is None else given.path("output", output)
    try:
        groups, _ = _groups(found)
        records = _records(groups, paper, own)
    except (ValueError, FileNotFoundError) as error:
        from memexp.config import ConfigError  # Hydra takes its time to import

        raise ConfigError([str(error)]) from error
    if folder is not None:
        write_report(found, folder, form="markdown", paper=paper, plots=plots, config_dirs=own)
    return records


def write_report(
    paths: Iterable[Path],
    output_dir: Path,
    *,
    form: str = "terminal",
    paper: str | None = None,
    plots: bool = True,
    config_dirs: Sequence[str | Path] = (),
) -> str:
    """The table of all runs at or below `paths` in the given format; report.md and its plots go to `output_dir`.

    form: terminal, markdown or latex, for people; csv or json, plain numbers for programs, which are also written to a file a
    table. paper: the id of published numbers to stand beside the measured ones, of the package or of `config_dirs`.

    Raises ValueError for an unknown format or paper, FileNotFoundError where there are no runs, NotWritten, which has the text
    to print, where `output_dir` cannot be written.
    """
    if form not in tables.FORMATS:
        raise ValueError(f"--format: '{form}' is not one of {', '.join(tables.FORMATS)}")
    paths = list(paths)
    if paper is not None:
        published.load(paper, config_dirs)
    groups, notes = _groups(paths)
    shown = [tables.of_groups(groups), *stages.of_groups(groups)]
    shown[0].notes += notes
    shown[0].above[:0] = claims.verdict(groups)
    if paper is not None:
        shown.append(published.compare(paper, groups, config_dirs))
    records = _records(groups, paper, config_dirs) if form in exports.FORMS else {}
    text = exports.text(records, form) if records else "\n\n".join(tables.PRINTED[form](table) for table in shown)
    try:
        with writing(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
            pictures: list[Path] = []
            if plots:
                from memexp.report.plots import draw  # matplotlib takes its time to import

                pictures = draw(groups, output_dir / "plots")
            runs = [run for members in groups for run in members.runs]
            write_text(output_dir / "report.md", document(paths, runs, shown, pictures, output_dir))
            exports.write(records, form, output_dir)
    except NotWritten as error:
        error.told = text
        raise
    return text if form in (*exports.FORMS, "latex") else f"{text}\n{visible(str(output_dir / 'report.md'))}"


def _groups(paths: Sequence[Path]) -> tuple[list[Group], list[str]]:
    runs, notes = find(paths)
    if not runs:
        raise FileNotFoundError("; ".join(notes) or "no paths were given")
    return group(runs), notes


def _records(
    groups: Sequence[Group], paper: str | None, config_dirs: Sequence[str | Path]
) -> dict[str, list[dict[str, Any]]]:
    runs = [run for members in groups for run in members.runs]
    found = {"runs": tables.of_runs(runs)} | stages.of_runs(runs)
    return found if paper is None else {"published": published.records(paper, groups, config_dirs)} | found


sys.modules[__name__].__class__ = CallableModule  # memexp.report(...)
