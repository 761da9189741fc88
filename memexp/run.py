"""One run, from configuration to record: its directory locked, its stages in order, how it ended written down."""

import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from memexp import build, ended, given, sequence, stages, unread
from memexp.calling import CallableModule
from memexp.config import run_name
from memexp.longer import as_long
from memexp.memory import advice, limit
from memexp.memory.snapshot import Failures
from memexp.prepared import check_schedules, prepare
from memexp.record import FINISHED, RunDirectory, RunDirectoryError, write_json
from memexp.recorded import as_config
from memexp.results import describe, estimated_peak, remember, skeleton
from memexp.stages import study
from memexp.stages.handed import Run
from memexp.training import board, distribution
from memexp.training.console import spoken
from memexp.training.distribution import World
from memexp.training.precision import Precision
from memexp.training.signals import Interrupted, StopRequest

log = logging.getLogger("memexp")


def run(
    cfg: DictConfig | Mapping[str, Any],
    directory: str | Path | None = None,
    overrides: Sequence[str] | None = None,
    start: str | None = None,
    hydra: str | None = None,
    foreseen: bool = False,
) -> dict[str, Any]:
    """Carries out the stages of what `cfg` describes and returns results.json as a dictionary.

    cfg: what memexp.compose gives, or a dict. directory: the run directory; by default a new one below outputs/<name>.
    overrides: of the command line that `cfg` was composed from, for the record; None for a program's. start: go on from this
    checkpoint of the directory ("last", or the key of a stage that is to be made longer); a new run where None. hydra: Hydra's
    own settings, as YAML. foreseen: the caller has asked memexp.stages.foresee already. Whatever ends the run early is recorded
    there first and then raised. Progress is printed line by line, in a notebook too, unless the caller has configured the
    logger "memexp".
    """
    cfg, overrides = as_config(cfg), None if overrides is None else given.words(overrides)
    directory = Path("outputs") / cfg.name / run_name(cfg) if directory is None else given.path("directory", directory)
    with spoken():
        return _ordered(cfg, directory, overrides, start, hydra, foreseen)


def _ordered(
    cfg: DictConfig,
    directory: Path,
    overrides: Sequence[str] | None,
    start: str | None,
    hydra: str | None,
    foreseen: bool,
) -> dict[str, Any]:
    """The part of the first process: every other one is told what to do, in a script in which all of them come here, too."""
    world = World.from_environment()
    distribution.start(world)
    order = {
        "config": OmegaConf.to_container(
            OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), resolve=True
        ),
        "directory": str(directory.absolute()),
        "overrides": overrides,
        "start": start,
        "hydra": hydra,
        "foreseen": foreseen or start is not None,
    }
    return _carry_out(distribution.agreed(order, world), world)


sys.modules[__name__].__class__ = CallableModule  # memexp.run(cfg)


def join(world: World) -> dict[str, Any]:
    """The part of every process but the first: what to do comes from rank 0."""
    distribution.start(world)
    return _carry_out(distribution.agreed({}, world), world)


def _carry_out(order: dict[str, Any], world: World) -> dict[str, Any]:
    """The run itself, on every process; the first one keeps the record."""
    cfg = OmegaConf.create(order["config"])
    directory = RunDirectory(Path(order["directory"]))
    started = time.perf_counter()
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        stack.callback(distribution.stop)
        stack.callback(limit.release)
        if world.is_main:
            stack.enter_context(directory)
        failures = stack.enter_context(Failures(directory.path))
        results = skeleton(cfg, order["overrides"])
        before, current, opened = directory.results, None, order["start"] is None
        if order["start"] is not None:
            results["time"]["wall"] = ((before or {}).get("time") or {}).get("wall") or 0.0
            results["strategy"] = (before or {}).get("strategy") or {}
            # a network that is read again has its channels in order
            results["permutation"] = (before or {}).get("permutation")
            if before is not None and as_long(before.get("config"), results["config"]):  # a sweep knows it by that
                results["config_hash"] = before.get("config_hash")
        elif world.is_main:
            _make_room(directory, before, cfg.overwrite, cfg.init_from)
        try:
            if order["start"] is None:
                _open_record(directory, world, cfg, results, order)
            log.info("run directory: %s", directory.path)
            keys = sequence.keys(cfg)
            log.info("stages: %s", " -> ".join(keys))
            for setting in sequence.unused(cfg):
                log.warning("warning: no stage of this run carries out %s", setting)
            for told in unread.typed(cfg, order["overrides"] or ()):
                log.warning("warning: %s", told)
            if keys == ["study"]:
                if order["start"] is not None:  # it has no checkpoint, and is begun again
                    _open_record(directory, world, cfg, results, order)
                    opened = True
                if world.is_main:  # there is nothing in it to divide
                    with stop.at_once():
                        study.carry_out(cfg, directory, results)
            else:
                current = distribution.together(
                    lambda: _prepared(cfg, directory, world, stop, results, order, keys), world
                )
                if order["start"] is not None:  # what is refused before this leaves the record as it was
                    _open_record(directory, world, cfg, results, order)
                    opened = True
                _stages(current, keys)
            results["status"] = "done"
        except BaseException as raised:
            error = ended.told(raised, world, directory.path)
            results["status"] = ended.status(error)
            results["error"] = advice.brief(error)
            if isinstance(error, Interrupted):
                error.add_note("`memexp resume` goes on from the checkpoint")
            told = failures.fatal() if isinstance(error, torch.OutOfMemoryError) else ""
            if results["status"] == "oom" and world.is_main:
                lines = [told, _advice(cfg, results["strategy"], current)]
                results["error"] = "\n".join([results["error"], *filter(None, lines)])
                log.error("%s", "\n".join(["out of memory", *filter(None, lines)]))
            if not isinstance(error, ended.EXPLAINED):
                log.debug("%s", traceback.format_exc())
                if world.is_main:  # whose log it is
                    error.add_note(f"the traceback is in {directory.path / 'train.log'}")
            if error is not raised:
                log.debug("%s", traceback.format_exc())
                raise error from raised
            raise
        finally:
            results["time"]["wall"] += time.perf_counter() - started
            if world.is_main and opened:
                directory.write_results(results)
                if not results["study"]:
                    _close_board(directory, results, current)
    return results


def _prepared(
    cfg: DictConfig,
    directory: RunDirectory,
    world: World,
    stop: StopRequest,
    results: dict[str, Any],
    order: dict[str, Any],
    keys: Sequence[str],
) -> Run:
    """Whatever can be refused before the first stage is refused here."""
    if not order["foreseen"]:
        stages.foresee(cfg)
    prepared = prepare(cfg, directory, world, stop, results, order["start"])
    check_schedules(prepared, keys)
    return prepared


def _open_record(
    directory: RunDirectory, world: World, cfg: DictConfig, results: dict[str, Any], order: dict[str, Any]
) -> None:
    """The record of a run that begins, or goes on; that of a finished one which is made longer is kept beside it."""
    if not world.is_main:
        return
    before = directory.results
    if before is not None and before.get("status") == "done" and order["start"] is not None:
        write_json(directory.path / FINISHED, before)
    directory.write_hydra(OmegaConf.to_yaml(results["config"]), order["overrides"] or (), order["hydra"])
    device = cfg.device if sequence.study_of(cfg) else distribution.device_name(cfg.device, world)
    directory.write_environment(config_hash=results["config_hash"], seed=cfg.seed, device=device)
    directory.write_results(results)


def _close_board(directory: RunDirectory, results: dict[str, Any], current: Run | None) -> None:
    """TensorBoard is told how the run ended, one that failed before it had opened a board, too."""
    with suppress(OSError):  # a full disk has ended the run perhaps, and that is told
        shown = current.board if current is not None else None
        shown = board.opened(directory.path, results) if shown is None else shown
        shown.end(results["status"])
        shown.close()


def _make_room(directory: RunDirectory, before: dict[str, Any] | None, overwrite: bool, start: str | None) -> None:
    """A new run takes the directory. Raises RunDirectoryError rather than throw away what has been trained there unasked."""
    status = None if before is None else before.get("status")
    if start is not None and Path(start).resolve() == directory.path.resolve():
        raise RunDirectoryError(
            f"init_from: {directory.path} is this run's own directory; choose another for the new run."
        )
    if before is None and not overwrite and (left := directory.left()):
        raise RunDirectoryError(
            f"{directory.path} has no results.json to read, and {left[0].relative_to(directory.path)} in it may be of "
            "something else: a new run would remove it; choose another directory, or throw it away with overwrite=true."
        )
    if status == "done" and not overwrite:
        raise RunDirectoryError(
            f"{directory.path} already holds a finished run; choose another directory, or throw it away with overwrite=true."
        )
    if any(directory.checkpoints.glob("*.pt")) and not overwrite:
        raise RunDirectoryError(
            f"{directory.path} holds a run that is not finished ({status}) and its checkpoints; go on with "
            f"`memexp resume {directory.path}`, or throw it away with overwrite=true."
        )
    directory.clear()


def _stages(current: Run, keys: Sequence[str]) -> None:
    """Carries out what is left of the stages `keys`; each adds its own figures to the results."""
    results, cfg = current.results, current.cfg
    results["stages"] = current.finished
    results["classes"], results["fingerprint"] = list(current.splits.classes), current.splits.fingerprint
    results["mean"], results["std"] = current.splits.mean, current.splits.std
    results["numbers"] = Precision(cfg.precision.name, current.device).record()
    describe(current)
    if current.world.is_main:
        results["memory"] = {"estimate": estimated_peak(current)}
    described = estimated = len(current.edits)
    if remember(current):
        estimated = -1
    if current.world.is_main:
        current.board = board.opened(current.directory.path, results, current.steps_before + _steps(current.unfinished))
    done = {figures["key"] for figures in current.finished}
    for key in keys:
        if key in done:
            continue
        if current.key != key:
            current.unfinished = None
        current.key = key
        if len(keys) > 2:
            log.info("stage %s", key)
        if len(current.edits) > estimated and sequence.recipe_of(key) and current.world.is_main:
            results["memory"] = {"estimate": estimated_peak(current)}  # of the network that is trained now
            estimated = len(current.edits)
        before = time.perf_counter()
        stages.carry_out(current)
        results["time"]["stages"].setdefault(key, time.perf_counter() - before)
        if len(current.edits) > described:
            describe(current)
            described = len(current.edits)
        if current.world.is_main:
            current.directory.write_results(results)
    if current.finished:
        results["before"] = current.finished[0]
        results["accuracy"] = current.finished[-1].get("accuracy") or results["accuracy"]


def _steps(training: dict[str, Any] | None) -> int:
    return int(training["progress"]["step"]) if training is not None else 0


def _advice(cfg: DictConfig, strategy: Mapping[str, Any], current: Run | None) -> str:
    """What a run that ran out of memory is told, below its error. current: None before it had a network."""
    try:
        edits = build.start_edits(cfg) if current is None else current.edits
        ran = strategy if current and strategy.get("stage") == current.key else {}
        planned = (ran.get("predicted") or {}).get("peak")
        device = distribution.choose_device(cfg.device, World.from_environment())
        taken = cfg if current is None else current.taken(cfg)
        return advice.after_out_of_memory(taken, device, edits, planned)
    except Exception as error:  # what happened matters more than what to do about it
        return f"no estimate of what would fit: {error}"
