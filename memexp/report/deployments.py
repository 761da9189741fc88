"""What is deployed beside what was trained: parameters, MACs, latency and memory of inference, for each way of merging."""

from collections.abc import Sequence
from typing import Any

from memexp.report.collect import Group
from memexp.report.settings import varying
from memexp.report.tables import Column, Table, cell, shown

TITLE = "Deployed, beside what was trained"


def of_deployments(groups: Sequence[Group]) -> Table | None:
    """A row for each network that a deployment has measured: trained, and none, block, auto and all, or the one merge that was
    asked for. None where nothing was deployed.
    """
    found = {(i, *place): cost for i, group in enumerate(groups) for place, cost in _measured(group).items()}
    if not found:
        return None
    keys = varying([run for group in groups for run in group.runs]) or ["model"]
    told = {key for cost in found.values() for key in cost}
    sizes = sorted(int(size) for key in told if (size := key.removeprefix("latency_")).isdecimal())
    columns: list[Column] = [("parameters", "parameters", 1, 0), ("MACs", "macs", 1, 0)]
    columns += [(f"latency, batch {size} (ms)", f"latency_{size}", 1e-3, 2) for size in sizes]
    columns += [("predicted (ms)", "predicted", 1e-3, 2)] if "predicted" in told else []
    columns += [(f"peak, batch {size} (MiB)", f"peak_{size}", 2**20, 1) for size in sizes]
    rows = []
    for i, stage, name in found:
        prefix = f"stages.{stage}.deploy.costs.{name}"
        cells = [shown(groups[i].figure(f"{prefix}.{key}"), divisor, places) for _, key, divisor, places in columns]
        rows.append([*(cell(groups[i].first.setting(key)) for key in keys), stage, name, *cells])
    notes = ["latency: median of one run, the networks in turns; peak: of inference, weights and batch included."]
    if "predicted" in told:
        notes.append("predicted: latency of a batch of deploy.batch images, as the measured parts add up.")
    return Table([*keys, "stage", "network", *(heading for heading, *_ in columns)], rows, TITLE, notes)


def _measured(group: Group) -> dict[tuple[str, str], dict[str, Any]]:
    """(stage, network) of the deployments of the group's runs -> what it costs."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in group.done:
        for stage in run.stages:
            key = str(stage.get("key"))
            costs = run.get(f"stages.{key}.deploy.costs")
            for name, cost in costs.items() if isinstance(costs, dict) else ():
                found |= {(key, str(name)): cost} if isinstance(cost, dict) else {}
    return found
