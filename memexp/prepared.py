"""A run made ready: its device, data and network, as its stages begin or as a checkpoint has left them."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from memexp import build, data, sequence
from memexp.choices import name_of
from memexp.config import ConfigError
from memexp.data import DataError
from memexp.data.batches import mix_seed
from memexp.memory.limit import hold
from memexp.memory.snapshot import listen
from memexp.modes import evaluating
from memexp.optim import schedules
from memexp.overriding import quoted
from memexp.record import RunDirectory
from memexp.results import skeleton
from memexp.stages import train, tune
from memexp.stages.handed import Run, placed, set_random_state
from memexp.training import checkpoint, distribution, recipe
from memexp.training.distribution import World
from memexp.training.precision import Precision
from memexp.training.signals import StopRequest
from memexp.units import parse_bytes

log = logging.getLogger("memexp")


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
    if to_train:
        train.foresee(cfg)
        listen(device)
    seed(cfg)
    if cfg.memory.enforce and to_train:  # a budget's limit is known once it is planned
        hold(None if cfg.memory.limit is None else parse_bytes(cfg.memory.limit), device)
    path, state = _standing(directory, start, to_train)
    if state is not None and to_train:
        keep_batch(cfg, state, path, world)
    deployed = state is None or state["training"] is None or not to_train
    network, behind = _network(cfg, path, state, deployed)
    if world.rank:  # once all have the same weights: dropout and mixing are drawn for each image anew
        torch.manual_seed(mix_seed(cfg.seed, world.rank))
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
    elif state is None and behind is not None:
        _same_order(cfg.init_from, behind["classes"], splits.classes)
    current = Run(
        cfg,
        world,
        device,
        directory,
        splits,
        stop,
        placed(network, cfg, device),
        skeleton(cfg, ()) if results is None else results,
        list(behind["edits"]) if behind is not None else [],
    )
    if behind is not None:
        _takes(current, behind)
    if learnt_from is not None:
        current.teacher_number = build.number_of_teacher(cfg, learnt_from[0], None if state is None else (path, state))
        current.teacher = placed(build.taught_by(cfg, *learnt_from, splits), cfg, device)
    if state is not None:
        current.source, current.known = path, state["classes"]
        _go_on(current, state, to_train)
    elif start is not None and world.is_main:
        directory.clear()  # what was written down before the first checkpoint is written again
    return current


def _standing(directory: RunDirectory, start: str | None, to_train: bool) -> tuple[Path, dict[str, Any] | None]:
    """The checkpoint to start from, and what it holds; None where training has none to start from, and begins."""
    path = directory.checkpoints / f"{start}.pt"
    if start is None:
        return path, None
    if (
        start == "last"
        and to_train
        and not any(other.name != "best.pt" for other in directory.checkpoints.glob("*.pt"))
    ):
        log.info("no checkpoint in %s: starting from the beginning", directory.checkpoints)
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


def _same_order(start: str, then: Sequence[str] | None, now: Sequence[str]) -> None:
    """Raises ConfigError where the run that this one starts from knows the same classes in another order; warns of others."""
    if then is None or list(then) == list(now):
        return
    if sorted(then) == sorted(now):
        told = ",".join(map(quoted, then))
        raise ConfigError([f"init_from: {start} knows these classes in another order; give dataset.classes=[{told}]."])
    pairs = [f"{a} -> {b}" for a, b in zip(then, now, strict=True) if a != b]
    log.warning("warning: init_from: the scores of %s are taken for other classes: %s", start, ", ".join(pairs[:5]))


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


def keep_batch(cfg: DictConfig, state: dict[str, Any], path: Path, world: World) -> None:
    """Shares the images of an optimizer step among as many processes as there are now: with others, steps, schedule and place
    in the epoch would not be those of the run. What a process sees at once stays if it can, and accumulate makes up for it.

    Raises ConfigError where they cannot be shared evenly.
    """
    then, processes = state["config"] or cfg, len(state["random"] or [None])
    images = then["batch_size"] * then["accumulate"] * processes
    if images % (cfg.batch_size * world.size) == 0:
        cfg.accumulate = images // (cfg.batch_size * world.size)
    elif images % (cfg.accumulate * world.size) == 0:
        cfg.batch_size = images // (cfg.accumulate * world.size)
    else:
        raise ConfigError(
            [
                f"{path} is of {processes} processes with {images} images in a step, which {world.size} cannot share evenly; "
                f"go on with {processes}, or with another number that {images} can be divided by."
            ]
        )
    if processes != world.size:
        log.info(
            "processes: %d now, %d before; a step is of the same %d images, in each %d per forward x %d accumulated",
            *(world.size, processes, images, cfg.batch_size, cfg.accumulate),
        )


def _takes(current: Run, then: dict[str, Any]) -> None:
    """Raises ConfigError where images are of another size than those of the checkpoint `then`, and do not fit the network."""
    shape = then.get("shape")
    if shape is None or tuple(shape) == current.splits.shape:
        return
    try:
        with evaluating(current.network), torch.no_grad():
            current.network(torch.zeros(1, *current.splits.shape, device=current.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        given, seen = ("x".join(map(str, size)) for size in (current.splits.shape, shape))
        raise ConfigError(
            [f"dataset.image_size: images are {given}, and the network takes none but those of its training, {seen}"]
        ) from error


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


def check_schedules(current: Run, keys: Sequence[str]) -> None:
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


def seed(cfg: DictConfig) -> None:
    """Seeds this process, and sets it to deterministic kernels alone or not, as `cfg` asks."""
    torch.manual_seed(cfg.seed)
    if cfg.deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS is deterministic only with a fixed workspace
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(cfg.deterministic)
