"""How every plot looks: colours, markers, axes, title, legend."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memexp.report.collect import Run
from memexp.report.files import as_it_is
from memexp.report.settings import shared

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"
LINE = 48  # characters of a line of a legend, unless it is one word
ROOM = 30  # of them beside the axes of a figure as it is
CHARACTER, ROW = 0.065, 0.17  # inches that a character is wide and a line is high
LETTER = 0.009  # inches that a letter of size 1 is wide, at most


def style_of(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th group; those eight apart share a colour only."""
    lines = ("-", "--", ":", "-.")
    return {"color": COLOURS[i % 8], "marker": MARKERS[(i + i // 8) % 8], "linestyle": lines[i // 8 % 4]}


def new_figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    prepare(axes, x, y)
    return figure, axes


def prepare(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def entitle(figure: Figure, what: str, runs: Sequence[Run]) -> None:
    """What is shown, and below it what is the same in all of it."""
    same = shared(runs)
    named = [same[key] for key in ("model", "dataset", "backprop") if key in same]
    more = [f"{key.rpartition('.')[2]} {same[key]}" for key in ("model.depth", "batch_size", "device") if key in same]
    headline(figure, what, ", ".join([*named, *more]))


def headline(figure: Figure, what: str, below: str) -> None:
    """A title, and below it what it is of, in as many lines as it takes."""
    figure.suptitle(f"{as_it_is(what)}\n{fitted(below, figure.get_size_inches()[0], 10)}".rstrip(), fontsize=10)


def fitted(text: str, inches: float, size: float) -> str:
    """In lines of at most so many inches, in letters of that size."""
    return as_it_is("\n".join(textwrap.wrap(text, int(inches / (LETTER * size)), break_on_hyphens=False)))


def legend(axes: Axes, counts: Sequence[int]) -> None:
    """counts: measurements behind each point; with several, the points are means and the bars deviations, which it says.

    A long or wide legend stands beside the axes, where it hides nothing; its names take several lines, and the figure grows
    with it.
    """
    several = sorted({n for n in counts if n > 1})
    title = f"mean, ± deviation over {' or '.join(map(str, several))} seeds" if several else None
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    every = [panel.get_legend_handles_labels() for panel in figure.axes]
    named = {label: handle for panel in every for handle, label in zip(*panel, strict=True)}  # a panel may lack some
    handles = list(named.values())
    labels = [textwrap.fill(name, LINE, break_long_words=False, break_on_hyphens=False) for name in named]
    lines = "\n".join(labels).split("\n")
    widest = max(map(len, lines))
    if len(lines) > 5 or widest > LINE or len(figure.axes) > 1:
        width, height = figure.get_size_inches()
        beyond = max(0, widest - ROOM) * CHARACTER
        figure.set_size_inches(width + beyond, max(height, (len(lines) + 6) * ROW))
        legend = figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside right center", title=title)
    else:
        legend = axes.legend(handles, labels, fontsize=8, frameon=False, loc="best", title=title)
    legend.get_title().set_fontsize(8)
