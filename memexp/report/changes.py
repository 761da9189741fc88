"""What each stage of a run found and what it left, as numbers: before and after it, by the keys of results.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from memexp.report.collect import Run, number

Pairs = dict[str, tuple[float | None, float | None]]  # figure -> (before, after)
CHANGED = ("accuracy.top1", "parameters", "macs")  # what a stage that does not tell it has left as it was


def changes(run: Run) -> dict[str, Pairs]:
    """stage -> accuracy, parameters and MACs. Accuracy before a stage that looks at another split is not known."""
    known: dict[str, float | None] = {}
    split: str | None = None
    found = {}
    for stage in run.stages:
        of_stage = Run(run.path, stage)
        pairs: Pairs = {}
        before_on, split = split, split_of(of_stage) or split
        if split != before_on:
            known.pop("accuracy.top1", None)
        for key in CHANGED:
            kind = str(stage.get("key")).partition("-")[0]
            earlier = _told(of_stage, kind, f"{key}.before")
            if earlier is None and key == "accuracy.top1":
                earlier = number(of_stage.get("before.top1"))
            before = known.get(key) if earlier is None else earlier
            later = number(of_stage.get(key))
            later = _told(of_stage, kind, f"{key}.after") if later is None else later
            known[key] = before if later is None else later
            pairs[key] = (before, known[key])
        found[str(stage.get("key"))] = pairs
    return found


def split_of(of_stage: Run) -> str | None:
    """The images that the accuracy of a stage, or of a whole run, is of, where it says so."""
    found = of_stage.get("accuracy.split")
    return None if found is None else str(found)


def _told(of_stage: Run, kind: str, key: str) -> float | None:
    """What a stage says below its own name; a discretised network's figures stand where a pruned one's do."""
    found = (number(of_stage.get(f"{part}.{key}")) for part in (kind, "prune"))
    return next((value for value in found if value is not None), None)


def costs(run: Run) -> dict[str, Pairs]:
    """stage -> what it takes to run the network: bytes as saved, latency_N in seconds and peak_N in bytes by batches of N.

    Of the stages that prune, or sample an integral network; what is deployed has a table of its own.
    """
    found = {}
    for stage in run.stages:
        of_stage = Run(run.path, stage)
        measured = of_stage.get("prune.costs.before")
        pairs: Pairs = {}
        for key in measured if isinstance(measured, Mapping) else ():
            one, other = (number(of_stage.get(f"prune.costs.{when}.{key}")) for when in ("before", "after"))
            if key not in CHANGED and (one, other) != (None, None):
                pairs[str(key)] = one, other
        if pairs:
            found[str(stage.get("key"))] = pairs
    return found


def deployments(run: Run) -> dict[tuple[str, str], dict[str, tuple[float | None]]]:
    """(stage, network) -> what it takes to run each network that a deployment has measured: trained, and none, block, auto and
    all, or the one merge that was asked for.
    """
    found = {}
    for stage in run.stages:
        measured = Run(run.path, stage).get("deploy.costs")
        for name, cost in measured.items() if isinstance(measured, Mapping) else ():
            if isinstance(cost, Mapping):
                found[str(stage.get("key")), str(name)] = {str(key): (number(value),) for key, value in cost.items()}
    return found


def sizes(run: Run) -> dict[str, dict[str, tuple[float | None]]]:
    """size (a share of the native one) -> figures of an integral network that was evaluated at it, without any tuning."""
    asked = run.get("stages.discretise.sizes")
    found = {}
    for entry in asked if isinstance(asked, list) else ():
        size = number(entry.get("size")) if isinstance(entry, Mapping) else None
        if size is not None:
            figures = Run(run.path, dict(entry))
            keys = ["accuracy.top1", *(key for key in figures.results if key not in ("size", "accuracy"))]
            found[f"{size:g}"] = {str(key): (number(figures.get(str(key))),) for key in keys}
    return found


def draws(run: Run) -> Iterator[tuple[str, list[float]]]:
    """(stage, top-1 after each of several random draws), the one that went on first."""
    for stage in run.stages:
        of_stage = Run(run.path, stage)
        others: Any = of_stage.get("prune.draws")
        if isinstance(others, list):
            every = [of_stage.get("accuracy.top1"), *(o.get("top1") for o in others if isinstance(o, Mapping))]
            yield str(stage.get("key")), [value for value in map(number, every) if value is not None]


def sparsity(run: Run) -> Iterator[tuple[str, float]]:
    """(stage, share of the weights of convolutions and linear layers that it left at zero), of those that mask weights."""
    for stage in run.stages:
        share = number(Run(run.path, stage).get("prune.sparsity.masked"))
        if share is not None:
            yield str(stage.get("key")), share


def kept(run: Run) -> float | None:
    """The parameters at the run's end over those at its beginning."""
    pairs = [pair["parameters"] for pair in changes(run).values()]
    found = [size for pair in pairs for size in pair if size]
    return found[-1] / found[0] if found else None
