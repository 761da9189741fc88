"""One run, from configuration to record: its directory locked, its stages in order, how it ended written down."""

import errno
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from memexp import build, data, sequence, stages
from memexp.backprop import StepError
from memexp.calling import CallableModule
from memexp.channels import ChannelError
from memexp.config import ConfigError, config_hash, run_name
from memexp.data import DataError
from memexp.edits import Edit
from memexp.fusing import ExportError, FusingError
from memexp.memory import advice
from memexp.memory.estimate import estimate
from memexp.memory.limit import hold
from memexp.memory.meter import macs_per_image
from memexp.optim import schedules
from memexp.options import name_of
from memexp.record import SCHEMA, RunDirectory, RunDirectoryError, write_json
from memexp.recorded import as_config
from memexp.stages import prune, study, tune
from memexp.stages.handed import Run, set_random_state
from memexp.training import board, checkpoint, distribution, recipe
from memexp.training.checkpoint import CheckpointError
from memexp.training.console import spoken
from memexp.training.distribution import ProcessLost, World
from memexp.training.loop import NotFinite
from memexp.training.precision import Precision
from memexp.training.signals import Interrupted, StopRequest
from memexp.units import parse_bytes

log = logging.getLogger("memexp")
# What a run may end with that its message explains in full; anything else is a fault and shows its traceback.
EXPLAINED: tuple[type[Exception], ...] = (
    ConfigError,
    StepError,
    DataError,
    CheckpointError,
    RunDirectoryError,
    NotFinite,
    Interrupted,
    ProcessLost,
)
EXPLAINED += (ChannelError, prune.PruneError, FusingError, ExportError)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a disk, whatever was being written
STATUS = {Interrupted: "interrupted", NotFinite: "nan", torch.OutOfMemoryError: "oom", MemoryError: "oom"}


def run(
    cfg: DictConfig | Mapping[str, Any],
    directory: str | Path | None = None,
    overrides: Sequence[str] = (),
    start: str | None = None,
    hydra: str | None = None,
    foreseen: bool = False,
) -> dict[str, Any]:
    """Carries out the stages of what `cfg` describes and returns results.json as a dictionary.

    cfg: what memexp.compose gives, or a dict. directory: the run directory; by default a new one below outputs/<name>. start:
    go on from this checkpoint of the directory ("last", or the key of a stage that is to be made longer); a new run where None.
    hydra: Hydra's own settings, as YAML. foreseen: the caller has asked memexp.stages.foresee already. Whatever ends the run
    early is recorded there first and then raised. Progress is printed line by line, in a notebook too, unless the caller has
    configured the logger "memexp".
    """
    cfg = as_config(cfg)
    directory = Path("outputs") / cfg.name / run_name(cfg) if directory is None else Path(directory)
    with spoken():
        return _ordered(cfg, directory, overrides, start, hydra, foreseen)


def _ordered(
    cfg: DictConfig, directory: Path, overrides: Sequence[str], start: str | None, hydra: str | None, foreseen: bool
) -> dict[str, Any]:
    """The part of the first process: every other one is told what to do."""
    world = World.from_environment()
    distribution.start(world)
    order = {
        "config": OmegaConf.to_container(
            OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), resolve=True
        ),
        "directory": str(directory.absolute()),
        "overrides": list(overrides),
        "start": start,
        "hydra": hydra,
        "foreseen": foreseen or start is not None,
    }
    distribution.share_text(json.dumps(order), world)
    return _carry_out(order, world)


sys.modules[__name__].__class__ = CallableModule  # memexp.run(cfg)


def join(world: World) -> dict[str, Any]:
    """The part of every process but the first: what to do comes from rank 0."""
    distribution.start(world)
    return _carry_out(json.loads(distribution.share_text("", world)), world)


def _carry_out(order: dict[str, Any], world: World) -> dict[str, Any]:
    """The run itself, on every process; the first one keeps the record."""
    cfg = OmegaConf.create(order["config"])
    directory = RunDirectory(Path(order["directory"]))
    started = time.perf_counter()
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        stack.callback(distribution.stop)
        if world.is_main:
            stack.enter_context(directory)
        results = _skeleton(cfg, order["overrides"])
        before, current = directory.results, None
        if order["start"] is not None:
            results["time"]["wall"] = ((before or {}).get("time") or {}).get("wall") or 0.0
            results["strategy"] = (before or {}).get("strategy") or {}
        elif world.is_main:
            _make_room(directory, before, cfg.overwrite, cfg.init_from)
        try:
            if order["start"] is None:
                _open_record(directory, world, cfg, results, order)
            log.info("run directory: %s", directory.path)
            keys = sequence.keys(cfg)
            log.info("stages: %s", " -> ".join(keys))
            if keys == ["study"]:
                study.carry_out(cfg, directory, results)
            else:
                current = distribution.together(
                    lambda: _prepared(cfg, directory, world, stop, results, order, keys), world
                )
                if order["start"] is not None:  # what is refused before this leaves the record as it was
                    _open_record(directory, world, cfg, results, order)
                _stages(current, keys)
            results["status"] = "done"
        except BaseException as raised:
            error = raised
            if distribution.lost(raised, world):
                error = ProcessLost(
                    f"another of the {world.size} processes of this run has ended or cannot be reached; its own messages say "
                    f"why. Start all of them again with `torchrun ... -m memexp resume {directory.path}`"
                )
            elif isinstance(raised, OSError) and raised.errno in FULL:
                error = RunDirectoryError(
                    f"{directory.path} cannot be written any more: {raised.strerror}. What its last checkpoint holds is kept: "
                    f"free space, then go on with `memexp resume {directory.path}`"
                )
            results["status"] = _status(error)
            results["error"] = str(error) or type(error).__name__
            if results["status"] == "oom" and world.is_main:
                told = _advice(cfg, None if current is None else current.edits)
                results["error"] += f"\n{told}"
                log.error("out of memory\n%s", told)
            if not isinstance(error, EXPLAINED):
                log.debug("%s", traceback.format_exc())
                error.add_note(f"the traceback is in {directory.path / 'train.log'}")
            if error is not raised:
                log.debug("%s", traceback.format_exc())
                raise error from raised
            raise
        finally:
            results["time"]["wall"] += time.perf_counter() - started
            if world.is_main and (order["start"] is None or current is not None):
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
    _check_schedules(prepared, keys)
    return prepared


def _open_record(
    directory: RunDirectory, world: World, cfg: DictConfig, results: dict[str, Any], order: dict[str, Any]
) -> None:
    """The record of a run that begins, or goes on; that of a finished one which is made longer is kept beside it."""
    if not world.is_main:
        return
    before = directory.results
    if before is not None and before.get("status") == "done" and order["start"] is not None:
        write_json(directory.path / "results.finished.json", before)
    directory.write_hydra(OmegaConf.to_yaml(cfg), order["overrides"], order["hydra"])
    directory.write_environment(config_hash=results["config_hash"], seed=cfg.seed, device=cfg.device)
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


def prepare(
    cfg: DictConfig,
    directory: RunDirectory,
    world: World,
    stop: StopRequest,
    results: dict[str, Any] | None = None,
    start: str | None = None,
    to_train: bool = True,
    as_trained: bool = False,
) -> Run:
    """Data and network of a run, ready for its first stage, or for the one that the checkpoint `start` stands in.

    to_train: whether training is to go on from it. as_trained: images are normalised as the network's training had them,
    whatever dataset.mean says; else only where it says nothing.
    """
    try:
        device = distribution.choose_device(cfg.device, world)
        Precision(cfg.precision.name, device).set_up()
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    _seed(cfg)
    if cfg.memory.snapshot and device.type != "cuda":
        raise ConfigError(
            [f"memory.snapshot: true needs CUDA, but the device is {device}; memory.timeline=true works on any device."]
        )
    if cfg.memory.enforce and to_train:  # a budget's limit is known once it is planned
        hold(None if cfg.memory.limit is None else parse_bytes(cfg.memory.limit), device)
    path, state = _standing(directory, start, to_train)
    deployed = state is None or state["training"] is None or not to_train
    network, behind = _network(cfg, path, state, deployed)
    learnt_from = build.teacher(cfg) if to_train else None
    settings = _normalised(cfg, behind, as_trained, None if learnt_from is None else learnt_from[1])
    splits = data.load(
        settings, batch_size=cfg.batch_size, seed=cfg.seed, device=device, rank=world.rank, world_size=world.size
    )
    for note in splits.notes:
        log.info("data: %s", note)
    log.info(
        "data: %s, %d training and %d test images, %d classes, %s",
        *(name_of(cfg.dataset), splits.train.images, splits.test.images, len(splits.classes)),
        "x".join(map(str, splits.shape)),
    )
    if state is not None and to_train:
        _same_data(state, splits, path)
    current = Run(
        cfg,
        world,
        device,
        directory,
        splits,
        stop,
        placed(network, cfg, device),
        _skeleton(cfg, ()) if results is None else results,
        list(behind["edits"]) if behind is not None else [],
    )
    if learnt_from is not None:
        current.teacher = placed(build.taught_by(cfg, *learnt_from, splits), cfg, device)
    if state is not None:
        current.source = path
        _go_on(current, state, to_train)
    elif start is not None and world.is_main:
        directory.clear()  # what was written down before the first checkpoint is written again
    return current


def _standing(directory: RunDirectory, start: str | None, to_train: bool) -> tuple[Path, dict[str, Any] | None]:
    """The checkpoint to start from, and what it holds; None where there is none to start from."""
    path = directory.checkpoints / f"{start}.pt"
    if start is None:
        return path, None
    if start == "last" and not any(other.name != "best.pt" for other in directory.checkpoints.glob("*.pt")):
        log.info("no checkpoint yet: starting from the beginning")
        return path, None
    return checkpoint.load_last(path, to_train) if start == "last" else (path, checkpoint.load(path))


def _network(
    cfg: DictConfig, path: Path, state: dict[str, Any] | None, deployed: bool
) -> tuple[torch.nn.Module, dict[str, Any] | None]:
    """The network of a run's beginning, of the run that it starts from, or of the checkpoint `state`; and what it was read of.

    It is built before the images are loaded, so that what does not fit their size is told at once.
    """
    if state is not None:
        return build.from_checkpoint(cfg, state, path, deployed), state
    if cfg.init_from is None:
        return build.network(cfg), None
    initial = build.start_of(cfg)
    if initial["training"] is not None:
        log.warning(
            "warning: init_from: %s stands in the middle of its stage %s; its weights are taken as training left them, not "
            "averaged",
            *(cfg.init_from, initial["stage"]),
        )
    # as this run's own configuration has it, so that its checkpoints are of what it says, and its strategy is its own
    return build.from_checkpoint(cfg, initial | {"classes": None}, Path(cfg.init_from)), initial


def _normalised(
    cfg: DictConfig, behind: dict[str, Any] | None, as_trained: bool, teacher: dict[str, Any] | None = None
) -> DictConfig:
    """The settings of the data set with the mean and std that a network was trained with, which the checkpoint `behind` has,
    or that of the teacher where the run begins anew.

    Measured ones are of the data at hand, and are others on each set of images.
    """
    own: DictConfig = cfg.dataset
    taught = behind is None and teacher is not None and own.mean is None
    behind = teacher if taught else behind
    if behind is None:
        return own
    then = ((behind["config"] or {}).get("dataset") or {}) if behind.get("mean") is None else behind
    trained: dict[str, Any] = {key: then.get(key) for key in ("mean", "std")}
    if not all(trained.values()):  # of a version that did not keep what it had measured
        return own
    if taught:
        log.info("data: normalised as distill.teacher=%s was trained", cfg.distill.teacher)
    if own.mean is None or as_trained:
        merged = OmegaConf.merge(own, trained)
        assert isinstance(merged, DictConfig)
        return merged
    if [list(own.mean), list(own.std)] != [list(values) for values in trained.values()]:
        log.warning(
            "warning: images are normalised by dataset.mean=%s, and init_from's network was trained with %s",
            *(list(own.mean), [round(value, 4) for value in trained["mean"]]),
        )
    return own


def _same_data(state: dict[str, Any], splits: data.Splits, path: Path) -> None:
    """Raises DataError where the run of a checkpoint was trained on other data than are read now."""
    if state["classes"] is None:  # schema 1 does not tell
        return
    if list(splits.classes) != state["classes"]:
        differing = [name for name in state["classes"] if name not in splits.classes] or ["their order"]
        raise DataError(
            f"{path} was trained on other classes than the data set has now ({', '.join(differing[:3])} differs); restore "
            "the folders, or start a new run with init_from"
        )
    if state.get("fingerprint") and splits.fingerprint != state["fingerprint"]:
        raise DataError(
            f"the data set is not the one that {path} was trained on: it was {state['fingerprint']}, and is "
            f"{splits.fingerprint}; restore it, or start a new run with init_from"
        )


def placed(network: torch.nn.Module, cfg: DictConfig, device: torch.device) -> torch.nn.Module:
    """The network on the device, in the memory layout of the configuration."""
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if cfg.channels_last else network


def _go_on(current: Run, state: dict[str, Any], to_train: bool) -> None:
    """Where the checkpoint `state` stands: a stage under way, or the end of one, which is begun again if it can be."""
    current.finished = list(state["stages"])
    current.key = state["stage"]
    done = bool(current.finished) and current.finished[-1]["key"] == current.key
    if done and (state["training"] is None or not to_train):
        current.trained = state["model"] if "deployed" in state else None
    else:
        current.unfinished = state["training"]
        if done:  # a stage that is made longer, by the plan that it had
            current.results["strategy"] = current.finished.pop().get("strategy", current.results["strategy"])
    for figures in current.finished:
        current.steps_before += int(figures.get("steps") or 0)
        current.epochs_before += float(figures.get("epochs") or 0.0)
    if state["random"] is not None:
        set_random_state(state["random"], current.world, current.device)
    if current.world.is_main:
        steps = ((state["training"] or {}).get("progress") or {}).get("step") or 0
        current.directory.rewind(state["appended"], current.steps_before + steps)


def _check_schedules(current: Run, keys: Sequence[str]) -> None:
    """Raises ConfigError for a schedule that does not fit the steps of a stage, which are known once the data are there."""
    problems = []
    for name in dict.fromkeys(map(sequence.stage_of, keys)):
        if (own := sequence.recipe_of(name)) is None:
            continue
        cfg = tune.recipe(current.cfg) if own == "tune" else current.cfg
        steps = recipe.settings_of(cfg).total_steps(len(current.splits.train))
        try:
            schedules.factor(cfg.schedule, 0, steps)
            schedules.factor(cfg.schedule, steps - 1, steps)
        except ValueError as error:
            problems.append(str(error) if name == "train" else f"{name}: {error}")
    if problems:
        raise ConfigError(problems)


def _stages(current: Run, keys: Sequence[str]) -> None:
    """Carries out what is left of the stages `keys`; each adds its own figures to the results."""
    results, cfg = current.results, current.cfg
    results["stages"] = current.finished
    results["classes"], results["fingerprint"] = list(current.splits.classes), current.splits.fingerprint
    results["mean"], results["std"] = current.splits.mean, current.splits.std
    results["numbers"] = Precision(cfg.precision.name, current.device).record()
    _describe(current)
    if current.world.is_main:
        results["memory"] = {"estimate": _estimate(current)}
    described = estimated = len(current.edits)
    if _remember(current):
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
            results["memory"] = {"estimate": _estimate(current)}  # of the network that is trained now
            estimated = len(current.edits)
        before = time.perf_counter()
        stages.carry_out(current)
        results["time"]["stages"].setdefault(key, time.perf_counter() - before)
        if len(current.edits) > described:
            _describe(current)
            described = len(current.edits)
        if current.world.is_main:
            current.directory.write_results(results)
    if current.finished:
        results["before"] = current.finished[0]
        results["accuracy"] = current.finished[-1].get("accuracy") or results["accuracy"]


def _steps(training: dict[str, Any] | None) -> int:
    return int(training["progress"]["step"]) if training is not None else 0


def _remember(current: Run) -> bool:
    """What the stages before a resumed one have measured, into the results of the whole; whether one of them has trained."""
    results = current.results
    results["steps"], results["epochs"] = current.steps_before, current.epochs_before
    for figures in current.finished:
        results["time"]["stages"][figures["key"]] = figures.get("seconds")
        if "memory" in figures:  # of the last stage that has trained, as in a run that was never stopped
            results["memory"] = dict(figures["memory"])
            results["time"] |= figures["time"]
    return any("memory" in figures for figures in current.finished)


def _describe(current: Run) -> None:
    """What is known of the network as it stands."""
    results = current.results
    results["parameters"] = current.parameters
    results["macs"] = macs_per_image(current.network, current.splits.shape)
    log.info(
        "model: %s, %s parameters, backprop %s", results["model"], f"{results['parameters']:,}", results["backprop"]
    )


def _estimate(current: Run) -> int | None:
    """Bytes at the peak of a training step, traced without data; None for a network that cannot be traced.

    Takes 0.3 s (RevNet-38) to 1.6 s (RevNet-164) on a CPU core.
    """
    if current.cfg.backprop.name == "budget":
        return None  # its plan is an estimate already, made with times that are measured
    try:
        accumulate = min(current.cfg.accumulate, len(current.splits.train))  # as each step takes
        return int(estimate(OmegaConf.merge(current.cfg, {"accumulate": accumulate}), current.edits)["peak"])  # type: ignore[arg-type]
    except Exception as error:  # a user's own network may do anything; the run does not depend on its estimate
        log.warning("memory: no estimate, as the network cannot be traced without data: %s", error)
        return None


def _skeleton(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """results.json before anything has been measured: every field is there, whatever happens next."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "error": None,
        "name": cfg.name,
        "experiment": cfg.case.id if cfg.case else None,
        "scale": cfg.scale if cfg.case else None,
        "config_hash": config_hash(cfg),
        "seed": cfg.seed,
        "overrides": list(overrides),
        "config": OmegaConf.to_container(cfg, resolve=True),
        **{group: name_of(cfg[group]) for group in ("model", "dataset", "backprop", "optimizer", "precision")},
        **{group: name_of(cfg[group]) if cfg[group] is not None else None for group in ("prune", "deploy")},
        "parameters": None,
        "macs": None,
        "steps": 0,
        "epochs": 0.0,
        "batch_size": cfg.batch_size,
        "accuracy": None,
        "before": None,
        "stages": [],
        "memory": None,
        "time": {"wall": 0.0, "step_median": None, "steps_measured": 0, "images_per_second": None, "stages": {}},
        "strategy": {},
        "study": None,
    }


def _advice(cfg: DictConfig, edits: Sequence[Edit] | None) -> str:
    """What a run that ran out of memory is told, below its error. edits: of its network, None before there was one."""
    try:
        edits = build.start_edits(cfg) if edits is None else edits
        return advice.after_out_of_memory(cfg, distribution.choose_device(cfg.device, World.from_environment()), edits)
    except Exception as error:  # what happened matters more than what to do about it
        return f"no estimate of what would fit: {error}"


def _status(error: BaseException) -> str:
    for kind, status in STATUS.items():
        if isinstance(error, kind):
            return status
    # the CPU's allocators have no exception type of their own
    words = ("can't allocate memory", "bad_alloc", "Cannot allocate memory")
    told = isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
    return "oom" if told else "failed"


def _seed(cfg: DictConfig) -> None:
    torch.manual_seed(cfg.seed)
    if cfg.deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS is deterministic only with a fixed workspace
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(cfg.deterministic)
