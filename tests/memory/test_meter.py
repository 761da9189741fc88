"""The seam over an accelerator, with stand-ins for its counters; what a run records of its memory, and says without enough."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

import memexp
from memexp.cli import main
from memexp.config import ConfigError
from memexp.memory.advice import after_out_of_memory
from memexp.memory.meter import AcceleratorMeter, Meter, TrackingMeter
from memexp.memory.snapshot import Snapshots
from memexp.run import _status
from memexp.training import loop

runs = sys.modules["memexp.results"]

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
        self.calls, self.fails = [], fails

    def _record_memory_history(self, **settings):
        self.calls.append(("record", settings.get("enabled", "all")))

    def _dump_snapshot(self, path):
        if self.fails:
            raise OSError("no space left on device")
        self.calls.append(("dump", path))


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


def test_a_timeline_follows_the_first_steps_of_an_accelerator_too():
    meter = AcceleratorMeter(CUDA, Counters(), tracked=TrackingMeter(2))
    trained(meter, 3)
    assert meter.tracked_steps == 2
    assert meter.tracked is not None
    assert meter.tracked.at_peak["optimizer"] == 256 * 4 * 4
    assert AcceleratorMeter(CUDA, Counters()).tracked is None


def test_a_snapshot_on_request_holds_the_first_steps_and_no_more(tmp_path):
    memory = CudaMemory()
    snapshots = Snapshots(CUDA, tmp_path, 2, memory, lambda observer: None)
    meter = AcceleratorMeter(CUDA, Counters(), snapshots)
    trained(meter, 4)
    assert memory.calls == [("record", "all"), ("dump", str(tmp_path / "memory-snapshot-1.pickle")), ("record", None)]
    assert meter.tracked_steps == 2  # recorded steps are slower, so they are left out of the step time


def test_a_snapshot_is_taken_when_an_allocation_fails(tmp_path):
    memory, observers = CudaMemory(), []
    Snapshots(CUDA, tmp_path, 0, memory, observers.append)
    assert memory.calls == []  # unasked, nothing is recorded
    observers[0](1, 4096, 8192, 100)
    assert memory.calls == [("dump", str(tmp_path / "oom-snapshot-1.pickle"))]


def test_a_snapshot_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    observers = []
    Snapshots(CUDA, tmp_path, 0, CudaMemory(fails=True), observers.append)
    observers[0](1, 4096, 8192, 100)
    assert "oom-snapshot-1.pickle could not be written" in caplog.text


def test_a_snapshot_is_refused_where_there_is_no_cuda(tmp_path):
    with pytest.raises(ConfigError, match=r"memory\.snapshot: true needs CUDA"):
        memexp.run(memexp.compose([*SMALL, *NETWORK, "memory.snapshot=true"]), tmp_path)


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


def test_a_run_out_of_memory_says_what_would_fit(tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop.Trainer, "_step", fails)
    overrides = [*SMALL, *NETWORK, "model.depth=14", "backprop=stored"]
    limit = int(0.8 * memexp.estimate(memexp.compose(overrides))["peak"])
    status = main(["train", *overrides, f"memory.limit={limit}", "hydra.run.dir=run"])
    assert status == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "oom"
    assert results["memory"]["estimate"] > limit
    for text in (results["error"], capsys.readouterr().out):
        assert "Tried to allocate" in results["error"]
        assert "estimate: " in text
        assert "would fit: batch_size=" in text
        assert "would fit: backprop=checkpointed" in text


def test_where_the_estimate_fits_other_causes_are_named():
    advice = after_out_of_memory(memexp.compose([*SMALL, *NETWORK, "memory.limit=10GB"]), torch.device("cpu"))
    assert "that should fit" in advice
    least = after_out_of_memory(memexp.compose([*SMALL, *NETWORK, "memory.limit=10kB"]), torch.device("cpu"))
    assert "is below the least that this network takes" in least


def test_the_cpus_own_failure_to_allocate_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert _status(caught.value) == "oom"
