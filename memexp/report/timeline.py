"""Live memory over one training step, by category."""

from matplotlib.figure import Figure

from memexp.memory.tracked import Report
from memexp.memory.tracker import CATEGORIES
from memexp.report.collect import Run
from memexp.report.looks import COLOURS, entitle
from memexp.units import shown_figure


def draw(report: Report, run: Run) -> Figure:
    """The last training step of `run` that `report` follows, operation by operation; the peak is marked."""
    start = report.entered[-1]
    shown = report.timeline[max(0, start - 1) :]  # what stands at its beginning, and every change
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    series = [[held.get(category, 0) / 2**20 for _, held in shown] for category in CATEGORIES]
    axes.stackplot(
        range(len(shown)), series, labels=CATEGORIES, colors=[*COLOURS[: len(CATEGORIES) - 1], "#999999"], step="post"
    )
    totals = [sum(column) for column in zip(*series, strict=True)]
    at = max(range(len(totals)), key=totals.__getitem__)
    axes.annotate(
        f"{shown_figure(totals[at])} MiB at {shown[at][0]}",
        (at, totals[at]),
        xytext=(0, 12),
        textcoords="offset points",
        ha="left" if at < len(shown) / 2 else "right",
        arrowprops={"arrowstyle": "-"},
    )
    entitle(figure, "Live memory over one training step, by category", [run])
    axes.set(
        xlabel="allocations and releases of one training step",
        ylabel="live memory (MiB)",
    )
    axes.set_xlim(0, max(1, len(shown) - 1))
    axes.set_ylim(0, 1.15 * totals[at])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
