"""Plots of runs, as PNG, SVG and PDF."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from memexp.report.collect import Group, number, over
from memexp.report.experiments import about
from memexp.report.files import as_it_is, save
from memexp.report.looks import entitle, legend, new_figure, prepare, style_of
from memexp.report.settings import GROUPS, varying
from memexp.report.tables import figure_of

Spec = Mapping[str, Any]
POINTS = 60  # of a curve that is averaged
ACCURACY: Spec = {"y": "accuracy.top1", "y_label": "top-1 accuracy (%)"}


def draw(groups: Sequence[Group], directory: Path) -> list[Path]:
    """Every plot that the runs have figures for, written below `directory`; returns the PNG files.

    Of an experiment those that it names, its own first.
    """
    done = [group for group in groups if group.done]
    chosen = about(run for group in groups for run in group.runs).get("pictures", list(PLOTS))
    written = []
    for spec in chosen:
        if isinstance(spec, str):
            (title, plot), name = PLOTS[spec], spec
            figure = plot(done)
        else:
            title, name = spec["title"], spec["name"]
            figure = KINDS[spec["kind"]](_chosen(done, spec.get("where", {})), spec)
        if figure is not None:
            entitle(figure, title, [run for group in done for run in group.done])
            written.append(save(figure, directory, name))
    return written


def _chosen(groups: Sequence[Group], where: Spec) -> list[Group]:
    """The groups that have one of the values that are asked for."""
    return [
        group
        for group in groups
        if all(str(group.first.setting(key)) in map(str, values) for key, values in where.items())
    ]


def points(groups: Sequence[Group], spec: Spec) -> Figure | None:
    """A figure against another, a point for each group, where there are two at least. spec: as `lines` has it, and x_log."""
    found = [(g, x, y) for g in groups if (x := figure_of(g, spec["x"])) and (y := figure_of(g, spec["y"]))]
    if len(found) < 2:
        return None
    figure, axes = new_figure(spec["x_label"], spec["y_label"])
    names = _names([group for group, *_ in found])
    for i, (group, x, y) in enumerate(found):
        style = style_of(i) | {"linestyle": "none", "label": names[id(group)]}
        place, unit = x.mean / float(spec.get("x_divisor", 1)), float(spec.get("divisor", 1))
        axes.errorbar(place, y.mean / unit, yerr=(y.deviation or 0.0) / unit or None, capsize=3, **style)
    if spec.get("x_log"):
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    legend(axes, [y.n for *_, y in found])
    return figure


def accuracy_against_memory(groups: Sequence[Group]) -> Figure | None:
    return points(groups, {**ACCURACY, "x": "memory.peak", "x_divisor": 2**20, "x_label": _peak(groups)})


def accuracy_against_depth(groups: Sequence[Group]) -> Figure | None:
    return _against(groups, "model.depth", "depth (layers)", "accuracy.top1", 1, "top-1 accuracy (%)", from_zero=False)


def accuracy_against_compression(groups: Sequence[Group]) -> Figure | None:
    """Parameters that are left, as a share of those of the first stage, where some runs have fewer at their end."""
    shares = [share.mean for group in groups if (share := figure_of(group, "kept")) is not None]
    if all(share == 1 for share in shares):
        return None
    return points(groups, {**ACCURACY, "x": "kept", "x_divisor": 0.01, "x_label": "parameters that are left (%)"})


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
    return lines(groups, {"x": setting, "x_label": x, "y": key, "divisor": unit, "y_label": y, "from_zero": from_zero})


def lines(groups: Sequence[Group], spec: Spec) -> Figure | None:
    """A figure against a setting or another figure, a line for each combination of the other settings.

    spec: x, y (keys; of x a setting or a figure), x_label, y_label (with units), x_divisor, divisor, from_zero, log; panels: a
    setting, with a panel for each of its values; by_x: settings that differ along a line as x does.
    """
    runs = [run for group in groups for run in group.runs]
    split = spec.get("panels")
    panels = list(dict.fromkeys(str(group.first.setting(split)) for group in groups)) if split else [""]
    by_line = [k for k in varying(runs) if k not in (spec["x"], split, *spec.get("by_x", ()))]
    found: dict[str, dict[str, list[tuple[float, float, float]]]] = {panel: {} for panel in panels}
    counts = []
    for group in groups:
        place, value = _place(group, spec), figure_of(group, spec["y"])
        if place is not None and value is not None:
            panel = str(group.first.setting(split)) if split else ""
            name = _label(group, by_line) or as_it_is(str(group.first.setting("model")))
            unit = float(spec.get("divisor", 1))
            found[panel].setdefault(name, []).append((place, value.mean / unit, (value.deviation or 0.0) / unit))
            counts.append(value.n)
    if not any(len({place for place, *_ in line}) > 1 for panel in found.values() for line in panel.values()):
        return None
    names = list(dict.fromkeys(name for panel in found.values() for name in panel))
    figure = Figure(figsize=(7 if len(panels) == 1 else 5.2 * len(panels) + 1.5, 4.5), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False, sharey=len(panels) > 1)[0]
    for axes, (panel, drawn) in zip(every, found.items(), strict=True):
        prepare(axes, spec["x_label"], spec["y_label"])
        if panel:
            axes.set_title(as_it_is(panel), fontsize=9)
        for name, line in drawn.items():
            xs, ys, deviations = zip(*sorted(line), strict=True)
            bars = deviations if any(deviations) else None
            axes.errorbar(xs, ys, yerr=bars, capsize=3, **style_of(names.index(name)), markersize=4, label=name)
        if all(place == int(place) for line in drawn.values() for place, *_ in line):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if spec.get("log"):
            axes.set_yscale("log")
        elif spec.get("from_zero", False):
            axes.set_ylim(bottom=0)
    legend(figure.axes[0], counts)
    return figure


def _place(group: Group, spec: Spec) -> float | None:
    """Where a group stands on the x axis."""
    told = number(_as_number(group.first.setting(spec["x"])))
    if told is None and (figure := figure_of(group, spec["x"])) is not None:
        told = figure.mean
    return told if told is None else told / float(spec.get("x_divisor", 1))


def _as_number(value: Any) -> Any:
    """A setting that a command line told as text; of a list, such as the units of each stage, its mean."""
    if isinstance(value, list) and value and all(number(item) is not None for item in value):
        return statistics.fmean(value)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return None


def curves(groups: Sequence[Group]) -> Figure | None:
    """Training loss and accuracy over the epochs, mean and band over the seeds. A panel without curves is left out."""
    watched = sorted({run.watched for group in groups for run in group.done})
    of = "" if watched == ["test"] else f"; of {' and '.join(watched)} images"
    panels: list[Spec] = [
        {"split": "train", "y": "loss", "y_label": "training loss", "log": True},
        {"split": "", "y": "top1", "y_label": f"top-1 accuracy (%{of})"},
    ]
    return _curves(groups, panels)


def curve(groups: Sequence[Group], spec: Spec) -> Figure | None:
    """A figure over training. spec: split and y of metrics.jsonl, y_label; log: below 1e-3 linear, as 0 may be among them."""
    return _curves(groups, [spec])


def _curves(groups: Sequence[Group], specs: Sequence[Spec]) -> Figure | None:
    panels = []
    for spec in specs:
        window = _window(groups, spec["y"]) if spec["split"] == "train" else 0.0  # an evaluation is a mean by itself
        drawn = [(group, _mean_curve(group, spec["split"], spec["y"], window)) for group in groups]
        drawn = [(group, line) for group, line in drawn if len(line[0]) > 1]
        if drawn:
            label = spec["y_label"] + (f" (means over {window:.2g} epochs)" if window else "")
            panels.append(({**spec, "y_label": label}, drawn))
    if not panels:
        return None
    shown = [group for group in groups if any(group is other for _, drawn in panels for other, _ in drawn)]
    names = _names(shown)
    width = 7.0 if len(panels) == 1 else 5.5 * len(panels)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    counts = []
    for axes, (spec, drawn) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        prepare(axes, "epoch", spec["y_label"])
        for group, (xs, ys, band, n) in drawn:
            style = style_of(next(i for i, other in enumerate(shown) if other is group)) | {"marker": ""}
            axes.plot(xs, ys, **style, label=names[id(group)])
            counts.append(n)
            if n > 1:
                low, high = ([y + sign * d for y, d in zip(ys, band, strict=True)] for sign in (-1, 1))
                axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
        if spec.get("log") and all(y > 0 for _, (_, ys, *_) in drawn for y in ys):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        elif spec.get("log"):
            linear = float(spec.get("linear_below", 1e-3))
            axes.set_yscale("symlog", linthresh=linear)
            axes.set_ylim(bottom=-0.1 * linear)  # a line at 0 lies beside the axis, not on it
    legend(figure.axes[0], counts)
    return figure


def _window(groups: Sequence[Group], key: str) -> float:
    """Epochs over which a figure of training steps is averaged, where one jagged line would hide the others; else 0."""
    noted = [run.curve("train", key)[0] for group in groups for run in group.done]
    return max(xs[-1] for xs in noted if xs) / POINTS if max(map(len, noted), default=0) > 2 * POINTS else 0.0


def _averaged(xs: Sequence[float], ys: Sequence[float], window: float) -> dict[float, float]:
    """A line, or with a window its mean over each, by the window's end."""
    parts: dict[float, list[float]] = {}
    for x, y in dict(zip(xs, ys, strict=True)).items():
        parts.setdefault(window * ceil(x / window - 1e-9) if window else x, []).append(y)
    return {x: statistics.fmean(part) for x, part in parts.items()}


def _mean_curve(
    group: Group, split: str, key: str, window: float = 0.0
) -> tuple[list[float], list[float], list[float], int]:
    """(epochs, means, deviations, seeds) of a figure over training, where each seed has it; split "": the one watched."""
    every = [
        [line for run in runs if (line := _averaged(*run.curve(split or run.watched, key), window))]
        for runs in group.seeds.values()
    ]
    seeds = [lines for lines in every if lines]
    xs = sorted(set.intersection(*(set(line) for lines in seeds for line in lines))) if seeds else []
    found = [over([line[x] for line in lines] for lines in seeds) for x in xs]
    return xs, [f.mean for f in found if f], [f.deviation or 0.0 for f in found if f], len(seeds)


def gradient_angle(groups: Sequence[Group]) -> Figure | None:
    """Angle between the strategy's gradient and that of stored activations over training."""
    label = "angle to the stored gradient (degrees)"
    return curve(groups, {"split": "strategy", "y": "gradient_angle", "y_label": label, "log": True})


def _peak(groups: Sequence[Group]) -> str:
    """The axis of peak memory, with how it was measured."""
    how = sorted({str(run.get("memory.how")) for group in groups for run in group.done if run.get("memory.how")})
    return as_it_is(f"peak memory (MiB; {', '.join(how)})") if how else "peak memory (MiB)"


def _names(groups: Sequence[Group]) -> dict[int, str]:
    alone = "arm" if all(group.first.setting("arm") for group in groups) else "model"
    keys = varying([run for group in groups for run in group.runs]) or [alone]
    return {id(group): _label(group, keys) for group in groups}


def _label(group: Group, keys: Sequence[str]) -> str:
    """A group in a legend: groups by their option, other settings with the last part of their key, without what it has not;
    of one that has none of them, such as the network that is not pruned, it says that.
    """
    told = [
        str(value) if key in (*GROUPS, "arm") else f"{key.rpartition('.')[2]} {value}"
        for key in keys
        if (value := group.first.setting(key)) is not None
    ]
    if keys and not told:
        lacked = [key.rpartition(".")[2] for key in keys if "." not in key or key.partition(".")[0] not in keys]
        told = [f"without {', '.join(lacked)}"]
    return as_it_is(", ".join(told))


PLOTS: dict[str, tuple[str, Callable[[Sequence[Group]], Figure | None]]] = {
    "accuracy-memory": ("Accuracy against peak memory", accuracy_against_memory),
    "accuracy-depth": ("Accuracy against depth", accuracy_against_depth),
    "accuracy-compression": ("Accuracy against compression", accuracy_against_compression),
    "memory-depth": ("Peak memory against depth", memory_against_depth),
    "memory-batch": ("Peak memory against batch size", memory_against_batch),
    "time-depth": ("Step time against depth", time_against_depth),
    "curves": ("Training", curves),
    "gradient-angle": ("Error of the gradient over training", gradient_angle),
}
KINDS: dict[str, Callable[[Sequence[Group], Spec], Figure | None]] = {"lines": lines, "points": points, "curve": curve}
