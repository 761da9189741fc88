"""Each process of a machine has a device for itself: which one, and what is told where there are not enough."""

import pytest
import torch

from memexp.training import distribution
from memexp.training.distribution import World


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    """A machine with two, on which nothing is ever put."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)


@pytest.mark.parametrize(
    ("name", "world", "here", "expected"),
    [
        ("auto", World(), 1, "cuda:0"),
        ("cuda:1", World(), 1, "cuda:1"),
        ("cuda", World(3, 4, 1), 2, "cuda:1"),
        ("cuda:1", World(1, 2, 0), 1, "cuda:1"),  # a process on each of two machines
        ("cpu", World(2, 3, 2), 3, "cpu"),
        ("cuda:1", World(1, 2, 1), 2, "'cuda:1' is one device, and each of the 2 processes .* set device=cuda"),
        ("auto", World(2, 3, 2), 3, "device: cuda counts 2 here, and each of the 3 processes .* set device=cpu"),
    ],
)
def test_a_process_has_a_device_for_itself_or_is_refused(monkeypatch, name, world, here, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    if expected.startswith(("cuda", "cpu")):
        assert str(distribution.choose_device(name, world)) == expected
        return
    with pytest.raises(ValueError, match=expected):
        distribution.choose_device(name, world)
