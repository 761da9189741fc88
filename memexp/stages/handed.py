"""What one stage of a run hands on to the next: the network with its edits, the figures so far, and where it all is."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from memexp.data import Splits
from memexp.edits import Edit, apply
from memexp.memory.meter import Meter, macs_per_image
from memexp.record import RunDirectory
from memexp.training import checkpoint, distribution, evaluation, statistics
from memexp.training.board import Board
from memexp.training.distribution import World
from memexp.training.evaluation import Evaluation
from memexp.training.precision import Precision
from memexp.training.signals import StopRequest


def placed(network: nn.Module, cfg: DictConfig, device: torch.device) -> nn.Module:
    """The network on the device, in the memory layout of the configuration."""
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if cfg.channels_last else network


@dataclass
class Run:
    """A run between its stages; each process has its own, and the first one keeps the record.

    network: after `edits`, on the device; a stage changes its shapes by `edit` alone. key: of the stage under way. finished:
    figures of the stages that are done. source: the checkpoint that the network was read from, where it was, and known: the
    classes that it has there, in the order of its scores. unfinished: of a resumed run, what `save` was given in the stage that
    goes on.
    trained: the weights as training left them, where others were averaged from them and stand in the network now.
    teacher: a network whose scores are learnt, too; teacher_number: what stands for its weights. evaluation: of the network as
    it stands, with the name of the split. meter: of the last stage that trains. steps_before, epochs_before: of the
    stages that are done.
    """

    cfg: DictConfig
    world: World
    device: torch.device
    directory: RunDirectory
    splits: Splits
    stop: StopRequest
    network: nn.Module
    results: dict[str, Any]
    edits: list[Edit] = field(default_factory=list)
    teacher: nn.Module | None = None
    teacher_number: int | None = None
    board: Board | None = None
    meter: Meter = field(default_factory=Meter)
    key: str = ""
    finished: list[dict[str, Any]] = field(default_factory=list)
    source: Path | None = None
    known: list[str] | None = None
    unfinished: dict[str, Any] | None = None
    trained: dict[str, Tensor] | None = None
    evaluation: tuple[str, Evaluation] | None = None
    steps_before: int = 0
    epochs_before: float = 0.0
    _counted: tuple[int, int] | None = None  # edits, and MACs of the network after so many

    def edit(self, change: Edit) -> None:
        """Changes the network, and remembers how. Every process is given the same edit (distribution.agreed)."""
        self.network = placed(apply(self.network, change), self.cfg, self.device)  # as one that is resumed finds it
        self.edits.append(change)
        self.evaluation = self.trained = None

    def watched(self, network: nn.Module | None = None) -> dict[str, Any]:
        """Accuracy of the network, or of another in its place, on the split that is looked at between stages."""
        name = self.splits.watched
        if network is None and self.evaluation is not None and self.evaluation[0] == name:
            found = self.evaluation[1]
        else:
            found = self.evaluated(network or self.network, name)
            if network is None:
                self.evaluation = name, found
        return {**found.as_dict(), "split": name, "images": found.images}

    def evaluated(self, network: nn.Module, name: str) -> Evaluation:
        """Accuracy of `network` on the split `name`, beside training."""
        with self.meter.aside():
            return evaluation.evaluate(network, self.splits.named(name), self.precision, self.world, self.stop)

    def own_statistics(self, network: nn.Module) -> AbstractContextManager[int]:
        """Inside, statistics of batch normalisation are those of `network` itself, estimated over images as trained on."""
        return statistics.estimated_statistics(
            network, self.splits.train, statistics.IMAGES, self.precision, self.world, self.stop
        )

    @property
    def precision(self) -> Precision:
        return Precision(self.cfg.precision.name, self.device)

    @property
    def batch_size(self) -> int:
        """Images of one forward pass in each process: as given, or its share of all that there are."""
        return min(int(self.cfg.batch_size), self.splits.train.images // self.world.size)

    def taken(self, cfg: DictConfig) -> DictConfig:
        """`cfg` with the images and the batches that a step takes: those that there are, where fewer than it asks for."""
        accumulate = min(int(cfg.accumulate), len(self.splits.train))
        merged = OmegaConf.merge(cfg, {"batch_size": self.batch_size, "accumulate": accumulate})
        assert isinstance(merged, DictConfig)
        return merged

    @property
    def parameters(self) -> int:
        """Of the network as it stands."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def macs(self) -> int:
        """Adds-multiplies of one image, of the network as it stands; counted once for each that it becomes."""
        if self._counted is None or self._counted[0] != len(self.edits):
            self._counted = len(self.edits), macs_per_image(self.network, self.splits.shape)
        return self._counted[1]

    @property
    def last(self) -> Path:
        """The checkpoint of where the run stands."""
        return self.directory.checkpoints / "last.pt"

    def save(self, training: dict[str, Any] | None) -> None:
        """Writes checkpoints/last.pt. training: what decides the future of the stage under way; None between two."""
        state = self._state(training)
        if self.world.is_main:
            checkpoint.save(self.last, state)

    def finish(self, figures: dict[str, Any], training: dict[str, Any] | None = None) -> None:
        """The stage under way is done: checkpoints/<key>.pt, and last.pt, which is the same but for `training`.

        figures: what the stage has found, beside the parameters and MACs of the network that it leaves. training: with what the
        stage could be gone on with, should it be made longer.
        """
        self.finished.append({"key": self.key, "parameters": self.parameters, "macs": self.macs, **figures})
        if self.board is not None:
            self.board.scalars(self.steps_before + int(figures.get("steps") or 0), {"parameters": self.parameters})
        state = self._state(training)
        if self.world.is_main:
            checkpoint.save(self.directory.checkpoints / f"{self.key}.pt", state)
            checkpoint.save(self.last, state | {"training": None})
        self.unfinished = None
        self.steps_before += int(figures.get("steps") or 0)
        self.epochs_before += float(figures.get("epochs") or 0.0)

    def save_best(self, weights: dict[str, Tensor], top1: float) -> None:
        """Writes checkpoints/best.pt: weights as they were evaluated, averaged or slow ones included."""
        if self.world.is_main:
            state = self._described() | {"model": weights, "training": None, "random": None, "top1": top1}
            checkpoint.save(self._best, state)

    def has_best(self) -> bool:
        """Whether best.pt holds weights of the stage under way."""
        try:
            return bool(checkpoint.load(self._best)["stage"] == self.key)
        except checkpoint.CheckpointError:
            return False

    @property
    def _best(self) -> Path:
        return self.directory.checkpoints / "best.pt"

    def _state(self, training: dict[str, Any] | None) -> dict[str, Any]:
        weights: dict[str, Any] = {"model": self.network.state_dict()}
        if self.trained is not None:
            weights = {"model": self.trained, "deployed": weights["model"]}
        random = distribution.gather(random_state(self.device), self.world)
        return self._described() | weights | {"training": training, "random": random}

    def _described(self) -> dict[str, Any]:
        return {
            "schema": checkpoint.SCHEMA,
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "classes": list(self.splits.classes),
            "shape": list(self.splits.shape),
            "fingerprint": self.splits.fingerprint,
            "mean": list(self.splits.mean),
            "std": list(self.splits.std),
            "teacher": self.teacher_number,
            "edits": [dict(edit) for edit in self.edits],
            "stage": self.key,
            "stages": self.finished,
            "appended": self.directory.appended() if self.world.is_main else None,
        }


def random_state(device: torch.device) -> dict[str, Tensor | None]:
    """Of this process: the CPU's, and the device's own where it has one."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return {"cpu": torch.get_rng_state(), "device": own}


def set_random_state(states: Sequence[dict[str, Tensor | None]], world: World, device: torch.device) -> None:
    """This process's of those of all; left as it is where there were fewer processes."""
    if world.rank >= len(states):
        return
    state = states[world.rank]
    assert state["cpu"] is not None
    torch.set_rng_state(state["cpu"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)
