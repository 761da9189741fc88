"""The training loop: epochs of optimizer steps, evaluated, logged, saved, and stopped without losing anything."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memexp.backprop import late
from memexp.backprop.compiled import uncompiled
from memexp.data import Batches, DataError
from memexp.training import distribution, statistics
from memexp.training.ahead import Mark, Taken
from memexp.training.checkpoint import CheckpointError
from memexp.training.console import Console
from memexp.training.evaluation import Evaluation, evaluate
from memexp.training.monitor import Monitor
from memexp.training.place import Place
from memexp.training.profile import Trace
from memexp.training.progress import Progress
from memexp.training.recipe import Recipe
from memexp.training.signals import Interrupted, StopRequest
from memexp.training.step_times import StepTimes
from memexp.units import shown_figure

log = logging.getLogger("memexp")
REMEDY = "The last good checkpoint is kept; lower optimizer.lr, set schedule.warmup or clip_grad, and start again."


class NotFinite(Exception):
    """A loss or a weight became infinite or not a number. The message names the step."""


class Trainer:
    """One network being trained, in one stage of a run. `train()` returns the last evaluation; the attributes tell the rest."""

    def __init__(
        self,
        place: Place,
        recipe: Recipe,
        model: nn.Module | None = None,
        monitor: Monitor | None = None,
        total: int | None = None,
    ) -> None:
        """`model` is the recipe's network as it is called, where it is wrapped for several processes or compiled;
        `monitor` reads the strategy's own figures; `total` are the steps of a training that is only looked at.
        """
        self.place, self.recipe, self.monitor = place, recipe, monitor
        self.settings, self.precision = recipe.settings, recipe.precision
        self.model = recipe.network if model is None else model
        self.picture: Callable[[int, bool], None] | None = None  # called with (epoch, whether it is the last)
        self.trace: Trace | None = None
        self.progress = Progress()
        self.times = StepTimes()
        self._taken: Taken | None = None  # the latest step
        self._begun = 0  # steps of this process, that one included
        self._verdicts: late.Verdicts = []  # of the engine, on a device that is not to be waited for
        self._lambda: float | None = None  # of vanishing activations, in the latest step
        self._images = 0  # of the latest step, in all processes
        self._top1: float | None = None  # of the latest evaluation of this process
        splits = place.splits
        self.steps_per_epoch = self.settings.steps_per_epoch(len(splits.train))
        self.total_steps = self.settings.total_steps(len(splits.train)) if total is None else total
        if total is None and self.total_steps < (most := self.settings.max_steps or 0):
            ends = place.key, self.settings.epochs, self.total_steps, most
            log.warning(
                "warning: the stage %s ends with epoch %d, after %d steps: not max_steps=%d; raise its epochs", *ends
            )
        why = statistics.distrusted(recipe.network, self.total_steps)
        self.precise = self.settings.precise_batchnorm and why is not None
        if self.precise:
            log.info(
                "batch normalisation: %s, so that evaluations estimate its statistics anew, over %d training images "
                "(precise_batchnorm=false: as they stand)",
                *(why, min(statistics.IMAGES, splits.train.images)),
            )
        self.watched_name = splits.watched
        self.watched = splits.named(self.watched_name)

    def train(self) -> Evaluation:
        """Trains to the end and returns the evaluation of the last state on the watched split (val, or else test).

        Raises NotFinite, and Interrupted after having saved; in both cases the directory holds a sound checkpoint.
        """
        done = self.progress
        if self.precision.device.type != "cpu":  # to read a figure is to wait for the device
            late.collect(self.recipe.network, self._verdicts)
        with Console(self.total_steps, done.step, quiet=not self.place.world.is_main) as console:
            try:
                while not (self._finished() and done.evaluation):
                    self._epoch(console)
                    last = self._finished()
                    if last or (done.epoch + 1) % self.settings.evaluate_every == 0:
                        self._evaluate()
                    if self.picture is not None:
                        self.picture(done.epoch + 1, last)
                    if done.position >= self.steps_per_epoch:
                        done.epoch, done.position = done.epoch + 1, 0
                    if last or self.settings.checkpoint_every is None:
                        self.save()
            except Interrupted:
                self.save()
                raise
            except DataError:  # before the step that would have used the batch; only this process may know of it
                if self.place.world.size == 1:
                    self.save()
                raise
            finally:
                late.collect(self.recipe.network, None)
        assert done.evaluation is not None
        return Evaluation(**done.evaluation)

    @contextmanager
    def deployed(self, stop: StopRequest | None = None) -> Iterator[nn.Module]:
        """The network as a user would deploy it: with averaged or slow weights where there are any, and with statistics of
        batch normalisation estimated anew where running ones cannot be trusted yet. Raises Interrupted where `stop` has come.
        """
        with self.recipe.evaluated_weights() as model:
            distribution.same_weights(model, self.place.world)  # running statistics are of a process's own images
            if not self.precise:
                yield model
                return
            place = self.place
            with statistics.estimated_statistics(
                model, place.splits.train, statistics.IMAGES, self.precision, place.world, stop
            ):
                yield model

    @property
    def epochs(self) -> float:
        """Done in this stage, in parts."""
        return self.progress.epoch + self.progress.position / self.steps_per_epoch

    def _at(self) -> float:
        """Epochs done, in parts, those of the stages before included."""
        return self.place.epochs_before + self.epochs

    @property
    def _step_number(self) -> int:
        """Steps done, those of the stages before included: what curves are drawn over."""
        return self.place.steps_before + self.progress.step

    def _finished(self) -> bool:
        return self.progress.step >= self.total_steps

    def _epoch(self, console: Console) -> None:
        """The steps that are left of this epoch."""
        done, settings = self.progress, self.settings
        self.model.train()
        self.times.start()
        for batches in self._groups(self.place.splits.train, done.epoch, done.position):
            if self._finished():
                break
            loss = self._step(batches)
            mark, verdicts = Mark(self.precision.device), self._verdicts.copy()
            self._verdicts.clear()
            self._settle()
            done.step, done.position, done.evaluation = done.step + 1, done.position + 1, None
            self._taken = Taken(done.step, loss, verdicts, mark)
            if not mark.ahead:
                self._settle()
            if done.step % settings.log_every == 0 or self._finished():
                self._log(console, self._settle())
            if self.monitor is not None and settings.monitor_every and (done.step - 1) % settings.monitor_every == 0:
                self._settle()
                with self.place.meter.aside(), uncompiled(self.recipe.network):
                    done.strategy.update(self.monitor(*batches[0]))
                self._append("strategy", **done.strategy)
                self._scalars({f"strategy/{name}": figure for name, figure in done.strategy.items()})
                self.times.start()
            if settings.checkpoint_every and done.step % settings.checkpoint_every == 0:
                self.save()
                self.times.start()
            distribution.heed(self.place.stop, self.place.world)
        self._settle()

    def _settle(self) -> float:
        """The loss of the latest step, read if it was not yet: there the step's time ends. Between two steps that is when the
        second is launched, which leaves the device work to do meanwhile.

        Raises NotFinite, in all processes as it is of all of them, and what the engine finds wrong with the step.
        """
        taken = self._taken
        if taken is None:
            return math.nan
        loss = taken.value
        if loss is None:
            loss = taken.read()
            self.progress.seconds += self.times.end()
        if not math.isfinite(loss):
            raise NotFinite(f"the loss of step {taken.number} is {loss}. {REMEDY}")
        return loss

    def _step(self, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        self._schedule()
        prepared = [self.recipe.prepared(images, labels) for images, labels in batches]
        self._images = sum(len(images) for images, _ in prepared) * self.place.world.size
        number, self._begun = self._begun, self._begun + 1
        traced = self.trace.step(number) if self.trace is not None else nullcontext()
        with traced, self.place.meter.step(number, self.recipe.network, self.recipe.optimizer, prepared):
            loss = self.recipe.step(self.model, prepared)
        loss = distribution.mean(loss, self.place.world)  # of all images: one that is not finite ends all processes
        if self.recipe.average is not None:
            self.recipe.average.update_parameters(self.recipe.network)
        return loss

    def _schedule(self) -> None:
        factor = self.recipe.factor(self.progress.step, self.total_steps)
        for group in self.recipe.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._lambda = self.recipe.vanish(self.progress.step, self.total_steps)

    def _groups(self, batches: Batches, epoch: int, position: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """The batches of each optimizer step from `position` on; an incomplete last group is left out."""
        size = min(self.settings.accumulate, len(batches))
        iterator = iter(batches.epoch(epoch, start=position * size))
        while len(group := list(islice(iterator, size))) == size:
            yield group

    def _log(self, console: Console, loss: float) -> None:
        done = self.progress
        seconds = self.times.recent(self.settings.log_every)
        rate = self._images / seconds
        lr = self.recipe.optimizer.param_groups[0]["lr"]
        peak, activations = (self.place.meter.results()[key] / 2**20 for key in ("peak", "activations"))
        accuracy = [] if self._top1 is None else [f"{self.watched_name} top-1 {self._top1:.2f} %"]
        figures = [f"loss {loss:.4f}", *accuracy, f"epoch {self._at():.2f}", f"{shown_figure(rate, 0)} images/s"]
        console.step(done.step, [*figures, f"peak {shown_figure(peak)} MiB", f"lr {lr:.4g}"])
        moving = {} if self._lambda is None else {"lambda": self._lambda}
        self._append("train", loss=loss, lr=lr, images_per_second=rate, **moving)
        curves = {"loss/train": loss, "lr": lr, "images_per_second": rate, "time/step_ms": 1e3 * seconds}
        self._scalars(curves | moving | {"memory/peak_MiB": peak, "memory/activations_MiB": activations})

    def _evaluate(self) -> None:
        self._settle()  # of a step that was wrong, no weights are the best
        done = self.progress
        # once for both, as its statistics may be estimated
        with self.place.meter.aside(), self.deployed(self.place.stop) as model:
            result = evaluate(model, self.watched, self.precision, self.place.world, self.place.stop)
            if not math.isfinite(result.loss):
                raise NotFinite(f"the {self.watched_name} loss after step {done.step} is {result.loss}. {REMEDY}")
            if result.top1 > done.best:
                done.best = result.top1
                self.place.save_best(dict(model.state_dict()), result.top1)
        log.info("epoch %d: %s top-1 %.2f %%, loss %.4f", done.epoch + 1, self.watched_name, result.top1, result.loss)
        self._append(self.watched_name, **result.as_dict())
        self._scalars({f"accuracy/{self.watched_name}_top1": result.top1, f"loss/{self.watched_name}": result.loss})
        if self.place.board is not None and result.confusion is not None:
            self.place.board.confusion(self._step_number, result.confusion, self.place.splits.classes)
        self._top1 = result.top1
        done.evaluation = vars(result) | {"confusion": None}  # of thousands of classes it is larger than the network

    def _append(self, split: str, **values: float) -> None:
        """A line of metrics.jsonl."""
        if self.place.world.is_main:
            self.place.directory.append_metrics(
                split=split, stage=self.place.key, step=self._step_number, epoch=self._at(), **values
            )

    def timing(self) -> dict[str, Any]:
        """Median step time over this process's steps, without tracked, traced, recorded and warm-up ones (all, if that is all).

        Of a process that has taken no step, as it went on with a training that was at its end, those of the process before it.
        """
        if not self.times.seconds and self.progress.time is not None:
            return self.progress.time
        slowed = self.place.meter.tracked_steps + (self.trace.steps if self.trace is not None else 0)
        return self.times.results(slowed + (self.recipe.graphed is not None), self._images)

    def _scalars(self, values: dict[str, float]) -> None:
        if self.place.board is not None:
            self.place.board.scalars(self._step_number, values)

    def save(self) -> None:
        """Writes checkpoints/last.pt, once the loss and the weights behind it are known to be finite."""
        self._settle()
        weights = {name: w for name, w in self.recipe.network.state_dict().items() if w.is_floating_point()}
        sound = torch.stack([torch.isfinite(w).all() for w in weights.values()]).tolist()  # read from the device once
        if distribution.agree(not all(sound), self.place.world):  # each process has statistics of its own
            name = "a buffer of another process" if all(sound) else list(weights)[sound.index(False)]
            raise NotFinite(f"{name} is not finite after step {self.progress.step}. {REMEDY}")
        if self.times.seconds:
            self.progress.memory, self.progress.time = self.place.meter.results(), self.timing()
        self.progress.total = self.total_steps
        self.place.save(self.recipe.state() | {"progress": vars(self.progress).copy()})

    def load(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from what `save` gave to the checkpoint `path`; the network's weights are its builder's business."""
        try:
            self.recipe.load(state)
            self.progress = Progress(**state["progress"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"checkpoint {path} is of another optimizer: {error}") from error
