"""A picture of a removal: each layer's scores in order, what is kept and what is removed."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from memexp.report.looks import COLOURS
from memexp.report.panels import entitle, panels


def draw(groups: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """groups: of memexp.pruning.Removal: layers, scores, kept."""
    figure, drawn = panels(groups, f"{title}: scores of each layer's channels in order")
    for axes, group in drawn:
        kept, scores = set(group["kept"]), group["scores"]
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        for colour, label, inside in ((COLOURS[0], "kept", True), (COLOURS[1], "removed", False)):
            places = [(place, scores[i]) for place, i in enumerate(order) if (i in kept) == inside]
            if places:
                xs, ys = zip(*places, strict=True)
                axes.scatter(xs, ys, s=4, color=colour, label=label)
        names = group["layers"]
        entitle(axes, names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    # a layer may have kept all
    handles = {label: mark for axes, _ in drawn for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.axes[0].legend(handles.values(), handles, fontsize=6, frameon=False)
    figure.supxlabel("channel, by score", fontsize=8)
    return figure
