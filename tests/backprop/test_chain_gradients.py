"""Gradients of every strategy are autograd's, however they are asked for."""

import pytest
import torch
from chain_networks import basic, couplings, gradients, loss, same_bits, streams, worst
from chain_pairs import pair, recomputing, tolerance
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, EulerStep


@recomputing
def test_gradients_in_eval_mode(backprop, options):
    stored, other = pair(couplings(3), backprop, options)
    stored.eval()
    other.eval()
    before = [b.clone() for b in other.buffers()]
    assert worst(gradients(other, streams()), gradients(stored, streams())) <= tolerance(backprop, options)
    assert same_bits(list(other.buffers()), before)


@recomputing
def test_gradients_accumulate_over_passes(backprop, options):
    stored, other = pair(couplings(3), backprop, options)
    for network in (stored, other):
        for seed in (1, 2):
            loss(network(*streams(seed=seed))).backward()
    found, expected = [p.grad for p in other.parameters()], [p.grad for p in stored.parameters()]
    assert worst(found, expected) <= tolerance(backprop, options)


@recomputing
def test_backward_twice_through_one_forward(backprop, options):
    other = pair(couplings(4, boundary=1), backprop, options)[1]
    value = loss(other(*streams()))
    value.backward(retain_graph=True)
    once = [p.grad.clone() for p in other.parameters()]
    value.backward()
    assert same_bits([p.grad for p in other.parameters()], [2 * grad for grad in once])


@recomputing
def test_two_forwards_before_their_backwards(backprop, options):
    stored, other = pair(couplings(3, dropout=0.2), backprop, options)
    results = []
    for network in (stored, other):
        torch.manual_seed(3)
        first, second = loss(network(*streams(seed=1))), loss(network(*streams(seed=2)))
        second.backward()
        first.backward()
        results.append([p.grad for p in network.parameters()])
    assert worst(results[1], results[0]) <= tolerance(backprop, options)


@recomputing
@pytest.mark.parametrize("frozen", ["F", "G", "lower half", "upper half"])
def test_frozen_parameters(backprop, options, frozen):
    stored, other = pair(couplings(4), backprop, options)
    for network in (stored, other):
        for index, step in enumerate(network):
            part = {"F": step.F, "G": step.G}.get(frozen, step if (index < 2) == (frozen == "lower half") else None)
            if part is not None:
                part.requires_grad_(False)
    for inputs in (streams(), [x.detach() for x in streams()]):
        assert worst(gradients(other, inputs), gradients(stored, inputs)) <= tolerance(backprop, options)
        assert all(p.grad is None for p in other.parameters() if not p.requires_grad)


@recomputing
@pytest.mark.parametrize("without", [(0,), (1,), (0, 1)])
def test_inputs_without_grad(backprop, options, without):
    stored, other = pair(couplings(3), backprop, options)
    inputs = [x.detach() if index in without else x for index, x in enumerate(streams())]
    assert worst(gradients(other, inputs), gradients(stored, inputs)) <= tolerance(backprop, options)
    assert all(inputs[index].grad is None for index in without)


@recomputing
@pytest.mark.parametrize("used", [0, 1])
def test_a_loss_of_one_stream_only(backprop, options, used):
    stored, other = pair(couplings(3), backprop, options)
    results = []
    for network in (stored, other):
        inputs = streams()
        loss(network(*inputs)[used]).backward()
        results.append([x.grad for x in (*inputs, *network.parameters()) if x.grad is not None])
    assert worst(results[1], results[0]) <= tolerance(backprop, options)


@recomputing
def test_autograd_grad_of_some_parameters_leaves_grad_alone(backprop, options):
    stored, other = pair(couplings(4), backprop, options)
    results = []
    for network in (stored, other):
        some = list(network[1].parameters()) + list(network[3].F.parameters())
        results.append(torch.autograd.grad(loss(network(*streams())), some))
        assert all(p.grad is None for p in network.parameters())
    assert worst(*map(list, results[::-1])) <= tolerance(backprop, options)


@recomputing
def test_hooks_on_a_parameter_see_its_gradient_once(backprop, options):
    stored, other = pair(couplings(3), backprop, options)
    calls = []
    for network in (stored, other):
        weight = network[0].F[2].weight
        weight.register_hook(lambda grad: calls.append(1) or 2 * grad)
    assert worst(gradients(other, streams()), gradients(stored, streams())) <= tolerance(backprop, options)
    assert len(calls) == 2


@recomputing
def test_tied_weights_sum_over_their_uses(backprop, options):
    F, G = basic(4), basic(4)
    steps = [AdditiveCoupling(F, F), AdditiveCoupling(F, G), AdditiveCoupling(G, F), AdditiveCoupling(G, G)]
    stored, other = pair(steps, backprop, options)
    # in other orders of summation, the last bits differ
    assert worst(gradients(other, streams()), gradients(stored, streams())) < 1e-4


@recomputing
def test_double_backward_is_refused_by_name(backprop, options):
    other = pair(couplings(3, boundary=2), backprop, options)[1]
    inputs = streams()
    with pytest.raises(RuntimeError, match=r"double backward.*step 2 \(AdditiveCoupling\).*backprop=stored"):
        torch.autograd.grad(loss(other(*inputs)), inputs, create_graph=True)


@recomputing
def test_many_gradients_at_once_are_right_or_refused_by_name(backprop, options):
    """Among them torch draws no random numbers, though dropout only draws again what it drew for all of them."""
    branches = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5)) for _ in range(6)]
    stored, other = pair(list(map(AdditiveCoupling, branches[::2], branches[1::2])), backprop, options)
    (x1, x2), units = torch.randn(2, 2, 4).requires_grad_(), torch.eye(8).view(8, 2, 4)
    found = []
    for network in (stored, other):
        torch.manual_seed(0)
        y = network(x1, x2)[0]
        found.append(torch.autograd.grad(y, [x1, x2], units, is_grads_batched=True, retain_graph=True))
    assert worst(found[1], found[0]) < 1e-6
    with pytest.raises(
        RuntimeError, match=r"\(AdditiveCoupling\).* inside torch.func.*is_grads_batched.*stored or light"
    ):
        torch.func.vmap(lambda unit: torch.autograd.grad(y, x1, unit))(units)


def test_stored_allows_double_backward():
    network = Chain([EulerStep(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))])
    x = torch.randn(2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(network(x)), x, create_graph=True)
    grad.sum().backward()
    assert x.grad.abs().sum() > 0


@recomputing
def test_a_parameter_changed_before_backward_is_an_error(backprop, options):
    other = pair(couplings(3), backprop, options)[1]
    value = loss(other(*streams()))
    with torch.no_grad():
        next(other[0].parameters()).mul_(2)
    with pytest.raises(RuntimeError, match=r"step 0.*changed in place between forward and backward"):
        value.backward()
