"""Plots of runs, as PNG and SVG."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from memexp.report.collect import Group, Run, over
from memexp.report.files import as_it_is, save
from memexp.report.settings import GROUPS, shared, varying
from memexp.report.tables import changes

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"


TITLES = {
    "accuracy-memory": "Accuracy against peak memory",
    "accuracy-depth": "Accuracy against depth",
    "accuracy-compression": "Accuracy against compression",
    "memory-depth": "Peak memory against depth",
    "memory-batch": "Peak memory against batch size",
    "time-depth": "Step time against depth",
    "curves": "Training",
    "gradient-angle": "Error of the gradient over training",
}


def draw(groups: Sequence[Group], directory: Path) -> list[Path]:
    """Every plot that the runs have figures for, written below `directory`; returns the PNG files."""
    done = [group for group in groups if group.done]
    plots: dict[str, Callable[[Sequence[Group]], Figure | None]] = {
        "accuracy-memory": accuracy_against_memory,
        "accuracy-depth": accuracy_against_depth,
        "accuracy-compression": accuracy_against_compression,
        "memory-depth": memory_against_depth,
        "memory-batch": memory_against_batch,
        "time-depth": time_against_depth,
        "curves": curves,
        "gradient-angle": gradient_angle,
    }
    written = []
    for name, plot in plots.items():
        figure = plot(done)
        if figure is not None:
            _title(figure, TITLES[name], done)
            written.append(save(figure, directory, name))
    return written


def _title(figure: Figure, what: str, groups: Sequence[Group]) -> None:
    """What is shown, and below it what is the same in all of it."""
    same = shared([run for group in groups for run in group.done])
    named = [same[key] for key in ("model", "dataset", "backprop") if key in same]
    more = [f"{key.rpartition('.')[2]} {same[key]}" for key in ("model.depth", "batch_size", "device") if key in same]
    figure.suptitle(as_it_is("\n".join([what, ", ".join([*named, *more])])), fontsize=10)


def accuracy_against_memory(groups: Sequence[Group]) -> Figure | None:
    points = [(g, x, y) for g in groups if (x := g.figure("memory.peak")) and (y := g.figure("accuracy.top1"))]
    if len(points) < 2:
        return None
    figure, axes = _axes(_peak([group for group, *_ in points]), "top-1 accuracy (%)")
    names = _names([group for group, *_ in points])
    for i, (group, x, y) in enumerate(points):
        style = _style(i) | {"linestyle": "none", "label": names[id(group)]}
        axes.errorbar(x.mean / 2**20, y.mean, yerr=y.deviation, capsize=3, **style)
    axes.set_xlim(left=0)
    _legend(axes, [y.n for *_, y in points])
    return figure


def accuracy_against_depth(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "model.depth", "depth (layers)", "accuracy.top1", 1, "top-1 accuracy (%)", from_zero=False)


def accuracy_against_compression(groups: Sequence[Group]) -> Figure | None:
    """Parameters that are left, as a share of those of the first stage, where some runs have fewer at their end."""
    points = []
    for group in groups:
        kept = over([[share] for run in group.done if (share := _kept(run)) is not None])
        if kept is not None and (y := group.figure("accuracy.top1")):
            points.append((group, kept, y))
    if len(points) < 2 or all(kept.mean == 1 for _, kept, _ in points):
        return None
    figure, axes = _axes("parameters that are left (%)", "top-1 accuracy (%)")
    names = _names([group for group, *_ in points])
    for i, (group, x, y) in enumerate(points):
        axes.errorbar(
            100 * x.mean,
            y.mean,
            yerr=y.deviation,
            capsize=3,
            **_style(i) | {"linestyle": "none", "label": names[id(group)]},
        )
    axes.set_xlim(left=0)
    _legend(axes, [y.n for *_, y in points])
    return figure


def _kept(run: Run) -> float | None:
    pairs = [pair["parameters"] for pair in changes(run).values()]
    sizes = [size for pair in pairs for size in pair if size]
    return sizes[-1] / sizes[0] if sizes else None


def memory_against_depth(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "model.depth", "depth (layers)", "memory.peak", 2**20, _peak(groups))


def memory_against_batch(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "batch_size", "images of a batch", "memory.peak", 2**20, _peak(groups))


def time_against_depth(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "model.depth", "depth (layers)", "time.step_median", 1e-3, "step time (ms, median)")


def _against(
    groups: Sequence[Group], setting: str, x: str, key: str, unit: float, y: str, from_zero: bool = True
) -> Figure | None:
    """One line for each combination of the other settings."""
    others = [k for k in varying([run for g in groups for run in g.runs]) if k != setting]
    lines: dict[str, list[tuple[float, float, float]]] = {}
    counts = []
    for group in groups:
        place, value = group.first.setting(setting), group.figure(key)
        if isinstance(place, int) and value is not None:
            name = _label(group, others) or as_it_is(str(group.first.setting("model")))
            lines.setdefault(name, []).append((place, value.mean / unit, (value.deviation or 0.0) / unit))
            counts.append(value.n)
    if not any(len({place for place, *_ in line}) > 1 for line in lines.values()):
        return None
    figure, axes = _axes(x, y)
    for i, (name, line) in enumerate(lines.items()):
        xs, ys, deviations = zip(*sorted(line), strict=True)
        bars = deviations if any(deviations) else None
        axes.errorbar(xs, ys, yerr=bars, capsize=3, **_style(i), label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if from_zero:
        axes.set_ylim(bottom=0)
    _legend(axes, counts)
    return figure


def curves(groups: Sequence[Group]) -> Figure | None:
    """Training loss and accuracy of each group's first run over the epochs. A panel without curves is left out."""
    found = [(group, _training_curves(group)) for group in groups]
    found = [(group, lines) for group, lines in found if any(len(xs) > 1 for xs, _ in lines)]
    labels = ("training loss", "top-1 accuracy (%)")
    panels = {label: [lines[i] for _, lines in found] for i, label in enumerate(labels)}
    panels = {label: lines for label, lines in panels.items() if any(len(xs) > 1 for xs, _ in lines)}
    if not panels:
        return None
    groups = [group for group, _ in found]
    names = _names(groups)
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _prepare(axes, "epoch", label)
        for i, (group, (xs, ys)) in enumerate(zip(groups, lines, strict=True)):
            if len(xs) > 1:
                axes.plot(xs, ys, **_style(i) | {"marker": ""}, label=names[id(group)])
        if label == "training loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    _legend(figure.axes[0], [1 for _ in groups])
    return figure


def _training_curves(group: Group) -> tuple[tuple[list[float], list[float]], ...]:
    run = group.done[0]
    return run.curve("train", "loss"), run.curve(run.watched, "top1")


def gradient_angle(groups: Sequence[Group]) -> Figure | None:
    """Angle between the strategy's gradient and that of stored activations over training, of each group's first run."""
    lines = [(group, *group.done[0].curve("strategy", "gradient_angle")) for group in groups]
    lines = [line for line in lines if len(line[1]) > 1]
    if not lines:
        return None
    names = _names([group for group, *_ in lines])
    figure, axes = _axes("epoch", "angle to the stored gradient (degrees)")
    for i, (group, xs, ys) in enumerate(lines):
        axes.plot(xs, ys, **_style(i), markersize=4, label=names[id(group)])
    axes.set_yscale("symlog", linthresh=1e-3)  # exact reversal is 0
    axes.set_ylim(bottom=0)
    _legend(axes, [1 for _ in lines])
    return figure


def _peak(groups: Sequence[Group]) -> str:
    """The axis of peak memory, with how it was measured."""
    how = sorted({str(run.get("memory.how")) for group in groups for run in group.done if run.get("memory.how")})
    return as_it_is(f"peak memory (MiB; {', '.join(how)})") if how else "peak memory (MiB)"


def _style(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th group; those eight apart share a colour only."""
    lines = ("-", "--", ":", "-.")
    return {"color": COLOURS[i % 8], "marker": MARKERS[(i + i // 8) % 8], "linestyle": lines[i // 8 % 4]}


def _names(groups: Sequence[Group]) -> dict[int, str]:
    keys = varying([run for group in groups for run in group.runs]) or ["model"]
    return {id(group): _label(group, keys) for group in groups}


def _label(group: Group, keys: Sequence[str]) -> str:
    """A group in a legend: groups by their option, other settings with the last part of their key, without what it has not."""
    settings = [(key, group.first.setting(key)) for key in keys]
    return as_it_is(
        ", ".join(
            str(value) if key in GROUPS else f"{key.rpartition('.')[2]} {value}"
            for key, value in settings
            if value is not None
        )
    )


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    _prepare(axes, x, y)
    return figure, axes


def _prepare(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, counts: Sequence[int]) -> None:
    """counts: measurements behind each point; with several, the points are means and the bars deviations, which it says.

    A long legend stands beside the axes, where it hides nothing.
    """
    several = sorted({n for n in counts if n > 1})
    title = f"mean, ± deviation over {' or '.join(map(str, several))} seeds" if several else None
    figure = axes.get_figure()
    assert figure is not None
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 5 or len(figure.axes) > 1:
        legend = figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside right upper", title=title)
    else:
        legend = axes.legend(handles, labels, fontsize=8, frameon=False, loc="best", title=title)
    legend.get_title().set_fontsize(8)
