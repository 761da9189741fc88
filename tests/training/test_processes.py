"""How several processes agree, tried in one: what each would send stands in for what all have sent."""

import importlib
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import nn

import memexp
from memexp import commands
from memexp.config import ConfigError
from memexp.ended import AGREED
from memexp.prepared import keep_batch
from memexp.training import distribution
from memexp.training.distribution import ProcessLost, World
from memexp.training.loop import NotFinite, Trainer
from memexp.training.signals import Interrupted


def refuse() -> int:
    raise ValueError("no images")


@pytest.mark.parametrize(
    ("rank", "mine", "told", "ends"),
    [
        (0, refuse, ["no images", "no images"], (ValueError, "no images")),
        (1, refuse, ["no images", "no images"], (SystemExit, "1")),
        (0, lambda: 3, [None, "no images"], (ProcessLost, "process 1 of 2: no images")),
        (1, refuse, [None, "no images"], (SystemExit, "1")),
        (1, lambda: 3, ["no images", None], (SystemExit, "1")),
    ],
)
def test_what_one_process_refuses_ends_all_and_is_told_once(monkeypatch, rank, mine, told, ends):
    sent = []
    monkeypatch.setattr(distribution, "gather", lambda value, world: sent.append(value) or told)
    with pytest.raises(ends[0], match=ends[1]):
        distribution.together(mine, World(rank, 2))
    assert sent == [told[rank]]


def test_what_all_can_do_is_done():
    assert distribution.together(lambda: 3, World()) == 3
    with pytest.raises(ValueError, match="no images"):
        distribution.together(refuse, World())


@pytest.mark.parametrize(
    ("before", "then", "now", "after"),  # images per forward, accumulated; processes; processes; as the first
    [
        ((16, 1), 2, 2, (16, 1)),
        ((16, 1), 2, 1, (16, 2)),
        ((16, 2), 1, 2, (16, 1)),
        ((16, 1), 1, 2, (8, 1)),
        ((8, 1), 2, 1, (16, 1)),
        ((16, 3), 4, 6, (16, 2)),
        ((16, 1), 2, 3, None),
    ],
)
def test_with_another_number_of_processes_a_step_is_of_as_many_images(before, then, now, after):
    """Else a run of one process that goes on with two has done all its steps in the middle."""
    cfg = OmegaConf.create({"batch_size": 16, "accumulate": 3 if before[1] == 3 else 1})  # as the run began
    state = {"config": {"batch_size": before[0], "accumulate": before[1]}, "random": [{}] * then}
    if after is None:
        with pytest.raises(ConfigError, match="32 images in a step, which 3 cannot share evenly; go on with 2"):
            keep_batch(cfg, state, Path("last.pt"), World(0, now))
    else:
        keep_batch(cfg, state, Path("last.pt"), World(0, now))
        assert (cfg.batch_size, cfg.accumulate) == after


def test_weights_in_any_layout_are_sent(monkeypatch):
    """gloo and NCCL take contiguous tensors only."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    first = {key: torch.randn_like(value.float()).to(value.dtype) for key, value in network.state_dict().items()}
    left = list(first.values())

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        assert tensor.is_contiguous()
        tensor.copy_(left.pop(0))

    monkeypatch.setattr(distribution.dist, "broadcast", broadcast)
    distribution.same_weights(network, World(1, 2))
    assert all(torch.equal(value, first[key]) for key, value in network.state_dict().items())
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("mine", "told"), [(1.5, "a buffer of another process"), (math.inf, "weight is not finite")])
def test_a_weight_that_is_not_finite_in_one_process_ends_all(tmp_path, monkeypatch, mine, told):
    """Else the others would wait for the one that has ended, and record that it was lost, not why."""
    asked = []

    def agree(flag, world):
        asked.append(flag)
        return True

    def checked(trainer):
        monkeypatch.setattr(distribution, "agree", agree)
        if not math.isfinite(mine):
            nn.init.constant_(next(trainer.recipe.network.parameters()), mine)
        trainer.save()

    monkeypatch.setattr(Trainer, "train", checked)
    cfg = memexp.compose(["model=resnet", "model.units=[1]", "model.channels=[4,4]", "dataset.limit=20", "device=cpu"])
    with pytest.raises(NotFinite, match=told):
        memexp.run(cfg, tmp_path)
    assert asked == [not math.isfinite(mine)]


@pytest.mark.parametrize(("error", "status"), [(NotFinite("the loss"), 1), (Interrupted(15), 143)])
def test_what_ends_all_processes_is_told_by_the_first_alone(monkeypatch, capfd, error, status):
    def join(world):
        raise error

    assert isinstance(error, AGREED)
    monkeypatch.setattr("memexp.run.join", join)
    assert commands._join() == status
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "measured"), [(0, True), (1, False)])
def test_a_study_is_carried_out_by_the_first_process(tmp_path, monkeypatch, rank, measured):
    monkeypatch.setattr(World, "from_environment", lambda: World(rank, 2))
    for name in ("start", "stop"):
        monkeypatch.setattr(distribution, name, lambda *_: None)
    monkeypatch.setattr(distribution, "share_text", lambda text, world: text)
    cfg = memexp.compose(["experiment=revnet/parameters"])
    assert bool(memexp.run(cfg, tmp_path)["study"]) is measured


@pytest.mark.parametrize(("rank", "told"), [(0, ["the traceback is in {}/train.log"]), (1, [])])
def test_the_first_process_alone_has_a_log_to_look_into(tmp_path, monkeypatch, rank, told):
    def fail(*_: object) -> None:
        raise LookupError("odd")

    monkeypatch.setattr(World, "from_environment", lambda: World(rank, 2))
    for name, put in {"start": lambda *_: None, "stop": lambda: None, "share_text": lambda text, _: text}.items():
        monkeypatch.setattr(distribution, name, put)
    monkeypatch.setattr(distribution, "together", fail)
    with pytest.raises(LookupError) as caught:
        memexp.run(memexp.compose(["model=resnet", "model.depth=8"]), tmp_path)
    assert getattr(caught.value, "__notes__", []) == [text.format(tmp_path) for text in told]
    assert (tmp_path / "train.log").exists() is bool(told)


def test_processes_that_join_again_do_not_find_what_the_first_run_has_left(monkeypatch):
    """torchrun's store outlives a run: a script's second one would look for the processes where those of its first were."""
    kept, given = dist.HashStore(), []
    monkeypatch.setattr(dist, "rendezvous", lambda address, rank, size: iter([(kept, rank, size)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, store, rank, world_size: given.append(store))
    monkeypatch.setattr(distribution.atexit, "register", lambda call: None)
    for _ in range(2):
        distribution.start(World(1, 2))
    first, second = given
    first.set("address", "gone")
    assert not second.check(["address"])


def test_in_a_script_every_process_does_what_the_first_says(monkeypatch, tmp_path):
    """The directory of a run is named by the time, which each would read for itself."""
    done, said = [], {"directory": "of the first"}
    monkeypatch.setattr(distribution, "start", lambda world: None)
    monkeypatch.setattr(distribution, "agreed", lambda order, world: said)
    monkeypatch.setattr(importlib.import_module("memexp.run"), "_carry_out", lambda order, world: done.append(order))
    memexp.run(memexp.compose(["device=cpu"]), tmp_path)
    assert done == [said]
