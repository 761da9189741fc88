"""A picture of a removal: each layer's scores in order, what is kept and what is removed."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from memexp.report.plots import COLOURS

COLUMNS = 4
MOST = 48  # layers that are drawn


def draw(groups: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """groups: of memexp.pruning.Removal: layers, scores, kept."""
    shown = groups[:MOST]
    rows = max(1, -(-len(shown) // COLUMNS))
    figure = Figure(figsize=(3 * COLUMNS, 1.8 * rows + 0.6), layout="constrained")
    more = f"; {len(groups) - MOST} further layers are not drawn" if len(groups) > MOST else ""
    figure.suptitle(f"{title}: scores of each layer's channels in order{more}")
    for axes, group in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, shown, strict=False):
        kept, scores = set(group["kept"]), group["scores"]
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        for colour, label, inside in ((COLOURS[0], "kept", True), (COLOURS[1], "removed", False)):
            places = [(place, scores[i]) for place, i in enumerate(order) if (i in kept) == inside]
            if places:
                axes.scatter(*zip(*places, strict=True), s=4, color=colour, label=label)
        names = group["layers"]
        axes.set_title(names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), fontsize=7)
        axes.tick_params(labelsize=6)
    for axes in list(figure.axes)[len(shown) :]:
        axes.axis("off")
    figure.axes[0].legend(fontsize=6, frameon=False)
    figure.supxlabel("channel, by score", fontsize=8)
    return figure
