"""AdditiveCoupling: inverse, determinant, gradients of deep stacks, evaluations in backward."""

import pytest
import torch
from chain_networks import basic, bottleneck, chain, couplings, gradients, streams, worst
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, StepError, join, split


@pytest.fixture
def fp64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [basic, bottleneck])
def test_inverse_undoes_forward(fp64, kind):
    torch.manual_seed(0)
    step = AdditiveCoupling(kind(4), kind(4))
    x = streams(dtype=torch.float64)
    for found, expected in zip(step.inverse(*step(*x)), x, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_jacobian_determinant_is_one(fp64):
    torch.manual_seed(0)
    step = AdditiveCoupling(*(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2)))
    jacobian = torch.autograd.functional.jacobian(lambda x: torch.cat(step(x[:3], x[3:])), torch.randn(6))
    assert (jacobian - torch.eye(6)).norm() > 0.1
    assert abs(torch.linalg.det(jacobian).item() - 1) < 1e-12


@pytest.mark.parametrize("kind", [basic, bottleneck])
@pytest.mark.parametrize("units", [1, 2, 10, 50])
def test_gradients_of_reversible_against_stored(fp64, kind, units):
    torch.manual_seed(units)
    steps = [AdditiveCoupling(kind(4), kind(4)) for _ in range(units)]
    stored, reversible = chain(steps, "stored"), chain(steps, "reversible")
    x = streams(dtype=torch.float64)
    found, expected = gradients(reversible, x), gradients(stored, x)
    whole = torch.cat([e.flatten() for e in expected]).norm()
    assert (torch.cat([(f - e).flatten() for f, e in zip(found, expected, strict=True)]).norm() / whole) < 1e-10
    assert worst(found, expected) < 1e-8


@pytest.mark.parametrize("boundary", [None, 0, 1, 2])
def test_gradcheck(fp64, boundary):
    torch.manual_seed(0)
    network = chain(couplings(3, channels=2, boundary=boundary), "reversible")
    assert torch.autograd.gradcheck(lambda *x: network(*x), streams(channels=2, batch=2, size=3, dtype=torch.float64))


def test_each_branch_is_evaluated_twice_a_step_of_training():
    network = Chain(couplings(4, boundary=2), backprop="reversible")
    counts = {}
    for index, step in enumerate(network):
        for name in ("F", "G"):
            step.get_submodule(name).register_forward_hook(
                lambda *_, key=(index, name): counts.update({key: counts.get(key, 0) + 1})
            )
    gradients(network, streams())
    # once in each pass; the last step keeps its activations, so once
    assert counts == {(index, name): 1 if index == 3 else 2 for index in range(4) for name in ("F", "G")}


def test_backward_stops_at_the_lowest_step_that_needs_it():
    network = Chain(couplings(5), backprop="reversible")
    for step in list(network)[:3]:
        step.requires_grad_(False)
    calls = []
    for index, step in enumerate(network):
        step.F.register_forward_hook(lambda *_, index=index: calls.append(index))
    gradients(network, [x.detach() for x in streams()])
    assert calls == [0, 1, 2, 3, 4, 3]


def test_a_unit_with_a_shortcut_changes_shape_and_is_not_undone():
    step = AdditiveCoupling(basic(4, 6, stride=2), basic(6), nn.Conv2d(4, 6, 1, stride=2))
    network = Chain([*couplings(1), step, AdditiveCoupling(basic(6), basic(6))], backprop="reversible")
    assert [y.shape[1:] for y in network(*streams())] == [(6, 3, 3)] * 2
    assert not step.undoable
    with pytest.raises(StepError, match="shortcut"):
        step.inverse(*streams())


def test_a_pair_of_shortcuts_has_one_for_each_stream():
    step = AdditiveCoupling(basic(4, 6), basic(6), (nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)))
    stored, reversible = chain([step, *couplings(2, 6)], "stored"), chain([step, *couplings(2, 6)], "reversible")
    torch.manual_seed(0)
    assert "shortcut.1.weight" in step.state_dict()
    assert [x.shape[1] for x in stored(*streams())] == [6, 6]
    assert [x.shape[1] for x in reversible(*streams())] == [6, 6]


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 2), (0, 2, 1), (0, 1, 2, 3, 4), (0, 2, 3, 4, 1), (1, 0)]
)
def test_split_makes_dense_halves_in_its_order_in_memory_and_join_undoes_it(order):
    sizes = (2, 6, 4, 5, 3)[: len(order)]
    x = torch.randn([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(len(order))])
    halves = split(x)
    assert all(half.permute(order).is_contiguous() for half in halves)
    assert torch.equal(join(*halves), x)
    with pytest.raises(StepError, match=r"\(2, 5.*\) has no even number of channels"):
        split(x[:, :5])


def test_streams_are_in_full_precision_under_autocast_also_behind_a_shortcut():
    """A sum in bfloat16 could not be undone."""
    pair = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)]
    network = Chain([AdditiveCoupling(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), pair)], backprop="checkpointed")
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5, dtype=torch.bfloat16))
    assert [y.dtype for y in outputs] == [torch.float32, torch.float32]
