"""A run that has no memory left is known as such, whoever tells it."""

import pytest
import torch

from memexp.ended import status


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
