"""What exact and the watch over the drift find, said when it suits: a device need not be waited for in each pass."""

import itertools

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, StepError


class Counting(nn.Module):
    """Gives another value in each call, which no replay can know of."""

    def __init__(self):
        super().__init__()
        self.calls = itertools.count(1)

    def forward(self, x):
        return x * next(self.calls)


class Growing(nn.Module):
    def forward(self, x):
        return 1e4 * x


class Half(nn.Module):
    """Far from what it gives the second time."""

    def forward(self, x):
        return x.bfloat16().float() * 40


def passed(branch, **options):
    """The Chain after a pass forward and back, with late verdicts."""
    chain = Chain([AdditiveCoupling(branch(), nn.Linear(4, 4)) for _ in range(4)], "reversible", **options)
    chain.verdicts = []
    x = [torch.randn(8, 4, requires_grad=True) for _ in range(2)]
    y = chain(*x)
    (y[0] + y[1]).sum().backward()
    return chain


def judge(chain):
    for verdict in chain.verdicts:
        verdict()


@pytest.mark.parametrize(
    ("branch", "error", "said"),
    [
        (Counting, RuntimeError, "the undone streams differ from the original ones"),
        (Growing, StepError, "exact_bits=16 is exact below 256 only"),
    ],
)
def test_exact_says_late_what_it_says_at_once(branch, error, said):
    torch.manual_seed(0)
    chain = passed(branch, exact=True)
    with pytest.raises(error, match=said):
        judge(chain)


def test_what_is_in_order_says_nothing_and_holds_no_streams():
    torch.manual_seed(0)
    chain = passed(nn.Tanh, exact=True)
    assert len(chain.verdicts) == 2  # the range, and the streams that are computed back
    judge(chain)


def test_drift_is_warned_of_late():
    torch.manual_seed(0)
    chain = passed(Half)
    with pytest.warns(UserWarning, match="computed back with a relative error"):
        judge(chain)


@pytest.mark.parametrize("before", range(5))
def test_drift_of_a_recorded_pass_is_looked_at_in_its_replays_whichever_pass_was_recorded(monkeypatch, before):
    torch.manual_seed(0)
    chain = Chain([AdditiveCoupling(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(4)], "reversible")
    chain.verdicts = []

    def run():
        y = chain(*[torch.randn(8, 4, requires_grad=True) for _ in range(2)])
        (y[0] + y[1]).sum().backward()

    for _ in range(before):
        run()
    chain.verdicts.clear()
    for module in ("drift", "node"):
        monkeypatch.setattr(f"memexp.backprop.{module}.is_captured", lambda x: True)
    compared = []
    monkeypatch.setattr(chain.drift, "compare", lambda *samples: compared.append(replay))
    run()
    for replay in range(1, 10):  # noqa: B007
        judge(chain)
    assert compared == [1, 2, 4, 8]
