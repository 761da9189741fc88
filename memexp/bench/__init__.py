"""`memexp bench`: strategies and budgets side by side, each in a process of its own."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from memexp import given
from memexp.calling import CallableModule
from memexp.config import CONFIG_NAME, ConfigError, compose
from memexp.environment import environment
from memexp.memory.estimate import estimate
from memexp.models import families
from memexp.record import write_text
from memexp.report.files import save
from memexp.report.looks import COLOURS, MARKERS, headline
from memexp.report.tables import Table, markdown
from memexp.stages.train import foresee
from memexp.sweeper import with_arm
from memexp.units import shown_bytes, shown_figure


@dataclass
class Case:
    """What is measured, and what came of it: the result of memexp.bench.case, or an error."""

    name: str
    overrides: list[str]
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def peak(self) -> int:
        return int(self.result["memory"]["peak"])

    @property
    def seconds(self) -> float:
        return float(self.result["time"]["step_median"])


def bench(
    overrides: Sequence[str] | str = (),
    strategies: Sequence[str] | str | None = None,
    budgets: int = 0,
    steps: int = 10,
    config_dir: str | Path | Sequence[str | Path] = (),
    config_name: str = CONFIG_NAME,
    output: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """`memexp bench`: step time and peak memory of several strategies, each in a process of its own, on random images.

    overrides: of the configuration, without backprop. strategies: names, or as typed, "stored,reversible"; by
    default all that fit the model. budgets: so many more
    between the least and the stored peak. steps: timed training steps of a case. output: a folder for table, plot and figures.
    Returns a record a case: its name, its overrides, and what was measured (bytes, seconds) or the error. Raises ConfigError.
    """
    if isinstance(strategies, str):
        strategies = strategies.split(",")
    elif strategies is not None:
        strategies = given.texts("strategies", strategies, "names of strategies, such as ['stored', 'reversible']")
    steps, budgets = given.count("steps", steps, 1), given.count("budgets", budgets, 0)
    name, directories = (
        given.text("config_name", config_name),
        list(map(str, given.directories("config_dir", config_dir))),
    )
    folder = None if output is None else given.path("output", output)
    found = cases(given.words(overrides), strategies, budgets, name, directories)
    measure(found, steps, say, name, directories)
    if folder is not None:
        write(found, folder, markdown(table(found)))
    return [vars(case) for case in found]


def cases(
    overrides: Sequence[str],
    strategies: Sequence[str] | None,
    budgets: int,
    name: str = CONFIG_NAME,
    directories: Sequence[str] = (),
) -> list[Case]:
    """One for each strategy (None: all that are valid for the model), and `budgets` of them evenly between the least and the
    stored peak. An arm of an experiment has its own settings, but for its strategy. name, directories: as of `memexp.compose`.

    Raises ConfigError for overrides that do not fit, a strategy included, and for what the device cannot do.
    """
    if any(text.startswith("backprop=") for text in overrides):
        raise ConfigError(
            ["backprop: bench compares strategies; name them with --strategies, such as stored,reversible"]
        )
    own = with_arm(overrides, name, directories)
    overrides = [text for text in own if text in overrides or not text.startswith("backprop")]
    if strategies is None:
        model = compose([*overrides, "backprop=stored"], name, directories).model  # whose own choice may not fit
        valid = families.valid(model) or ("stored",)
        strategies = [name for name in valid if name != "budget"]
    found = [Case(name, [*overrides, f"backprop={name}"]) for name in strategies]
    for case in found:
        foresee(compose(case.overrides, name, directories))
    if budgets:
        least_budget = [*overrides, "backprop=budget", "backprop.limit=0.0"]
        plan = estimate(compose(least_budget, name, directories))["plan"]
        least, most = plan["least_peak"], plan["stored_peak"]
        for i in range(1, budgets + 1):
            limit = least + round((most - least) * i / (budgets + 1))
            more = ["backprop=budget", f"backprop.limit={limit}B"]
            found.append(Case(f"budget {shown_bytes(limit)}", [*overrides, *more]))
    return found


def measure(
    found: Sequence[Case],
    steps: int,
    say: Callable[[str], None],
    name: str = CONFIG_NAME,
    directories: Sequence[str] = (),
) -> None:
    """Fills in each case's result or error, one process after the other."""
    for number, case in enumerate(found, 1):
        say(f"case {number}/{len(found)}: {case.name}")
        what = {"steps": steps, "overrides": case.overrides, "name": name, "directories": list(directories)}
        command = [sys.executable, "-m", "memexp.bench.case", json.dumps(what)]
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if process.returncode == 0:
            case.result = json.loads(process.stdout.splitlines()[-1])
        else:
            last = process.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            case.error = f"exit status {process.returncode}: {last[0]}"


def table(found: Sequence[Case]) -> Table:
    """A row a case; what was predicted stands beside what was measured."""
    headings = ["strategy", "peak (MiB)", "activations (MiB)", "step (ms)", "quartiles", "images/s"]
    headings += ["predicted peak (MiB)", "predicted step (ms)"]
    rows, how = [], set()
    for case in found:
        if case.error:
            rows.append([case.name, case.error, *["-"] * 6])
            continue
        memory, seconds, strategy = case.result["memory"], case.result["time"], case.result["strategy"]
        how.add(memory["how"])
        low, high = seconds["step_quartiles"]
        rows.append(
            [
                case.name,
                shown_figure(memory["peak"] / 2**20),
                shown_figure(memory["activations"] / 2**20),
                shown_figure(case.seconds * 1e3),
                f"{shown_figure(low * 1e3)}-{shown_figure(high * 1e3)}",
                shown_figure(seconds["images_per_second"]),
                shown_figure(strategy["predicted"]["peak"] / 2**20) if strategy else "-",
                shown_figure(strategy["predicted"]["step_ms"]) if strategy else "-",
            ]
        )
    steps = next((case.result["time"]["steps_measured"] for case in found if case.result), 0)
    notes = [
        f"peak: {', '.join(sorted(how)) or 'not measured'}; MiB is 2^20 bytes. step: median of {steps} training steps"
    ]
    notes[0] += " on random images, after warm-up; each case in a process of its own."
    for case in found:
        limit = case.result["memory"].get("limit") if case.result else None
        if limit is not None and case.peak > limit:
            notes.append(f"{case.name}: {shown_bytes(case.peak)} is more than memory.limit={shown_bytes(limit)}.")
    return Table(headings, rows, "", notes)


def pareto(found: Sequence[Case], what: str = "") -> Figure | None:
    """Peak memory against step time; a line joins the budgets, a dashed one their ends. None below two points. what: was
    measured, for the title.
    """
    done = [case for case in found if case.result]
    if len(done) < 2:
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    budgets = sorted((case.peak / 2**20, case.seconds * 1e3) for case in done if case.result["strategy"])
    others = [case for case in done if not case.result["strategy"]]
    if budgets:
        axes.plot(*zip(*budgets, strict=True), ".-", color=COLOURS[0], label="budget")
    for i, case in enumerate(others, 1):
        low, high = case.result["time"]["step_quartiles"]
        spread = [[max(0.0, case.seconds - low) * 1e3], [max(0.0, high - case.seconds) * 1e3]]
        style: dict[str, Any] = {"fmt": MARKERS[i % 8], "color": COLOURS[i % 8], "label": case.name}
        axes.errorbar(case.peak / 2**20, case.seconds * 1e3, yerr=spread, **style)
    ends = {case.name: (case.peak / 2**20, case.seconds * 1e3) for case in others}
    least = ends.get("reversible", ends.get("checkpointed"))
    if budgets and least and "stored" in ends:
        line = zip(least, ends["stored"], strict=True)
        axes.plot(*line, "--", color="#999999", label="straight line between the ends")
    axes.set(
        xlabel="peak memory (MiB)",
        ylabel="step time (ms, median and quartiles)",
    )
    headline(figure, "Step time against peak memory", what)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def write(found: Sequence[Case], directory: Path, text: str) -> list[Path]:
    """bench.json, bench.md and the plot, as PNG and SVG; returns what was written. text: the table as Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "bench.json", directory / "bench.md"]
    write_text(written[0], json.dumps([vars(case) for case in found], indent=1) + "\n")
    first = found[0].overrides if found else []
    shared = [text for text in first if all(text in c.overrides for c in found) and not text.startswith("backprop=")]
    device = next((str(case.result["memory"]["device"]) for case in found if case.result), "")
    told = [text for text in shared if not text.startswith("dataset.root=")]
    figure = pareto(found, ", ".join([*told, device]))
    picture = "\n\n![pareto](pareto.png)" if figure is not None else ""
    about = [f"# Strategies side by side\n\n    {shlex.join(['memexp', 'bench', *shared])}", _machine()]
    write_text(written[1], "\n\n".join([*about, text]) + picture + "\n")
    if figure is not None:
        png = save(figure, directory, "pareto")
        written += [png, png.with_suffix(".svg")]
    return written


def _machine() -> str:
    """Where and with what it was measured."""
    known = environment()
    versions = ", ".join(f"{name} {known['versions'][name]}" for name in ("memexp", "torch"))
    commit = f", commit {known['git']['commit']}" if known["git"] else ""
    return f"{known['started'][:10]}, {known['processor']}, {versions}, Python {known['python']}{commit}."


sys.modules[__name__].__class__ = CallableModule  # memexp.bench(...)
