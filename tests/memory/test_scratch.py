"""What kernels take beside tensors: with a stand-in for the counters of CUDA's allocator."""

import pytest
import torch

import memexp
from memexp.memory import planner
from memexp.memory.scratch import Scratch, scratch
from memexp.units import shown_bytes


class Counters:
    """Of an allocator from which a product takes `workspace` bytes while it runs."""

    def __init__(self, workspace: int) -> None:
        self.workspace, self.live, self.peak = workspace, 1000, 1000

    def memory_allocated(self, device):
        return self.live

    def max_memory_allocated(self, device):
        return self.peak

    def reset_peak_memory_stats(self, device):
        self.peak = self.live

    def product(self, a, b):
        """A product whose result is counted as 300 bytes."""
        self.peak = max(self.peak, self.live + 300 + self.workspace)
        self.live += 300
        return a @ b


def test_scratch_space_is_the_most_that_one_operation_takes_beside_what_it_gives(monkeypatch):
    counters = Counters(77)
    x = torch.ones(3, 3, requires_grad=True)
    original = Scratch.__torch_dispatch__

    def dispatched(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            return original(self, lambda a, b: counters.product(a, b), types, args, kwargs)
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(Scratch, "__torch_dispatch__", dispatched)
    with Scratch(torch.device("cpu"), counters) as found:
        y = x @ x
        assert found.most == 77
        counters.workspace = 500  # in backward, too
        y.sum().backward()
    assert found.most == 500


def test_elsewhere_nothing_is_known_of_it():
    assert scratch(lambda: pytest.fail("called"), torch.device("cpu")) == 0


SMALL = ["dataset=synthetic", "model=resnet", "model.depth=14", "batch_size=8", "backprop=budget"]


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.long) for share in (0.7, 0.9))])
def test_a_budget_has_room_for_scratch_space(share):
    without = planner.plan(memexp.compose([*SMALL, "backprop.limit=1.0"]))
    taken = without.most // 5
    found = planner.plan(memexp.compose([*SMALL, f"backprop.limit={share}"]), scratch=taken)
    assert found.most == without.most + taken
    assert found.least == without.least + taken
    assert found.budget == pytest.approx(share * found.most, abs=1)
    assert found.peak <= max(found.budget, found.least)
    assert f"{shown_bytes(taken)} of it for kernels' scratch space" in str(found)
    # of the same bytes for tensors it is the same plan
    room = planner.plan(memexp.compose([*SMALL, f"backprop.limit={found.budget - taken}B"]))
    assert (room.stored, room.light, room.peak + taken) == (found.stored, found.light, found.peak)
