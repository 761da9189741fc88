"""`memexp estimate`: what a run will take, as tables and plots."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from memexp import build, config, data
from memexp.choices import name_of
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.memory.estimate import NOT_IN_IT, estimate
from memexp.memory.fake import without_data
from memexp.memory.limit import Answer, answer
from memexp.memory.trace import network
from memexp.memory.tracker import CATEGORIES
from memexp.record import writing
from memexp.report.collect import Run, group
from memexp.report.layers import summarise, text
from memexp.report.plots import draw
from memexp.report.tables import of_groups, terminal
from memexp.units import parse_bytes, shown_bytes


def one(overrides: Sequence[str], name: str, directories: Sequence[str], summary: bool, as_json: bool) -> str:
    """What `memexp estimate` prints for one configuration."""
    return shown(config.compose(overrides, name, directories), summary, as_json)


def shown(cfg: DictConfig, summary: bool, as_json: bool, edits: Sequence[Edit] | None = None) -> str:
    """What is printed for `cfg`. edits: what has changed the network that it builds; None: that of the run it starts from."""
    edits = build.start_edits(cfg) if edits is None else edits
    if summary:
        classes, shape = data.describe(cfg.dataset)
        with without_data():
            built = network(cfg, classes, shape, edits)
        return text(summarise(built, shape))
    found, limit = _found(cfg, edits)
    if as_json:
        return json.dumps(_record(found, limit))
    return "\n".join([_breakdown(cfg, found), *(_fits(cfg, limit) if limit else [])])


def _found(cfg: DictConfig, edits: Sequence[Edit]) -> tuple[dict[str, Any], Answer | None]:
    """The estimate, and what fits the limit if there is one."""
    limit = None if cfg.memory.limit is None else answer(cfg, parse_bytes(cfg.memory.limit), edits)
    return estimate(cfg, edits), limit


def _record(found: dict[str, Any], limit: Answer | None) -> dict[str, Any]:
    return found | ({"limit": vars(limit) | {"fits": limit.fits, "fastest": limit.fastest}} if limit else {})


def sweep(
    jobs: Iterable[list[str]], name: str, directories: Sequence[str], summary: bool = False, as_json: bool = False
) -> tuple[str, int]:
    """A table of a sweep's jobs (memexp.sweeper.planned), and plots of memory against depth and batch in
    outputs/estimate/<time>; or the summary of each, or a JSON list of a record a job, with its overrides. And the exit status:
    1 where some are refused, which are named. Raises ConfigError where all are.
    """
    runs: list[Run] = []
    records: list[dict[str, Any]] = []
    summaries: list[str] = []
    problems: list[str] = []
    too_large: list[str] = []
    for job in jobs:
        told = " ".join(job)
        try:
            cfg = config.compose(job, name, directories)
            if as_json:
                records.append({"overrides": job, **_record(*_found(cfg, build.start_edits(cfg)))})
            elif summary:
                summaries.append(f"{told}\n{shown(cfg, True, False)}\n")
            else:
                runs.append(_as_run(cfg, job, estimate(cfg)))
                limit, peak = cfg.memory.limit, runs[-1].get("memory.peak")
                if limit is not None and peak > parse_bytes(limit):
                    too_large.append(f"{told}: {shown_bytes(peak)} is more than memory.limit={limit}")
        except (ConfigError, data.DataError) as error:
            refused = getattr(error, "problems", [str(error)])
            problems += [f"{told}: {problem}" for problem in refused]
            records.append({"overrides": job, "problems": refused})
    if not (runs or summaries or any("peak" in record for record in records)):
        raise ConfigError(problems)
    status = int(bool(problems))
    if as_json:
        return json.dumps(records), status
    if summary:
        return "\n".join([*summaries, *problems]), status
    groups = group(runs)
    directory = Path("outputs") / "estimate" / time.strftime("%Y-%m-%d_%H-%M-%S")
    with writing(directory, "run from a directory that you may write"):
        pictures = draw(groups, directory)
    table = of_groups(groups)
    table.notes += [f"not in it: {NOT_IN_IT}", *too_large, *problems]
    return "\n".join([terminal(table), *map(str, pictures)]), status


def _breakdown(cfg: DictConfig, found: dict[str, Any]) -> str:
    peak = found["peak"]
    lines = [
        f"{name_of(cfg.model)} on {name_of(cfg.dataset)}, backprop {cfg.backprop.name}, "
        f"{cfg.precision.name}, batch {cfg.batch_size} x {cfg.accumulate}, {name_of(cfg.optimizer)}",
        f"peak             {shown_bytes(peak):>12}  at {found['operation']}",
        *(
            f"  {category:<14} {shown_bytes(found['at_peak'][category]):>12}  {found['at_peak'][category] / peak:6.1%}"
            for category in CATEGORIES
        ),
        "largest at the peak, by module",
        *(
            f"  {name or '(outside)':<14} {shown_bytes(size):>12}"
            for name, size in list(found["by_module"].items())[:8]
        ),
        *([_plan(found["plan"])] if found["plan"] else []),
        f"kept for backward {shown_bytes(found['kept_for_backward']):>11}; streams at the boundaries of stages "
        f"{shown_bytes(found['boundaries'])}",
        f"parameters       {found['parameters']:,}",
        f"MACs of a step   {found['macs_forward']:,} forward, {found['macs_backward']:,} backward; "
        f"{found['recompute_ratio']:.2f} of a forward pass is done again",
        f"not in it: {NOT_IN_IT}",
        *(f"note: {note}" for note in found["notes"]),
    ]
    return "\n".join(lines)


def _plan(plan: dict[str, Any]) -> str:
    stored, light = (
        "; ".join(", ".join(map(str, steps)) or "none" for steps in plan[key])
        for key in ("stored_steps", "light_steps")
    )
    return (
        f"plan for {shown_bytes(plan['budget'])} (least {shown_bytes(plan['least_peak'])}, all stored "
        f"{shown_bytes(plan['stored_peak'])}): steps that are stored: {stored}; light: {light}"
    )


def _fits(cfg: DictConfig, found: Answer) -> list[str]:
    limit = shown_bytes(found.limit)
    verdict = "fits" if found.fits else "does not fit"
    batch = f"largest batch    {found.batch} ({shown_bytes(found.batch_peak)})"
    lines = [
        f"limit            {limit}: batch {cfg.batch_size} {verdict}",
        batch if found.batch else f"largest batch    none with backprop={cfg.backprop.name}",
    ]
    if found.depth is not None:
        more = " or more: deeper ones were not traced" if found.depth_is_more else ""
        lines.append(f"largest depth    {found.depth or 'none'}{more} (at batch {cfg.batch_size})")
    lines.append(f"fastest strategy {found.fastest or 'none fits'} (fewest MACs at batch {cfg.batch_size})")
    lines += [
        f"  {name:<14} {shown_bytes(peak):>12}  {macs / found.strategies[0][2]:.2f} x the MACs of {found.strategies[0][0]}"
        + ("" if peak <= found.limit else "  (does not fit)")
        for name, peak, macs in found.strategies
    ]
    return lines


def _as_run(cfg: DictConfig, job: Sequence[str], found: dict[str, Any]) -> Run:
    held = found["at_peak"]
    results = {
        **{key: name_of(cfg[key]) for key in ("model", "dataset", "backprop", "optimizer", "precision")},
        "status": "done",
        "overrides": list(job),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "parameters": found["parameters"],
        "memory": {
            "peak": found["peak"],
            "activations": held["activations"] + held["temporary"],
            "how": "estimated",
        },
    }
    return Run(Path(), results)
