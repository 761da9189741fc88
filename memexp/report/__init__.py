"""Collects runs into tables and plots, beside published numbers where a paper has some."""

import os
from collections.abc import Iterable
from pathlib import Path

from memexp.report import published, tables
from memexp.report.collect import find, group

__all__ = ["write_report"]


def write_report(
    paths: Iterable[Path],
    output_dir: Path,
    *,
    form: str = "terminal",
    paper: str | None = None,
    plots: bool = True,
) -> str:
    """The table of all runs at or below `paths` in the given format; report.md and its plots go to `output_dir`.

    form: terminal, markdown, csv or latex. paper: the id of published numbers to stand beside the measured ones.
    Raises ValueError for an unknown format or paper, FileNotFoundError where there are no runs at all.
    """
    if form not in tables.FORMATS:
        raise ValueError(f"--format: '{form}' is not one of {', '.join(tables.FORMATS)}")
    if paper is not None:
        published.load(paper)
    runs, notes = find(paths)
    if not runs:
        raise FileNotFoundError("; ".join(notes) or "no paths were given")
    groups = group(runs)
    shown = [tables.of_groups(groups)]
    shown[0].notes += notes
    if paper is not None:
        shown.append(published.compare(paper, groups))
    pictures: list[Path] = []
    if plots:
        from memexp.report.plots import draw  # matplotlib takes its time to import

        pictures = draw(groups, output_dir / "plots")
    output_dir.mkdir(parents=True, exist_ok=True)
    document = [tables.markdown(table) for table in shown]
    document += [f"![{path.stem}](plots/{path.name})" for path in pictures]
    own = [path for run in runs if run.results.get("study") for path in sorted((run.path / "plots").glob("*.png"))]
    document += [f"![{path.stem}]({Path(os.path.relpath(path, output_dir)).as_posix()})" for path in own]
    (output_dir / "report.md").write_text("\n\n".join(document) + "\n", encoding="utf-8")
    text = "\n\n".join(tables.FORMATS[form](table) for table in shown)
    return text if form == "csv" or form == "latex" else f"{text}\n{output_dir / 'report.md'}"
