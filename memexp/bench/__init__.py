"""`memexp bench`: strategies and budgets side by side, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from memexp.config import CONFIG_NAME, ConfigError, compose
from memexp.memory.estimate import estimate
from memexp.models import families
from memexp.report.plots import COLOURS, MARKERS
from memexp.report.tables import Table


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


def cases(
    overrides: Sequence[str],
    strategies: Sequence[str] | None,
    budgets: int,
    name: str = CONFIG_NAME,
    directories: Sequence[str] = (),
) -> list[Case]:
    """One for each strategy (None: all that are valid for the model), and `budgets` of them evenly between the least and the
    stored peak. name, directories: as of `memexp.compose`.

    Raises ConfigError for overrides that do not fit, a strategy included.
    """
    if any(text.startswith("backprop=") for text in overrides):
        raise ConfigError(
            ["backprop: bench compares strategies; name them with --strategies, such as stored,reversible"]
        )
    if strategies is None:
        valid = families.of(compose(overrides, name, directories).model).strategies or ("stored",)
        strategies = [name for name in valid if name != "budget"]
    found = [Case(name, [*overrides, f"backprop={name}"]) for name in strategies]
    for case in found:
        compose(case.overrides, name, directories)
    if budgets:
        least_budget = [*overrides, "backprop=budget", "backprop.limit=0.0"]
        plan = estimate(compose(least_budget, name, directories))["plan"]
        least, most = plan["least_peak"], plan["stored_peak"]
        for i in range(1, budgets + 1):
            limit = least + round((most - least) * i / (budgets + 1))
            more = ["backprop=budget", f"backprop.limit={limit}B"]
            found.append(Case(f"budget {limit / 1e6:.1f} MB", [*overrides, *more]))
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
    headings = ["strategy", "peak (MB)", "activations (MB)", "step (ms)", "quartiles", "images/s"]
    headings += ["predicted peak (MB)", "predicted step (ms)"]
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
                f"{memory['peak'] / 1e6:.1f}",
                f"{memory['activations'] / 1e6:.1f}",
                f"{case.seconds * 1e3:.1f}",
                f"{low * 1e3:.1f}-{high * 1e3:.1f}",
                f"{seconds['images_per_second']:.1f}",
                f"{strategy['predicted_peak'] / 1e6:.1f}" if strategy else "-",
                f"{strategy['predicted_step_time'] * 1e3:.1f}" if strategy else "-",
            ]
        )
    steps = next((case.result["time"]["steps_measured"] for case in found if case.result), 0)
    notes = [
        f"peak: {', '.join(sorted(how)) or 'not measured'}; MB is 10^6 bytes. step: median of {steps} training steps"
    ]
    notes[0] += " on random images, after warm-up; each case in a process of its own."
    return Table(headings, rows, "", notes)


def pareto(found: Sequence[Case]) -> Figure | None:
    """Peak memory against step time; a line joins the budgets, a dashed one their ends. None below two points."""
    done = [case for case in found if case.result]
    if len(done) < 2:
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    budgets = sorted((case.peak / 1e6, case.seconds * 1e3) for case in done if case.result["strategy"])
    others = [case for case in done if not case.result["strategy"]]
    if budgets:
        axes.plot(*zip(*budgets, strict=True), ".-", color=COLOURS[0], label="budget")
    for i, case in enumerate(others, 1):
        low, high = case.result["time"]["step_quartiles"]
        spread = [[max(0.0, case.seconds - low) * 1e3], [max(0.0, high - case.seconds) * 1e3]]
        style: dict[str, Any] = {"fmt": MARKERS[i % 8], "color": COLOURS[i % 8], "label": case.name}
        axes.errorbar(case.peak / 1e6, case.seconds * 1e3, yerr=spread, **style)
    ends = {case.name: (case.peak / 1e6, case.seconds * 1e3) for case in others}
    least = ends.get("reversible", ends.get("checkpointed"))
    if budgets and least and "stored" in ends:
        line = zip(least, ends["stored"], strict=True)
        axes.plot(*line, "--", color="#999999", label="straight line between the ends")
    axes.set(xlabel="peak memory (MB)", ylabel="step time (ms, median)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def write(found: Sequence[Case], directory: Path, text: str) -> list[Path]:
    """bench.json, bench.md and the plot, as PNG and SVG; returns what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "bench.json", directory / "bench.md"]
    written[0].write_text(json.dumps([vars(case) for case in found], indent=1) + "\n", encoding="utf-8")
    figure = pareto(found)
    picture = "\n\n![pareto](pareto.png)" if figure is not None else ""
    written[1].write_text(f"{text}{picture}\n", encoding="utf-8")
    if figure is not None:
        for suffix in ("png", "svg"):
            written.append(directory / f"pareto.{suffix}")
            figure.savefig(written[-1], dpi=150)
    return written
