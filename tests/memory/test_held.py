"""A process is held to its limit, with a stand-in for a card."""

import importlib

import pytest
import torch

import memexp
from memexp.config import ConfigError
from memexp.memory import limit as limits
from memexp.memory.advice import after_out_of_memory
from memexp.memory.limit import hold, release
from memexp.units import shown_bytes

SMALL = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=10", "batch_size=8", "device=cpu", "monitor_every=0"]
REVNET = ["model=revnet", "model.units=[3,2]", "model.channels=[8,8,16]"]
SHALLOW = ["model=revnet", "model.units=[2,1]", "model.channels=[8,8,16]"]


class Card:
    """A CUDA device of 10 GB, as far as a limit asks it."""

    total_memory = 10**10

    def __init__(self, monkeypatch):
        self.held = []
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: self)
        monkeypatch.setattr(
            torch.cuda, "set_per_process_memory_fraction", lambda share, at: self.held.append((share, at))
        )
        monkeypatch.setattr(
            torch.cuda, "get_per_process_memory_fraction", lambda at: self.held[-1][0] if self.held else 0.9
        )


def test_a_process_is_held_to_its_limit(monkeypatch):
    card, device = Card(monkeypatch), torch.device("cuda", 1)
    hold(4 * 10**9, device)
    hold(None, device)  # a budget is not known yet
    assert card.held == [(0.4, device)]
    hold(2 * 10**9, device)  # now it is
    release()  # at the end of the run
    release()
    assert card.held == [(0.4, device), (0.2, device), (0.9, device)]
    with pytest.raises(ConfigError, match=r"cuda:1 has 9,536.7 MiB, less than the limit"):
        hold(11 * 10**9, device)
    with pytest.raises(ConfigError, match="needs CUDA"):
        hold(None, torch.device("cpu"))


@pytest.mark.long
@pytest.mark.parametrize(("share", "told"), [(0.4, "what this process may have of cuda:1"), (1.0, "cuda:1")])
def test_advice_is_for_what_the_process_may_have_of_the_card(monkeypatch, share, told):
    card, device = Card(monkeypatch), torch.device("cuda", 1)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (0, card.total_memory), raising=False)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
    enforced = f"memory.enforce={'false' if share == 1 else 'true'}"
    cfg = memexp.compose([*SMALL, *REVNET, "backprop=budget", "backprop.limit=0.8", enforced])
    advice = after_out_of_memory(cfg, device, planned=3 * 2**30)
    assert advice.startswith(f"estimate: 3,072.0 MiB at the peak, of {shown_bytes(share * 10**10)} ({told})")
    assert ("other processes" in advice) == (share == 1)  # have none of what this one is held to
    assert ("expandable_segments" in advice) == (share == 1)  # which such a process has already
    assert "would fit: " in after_out_of_memory(cfg, device, planned=10**10 + 1)
    assert " at the peak of the least plan, of " in after_out_of_memory(cfg, device)


@pytest.mark.usefixtures("unestimated")
@pytest.mark.parametrize("limit", [None, "2GB"])
def test_a_run_is_held_to_its_limit_or_to_its_budget(tmp_path, monkeypatch, limit):
    held = []
    for module in ("memexp.prepared", "memexp.memory.limit"):
        monkeypatch.setattr(importlib.import_module(module), "hold", lambda limit, device: held.append(limit))
    monkeypatch.setattr("memexp.stages.train.check_holdable", lambda device: None)
    monkeypatch.setattr(limits, "release", lambda: held.append("released"))
    more = ["backprop=budget", "backprop.limit=0.8", "memory.enforce=true", "max_steps=1"]
    results = memexp.run(memexp.compose([*SMALL, *SHALLOW, *more, f"memory.limit={limit or 'null'}"]), tmp_path)
    assert held == ([2 * 10**9] if limit else [None, results["strategy"]["budget"]]) + ["released"]


def test_a_run_is_not_held_to_less_than_it_takes(tmp_path, monkeypatch):
    for module in ("memexp.prepared", "memexp.memory.limit"):
        monkeypatch.setattr(importlib.import_module(module), "hold", lambda limit, device: None)
    monkeypatch.setattr("memexp.stages.train.check_holdable", lambda device: None)
    more = ["backprop=budget", "backprop.limit=0.1", "memory.enforce=true"]
    with pytest.raises(
        ConfigError, match=r"memory\.enforce: .* its budget of .* MiB, and the least that it takes is .* MiB"
    ):
        memexp.run(memexp.compose([*SMALL, *SHALLOW, *more]), tmp_path)


def test_what_cannot_be_held_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"memory\.enforce: true needs to know the limit"):
        memexp.compose([*SMALL, "memory.enforce=true"])
    with pytest.raises(ConfigError, match=r"memory\.enforce: true needs CUDA.* the device is cpu"):
        memexp.run(memexp.compose([*SMALL, "memory.enforce=true", "memory.limit=1GB"]), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
