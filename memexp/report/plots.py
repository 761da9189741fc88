"""Plots of runs, as PNG and SVG."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memexp.report.collect import Group, varying

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vPX*"


def draw(groups: Sequence[Group], directory: Path) -> list[Path]:
    """Every plot that the runs have figures for, written below `directory`; returns the PNG files."""
    done = [group for group in groups if group.done]
    plots: dict[str, Callable[[Sequence[Group]], Figure | None]] = {
        "accuracy-memory": accuracy_against_memory,
        "accuracy-depth": accuracy_against_depth,
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
            directory.mkdir(parents=True, exist_ok=True)
            for suffix in ("png", "svg"):
                figure.savefig(directory / f"{name}.{suffix}", dpi=150)
            written.append(directory / f"{name}.png")
    return written


def accuracy_against_memory(groups: Sequence[Group]) -> Figure | None:
    points = [(g, x, y) for g in groups if (x := g.figure("memory.peak")) and (y := g.figure("accuracy.top1"))]
    if len(points) < 2:
        return None
    figure, axes = _axes("peak memory (MiB)", "top-1 accuracy (%)")
    names = _names([group for group, *_ in points])
    for i, (group, x, y) in enumerate(points):
        axes.errorbar(
            x.mean / 2**20, y.mean, yerr=y.deviation, fmt=MARKERS[i % 8], color=COLOURS[i % 8], label=names[id(group)]
        )
    axes.set_xlim(left=0)
    _legend(axes)
    return figure


def accuracy_against_depth(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "model.depth", "depth (layers)", "accuracy.top1", 1, "top-1 accuracy (%)", from_zero=False)


def memory_against_depth(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "model.depth", "depth (layers)", "memory.peak", 2**20, "peak memory (MiB)")


def memory_against_batch(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "batch_size", "images of a batch", "memory.peak", 2**20, "peak memory (MiB)")


def time_against_depth(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "model.depth", "depth (layers)", "time.step_median", 1e-3, "step time (ms, median)")


def _against(
    groups: Sequence[Group], setting: str, x: str, key: str, unit: float, y: str, from_zero: bool = True
) -> Figure | None:
    """One line for each combination of the other settings."""
    others = [k for k in varying([run for g in groups for run in g.runs]) if k != setting]
    lines: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        place, value = group.first.setting(setting), group.figure(key)
        if isinstance(place, int) and value is not None:
            name = _label(group, others) or str(group.first.setting("model"))
            lines.setdefault(name, []).append((place, value.mean / unit))
    if not any(len({place for place, _ in line}) > 1 for line in lines.values()):
        return None
    figure, axes = _axes(x, y)
    for i, (name, line) in enumerate(lines.items()):
        xs, ys = zip(*sorted(line), strict=True)
        axes.plot(xs, ys, MARKERS[i % 8] + "-", color=COLOURS[i % 8], label=name)
    if from_zero:
        axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def curves(groups: Sequence[Group]) -> Figure | None:
    """Training loss and accuracy of each group's first run over the epochs."""
    names = _names(groups)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    drawn = False
    for i, group in enumerate(groups):
        run = group.done[0]
        split = run.get("stages.train.split") or "test"
        for axes, (xs, ys) in ((left, run.curve("train", "loss")), (right, run.curve(split, "top1"))):
            if len(xs) > 1:
                axes.plot(xs, ys, color=COLOURS[i % 8], label=names[id(group)], linestyle="-" if i < 8 else "--")
                drawn = True
    if not drawn:
        return None
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="top-1 accuracy (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            _legend(axes)
    return figure


def gradient_angle(groups: Sequence[Group]) -> Figure | None:
    """Angle between the strategy's gradient and that of stored activations over training, of each group's first run."""
    lines = [(group, *group.done[0].curve("strategy", "gradient_angle")) for group in groups]
    lines = [line for line in lines if len(line[1]) > 1]
    if not lines:
        return None
    names = _names(groups)
    figure, axes = _axes("epoch", "angle to the stored gradient (degrees)")
    for i, (group, xs, ys) in enumerate(lines):
        axes.plot(xs, ys, MARKERS[i % 8] + "-", color=COLOURS[i % 8], markersize=4, label=names[id(group)])
    axes.set_yscale("symlog", linthresh=1e-3)  # exact reversal is 0
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def _names(groups: Sequence[Group]) -> dict[int, str]:
    keys = varying([run for group in groups for run in group.runs]) or ["model"]
    return {id(group): _label(group, keys) for group in groups}


def _label(group: Group, keys: Sequence[str]) -> str:
    """A group in a legend: groups by their option, other settings with the last part of their key, without what it has not."""
    settings = [(key, group.first.setting(key)) for key in keys]
    return ", ".join(
        str(value) if "." not in key else f"{key.rpartition('.')[2]} {value}"
        for key, value in settings
        if value is not None
    )


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=8, frameon=False, loc="best")
