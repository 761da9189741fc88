"""A small panel for each layer, side by side."""

from collections.abc import Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memexp.report.files import as_it_is
from memexp.report.looks import fitted

COLUMNS = 4
WIDTH = 3.0  # inches of a panel
MOST = 48  # layers that are drawn
T = TypeVar("T")


def panels(layers: Sequence[T], title: str) -> tuple[Figure, list[tuple[Axes, T]]]:
    """A figure, and the panel of each of the layers, the first of many; the title says how many are not drawn."""
    shown = layers[:MOST]
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = Figure(figsize=(WIDTH * COLUMNS, 1.8 * rows + 0.6), layout="constrained")
    more = f"; {len(layers) - MOST} further layers are not drawn" if len(layers) > MOST else ""
    figure.suptitle(as_it_is(f"{title}{more}"))
    every = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes in every:
        axes.tick_params(labelsize=6)
    for axes in every[len(shown) :]:
        axes.axis("off")
    return figure, list(zip(every, shown, strict=False))


def entitle(axes: Axes, layer: str) -> None:
    """The name of its layer over a panel."""
    axes.set_title(fitted(layer, 0.9 * WIDTH, 7), fontsize=7)
