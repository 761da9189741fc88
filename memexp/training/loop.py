"""The training loop: epochs of optimizer steps, evaluated, logged, saved, and stopped without losing anything."""

import copy
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from memexp.data import Batches, Splits
from memexp.memory.meter import Meter
from memexp.optim import Lookahead
from memexp.record import RunDirectory
from memexp.training import checkpoint, distribution
from memexp.training.board import Board
from memexp.training.console import Console
from memexp.training.distribution import World
from memexp.training.evaluation import Evaluation, evaluate
from memexp.training.monitor import Monitor
from memexp.training.precision import Precision
from memexp.training.signals import Interrupted, StopRequest
from memexp.training.step import Loss, train_step

log = logging.getLogger("memexp")
WARM_UP = 3  # steps, beyond those that the tracker slows, which step times leave out


class NotFinite(Exception):
    """The loss became infinite or not a number. The message names the step."""


@dataclass
class Settings:
    """How to train; the fields are the configuration's keys of the same names."""

    epochs: int
    max_steps: int | None
    batch_size: int
    accumulate: int
    evaluate_every: int
    checkpoint_every: int | None
    log_every: int
    monitor_every: int
    clip_grad: float | None
    ema: float


@dataclass
class Progress:
    """Where training stands. `position` counts the optimizer steps done of epoch `epoch`."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    strategy: dict[str, float] = field(default_factory=dict)


class Trainer:
    """One network being trained. `train()` returns the last evaluation; the attributes tell the rest."""

    def __init__(
        self,
        settings: Settings,
        network: nn.Module,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        factor: Callable[[int, int], float],
        loss_fn: Loss,
        splits: Splits,
        precision: Precision,
        world: World,
        meter: Meter,
        directory: RunDirectory,
        stop: StopRequest,
        config_hash: str,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        """`model` is `network` as it is called (wrapped for several processes or compiled); `factor(step, total)` scales
        the learning rate; `mix` blends images and labels of a batch; `monitor` reads the strategy's own figures.
        """
        self.settings, self.network, self.model, self.optimizer = settings, network, model, optimizer
        self.factor, self.loss_fn, self.splits, self.precision = factor, loss_fn, splits, precision
        self.world, self.meter, self.directory, self.stop = world, meter, directory, stop
        self.board: Board | None = None
        self.picture: Callable[[int, bool], None] | None = None  # called with (epoch, whether it is the last)
        self.config_hash, self.mix, self.monitor = config_hash, mix, monitor
        self.average = (
            AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
            if settings.ema
            else None
        )
        self.progress = Progress()
        self.durations: list[float] = []
        self.evaluation: Evaluation | None = None
        self._unchecked: tuple[int, Tensor] | None = None
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.steps_per_epoch = max(1, len(splits.train) // settings.accumulate)
        self.total_steps = settings.epochs * self.steps_per_epoch
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.watched = splits.val if splits.val is not None else splits.test
        self.watched_name = "val" if splits.val is not None else "test"

    def train(self) -> Evaluation:
        """Trains to the end and returns the evaluation of the last state on the watched split (val, or else test).

        Raises NotFinite, and Interrupted after having saved; in both cases the directory holds a sound checkpoint.
        """
        done = self.progress
        with Console(self.total_steps, done.step, quiet=not self.world.is_main) as console:
            try:
                while self.evaluation is None or not self._finished():
                    self._epoch(console)
                    last = self._finished()
                    if last or (done.epoch + 1) % self.settings.evaluate_every == 0:
                        self._evaluate()
                    if done.position >= self.steps_per_epoch:
                        done.epoch, done.position = done.epoch + 1, 0
                    if last or self.settings.checkpoint_every is None:
                        self.save()
            except Interrupted:
                self.save()
                raise
        assert self.evaluation is not None
        return self.evaluation

    def evaluate(self, batches: Batches) -> Evaluation:
        """Accuracy of the state that a user would deploy: averaged or slow weights where there are any."""
        with self.meter.aside(), self.evaluated_weights() as model:
            return evaluate(model, batches, self.precision, self.world, self.stop.check)

    def open_board(self) -> None:
        """Starts the TensorBoard page where training stands."""
        if self.world.is_main:
            self.board = Board(self.directory.path, self.progress.step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def _at(self) -> float:
        """Epochs done, in parts."""
        return self.progress.epoch + self.progress.position / self.steps_per_epoch

    def _finished(self) -> bool:
        return self.progress.step >= self.total_steps

    def _epoch(self, console: Console) -> None:
        """The steps that are left of this epoch."""
        done, settings = self.progress, self.settings
        self.model.train()
        before = time.perf_counter()
        for batches in self._groups(self.splits.train, done.epoch, done.position):
            if self._finished():
                break
            loss = self._step(batches)
            self._check_loss()
            done.step += 1
            done.position += 1
            self._unchecked = (done.step, loss)
            now = time.perf_counter()
            self.durations.append(now - before)
            done.seconds += now - before
            before = now
            if done.step % settings.log_every == 0 or self._finished():
                self._log(console, self._check_loss())
            if self.monitor is not None and settings.monitor_every and (done.step - 1) % settings.monitor_every == 0:
                with self.meter.aside():
                    done.strategy.update(self.monitor(*batches[0]))
                if self.world.is_main:
                    self.directory.append_metrics(split="strategy", step=done.step, epoch=self._at(), **done.strategy)
                self._scalars({f"strategy/{name}": figure for name, figure in done.strategy.items()})
                before = time.perf_counter()
            if settings.checkpoint_every and done.step % settings.checkpoint_every == 0:
                self.save()
                before = time.perf_counter()
            if distribution.agree(self.stop.signum is not None, self.world, self.precision.device):
                raise Interrupted(self.stop.signum or signal.SIGTERM)

    def _check_loss(self) -> float:
        """The latest loss not yet looked at. Reading it a step late leaves the device work to do meanwhile."""
        if self._unchecked is None:
            return math.nan
        step, loss = self._unchecked
        value = float(loss)
        if not math.isfinite(value):
            raise NotFinite(
                f"the loss of step {step} is {value}. The last good checkpoint is kept; "
                "lower optimizer.lr, set schedule.warmup or clip_grad, and start again."
            )
        return value

    def _step(self, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        self._schedule()
        if self.mix is not None:
            batches = [self.mix(images, labels) for images, labels in batches]
        with self.meter.step(len(self.durations), self.network, self.optimizer, batches):
            loss = train_step(
                self.model, self.loss_fn, self.optimizer, batches, self.precision, self.settings.clip_grad
            )
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss

    def _schedule(self) -> None:
        factor = self.factor(self.progress.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _groups(self, batches: Batches, epoch: int, position: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """The batches of each optimizer step from `position` on; an incomplete last group is left out."""
        size = min(self.settings.accumulate, len(batches))
        iterator = iter(batches.epoch(epoch, start=position * size))
        while len(group := list(islice(iterator, size))) == size:
            yield group

    def _log(self, console: Console, loss: float) -> None:
        done = self.progress
        rate = self.images_per_step / _median(self.durations[-self.settings.log_every :])
        lr = self.optimizer.param_groups[0]["lr"]
        epoch, peak = self._at(), self.meter.peak()
        console.step(
            done.step,
            f"epoch {epoch:.2f}  loss {loss:.4f}  lr {lr:.4g}  {rate:.0f} images/s  peak {peak / 2**20:.1f} MiB",
        )
        if self.world.is_main:
            self.directory.append_metrics(
                split="train", step=done.step, epoch=epoch, loss=loss, lr=lr, images_per_second=rate
            )
        self._scalars({"loss/train": loss, "lr": lr, "images_per_second": rate, "memory/peak_MiB": peak / 2**20})

    def _evaluate(self) -> None:
        done = self.progress
        result = self.evaluation = self.evaluate(self.watched)
        log.info("epoch %d: %s top-1 %.2f %%, loss %.4f", done.epoch + 1, self.watched_name, result.top1, result.loss)
        if self.world.is_main:
            self.directory.append_metrics(split=self.watched_name, step=done.step, epoch=self._at(), **result.as_dict())
        self._scalars({f"accuracy/{self.watched_name}_top1": result.top1, f"loss/{self.watched_name}": result.loss})
        if self.board is not None:
            self.board.confusion(done.step, result.confusion, self.splits.classes)
        if self.picture is not None and self.world.is_main:
            self.picture(done.epoch + 1, self._finished())
        if result.top1 > done.best:
            done.best = result.top1
            if self.world.is_main:
                with self.evaluated_weights() as model:
                    weights = copy.copy(model.state_dict())
                best = {"model": weights, "step": done.step, "top1": result.top1, "config_hash": self.config_hash}
                checkpoint.save(self.directory.checkpoints / "best.pt", best)

    def evaluated_weights(self) -> AbstractContextManager[nn.Module]:
        """The network as it is to be evaluated: its average, its Lookahead's slow weights, or itself."""
        if self.average is not None:
            return nullcontext(self.average.module)
        if isinstance(self.optimizer, Lookahead):
            return _Entered(self.optimizer.evaluation_weights(), self.network)
        return nullcontext(self.network)

    @property
    def images_per_step(self) -> int:
        return self.settings.batch_size * self.settings.accumulate * self.world.size

    def timing(self) -> dict[str, Any]:
        """Median step time over this process's steps, without those that were tracked or warm-up (all, if that is all)."""
        skipped = self.meter.tracked_steps + WARM_UP
        warm = self.durations[skipped:]
        steps = warm or self.durations
        median = _median(steps) if steps else None
        return {
            "step_median": median,
            "steps_measured": len(steps),
            "warm_up_excluded": bool(warm),
            "images_per_second": self.images_per_step / median if median else None,
        }

    def _scalars(self, values: dict[str, float]) -> None:
        if self.board is not None:
            self.board.scalars(self.progress.step, values)

    # what decides the future: nothing else may
    def save(self) -> None:
        """Writes checkpoints/last.pt, once the loss behind it is known to be finite."""
        self._check_loss()
        if not self.world.is_main:
            return
        device = self.precision.device
        state = {
            "schema": 1,
            "config_hash": self.config_hash,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "progress": vars(self.progress),
            "random": {
                "cpu": torch.get_rng_state(),
                "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
            },
        }
        checkpoint.save(self.directory.checkpoints / "last.pt", state)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint that `save` wrote."""
        state = checkpoint.load(path)
        if "progress" not in state:
            raise checkpoint.CheckpointError(f"checkpoint {path} holds weights only; training resumes from last.pt")
        checkpoint.load_weights(self.network, state["model"], path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise checkpoint.CheckpointError(f"checkpoint {path} is of another optimizer: {error}") from error
        self.precision.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["device"] is not None and self.precision.device.type != "cpu":
            module = torch.get_device_module(self.precision.device)
            module.set_rng_state(state["random"]["device"], self.precision.device)


class _Entered(AbstractContextManager[nn.Module]):
    """Enters `manager` and hands out `model`."""

    def __init__(self, manager: AbstractContextManager[object], model: nn.Module) -> None:
        self._manager, self._model = manager, model

    def __enter__(self) -> nn.Module:
        self._manager.__enter__()
        return self._model

    def __exit__(self, *error: Any) -> None:
        self._manager.__exit__(*error)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
