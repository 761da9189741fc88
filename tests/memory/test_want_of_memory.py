"""A run that has no memory left is known as such, whoever tells it, and told what would fit."""

import json

import pytest
import torch

import memexp
from memexp.cli import main
from memexp.ended import status
from memexp.memory.advice import after_out_of_memory
from memexp.training import loop

SMALL = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=10", "batch_size=8", "device=cpu", "monitor_every=0"]
NETWORK = ["model=resnet", "model.depth=8", "max_steps=2", "memory.steps=2"]


def test_the_cpus_own_failure_to_allocate_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert status(caught.value) == "oom"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["allocator", "runtime", "cuBLAS", "cuDNN", "Triton", "CPU"],
)
def test_want_of_memory_is_known_by_whoever_tells_it(error):
    assert status(error) == "oom"


def test_other_errors_of_a_device_are_none_of_memory():
    assert status(torch.AcceleratorError("CUDA error: device-side assert triggered")) == "failed"


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
