"""One run, from configuration to record: data + model + optimizer -> train -> evaluate -> results.json."""

import functools
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from memexp import data, models, optim, studies
from memexp.backprop import Chain, StepError
from memexp.config import ConfigError, config_hash, validate
from memexp.data import DataError
from memexp.memory.meter import Meter, macs_per_image
from memexp.memory.snapshot import Snapshots
from memexp.models.warm_start import warm_start
from memexp.optim import schedules
from memexp.record import SCHEMA, RunDirectory, RunDirectoryError, read_json
from memexp.training import checkpoint, distribution
from memexp.training.checkpoint import CheckpointError
from memexp.training.distribution import World
from memexp.training.loop import NotFinite, Settings, Trainer
from memexp.training.monitor import strategy_monitor
from memexp.training.precision import Precision
from memexp.training.signals import Interrupted, StopRequest

log = logging.getLogger("memexp")
# What a run may end with that its message explains in full; anything else is a fault and shows its traceback.
EXPLAINED = (ConfigError, StepError, DataError, CheckpointError, RunDirectoryError, NotFinite, Interrupted)
STATUS = {Interrupted: "interrupted", NotFinite: "nan", torch.OutOfMemoryError: "oom", MemoryError: "oom"}


def run(
    cfg: DictConfig, directory: Path | None = None, overrides: Sequence[str] = (), go_on: bool = False
) -> dict[str, Any]:
    """Trains and evaluates what `cfg` describes and returns results.json as a dictionary.

    directory: the run directory; by default a new one below outputs/<name>. go_on: continue from its last checkpoint.
    Whatever ends the run early is recorded there first and then raised.
    """
    validate(cfg)
    world = World.from_environment()
    distribution.start(world)
    if directory is None:
        directory = Path("outputs") / cfg.name / run_name(cfg)
    order = {
        "config": OmegaConf.to_container(
            OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), resolve=True
        ),
        "directory": str(directory.absolute()),
        "overrides": list(overrides),
        "go_on": go_on,
    }
    distribution.share_text(json.dumps(order), world)
    return _carry_out(order, world)


def join(world: World) -> dict[str, Any]:
    """The part of every process but the first: what to do comes from rank 0."""
    distribution.start(world)
    return _carry_out(json.loads(distribution.share_text("", world)), world)


def run_name(cfg: DictConfig) -> str:
    """<time>-<hash>: the directory of a single run."""
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{config_hash(cfg)}"


def build_model(cfg: DictConfig, classes: int | None = None, shape: tuple[int, int, int] | None = None) -> nn.Module:
    """The network of a configuration; classes and input shape are the data set's unless given."""
    if classes is None or shape is None:
        classes, shape = data.describe(cfg.dataset)
    options = {key: value for key, value in cfg.backprop.items() if key not in ("name", "limit")}
    chain = functools.partial(Chain, backprop=cfg.backprop.name, **options)
    resolved = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(resolved, dict)
    settings = {str(key): value for key, value in resolved.items()}
    trained = settings.pop("init_from", None)
    try:
        network = models.create(classes=classes, shape=shape, chain=chain, **settings)
        if trained is not None:
            warm_start(network, _trained(Path(trained), classes, shape))
    except ValueError as error:
        raise ConfigError([f"model: {error}"]) from error
    return network


def _trained(run: Path, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network of a run at its last checkpoint. Raises ValueError where there is none."""
    results = read_json(run / "results.json")
    if results is None or "config" not in results:
        raise ValueError(f"init_from: {run} is no run directory (it has no results.json)")
    network = build_model(OmegaConf.create(results["config"]), classes, shape)
    path = run / "checkpoints" / "last.pt"
    try:
        checkpoint.load_weights(network, checkpoint.load(path)["model"], path)
    except CheckpointError as error:
        raise ValueError(f"init_from: {error}") from error
    return network


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
        before = directory.results
        if order["go_on"]:
            results["time"]["wall"] = ((before or {}).get("time") or {}).get("wall") or 0.0
            results["strategy"] = (before or {}).get("strategy") or {}
        elif before is not None and before.get("status") == "done" and world.is_main:
            raise RunDirectoryError(f"{directory.path} already holds a finished run; choose another directory.")
        elif world.is_main:
            directory.clear()
        trainer: Trainer | None = None
        try:
            if world.is_main:
                directory.write_environment(config_hash=results["config_hash"], seed=cfg.seed, device=cfg.device)
                directory.write_results(results)
            log.info("run directory: %s", directory.path)
            if cfg.case and cfg.case.get("study"):
                results["study"] = studies.carry_out(cfg, directory.path)
                results["parameters"] = results["study"].get("parameters")
            else:
                trainer = prepare(cfg, directory, world, stop)
                if cfg.backprop.name == "budget":
                    results["strategy"] = _plan(cfg, trainer, before if order["go_on"] else None)
                    if world.is_main:  # a run that is killed goes on with the same plan
                        directory.write_results(results)
                stack.callback(trainer.close)
                _describe(results, cfg, trainer)
                _train(results, cfg, trainer, order["go_on"])
            results["status"] = "done"
        except BaseException as error:
            results["status"] = _status(error)
            results["error"] = str(error) or type(error).__name__
            if results["status"] == "oom" and world.is_main:
                advice = _advice(cfg)
                results["error"] += f"\n{advice}"
                log.error("out of memory\n%s", advice)
            if not isinstance(error, EXPLAINED):
                log.debug("%s", traceback.format_exc())
            raise
        finally:
            results["time"]["wall"] += time.perf_counter() - started
            if trainer is not None:
                _measure(results, trainer)
            if world.is_main:
                directory.write_results(results)
    return results


def prepare(cfg: DictConfig, directory: RunDirectory, world: World, stop: StopRequest) -> Trainer:
    """Data, model and optimizer of a run, ready to train."""
    try:
        device = distribution.choose_device(cfg.device, world)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    _seed(cfg)
    splits = data.load(
        cfg.dataset,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        device=device,
        rank=world.rank,
        world_size=world.size,
    )
    for note in splits.notes:
        log.info("data: %s", note)
    log.info(
        "data: %s, %d training and %d test images, %d classes, %s",
        cfg.dataset.name,
        splits.train.images,
        splits.test.images,
        len(splits.classes),
        "x".join(map(str, splits.shape)),
    )
    network = build_model(cfg, len(splits.classes), splits.shape).to(device)
    if cfg.channels_last:
        network = network.to(memory_format=torch.channels_last)
    try:
        model = distribution.distribute(network, world, device, cfg.sync_batchnorm)
        optimizer = optim.build(cfg.optimizer, network)
        factor = functools.partial(schedules.factor, cfg.schedule)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if cfg.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    precision = Precision(cfg.precision.name, device)
    loss_fn = functools.partial(functional.cross_entropy, label_smoothing=cfg.label_smoothing)
    if cfg.backprop.name == "adjoint" and cfg.model.get("kind") == "preactivation":
        log.warning(
            "warning: backprop=adjoint on a ResNet whose steps have scale 1 is the paper's failure case: reconstruction and "
            "gradient are wrong by as much as they are large; use model.kind=simple or ode, model=heunnet, or backprop.refine"
        )
    if cfg.memory.snapshot and device.type != "cuda":
        raise ConfigError(
            [f"memory.snapshot: true needs CUDA, but the device is {device}; memory.timeline=true works on any device."]
        )
    snapshots = (
        Snapshots(device, directory.path, cfg.memory.steps if cfg.memory.snapshot else 0)
        if device.type == "cuda"
        else None
    )
    meter = Meter.for_device(device, cfg.memory.steps, cfg.memory.timeline, snapshots)
    settings = Settings(**{key: cfg[key] for key in Settings.__annotations__})
    log.info(
        "effective batch size: %d images per forward x %d accumulated x %d processes = %d; lr as given: %g",
        *(cfg.batch_size, cfg.accumulate, world.size),
        cfg.batch_size * cfg.accumulate * world.size,
        cfg.optimizer.lr,
    )
    return Trainer(
        settings,
        network,
        model,
        optimizer,
        factor,
        loss_fn,
        splits,
        precision,
        world,
        meter,
        directory,
        stop,
        config_hash(cfg),
        mix=_mix(cfg, len(splits.classes)),
        monitor=strategy_monitor(network, loss_fn, precision, cfg.monitor_gradient),
    )


def _train(results: dict[str, Any], cfg: DictConfig, trainer: Trainer, go_on: bool) -> None:
    """The stages of the run; each adds its own figures to the results."""
    last = trainer.directory.checkpoints / "last.pt"
    if go_on and last.exists():
        trainer.load(last)
        log.info("going on from step %d of %d", trainer.progress.step, trainer.total_steps)
        if trainer.world.is_main:
            trainer.directory.rewind_metrics(trainer.progress.step)
    elif go_on:
        log.info("no checkpoint yet: starting from the beginning")
    trainer.open_board()
    if trainer.board is not None:
        images, labels = next(iter(trainer.splits.train.epoch(0)))
        trainer.board.sample_batch(images, labels, trainer.splits.classes)
    if cfg.report.tsne:
        trainer.picture = _tsne(trainer, cfg.report.tsne_epochs, cfg.seed)
    watched = trainer.train()
    if cfg.memory.timeline:
        _timeline(trainer)
    results["stages"]["train"] = {
        **watched.as_dict(),
        "split": trainer.watched_name,
        "seconds": trainer.progress.seconds,
    }
    results["time"]["stages"]["train"] = trainer.progress.seconds
    started = time.perf_counter()
    final = watched
    if trainer.watched is not trainer.splits.test:
        final = trainer.evaluate(trainer.splits.test)
    results["time"]["stages"]["evaluate"] = time.perf_counter() - started
    results["accuracy"] = {**final.as_dict(), "split": "test", "images": final.images}
    if trainer.board is not None:
        settings = {"seed": cfg.seed, "batch_size": cfg.batch_size, "epochs": cfg.epochs, "lr": cfg.optimizer.lr}
        settings |= {group: results[group] for group in ("model", "dataset", "backprop", "optimizer", "precision")}
        settings |= {f"model.{key}": value for key, value in cfg.model.items() if key in ("depth", "kind")}
        trainer.board.hyper_parameters(settings, {"hparam/top1": final.top1, "hparam/loss": final.loss})


def _tsne(trainer: Trainer, epochs: Sequence[int] | None, seed: int) -> Callable[[int, bool], None]:
    """Draws the features after the chosen epochs, or the last, as plots/tsne-EPOCH.png and in TensorBoard."""
    from memexp.report import tsne  # scikit-learn and matplotlib take their time to import

    def picture(epoch: int, last: bool) -> None:
        if epoch not in epochs if epochs is not None else not last:
            return
        with trainer.meter.aside(), trainer.evaluated_weights() as model, trainer.precision.autocast():
            points, labels = tsne.features(model, trainer.splits.test)
        figure = tsne.draw(points, labels, trainer.splits.classes, seed)
        plots = trainer.directory.path / "plots"
        plots.mkdir(exist_ok=True)
        figure.savefig(plots / f"tsne-{epoch}.png", dpi=150)
        if trainer.board is not None:
            trainer.board.figure("t-SNE of test images", trainer.progress.step, figure)

    return picture


def _timeline(trainer: Trainer) -> None:
    """Draws live memory over the last tracked training step, as plots/timeline.png and in TensorBoard."""
    from memexp.report import timeline  # matplotlib takes its time to import

    if trainer.meter.tracked is None:
        log.warning("memory.timeline: no training step was left to follow; resumed runs follow their own first ones")
        return
    figure = timeline.draw(trainer.meter.tracked)
    plots = trainer.directory.path / "plots"
    plots.mkdir(exist_ok=True)
    figure.savefig(plots / "timeline.png", dpi=150)
    log.info("memory over a training step: %s", plots / "timeline.png")
    if trainer.board is not None:
        trainer.board.figure("memory over a training step", trainer.progress.step, figure)


def _plan(cfg: DictConfig, trainer: Trainer, before: dict[str, Any] | None) -> dict[str, Any]:
    """Sets the run up for its memory budget; all processes follow the choice of the first.

    before: the record of a run that is resumed, whose plan is kept unless backprop was changed.
    """
    from memexp.memory import planned  # which builds networks to trace them, as this module does

    batch = next(iter(trainer.splits.train.epoch(0)))
    same = before is not None and before.get("config", {}).get("backprop") == OmegaConf.to_container(cfg.backprop)
    strategy = (before.get("strategy") or {}) if before is not None and same else {}
    with trainer.meter.aside():
        found = planned.set_up(cfg, trainer.network, trainer.loss_fn, batch, trainer.precision, strategy)
    shared = json.loads(distribution.share_text(json.dumps(found), trainer.world))
    planned.follow(trainer.network, shared)
    return shared


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
        "prune": None,
        "parameters": None,
        "macs": None,
        "steps": 0,
        "epochs": 0.0,
        "batch_size": cfg.batch_size,
        "accuracy": None,
        "stages": {},
        "memory": None,
        "time": {"wall": 0.0, "step_median": None, "steps_measured": 0, "images_per_second": None, "stages": {}},
        "strategy": {},
        "study": None,
    }


def name_of(node: DictConfig) -> str:
    return str(node.get("name") or node.get("_target_"))


def _describe(results: dict[str, Any], cfg: DictConfig, trainer: Trainer) -> None:
    """What is known of the network before it is trained."""
    results["parameters"] = sum(p.numel() for p in trainer.network.parameters())
    results["macs"] = macs_per_image(trainer.network, trainer.splits.shape)
    if trainer.world.is_main:
        # a budget's plan is an estimate already, made with times that were measured
        results["memory"] = {"estimate": results["strategy"].get("predicted_peak") or _estimate(cfg)}
    log.info(
        "model: %s, %s parameters, backprop %s", results["model"], f"{results['parameters']:,}", results["backprop"]
    )


def _measure(results: dict[str, Any], trainer: Trainer) -> None:
    """What the run has measured so far."""
    progress = trainer.progress
    results["steps"] = progress.step
    results["epochs"] = progress.epoch + progress.position / trainer.steps_per_epoch
    memory = trainer.meter.results()
    estimate = (results["memory"] or {}).get("estimate")
    ratio = estimate / memory["peak"] if estimate is not None and memory["peak"] else None
    results["memory"] = memory | {"estimate": estimate, "estimate_ratio": ratio}
    results["time"] |= trainer.timing()
    results["strategy"] |= progress.strategy


def _estimate(cfg: DictConfig) -> int | None:
    """Bytes at the peak of a training step, traced without data; None for a network that cannot be traced.

    Takes 0.3 s (RevNet-38) to 1.6 s (RevNet-164) on a CPU core.
    """
    from memexp.memory.estimate import estimate  # it builds networks as this module does

    try:
        return int(estimate(cfg)["peak"])
    except Exception as error:  # a user's own network may do anything; the run does not depend on its estimate
        log.warning("memory: no estimate, as the network cannot be traced without data: %s", error)
        return None


def _advice(cfg: DictConfig) -> str:
    """What a run that ran out of memory is told, below its error."""
    from memexp.memory.advice import after_out_of_memory

    try:
        return after_out_of_memory(cfg, distribution.choose_device(cfg.device, World.from_environment()))
    except Exception as error:  # what happened matters more than what to do about it
        return f"no estimate of what would fit: {error}"


def _status(error: BaseException) -> str:
    for kind, status in STATUS.items():
        if isinstance(error, kind):
            return status
    # the CPU allocator has no exception type of its own
    return "oom" if isinstance(error, RuntimeError) and "can't allocate memory" in str(error) else "failed"


def _seed(cfg: DictConfig) -> None:
    torch.manual_seed(cfg.seed)
    if cfg.deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS is deterministic only with a fixed workspace
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(cfg.deterministic)


def _mix(cfg: DictConfig, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019), or one of them drawn for each batch."""
    kinds: list[nn.Module] = []
    if cfg.mixup:
        kinds.append(v2.MixUp(alpha=cfg.mixup, num_classes=classes))
    if cfg.cutmix:
        kinds.append(v2.CutMix(alpha=cfg.cutmix, num_classes=classes))
    return (v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0]) if kinds else None
