"""The seam over an accelerator, with stand-ins for its counters, and what a run records of its memory."""

import importlib
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import memexp
from memexp.cli import main
from memexp.config import ConfigError
from memexp.memory import snapshot
from memexp.memory.meter import AcceleratorMeter, Meter, TrackingMeter
from memexp.memory.snapshot import Failures, Snapshots
from memexp.stages import train
from memexp.training import loop
from memexp.training.distribution import World

runs = importlib.import_module("memexp.results")
runs_module = importlib.import_module("memexp.run")

SMALL = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=10", "batch_size=8", "device=cpu", "monitor_every=0"]
NETWORK = ["model=resnet", "model.depth=8", "max_steps=2", "memory.steps=2"]
CUDA = torch.device("cuda", 1)


class Counters:
    """torch.accelerator as far as the meter asks it."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0

    def reset_peak_memory_stats(self, device):
        assert device == CUDA
        self.allocated = self.reserved = 0

    def max_memory_allocated(self, device):
        return self.allocated

    def max_memory_reserved(self, device):
        return self.reserved

    def memory_stats(self, device):
        return {"num_alloc_retries": 3, "num_ooms": 1}


class CudaMemory:
    """torch.cuda.memory as far as snapshots ask it."""

    def __init__(self, fails: bool = False) -> None:
        self.calls, self.fails, self.taken = [], fails, 0

    def _record_memory_history(self, **settings):
        self.calls.append(("record", settings.get("enabled", "all")))

    def memory_reserved(self, device):
        return 3 * 2**20

    def _snapshot(self):
        if self.fails:
            raise RuntimeError("no picture")
        self.taken += 1
        return {"segments": [], "number": self.taken}


def trained(meter: Meter, steps: int = 1) -> None:
    model = nn.Linear(256, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = torch.randn(2, 256), torch.zeros(2, dtype=torch.int64)
    for number in range(steps):
        with meter.step(number, model, optimizer, [batch]):
            functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()


def test_an_accelerators_peaks_are_split_into_what_is_counted_and_the_rest():
    counters = Counters()
    meter = AcceleratorMeter(CUDA, counters)
    trained(meter)
    counters.allocated, counters.reserved = 50_000, 65_536
    found = meter.results()
    weights = 256 * 4 * 4
    assert (found["peak"], found["reserved"], found["retries"], found["ooms"]) == (50_000, 65_536, 3, 1)
    assert found["parameters"] == found["gradients"] == found["optimizer"] == weights
    assert found["activations"] == 50_000 - 3 * weights
    assert found["how"] == "cuda_max_memory_allocated"


def test_work_beside_training_leaves_no_trace_in_the_peaks():
    counters = Counters()
    meter = AcceleratorMeter(CUDA, counters)
    counters.allocated, counters.reserved = 100, 200
    with meter.aside():
        counters.allocated = counters.reserved = 10_000
    assert (meter.peak(), meter.results()["reserved"]) == (100, 200)
    counters.allocated = 150
    assert meter.peak() == 150


@pytest.mark.parametrize(("beside", "images"), [((), 0), (("teacher",), 1), (("teacher", "average"), 2)])
def test_a_budget_and_the_measured_split_have_the_same_things_beside_the_step(monkeypatch, beside, images):
    """The data set, a teacher, averaged weights: they stand on the device, and the step has what is left."""
    seen = []
    monkeypatch.setattr(train.planned, "set_up", lambda *given: seen.append(given[-1]) or {})
    monkeypatch.setattr(train.planned, "follow", lambda *_: None)
    held, network = [torch.zeros(10)], nn.Linear(4, 3, bias=False)
    made = SimpleNamespace(loss_fn=None, precision=None, teacher=None, average=None)
    for name in beside:
        setattr(made, name, nn.Linear(4, 3, bias=False))
    settings = SimpleNamespace(steps=1, timeline=False, snapshot=False, enforce=False, limit=None)
    splits = SimpleNamespace(held=held, train=SimpleNamespace(epoch=lambda number: iter([None])))
    run = SimpleNamespace(
        splits=splits, device=torch.device("cpu"), network=network, edits=[], key="train", world=World()
    )
    run.results, run.taken, cfg = {"strategy": {}}, lambda given: given, SimpleNamespace(memory=settings)
    run.meter = train._meter(run, cfg, made)
    assert run.meter.results()["data"] == 40 + 48 * images
    run.device = CUDA
    train._plan(run, cfg, SimpleNamespace(recipe=made))
    assert seen == [40 + 48 * images]


def test_figures_of_a_training_that_is_gone_on_with_stay_until_a_further_step_is_taken():
    first, second = (AcceleratorMeter(CUDA, Counters()) for _ in range(2))
    trained(first)
    before = first.results()
    second.go_on(0, before)
    assert second.results() | {"rss_peak": 0} == before | {"rss_peak": 0}
    trained(second)
    second._counters.allocated = 70_000
    assert second.results()["peak"] == 70_000


def test_a_timeline_follows_the_first_steps_of_an_accelerator_too():
    meter = AcceleratorMeter(CUDA, Counters(), tracked=TrackingMeter(2))
    trained(meter, 3)
    assert meter.tracked_steps == 2
    assert meter.tracked is not None
    assert meter.tracked.at_peak["optimizer"] == 256 * 4 * 4
    assert AcceleratorMeter(CUDA, Counters()).tracked is None


def number_of(path):
    return pickle.loads(path.read_bytes())["number"]


def test_a_snapshot_on_request_holds_the_first_steps_and_no_more(tmp_path):
    memory = CudaMemory()
    (tmp_path / "memory-snapshot-1.pickle").symlink_to(tmp_path / "elsewhere")
    meter = AcceleratorMeter(CUDA, Counters(), Snapshots(CUDA, tmp_path, 2, memory=memory))
    trained(meter, 4)
    assert not (tmp_path / "elsewhere").exists()
    assert memory.calls == [("record", "all"), ("record", None)]
    assert number_of(tmp_path / "memory-snapshot-1.pickle") == memory.taken == 1
    assert meter.tracked_steps == 2  # recorded steps are slower, so they are left out of the step time


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_snapshot_is_of_the_steps_that_there_were(tmp_path, steps):
    memory = CudaMemory()
    meter = AcceleratorMeter(CUDA, Counters(), Snapshots(CUDA, tmp_path, 2, memory=memory))
    trained(meter, steps)
    for _ in range(2):
        meter.close()
    assert memory.calls == [("record", "all"), ("record", None)]
    assert number_of(tmp_path / "memory-snapshot-1.pickle") == memory.taken == 1


@pytest.fixture
def observers(monkeypatch):
    """The observers that torch has been given, on a build with CUDA."""
    found = []
    monkeypatch.setattr(torch._C, "_cuda_attach_out_of_memory_observer", found.append, raising=False)
    snapshot._attach.cache_clear()
    yield found
    snapshot._attach.cache_clear()


def test_runs_after_one_another_are_observed_once_and_one_that_is_over_is_silent(tmp_path, observers, caplog):
    caplog.set_level("INFO", "memexp")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with Failures(tmp_path / name, CudaMemory()) as failures:
            snapshot.listen(CUDA)
            observers[0](1, 4096, 8192, 100)
            failures.fatal()
    observers[0](1, 4096, 8192, 100)
    snapshot.listen(torch.device("cpu"))
    assert len(observers) == 1
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.pickle"))] == [
        "first/oom-snapshot-1.pickle",
        "second/oom-snapshot-1.pickle",
    ]
    assert caplog.text.count("memory snapshot: ") == 2


@pytest.mark.parametrize(
    ("memory", "told"), [(CudaMemory(), "could not be written"), (CudaMemory(fails=True), "no snapshot of")]
)
def test_a_snapshot_that_cannot_be_taken_or_written_ends_nothing(tmp_path, caplog, memory, told):
    caplog.set_level("DEBUG", "memexp")
    with Failures(tmp_path / "absent", memory) as failures:
        failures.add(1, 4 * 2**20, 8 * 2**20, 100 * 2**20)
        assert "4.0 MiB more were asked for than the 3.0 MiB that this process has reserved" in failures.fatal()
    assert told in caplog.text


TORCHS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 128.42 GiB is "
    "free. Process 459 has 3.45 GiB memory in use."
)


@pytest.mark.parametrize("ends", [False, True])
def test_a_run_tells_of_failed_allocations_once_and_keeps_the_snapshot_of_the_fatal_one(
    tmp_path, monkeypatch, capsys, ends
):
    memory = CudaMemory()
    monkeypatch.setattr(runs_module, "Failures", lambda directory: Failures(directory, memory))
    step = loop.Trainer._step

    def fails(trainer, batches):
        for _ in range(5):
            snapshot._observe(0, 20 * 2**20, 172 * 2**20, 2**30)
        if ends:
            raise torch.OutOfMemoryError(TORCHS)
        return step(trainer, batches)

    monkeypatch.setattr(loop.Trainer, "_step", fails)
    monkeypatch.chdir(tmp_path)
    status = main(["train", *SMALL, *NETWORK, "max_steps=1", "hydra.run.dir=run"])
    told, results = capsys.readouterr(), json.loads((tmp_path / "run" / "results.json").read_text())
    assert status == int(ends)
    survived = 4 if ends else 5
    assert told.out.count(f"warning: {survived} allocations failed that the run did without") == 1
    assert told.out.count("asked for") == 1 + ends
    assert [number_of(path) for path in (tmp_path / "run").glob("*.pickle")] == ([5] if ends else [])
    if ends:
        figures = "cuda:0: 20.0 MiB more were asked for than the 3.0 MiB that this process has reserved; it may have 172.0 MiB"
        assert figures in told.out
        assert results["error"].splitlines()[0] == "CUDA out of memory. Tried to allocate 20.00 MiB."
        assert results["error"].splitlines()[1].startswith(figures)
        assert "Tried to allocate 20.00 MiB. (at " in told.err
        assert "Process 459" not in told.out + told.err + results["error"]


def test_a_snapshot_is_refused_where_there_is_no_cuda(tmp_path):
    with pytest.raises(ConfigError, match=r"memory\.snapshot: true needs CUDA"):
        memexp.run(memexp.compose([*SMALL, *NETWORK, "memory.snapshot=true"]), tmp_path)


def test_a_run_that_took_snapshots_is_evaluated_where_there_is_no_cuda(tmp_path):
    top1 = memexp.run(memexp.compose([*SMALL, *NETWORK]), tmp_path)["accuracy"]["top1"]
    record = json.loads((tmp_path / "results.json").read_text())
    record["config"]["memory"]["snapshot"] = True
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert memexp.evaluate(tmp_path)["top1"] == top1


def test_a_run_records_its_estimate_beside_what_it_took(tmp_path):
    cfg = memexp.compose([*SMALL, *NETWORK])
    memory = memexp.run(cfg, tmp_path)["memory"]
    assert memory["estimate"] == memory["peak"] == memexp.estimate(cfg)["peak"]
    assert memory["estimate_ratio"] == 1


def test_a_network_that_cannot_be_traced_is_trained_all_the_same(tmp_path, monkeypatch):
    def fails(cfg):
        raise RuntimeError("reads its values")

    monkeypatch.setattr(runs, "estimate", fails)
    results = memexp.run(memexp.compose([*SMALL, *NETWORK]), tmp_path)
    assert results["status"] == "done"
    assert results["memory"]["estimate"] is results["memory"]["estimate_ratio"] is None
