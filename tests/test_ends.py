"""How a run ends that could not go on: what is recorded, what is said."""

import errno
import importlib
import json
import resource

import pytest
import torch

import memexp
from memexp import ended
from memexp.memory import advice
from memexp.training import distribution
from memexp.training.distribution import ProcessLost, World

run_module = importlib.import_module("memexp.run")
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"


@pytest.mark.parametrize(
    ("error", "size", "lost"),
    [
        (RuntimeError(GLOO), 2, True),
        (RuntimeError("[/pytorch/third_party/gloo] Read error: Connection reset by peer"), 2, True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"), 4, True),
        (RuntimeError(GLOO), 1, False),
        (RuntimeError("shapes do not fit"), 2, False),
        (ValueError(GLOO), 2, False),
    ],
)
def test_b20_a_process_that_died_is_told_from_other_errors(error, size, lost):
    assert distribution.lost(error, World(0, size)) == lost


def test_b20_the_others_say_so_and_how_to_go_on(tmp_path, monkeypatch):
    def gone(*_: object, **__: object) -> None:
        raise RuntimeError(GLOO)

    monkeypatch.setattr(World, "from_environment", staticmethod(lambda: World(0, 2)))
    for name in ("start", "stop"):
        monkeypatch.setattr(distribution, name, lambda *_: None)
    monkeypatch.setattr(distribution, "share_text", lambda text, world: text)
    monkeypatch.setattr(run_module, "prepare", gone)
    monkeypatch.setattr(distribution, "gather", gone)  # nor can they be asked what they think of it
    with pytest.raises(ProcessLost, match=r"another of the 2 processes .* has ended"):
        run_module.run(memexp.compose(["dataset=digits"]), tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["status"] == "failed"
    assert f"memexp resume {tmp_path / 'run'}" in results["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            "oom",
        ),
        (RuntimeError("std::bad_alloc"), "oom"),
        (MemoryError(), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("shapes do not fit"), "failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "failed"),
    ],
)
def test_b18_want_of_memory_is_known_by_any_of_its_names(error, status):
    assert ended.status(error) == status


def test_b18_advice_fits_the_limit_of_the_process(monkeypatch):
    cpu = torch.device("cpu")
    machine = advice.capacity(cpu)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**30, 2**30))
    assert advice.capacity(cpu) == 2**30 < machine
    tiny = ["model.depth=8", "model=resnet", "batch_size=2"]
    assert "CUDA" not in advice.after_out_of_memory(memexp.compose(tiny), cpu)
