"""A whole run of two gloo processes: what is said of it is true of all of it, and of what is saved."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import memexp
import memexp.run
from memexp.training import distribution, loop, statistics, synced
from memexp.training.distribution import World
from memexp.training.precision import Precision

CPU = torch.device("cpu")
RUN = ["device=cpu", "model=resnet", "model.units=[1]", "model.channels=[4,4]", "dataset.image_size=16"]
RUN += [
    "dataset.limit=20",
    "dataset.test_limit=20",
    "batch_size=8",
    "epochs=2",
    "log_every=1",
    "precise_batchnorm=false",
]
POISONED = 1  # process and step of a loss that is no number


class Own:
    """One batch: a process's own images of it."""

    def __init__(self, rank: int, size: int) -> None:
        self.images = 12
        self._mine = torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[
            rank::size
        ]

    def epoch(self, epoch: int, start: int = 0):
        yield self._mine, None


def normalised(rank: int, size: int) -> list[torch.Tensor]:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).double()
    if size > 1:
        synced.synchronise(network, CPU)
    with statistics.estimated_statistics(network, Own(rank, size), 12, Precision("fp32", CPU), World(rank, size)):
        return [buffer.clone() for buffer in network.buffers()]


def carried_out(rank: int, folder: str) -> dict[str, list]:
    """What process `rank` had of its own: the loss of each step, its running statistics at each evaluation, its next draw."""
    seen: dict[str, list] = {"losses": [], "buffers": [], "drawn": []}
    mean, evaluate = distribution.mean, loop.evaluate

    def told_mean(loss, world):
        poisoned = rank == len(seen["losses"]) == POISONED
        seen["losses"].append(float("nan") if poisoned else loss.item())
        return mean(loss * float("nan") if poisoned else loss, world)

    def told_evaluate(model, *arguments):
        seen["buffers"].append(torch.cat([b.double().flatten() for b in model.buffers()]))
        seen["drawn"].append(torch.rand(()).item())
        return evaluate(model, *arguments)

    distribution.mean, loop.evaluate = told_mean, told_evaluate
    first = partial(memexp.run, memexp.compose(RUN), Path(folder) / "run")
    carry_out = first if rank == 0 else partial(memexp.run.join, World(rank, 2))
    with pytest.raises(loop.NotFinite) as raised:
        carry_out()
    return seen | {"error": [str(raised.value)]}


def part(rank: int, folder: str) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    distribution.start(World(rank, 2), f"file://{folder}/store")
    found = {"normalised": normalised(rank, 2)} | carried_out(rank, folder)
    torch.save(found, f"{folder}/{rank}")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    torch.multiprocessing.spawn(part, (str(folder),), nprocs=2)
    return folder, *(torch.load(folder / str(rank), weights_only=True) for rank in (0, 1))


def test_the_loss_is_that_of_all_images(both):
    folder, first, second = both
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    mean = (first["losses"][0] + second["losses"][0]) / 2
    assert [line["loss"] for line in lines if line["split"] == "train"] == pytest.approx([mean], rel=1e-6)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_at_its_step(both):
    _, first, second = both
    assert first["error"] == second["error"]
    assert first["error"][0].startswith("the loss of step 2 is nan")


def test_what_is_evaluated_is_in_all_processes_what_is_saved(both):
    folder, first, second = both
    network = memexp.build_model(memexp.compose(RUN))
    network.load_state_dict(torch.load(folder / "run" / "checkpoints" / "best.pt", weights_only=True)["model"])
    saved = torch.cat([buffer.double().flatten() for buffer in network.buffers()])
    assert all(torch.equal(seen["buffers"][0], saved) for seen in (first, second))


def test_processes_draw_other_random_numbers(both):
    """Or they would drop the same activations."""
    assert both[1]["drawn"] != both[2]["drawn"]


def test_statistics_of_both_are_those_of_all_images(both):
    expected = normalised(0, 1)
    for found in both[1:]:
        for own, right in zip(found["normalised"], expected, strict=True):
            torch.testing.assert_close(own, right, rtol=1e-12, atol=1e-14)
