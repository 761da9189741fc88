"""The host launches a step before it waits for the one before: on a device of which every launch and every read is known."""

import contextlib

import pytest
import torch

import memexp
from memexp.training import ahead, loop
from memexp.training.ahead import Mark
from memexp.training.loop import Trainer
from memexp.training.step_times import StepTimes

SMALL = [
    *("model=resnet", "model.kind=simple", "model.depth=4", "dataset=digits", "dataset.limit=48"),
    *("dataset.test_limit=16", "batch_size=16", "max_steps=12", "memory.steps=1", "precise_batchnorm=false"),
    *("device=cpu", "evaluate_every=10", "checkpoint_every=100"),
]


class Clock:
    """Of a host that launches a step in `launch` seconds, and of its device, which takes `compute` for each."""

    def __init__(self, launch: float, compute: float) -> None:
        self.launch, self.compute, self.now, self.free = launch, compute, 0.0, 0.0
        self.waited: list[float] = []

    def step(self) -> None:
        self.free = max(self.free, self.now) + self.compute
        self.now += self.launch

    def mark(self, device: torch.device) -> "At":
        return At(self)


class At:
    ahead = True

    def __init__(self, clock: Clock) -> None:
        self.clock, self.done = clock, max(clock.free, clock.now)

    @contextlib.contextmanager
    def reading(self):
        self.clock.waited.append(self.clock.free - self.done)  # seconds of work that the device has left meanwhile
        self.clock.now = max(self.clock.now, self.done)
        yield


@pytest.mark.parametrize(
    ("launch", "compute", "seconds", "log_every"), [(1.0, 8.0, 8.0, 4), (1.0, 8.0, 8.0, 1), (4.0, 0.5, 4.0, 100)]
)
def test_a_step_is_waited_for_when_the_next_is_launched_and_its_time_is_told(
    tmp_path, monkeypatch, launch, compute, seconds, log_every
):
    """Epochs are of 3 steps, and at the end of each, as where it is logged, the host waits for the step itself."""
    clock, step = Clock(launch, compute), Trainer._step

    def launched(self, batches):
        loss = step(self, batches)
        clock.step()
        return loss

    monkeypatch.setattr(loop, "Mark", clock.mark)
    monkeypatch.setattr(Trainer, "_step", launched)
    monkeypatch.setattr(StepTimes, "_now", lambda self: clock.now)
    results = memexp.run(memexp.compose([*SMALL, f"log_every={log_every}"]), tmp_path / "run")
    assert results["time"]["step_median"] == seconds
    assert results["stages"][0]["seconds"] == pytest.approx(12 * seconds, abs=4 * compute)
    if compute > launch:
        ends = {number for number in range(1, 13) if number % 3 == 0 or number % log_every == 0}
        assert clock.waited == [0.0 if number in ends else compute for number in range(1, 13)]


class Module:
    """torch.cuda, as far as a mark asks."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        calls = self.calls

        class Event:
            def record(self) -> None:
                calls.append("record")

        class Stream:
            def __init__(self, device: torch.device) -> None:
                calls.append(device)

            def wait_event(self, event: Event) -> None:
                calls.append("wait")

        self.Event, self.Stream = Event, Stream

    @contextlib.contextmanager
    def stream(self, stream: object):
        self.calls.append("enter")
        yield
        self.calls.append("leave")


def test_what_is_read_waits_on_a_stream_of_its_own(monkeypatch):
    module, device = Module(), torch.device("cuda", 1)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    ahead._stream.cache_clear()
    first, second = Mark(device), Mark(device)
    for mark in (first, second):
        with mark.reading():
            module.calls.append("read")
    ahead._stream.cache_clear()
    turn = ["wait", "enter", "read", "leave"]
    assert module.calls == ["record", "record", device, *turn, *turn]
