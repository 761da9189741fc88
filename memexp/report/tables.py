"""Tables of runs, for the terminal, Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memexp.report.collect import Figure, Group, varying

# heading, key in results.json, divisor, decimals
COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("top-1 (%)", "accuracy.top1", 1, 2),
    ("error (%)", "accuracy.error", 1, 2),
    ("peak (MiB)", "memory.peak", 2**20, 1),
    ("activations (MiB)", "memory.activations", 2**20, 1),
    ("step (ms)", "time.step_median", 1e-3, 1),
    ("images/s", "time.images_per_second", 1, 1),
    ("parameters", "parameters", 1, 0),
    ("epochs", "epochs", 1, 2),
)


@dataclass
class Table:
    """Headings, rows of text, and notes to stand below."""

    headings: list[str]
    rows: list[list[str]]
    title: str = ""
    notes: list[str] = field(default_factory=list)


def of_groups(groups: Sequence[Group]) -> Table:
    """One row a group: what it was told, how it ended, what was measured (mean and deviation over n seeds)."""
    runs = [run for group in groups for run in group.runs]
    keys = varying(runs) or ["model"]
    studied = dict.fromkeys(name for run in runs for name in run.results.get("study") or {} if name != "parameters")
    columns: list[tuple[str, str, float, int | None]] = [
        *COLUMNS,
        *((name, f"study.{name}", 1.0, None) for name in studied),
    ]
    measured = [column for column in columns if any(group.figure(column[1]) for group in groups)]
    rows = []
    for group in groups:
        figures = [shown(group.figure(key), divisor, decimals) for _, key, divisor, decimals in measured]
        rows.append([*(_cell(group.first.setting(key)) for key in keys), group.status, str(len(group.done)), *figures])
    table = Table([*keys, "status", "n", *(heading for heading, *_ in measured)], rows)
    how = sorted({str(run.get("memory.how")) for run in runs if run.get("memory.how")})
    if how:
        table.notes.append(
            f"peak and activations: {', '.join(how)}; MiB is 2^20 bytes. step: median, warm-up excluded."
        )
    if any(len(group.done) > 1 for group in groups):
        table.notes.append("± is the sample standard deviation over n seeds.")
    small = sorted({str(run.get("name")) for run in runs if run.get("scale") == "laptop"})
    if small:
        table.notes.append(f"{', '.join(small)}: the small version (scale=laptop), not the published recipe.")
    for run in runs:
        if run.status not in ("done", "running") and run.get("error"):
            table.notes.append(f"{run.path.name}: {run.status}: {str(run.get('error')).splitlines()[0]}")
    return table


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def shown(figure: Figure | None, divisor: float = 1, decimals: int | None = 2) -> str:
    """Mean ± deviation with so many decimals; None: four significant digits."""
    if figure is None:
        return "-"
    form = ",.4g" if decimals is None else f",.{decimals}f"
    text = f"{figure.mean / divisor:{form}}"
    if figure.deviation is not None and figure.deviation > 0:
        text += f" ± {figure.deviation / divisor:{form}}"
    return text


def markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    lines = [f"**{table.title}**", ""] if table.title else []
    lines += [line(table.headings), "|" + "---|" * len(table.headings), *map(line, table.rows)]
    return "\n".join(lines + [f"\n{note}" for note in table.notes])


def comma_separated(table: Table) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.headings, *table.rows])
    return out.getvalue().rstrip("\n")


def latex(table: Table) -> str:
    escapes = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "±": r"$\pm$"} | {c: f"\\{c}" for c in "&%$#_{}"}

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(escapes.get(c, c) for c in cell) for cell in cells) + r" \\"

    columns = "".join("l" if heading[0].islower() and "(" not in heading else "r" for heading in table.headings)
    body = [line(table.headings), r"\midrule", *map(line, table.rows)]
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}", *notes])


def terminal(table: Table) -> str:
    """Aligned by rich; plain text, as wide as it needs to be where the output is not a terminal."""
    import sys

    from rich.console import Console
    from rich.table import Table as RichTable

    grid = RichTable(title=table.title or None, title_justify="left")
    for heading in table.headings:
        grid.add_column(heading, overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    out = io.StringIO()
    interactive = sys.stdout.isatty()
    console = Console(file=out, force_terminal=interactive, width=None if interactive else 400)
    console.print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "".join(
        f"\n{note}" for note in table.notes
    )


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
}
