"""A picture of a removal: how each layer's weights are distributed before and after."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from memexp.report.looks import COLOURS
from memexp.report.panels import entitle, panels

BINS = 60


def draw(
    groups: Sequence[Mapping[str, Any]], before: Mapping[str, Tensor], after: Mapping[str, Tensor], title: str
) -> Figure:
    """groups: of memexp.pruning.Removal, whose first layers are drawn. before, after: state dicts of the network."""
    names = [str(group["layers"][0]) for group in groups if f"{group['layers'][0]}.weight" in before]
    figure, drawn = panels(names, f"{title}: weights of each layer, as a share of the layer's")
    for axes, name in drawn:
        pair = [state[f"{name}.weight"].detach().float().flatten().cpu().numpy() for state in (before, after)]
        edges = np.linspace(min(x.min() for x in pair), max(x.max() for x in pair) + 1e-12, BINS + 1)
        for colour, label, values in zip(COLOURS, ("before", "after"), pair, strict=False):
            heights = np.histogram(values, edges)[0] / len(values)
            axes.stairs(heights, edges, color=colour, label=f"{label} ({len(values):,})", linewidth=0.8)
        entitle(axes, name)
        axes.legend(fontsize=5, frameon=False)
    figure.supxlabel("weight", fontsize=8)
    figure.supylabel("share of the layer's weights", fontsize=8)
    return figure
