"""Training: the loop over the network as it stands, with its figures, its plan of memory and its pictures."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from memexp import build
from memexp.backprop.compiled import check_compiler, compiled
from memexp.config import ConfigError
from memexp.memory import planned
from memexp.memory.limit import check_holdable, hold_to_budget
from memexp.memory.meter import Meter, storage_bytes
from memexp.memory.snapshot import Snapshots
from memexp.models import families
from memexp.models.vanishing import VanishingReLU, returning, vanishing
from memexp.pruning import Masks
from memexp.stages.handed import Run
from memexp.training import distribution, recipe, synced, utilisation
from memexp.training.distribution import World
from memexp.training.graphed import Graphed, check_recordable
from memexp.training.loop import Trainer
from memexp.training.monitor import strategy_monitor
from memexp.training.precision import Precision
from memexp.training.profile import Trace
from memexp.units import shown_bytes

log = logging.getLogger("memexp")


def foresee(cfg: DictConfig) -> None:
    """Raises ConfigError for a device that is not there, and for what it cannot do: TF32, compiled or recorded steps, a limit
    that is held, snapshots.
    """
    world = World.from_environment()
    try:
        device = distribution.choose_device(cfg.device, world)
        Precision(cfg.precision.name, device).check()
        if cfg.compile:
            check_compiler(device.type)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if cfg.cuda_graph:
        check_recordable(device, world.size)
    if cfg.memory.enforce:
        check_holdable(device)
    if cfg.memory.snapshot and device.type != "cuda":
        raise ConfigError(
            [f"memory.snapshot: true needs CUDA, but the device is {device}; memory.timeline=true works on any device."]
        )


def carry_out(run: Run, cfg: DictConfig | None = None) -> dict[str, Any]:
    """Trains the run's network by `cfg`, the run's own configuration unless given; leaves it with the weights to deploy."""
    cfg = run.cfg if cfg is None else cfg
    text = families.caution(cfg.model, cfg.backprop.name)
    if text is not None:
        log.warning("warning: %s", text)
    run.trained = None
    if run.world.size == 1 or not cfg.sync_batchnorm:
        build.check_batch(run.network, run.splits.shape, run.batch_size)
    trainer = trainer_for(run, cfg)
    run.meter = _meter(run, cfg, trainer.recipe)
    if cfg.cuda_graph:
        trainer.recipe.graphed = Graphed(run.network, run.meter.tracked_steps)
    if cfg.backprop.name == "budget":
        run.results["strategy"] = _plan(run, cfg, trainer)
        if run.world.is_main:  # a run that is killed goes on with the same plan
            run.directory.write_results(run.results)
    if cfg is run.cfg or cfg.tune.scratch:  # tuning leaves them as they are, but for new weights
        trainer.recipe.course = _course(run)
        if run.edits and run.edits[-1]["kind"] == "partition":
            log.warning(
                "warning: the nodes alone are trained: since the stage partition this network's weights are fixed"
            )
    if any(edit["kind"] == "mask" for edit in run.edits):
        Masks.of(run.network).hold(trainer.recipe.optimizer)  # what has been set to zero stays there
    if run.unfinished is not None:
        trainer.load(run.unfinished, run.source or run.last)
        if not run.has_best():  # a later stage, or a damaged disk, has taken its place since
            trainer.progress.best = -math.inf
        # the steps that the tracker follows are not compiled, and round otherwise
        run.meter.go_on(trainer.progress.step if cfg.compile else 0, trainer.progress.memory)
        log.info("going on from step %d of %d", trainer.progress.step, trainer.total_steps)
    if run.board is not None and run.steps_before + trainer.progress.step == 0:
        images, labels = next(iter(run.splits.train.epoch(0)))
        run.board.sample_batch(images, labels, run.splits.classes)
    if cfg.report.tsne:
        trainer.picture = _tsne(run, trainer, cfg.report.tsne_epochs, cfg.seed)
    if cfg.profile.steps:
        path = run.directory.path / f"{run.key}-{run.world.rank}.pt.trace.json"
        trainer.trace = Trace(path, run.meter.tracked_steps, cfg.profile.steps, run.device)
    try:
        with compiled(run.network) if cfg.compile else nullcontext() as trainer.times.compilation:
            watched = trainer.train()
    finally:
        run.meter.close()
        _measure(run, trainer)
        if trainer.trace is not None:
            trainer.trace.close()
    if trainer.trace is not None and not trainer.trace.followed:
        log.warning(
            "warning: profile.steps: no trace, as the stage %s took no step after the first %d, which memory.steps follows",
            run.key,
            run.meter.tracked_steps,
        )
    alone = run.world.size == 1 and not families.of(cfg.model).integral
    if told := utilisation.advice(run.results["time"].get("utilisation"), alone and not cfg.cuda_graph):
        log.info("%s", told)
    if cfg.memory.timeline:
        _timeline(run)
    training = trainer.recipe.state() | {"progress": vars(trainer.progress).copy()}
    if trainer.recipe.averages or trainer.precise:
        run.trained = {key: value.clone() for key, value in run.network.state_dict().items()}
        with trainer.deployed(run.stop) as model:
            weights = {key: value.clone() for key, value in model.state_dict().items()}
        run.network.load_state_dict(weights)
    synced.restore(run.network)
    run.evaluation = trainer.watched_name, watched
    figures = {
        "accuracy": {**watched.as_dict(), "split": trainer.watched_name, "images": watched.images},
        "seconds": trainer.progress.seconds,
        "steps": trainer.progress.step,
        "epochs": trainer.epochs,
        "precise_batchnorm": trainer.precise,
        "memory": dict(run.results["memory"]),
        "time": {key: found for key, found in run.results["time"].items() if key in (*trainer.timing(), "utilisation")},
        "strategy": dict(run.results["strategy"]),
        "effective_batch_size": run.results["effective_batch_size"],
    }
    run.finish(figures, training)
    return figures


def _course(run: Run) -> Callable[[int, int], float] | None:
    """lambda of vanishing activations over this training; those that a deployed network has grown rise from 0 first."""
    if not any(isinstance(module, VanishingReLU) for module in run.network.modules()):
        return None
    return returning if any(edit["kind"] == "grow" for edit in run.edits) else vanishing


def trainer_for(run: Run, cfg: DictConfig, total: int | None = None) -> Trainer:
    """A trainer of the run's network by `cfg`, at its beginning. Raises ConfigError for what does not fit the network.

    total: its steps, where they are not those that `cfg` makes of the images at hand.
    """
    try:
        model = distribution.distribute(run.network, run.world, run.device, cfg.sync_batchnorm)
        made = recipe.make(cfg, run.network, run.device, len(run.splits.classes))
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    made.teacher = run.teacher
    if cfg.accumulate > (batches := len(run.splits.train)):
        log.warning(
            "warning: accumulate=%d, but an epoch has %d batches: each step takes the %d that there are",
            *(cfg.accumulate, batches, batches),
        )
    accumulated, whole = min(cfg.accumulate, batches), run.batch_size * run.world.size
    run.results["effective_batch_size"] = whole * accumulated
    log.info(
        "effective batch size: %d images per forward x %d accumulated x %d processes = %d; lr as given: %g",
        *(run.batch_size, accumulated, run.world.size, whole * accumulated, cfg.optimizer.lr),
    )
    if left := (images := run.splits.train.images) - whole * accumulated * (batches // accumulated):
        log.info(
            "data: each epoch leaves out %d of the %d training images, others each time: they fill no step",
            left,
            images,
        )
    monitor = strategy_monitor(run.network, made.loss_fn, made.precision, cfg.monitor_gradient)
    return Trainer(run, made, model, monitor, total)


def _beside(run: Run, made: recipe.Recipe) -> list[Tensor]:
    """What stays on the device beside the training step: the data set, the teacher, averaged weights."""
    networks = [network for network in (made.teacher, made.average) if network is not None]
    return [*run.splits.held, *(tensor for network in networks for tensor in network.state_dict().values())]


def _meter(run: Run, cfg: DictConfig, made: recipe.Recipe) -> Meter:
    """Each stage measures its own memory."""
    snapshots = None
    if cfg.memory.snapshot:
        snapshots = Snapshots(run.device, run.directory.path, cfg.memory.steps, _of_stage(run.key))
    return Meter.for_device(run.device, cfg.memory.steps, cfg.memory.timeline, snapshots, _beside(run, made))


def _measure(run: Run, trainer: Trainer) -> None:
    """What the stage has measured so far, into the results."""
    results = run.results
    results["steps"] = run.steps_before + trainer.progress.step
    results["epochs"] = run.epochs_before + trainer.epochs
    memory = run.meter.results()
    strategy = results["strategy"]
    estimate = (strategy.get("predicted") or {}).get("peak") or (results["memory"] or {}).get("estimate")
    own = memory["peak"] - (0 if run.device.type == "cpu" else memory["data"])  # an estimate is without the data set
    ratio = estimate / own if estimate is not None and own else None
    results["memory"] = memory | {"estimate": estimate, "estimate_ratio": ratio}
    results["time"] |= trainer.timing()
    name, images = (results.get("numbers") or {}).get("gpu"), results["time"]["images_per_second"]
    if name and images and results["macs"]:
        attainable = utilisation.peak(name, run.cfg.precision.name)
        per_device = images / run.world.size
        results["time"]["utilisation"] = utilisation.utilisation(results["macs"], per_device, attainable)
    results["time"]["stages"][run.key] = trainer.progress.seconds
    strategy |= trainer.progress.strategy
    if "predicted" in strategy:
        _compare(strategy, own, results["time"]["step_median"])


def _compare(strategy: dict[str, Any], peak: int, seconds: float | None) -> None:
    """What was measured of a budget's plan beside what was predicted, in bytes and ms; a peak above the budget is a warning."""
    strategy["measured"] = {"peak": peak, "step_ms": None if seconds is None else 1e3 * seconds}
    strategy["warning"] = None
    if peak > (budget := strategy["budget"]):
        least = strategy["least_peak"]
        why = (
            f", below which this run cannot go: the least that it takes is {shown_bytes(least)}"
            if least > budget
            else ""
        )
        strategy["warning"] = f"the peak, {shown_bytes(peak)}, is above the budget of {shown_bytes(budget)}{why}"
        log.warning("warning: %s", strategy["warning"])


def _plan(run: Run, cfg: DictConfig, trainer: Trainer) -> dict[str, Any]:
    """Sets the run up for its memory budget; all processes follow the choice of the first.

    A run that is resumed in this stage, or makes it longer, keeps its plan.
    """
    batch = next(iter(run.splits.train.epoch(0)))
    strategy = run.results["strategy"] if run.results["strategy"].get("stage") == run.key else {}
    with run.meter.aside():
        made, taken = trainer.recipe, run.taken(cfg)
        beside = 0 if run.device.type == "cpu" else storage_bytes(_beside(run, made))
        found = planned.set_up(taken, run.network, made.loss_fn, batch, made.precision, strategy, run.edits, beside)
    shared = distribution.agreed(found | {"stage": run.key}, run.world)
    planned.follow(run.network, shared)
    hold_to_budget(cfg, shared, beside, run.device)
    return shared


def _of_stage(key: str) -> str:
    """What the names of a stage's pictures begin with, so that tuning does not draw over those of training."""
    return "" if key == "train" else f"{key}-"


def _tsne(run: Run, trainer: Trainer, epochs: Sequence[int] | None, seed: int) -> Callable[[int, bool], None]:
    """Draws the features after the chosen epochs, or the last, as plots/tsne-EPOCH.png (of tuning, tune-tsne-EPOCH.png) and in
    TensorBoard.
    """
    from memexp.report import collect, files, tsne  # scikit-learn and matplotlib take their time to import

    try:
        tsne.last_linear(run.network)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    ends = math.ceil(trainer.total_steps / trainer.steps_per_epoch)
    if late := [epoch for epoch in epochs or () if epoch > ends]:
        log.warning(
            "warning: report.tsne_epochs: the stage %s ends with epoch %d, and nothing is drawn after %s",
            *(run.key, ends, ", ".join(map(str, late))),
        )

    def picture(epoch: int, last: bool) -> None:
        if epoch not in epochs if epochs is not None else not last:
            return
        # of all processes, as they may estimate its statistics together; not to be stopped, as the evaluation that came
        # before would be done again, or after the last one the picture not at all
        with run.meter.aside(), trainer.deployed() as model, trainer.precision.autocast():
            if not run.world.is_main:
                return
            points, labels = tsne.features(model, run.splits.test)
        shown = collect.Run(run.directory.path, run.results)
        figure = tsne.draw(points, labels, run.splits.classes, shown, seed)
        file = files.save(figure, run.directory.plots, f"{_of_stage(run.key)}tsne-{epoch}")
        if run.board is not None:
            run.board.figure("t-SNE of test images", run.steps_before + trainer.progress.step, file)

    return picture


def _timeline(run: Run) -> None:
    """Draws live memory over the last tracked training step, as plots/timeline.png (of tuning, tune-timeline.png) and in
    TensorBoard.
    """
    from memexp.report import collect, files, timeline  # matplotlib takes its time to import

    if run.meter.tracked is None:
        log.warning("memory.timeline: no training step was left to follow; resumed runs follow their own first ones")
        return
    figure = timeline.draw(run.meter.tracked, collect.Run(run.directory.path, run.results))
    path = files.save(figure, run.directory.plots, f"{_of_stage(run.key)}timeline")
    log.info("memory over a training step: %s", path)
    if run.board is not None:
        run.board.figure("memory over a training step", run.steps_before, path)
