"""Tables of what stages found and left: accuracy and size, what the network costs to run, an integral one at other sizes."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from memexp.report.changes import changes, costs, deployments, draws, sizes, sparsity, split_of
from memexp.report.collect import Group, Run, over
from memexp.report.experiments import about
from memexp.report.settings import varying
from memexp.report.tables import Table, cell, shown
from memexp.visible import visible

WHEN = ("before", "after")
# key -> heading, divisor, decimals; of figures by batches the part before the batch's size
FIGURES: dict[str, tuple[str, float, int]] = {
    "accuracy.top1": ("top-1 (%)", 1, 2),
    "parameters": ("parameters", 1, 0),
    "macs": ("MACs", 1, 0),
    "bytes": ("saved weights (MiB)", 2**20, 2),
    "latency": ("latency of {} (ms)", 1e-3, 2),
    "predicted": ("predicted latency (ms)", 1e-3, 2),
    "peak": ("inference peak of {} (MiB)", 2**20, 1),
}
Rows = Mapping[Any, Mapping[str, tuple[float | None, ...]]]  # what a row is of, a word or several -> figure -> values


def of_groups(groups: Sequence[Group]) -> list[Table]:
    """The tables that there is something to say in; where an experiment's own table says what its stages found, that of what
    was deployed alone.
    """
    tables = [
        _table(groups, "Before and after each stage", ["stage"], WHEN, _of_longer),
        _table(groups, "Cost of inference before and after each stage, in fp32", ["stage"], WHEN, costs),
        _table(groups, "At other sizes, as shares of the native one, without tuning", ["size"], [""], sizes),
    ]
    longer, _, sized = tables
    if longer is not None:
        longer.notes += [*_splits(groups), *_notes(groups)]
    elif sized is not None:
        sized.notes += _splits(groups)
    if "columns" in about(run for group in groups for run in group.runs):
        tables = []
    deployed = _table(groups, "Deployed, beside what was trained", ["stage", "network"], [""], deployments)
    if deployed is not None:
        deployed.notes.append("latency: median of one run, the networks in turns; peak: weights and batch included.")
        if any("predicted" in cost for group in groups for run in group.done for cost in deployments(run).values()):
            deployed.notes.append("predicted: of a batch of deploy.batch images, as the measured parts add up.")
    return [table for table in [*tables, deployed] if table is not None]


def of_runs(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """The same for programs: a record for each stage of each run, and one for each size."""
    stages = [
        {"run": visible(str(run.path)), "stage": stage} | split | _plain(found | measured.get(stage, {}), WHEN)
        for run in runs
        for measured, splits in [(costs(run), _split_of_stages(run))]
        for stage, found in changes(run).items()
        for split in [{"accuracy.split": splits[stage]} if stage in splits else {}]
    ]
    sized = [
        {"run": visible(str(run.path)), "size": float(size)} | _plain(found, ("",))
        for run in runs
        for size, found in sizes(run).items()
    ]
    return {"stages": stages} | ({"sizes": sized} if sized else {})


def _plain(found: Mapping[str, tuple[float | None, ...]], when: Sequence[str]) -> dict[str, float | None]:
    return {
        f"{name}.{at}".rstrip("."): value
        for name, values in found.items()
        for at, value in zip(when, values, strict=True)
    }


def _table(
    groups: Sequence[Group], title: str, row: Sequence[str], when: Sequence[str], find: Callable[[Run], Rows]
) -> Table | None:
    """A row for each stage, size or network of a group; figures that no row has are left out. None where there is no row.

    row: the headings of what a row is of.
    """
    keys = varying([run for group in groups for run in group.runs]) or ["model"]
    measured = {id(group): [list(filter(None, map(find, runs))) for runs in group.seeds.values()] for group in groups}
    every = [found for seeds in measured.values() for runs in seeds for found in runs]
    columns = [(name, i) for name in _names(every) for i in range(len(when))]
    rows = []
    for group in groups:
        seeds = [runs for runs in measured[id(group)] if runs]
        for name in dict.fromkeys(name for runs in seeds for found in runs for name in found):
            figures = [
                shown(over(_values(runs, name, figure, i) for runs in seeds), *_heading(figure)[1:])
                for figure, i in columns
            ]
            told = [name] if len(row) == 1 else name
            rows.append([*(cell(group.first.setting(key)) for key in keys), *told, str(len(seeds)), *figures])
    if not rows:
        return None
    headings = [*keys, *row, "n", *(f"{_heading(figure)[0]} {when[i]}".rstrip() for figure, i in columns)]
    used = [i for i in range(len(headings)) if i <= len(keys) + len(row) or any(line[i] != "-" for line in rows)]
    return Table([headings[i] for i in used], [[line[i] for i in used] for line in rows], title)


def _names(every: Iterable[Rows]) -> list[str]:
    """The figures that there are, those that are known to be figures alone."""
    names = dict.fromkeys(name for found in every for figures in found.values() for name in figures)
    return [name for name in names if name in FIGURES or name.partition("_")[0] in FIGURES]


def _heading(figure: str) -> tuple[str, float, int]:
    name, _, batch = figure.partition("_")
    heading, divisor, decimals = FIGURES[figure if figure in FIGURES else name]
    return heading.format(f"{batch} image{'' if batch == '1' else 's'}"), divisor, decimals


def _values(runs: Sequence[Rows], row: Any, figure: str, i: int) -> list[float]:
    found = (run[row][figure][i] for run in runs if figure in run.get(row, ()))
    return [value for value in found if value is not None]


def _of_longer(run: Run) -> Rows:
    """The changes of a run that has done more than to train."""
    return changes(run) if {str(stage.get("key")) for stage in run.stages} - {"train", "evaluate", "study"} else {}


def _split_of_stages(run: Run) -> dict[str, str]:
    """stage -> the images that its accuracy is of."""
    found = ((str(stage.get("key")), split_of(Run(run.path, stage))) for stage in run.stages)
    return {stage: split for stage, split in found if split is not None}


def _splits(groups: Sequence[Group]) -> list[str]:
    """Which images top-1 is of, where it is not of test images in every stage."""
    told = []
    for run in (run for group in groups for run in group.done):
        splits: dict[str, list[str]] = {}
        for stage, split in _split_of_stages(run).items():
            splits.setdefault(split, []).append(stage)
        if set(splits) - {"test"}:
            told.append(
                "top-1: " + "; ".join(f"of {split} images: {', '.join(of)}" for split, of in splits.items()) + "."
            )
    return list(dict.fromkeys(told))


def _notes(groups: Sequence[Group]) -> Iterator[str]:
    """What a stage did that is no column."""
    for run in (run for group in groups for run in group.done):
        for stage, share in sparsity(run):
            of = "of the weights of convolutions and linear layers are zero, in tensors as large as before"
            yield f"{run.name}, {stage}: {100 * share:.1f} % {of}."
        for stage, top1 in draws(run):
            if len(top1) > 1:
                spread = (
                    f"{statistics.fmean(top1):.2f} ± {statistics.stdev(top1):.2f} ({min(top1):.2f} to {max(top1):.2f})"
                )
                yield f"{run.name}, {stage}: top-1 of {len(top1)} random draws {spread} %; the first went on."
