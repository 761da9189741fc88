"""Tables of runs, for people: terminal, Markdown, LaTeX; and one row a run for programs."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from memexp.lock import in_use
from memexp.report.changes import kept, split_of
from memexp.report.collect import Figure, Group, Run, number, over, repeats
from memexp.report.experiments import about
from memexp.report.settings import GROUPS, shared, varying
from memexp.units import shown_figure
from memexp.visible import visible

# heading, key in results.json, divisor, decimals
Column = tuple[str, str, float, int]
COLUMNS: tuple[Column, ...] = (
    ("top-1 (%)", "accuracy.top1", 1, 2),
    ("error (%)", "accuracy.error", 1, 2),
    ("peak (MiB)", "memory.peak", 2**20, 1),
    ("activations (MiB)", "memory.activations", 2**20, 1),
    ("step (ms)", "time.step_median", 1e-3, 1),
    ("images/s", "time.images_per_second", 1, 1),
    ("model FLOPs utilisation (%)", "time.utilisation", 1e-2, 1),
    ("parameters", "parameters", 1, 0),
    ("epochs", "epochs", 1, 2),
)
# Keys of results.json that a program reads, in its units: bytes, seconds, per cent
MEASURED: tuple[str, ...] = (
    "accuracy.top1",
    "accuracy.top5",
    "accuracy.error",
    "accuracy.loss",
    "accuracy.split",
    "accuracy.images",
    "parameters",
    "macs",
)
MEASURED += ("memory.peak", "memory.activations", "memory.parameters", "memory.gradients", "memory.optimizer")
MEASURED += ("memory.estimate", "time.step_median", "time.images_per_second", "time.utilisation", "time.wall")
MEASURED += ("steps", "epochs")
# Letters below U+0180 that the fonts of a plain LaTeX document (OT1) lack
NOT_IN_OT1 = "«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"


@dataclass
class Table:
    """Headings, rows of text, and notes that stand above and below."""

    headings: list[str]
    rows: list[list[str]]
    title: str = ""
    notes: list[str] = field(default_factory=list)
    above: list[str] = field(default_factory=list)


def of_groups(groups: Sequence[Group]) -> Table:
    """One row a group: what it was told, how it ended, what was measured (mean and deviation over n seeds)."""
    runs = [run for group in groups for run in group.runs]
    keys = varying(runs) or ["model"]
    measured = [column for column in columns(runs) if any(figure_of(group, column[1]) for group in groups)]
    rows = []
    for group in groups:
        figures = [shown(figure_of(group, key), divisor, decimals) for _, key, divisor, decimals in measured]
        rows.append([*(cell(group.first.setting(key)) for key in keys), group.status, str(len(group.seeds)), *figures])
    table = Table([*keys, "status", "n", *(heading for heading, *_ in measured)], rows)
    if same := {key: value for key, value in shared(runs).items() if key not in keys}:
        table.above.append("In all runs: " + ", ".join(f"{key}={value}" for key, value in same.items()))
    how = sorted({str(run.get("memory.how")) for run in runs if run.get("memory.how")})
    shown_keys = [key for _, key, *_ in measured]
    bytes_shown = how and any(key.startswith("memory.") for key in shown_keys)
    notes = [f"peak and activations: {', '.join(how)}; MiB is 2^20 bytes."] if bytes_shown else []
    short = (
        "" if all(run.get("time.warm_up_excluded") in (True, None) for run in runs) else " but in runs too short for it"
    )
    notes += [f"step: median, warm-up excluded{short}."] if "time.step_median" in shown_keys else []
    table.notes += [" ".join(notes)] if notes else []
    if any(len(group.seeds) > 1 for group in groups):
        table.notes.append("± is the sample standard deviation over n seeds.")
    table.notes += repeats(groups)
    table.notes += _of_no_test(groups)
    table.notes += filter(None, dict.fromkeys(map(_continuous, runs)))
    table.notes += filter(None, dict.fromkeys(map(_smaller_batch, runs)))
    small = sorted({str(run.get("name")) for run in runs if run.get("scale") == "laptop"})
    if small:
        table.notes.append(f"{', '.join(small)}: the small version (scale=laptop), not the published recipe.")
    for run in runs:
        if run.status == "running" and not in_use(run.path):
            table.notes.append(
                f"{run.name}: running by its record, but not on this machine: if it was killed, `memexp resume` goes on with it"
            )
        if run.status not in ("done", "running") and run.get("error"):
            table.notes.append(f"{run.name}: {run.status}: {str(run.get('error')).splitlines()[0]}")
    return table


def _of_no_test(groups: Sequence[Group]) -> Iterator[str]:
    """Which runs have an accuracy on other images than the test split's, as no stage evaluate comes last."""
    done = [run for group in groups for run in group.done]
    for split in dict.fromkeys(split_of(run) for run in done):
        named = [run.name for run in done if split_of(run) == split]
        if split not in (None, "test"):
            which = (
                ""
                if len(named) == len(done)
                else f" of {', '.join(named[:5])}{' and others' if len(named) > 5 else ''}"
            )
            yield f"top-1 and error{which}: of {split} images, not of the test split."


def _smaller_batch(run: Run) -> str:
    """Where the data set has fewer images than the batch that was asked for."""
    taken, asked = run.get("effective_batch_size"), run.get("batch_size")
    if not isinstance(taken, int) or not isinstance(asked, int) or taken >= asked:
        return ""
    return f"batch_size={asked}: there were {taken} training images, and each step took all of them."


def _continuous(run: Run) -> str:
    """Which groups of channels of an integral network are functions of the channel, once it has been sampled."""
    stage = run.get("stages.discretise")
    found = stage.get("continuous") if isinstance(stage, dict) else None
    if not isinstance(found, dict) or not found:
        return ""
    rest = stage.get("not_continuous")
    left = (
        f"; discrete: {', '.join(map(str, rest))}" if isinstance(rest, dict) and rest else "; all others are discrete"
    )
    ratio = number(run.get("permutation.ratio"))
    permuted = (
        "" if ratio is None else f" Permuted, their weights vary {shown_figure(100 * ratio, 1)} % as much as before."
    )
    return (
        f"continuous groups of channels of {run.setting('model.base')}: {', '.join(map(str, found))}{left}.{permuted}"
    )


def columns(runs: Sequence[Run]) -> list[tuple[str, str, float, int | None]]:
    """The figures of a table: those of the experiment that all runs belong to, or all that there are."""
    known = {column[0]: column for column in COLUMNS}
    own = about(runs).get("columns")
    if own is not None:
        return [
            known[column]
            if isinstance(column, str)
            else (column["heading"], column["key"], float(column.get("divisor", 1)), column.get("decimals", 2))
            for column in own
        ]
    studied = dict.fromkeys(name for run in runs for name in run.studied if name != "parameters")
    return [*COLUMNS, *((name, f"study.{name}", 1.0, None) for name in studied)]


def figure_of(group: Group, key: str) -> Figure | None:
    """A group's figure by its key in results.json; `kept`: the share of the parameters that is left of those at the start."""
    if key != "kept":
        return group.figure(key)
    return over([[share for run in runs if (share := kept(run)) is not None] for runs in group.seeds.values()])


def of_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A record a run, with plain numbers under the keys of results.json: bytes, seconds, per cent."""
    settings = dict.fromkeys([*GROUPS, "seed", *varying(runs), *shared(runs)])
    own = [key for _, key, *_ in columns(runs)]
    studied = dict.fromkeys([*(f"study.{name}" for run in runs for name in run.studied), *own])
    return [
        {"run": visible(str(run.path)), "status": run.status, "error": run.get("error")}
        | {key: run.setting(key) for key in settings}
        | {key: kept(run) if key == "kept" else run.get(key) for key in [*MEASURED, "memory.how", *studied]}
        for run in runs
    ]


def cell(value: object) -> str:
    return "-" if value is None else str(value)


def shown(figure: Figure | None, divisor: float = 1, decimals: int | None = 2) -> str:
    """Mean ± deviation with so many decimals, and two significant digits at least; None: four significant digits."""
    if figure is None:
        return "-"

    def text(value: float) -> str:
        return f"{value:,.4g}" if decimals is None else shown_figure(value, decimals)

    spread = f" ± {text(figure.deviation / divisor)}" if figure.deviation else ""
    return text(figure.mean / divisor) + spread


def markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(in_markdown, cells)) + " |"

    lines = [f"**{in_markdown(table.title)}**", ""] if table.title else []
    lines += [part for note in table.above for part in (in_markdown(note), "")]
    lines += [line(table.headings), "|" + "---|" * len(table.headings), *map(line, table.rows)]
    return "\n".join(lines + [f"\n{in_markdown(note)}" for note in table.notes])


def in_markdown(text: str) -> str:
    """As Markdown that shows just this text: no markup, no HTML, no link, no new cell."""
    escaped = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "`*[]|~$":
        escaped = escaped.replace(character, f"\\{character}")
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", escaped)  # within a word it is no markup
    return re.sub(r"^(?=[-+#]+\s)", r"\\", " ".join(escaped.split("\n")))


def latex(table: Table) -> str:
    """For booktabs. What pdflatex has no letter for is written as its code, that the document compiles as it is."""
    escapes = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "±": r"$\pm$", "<": r"\textless{}"}
    escapes |= {">": r"\textgreater{}", "|": r"\textbar{}"} | {c: f"\\{c}" for c in "&%$#_{}"}
    escapes |= {c: f"{{{c}}}" for c in "[*"}  # at the start of a row they would be arguments of the break before it

    def letter(c: str) -> str:
        written = ord(c) < 0x180 and c not in NOT_IN_OT1
        return escapes.get(c) or (c if written else rf"\textbackslash{{}}u{ord(c):04x}")

    def text(cell: str) -> str:
        return re.sub("-(?=-)", "-{}", "".join(map(letter, cell.replace("\n", " "))))  # two would be one dash

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(text, cells)) + r" \\"

    cells = [[row[i] for row in table.rows] for i in range(len(table.headings))]
    columns = "".join("r" if all(map(_is_number, column)) else "l" for column in cells)
    body = [line(table.headings), r"\midrule", *map(line, table.rows)]
    above, below = ([f"% {' '.join(note.splitlines())}" for note in notes] for notes in (table.above, table.notes))
    tabular = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*above, *tabular, *below])


def _is_number(cell: str) -> bool:
    """A figure, perhaps with its deviation, or that there is none."""
    return re.fullmatch(r"-|[-+]?[\d,.]+(e[-+]?\d+)?( ± [\d,.]+(e[-+]?\d+)?)?", cell) is not None


def terminal(table: Table) -> str:
    """Aligned by rich; plain text, as wide as it needs to be where the output is not a terminal."""
    import io
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    frame = (
        box.HEAVY_HEAD if (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf") else box.ASCII
    )
    grid = RichTable(title=Text(table.title) if table.title else None, title_justify="left", box=frame)
    for heading in table.headings:
        grid.add_column(Text(heading), overflow="fold")
    for row in table.rows:
        grid.add_row(*map(Text, row))  # as text, in which rich finds no markup
    out = io.StringIO()
    interactive = sys.stdout.isatty()
    console = Console(file=out, force_terminal=interactive, width=None if interactive else 400)
    console.print(grid)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*table.above, *lines, *table.notes])


PRINTED: dict[str, Callable[[Table], str]] = {"terminal": terminal, "markdown": markdown, "latex": latex}
FORMATS = (*PRINTED, "csv", "json")
