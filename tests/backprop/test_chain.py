"""The rules of every strategy: statistics once, conditions replayed, autograd's gradients, tensors left alone."""

import copy
from contextlib import nullcontext

import pytest
import torch
from chain_networks import basic, chain, couplings, gradients, loss, same_bits, streams, worst
from chain_pairs import pair, recomputing, tolerance
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, EulerStep


def test_registers_steps_as_a_sequential_does():
    steps = couplings(3)
    assert list(Chain(steps).state_dict()) == list(nn.Sequential(*steps).state_dict())
    assert len(Chain(steps)) == 3
    assert Chain(steps)[2] is steps[2]


@recomputing
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_statistics_move_once_and_to_the_last_bit(backprop, options, momentum):
    steps = couplings(4, boundary=2)
    for module in nn.ModuleList(steps).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    stored, other = pair(steps, backprop, options)
    for seed in (1, 2):
        for network in (stored, other):
            gradients(network, streams(seed=seed))
    assert same_bits(list(other.buffers()), list(stored.buffers()))
    counts = [b.item() for name, b in other.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [2] * 16


@recomputing
def test_instance_norm_statistics_move_once(backprop, options):
    def branch():
        return nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True), nn.Conv2d(4, 4, 3, padding=1))

    stored, other = pair([AdditiveCoupling(branch(), branch()) for _ in range(3)], backprop, options)
    for network in (stored, other):
        gradients(network, streams())
    assert same_bits(list(other.buffers()), list(stored.buffers()))


@recomputing
def test_power_iteration_of_a_spectral_norm_is_replayed(backprop, options):
    def branch():
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)), nn.Tanh())

    torch.manual_seed(0)
    stored, other = pair([AdditiveCoupling(branch(), branch()) for _ in range(3)], backprop, options)
    expected, found = gradients(stored, streams()), gradients(other, streams())
    assert same_bits(list(other.buffers()), list(stored.buffers()))
    assert worst(found, expected) <= tolerance(backprop, options)


@recomputing
def test_dropout_is_replayed_and_the_callers_random_state_is_left_alone(backprop, options):
    stored, other = pair(couplings(4, boundary=2, dropout=0.3), backprop, options)
    expected = gradients(stored, streams())
    state = torch.get_rng_state()
    found = gradients(other, streams())
    assert torch.equal(torch.get_rng_state(), state)
    assert worst(found, expected) <= tolerance(backprop, options)


@recomputing
def test_random_numbers_drawn_between_forward_and_backward_do_not_matter(backprop, options):
    stored, other = pair(couplings(3, dropout=0.3), backprop, options)
    expected = gradients(stored, streams())
    torch.manual_seed(7)
    inputs = streams()
    value = loss(other(*inputs))
    torch.rand(5)
    state = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert worst([x.grad for x in (*inputs, *other.parameters())], expected) <= tolerance(backprop, options)


@recomputing
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_is_replayed(backprop, options, inside):
    stored, other = pair(couplings(3), backprop, options)
    results = []
    for network in (stored, other):
        inputs = streams()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            value = loss(network(*inputs))
        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            value.backward()
        results.append([x.grad for x in (*inputs, *network.parameters())])
    drift = backprop == "reversible" and not options.get("exact")
    assert worst(results[1], results[0]) <= ((0.2 if inside else 1e-4) if drift else 0.0)


def test_a_weight_cast_in_a_first_pass_is_not_reused_without_its_graph():
    f = nn.Linear(4, 4)
    checkpointed = Chain([EulerStep(f)], backprop="checkpointed")
    x = torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = f(checkpointed(x)).sum()
    value.backward()
    alone = copy.deepcopy(f)
    alone.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        value = alone(x + alone(x)).sum()
    value.backward()
    torch.testing.assert_close(f.weight.grad, alone.weight.grad, rtol=2e-2, atol=2e-2)


class Recurrent(nn.Module):
    """Reads its weights once for each moment, with or without a graph."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(4, 4)
        self.gate = nn.Linear(4, 4)

    def forward(self, x):
        state, states = x[0], []
        for now in x:
            with torch.no_grad():
                scale = self.gate(now).sigmoid()
            state = self.cell(now * scale, state) + self.gate(now)
            states.append(state)
        return torch.stack(states)


@pytest.mark.parametrize("around", [False, True])
def test_a_weight_that_is_read_again_and_again_is_cast_once_as_without_the_engine(around):
    """Each cast would be kept by itself, and the gradient be added up in another type; not so inside a caller's autocast."""
    torch.manual_seed(0)
    steps = [Recurrent() for _ in range(2)]

    def run(backprop):
        chain = Chain(copy.deepcopy(steps), backprop)
        with torch.autocast("cpu", torch.bfloat16):
            y = chain(torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(1)))
        with torch.autocast("cpu", torch.bfloat16) if around else nullcontext():
            y.square().sum().backward()
        return [p.grad for p in chain.parameters()]

    expected, found = run("stored"), run("checkpointed")
    if around:
        assert all(torch.allclose(a, b, rtol=0.05, atol=0.05) for a, b in zip(found, expected, strict=True))
    else:
        assert all(map(torch.equal, found, expected))


@recomputing
def test_train_and_eval_modes_are_replayed_and_left_as_they_are(backprop, options):
    stored, other = pair(couplings(3, dropout=0.3), backprop, options)
    expected = gradients(stored, streams())
    torch.manual_seed(7)
    inputs = streams()
    value = loss(other(*inputs))
    other.eval()
    value.backward()
    assert not any(module.training for module in other.modules())
    assert worst([x.grad for x in (*inputs, *other.parameters())], expected) <= tolerance(backprop, options)


@recomputing
def test_without_gradients_the_result_is_the_same_and_statistics_move(backprop, options):
    stored, other = pair(couplings(3, boundary=1), backprop, options)
    with_gradients = other(*streams())
    with torch.no_grad():
        without = stored(*streams())
        with torch.inference_mode():
            inferred = copy.deepcopy(stored).eval()(*streams())
    assert same_bits(list(without), list(with_gradients))
    assert same_bits(list(stored.buffers()), list(other.buffers()))
    assert all(y.is_inference() for y in inferred)


@recomputing
def test_callers_tensors_are_left_as_they_are(backprop, options):
    other = pair(couplings(3), backprop, options)[1]
    inputs = streams()
    kept = [x.detach().clone() for x in inputs]
    versions = [x._version for x in inputs]
    outputs = other(*inputs)
    results = [y.detach().clone() for y in outputs]
    grads = [torch.randn_like(y) for y in outputs]
    copies = [grad.clone() for grad in grads]
    torch.autograd.backward(outputs, grads)
    assert same_bits([x.detach() for x in inputs], kept)
    assert [x._version for x in inputs] == versions
    assert same_bits([y.detach() for y in outputs], results)
    assert same_bits(grads, copies)


@recomputing
def test_chains_nest(backprop, options):
    def nested(inner):
        torch.manual_seed(0)
        body = [EulerStep(Chain([EulerStep(basic(4, dropout=0.2), 0.5) for _ in range(2)], backprop=inner))]
        return [AdditiveCoupling(nn.Sequential(Chain(body, backprop=inner)), basic(4)) for _ in range(3)]

    exact = {"exact": True} if options.get("exact") else {}
    stored = Chain(nested("stored"), backprop="stored", **exact)
    other = Chain(nested("checkpointed"), backprop=backprop, **options)
    # three terms are summed in another order
    assert worst(gradients(other, streams()), gradients(stored, streams())) < 1e-4
    assert same_bits(list(other.buffers()), list(stored.buffers()))


class Coupled(nn.Module):
    """A coupling inside a branch, without a Chain of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = AdditiveCoupling(basic(2, dropout=0.3), basic(2, dropout=0.3))

    def forward(self, x):
        return torch.cat(self.inner(*x.chunk(2, 1)), 1) / 2


@recomputing
def test_steps_nest_without_a_chain(backprop, options):
    torch.manual_seed(0)
    stored, other = pair([AdditiveCoupling(Coupled(), Coupled()) for _ in range(3)], backprop, options)
    assert worst(gradients(other, streams()), gradients(stored, streams())) <= tolerance(backprop, options)


@pytest.mark.parametrize(
    ("backprop", "options", "message"),
    [
        ("reversed", {}, "backprop='reversed': use one of stored, light, checkpointed, reversible, adjoint"),
        ("reversible", {"every": 2}, "has no option every; it has exact, exact_bits"),
        ("checkpointed", {"every": 0}, "every=0"),
        ("reversible", {"exact": True, "exact_bits": 24}, "exact_bits=24: use an integer from 1 to 23"),
        ("adjoint", {}, "no step has an approximate inverse .*AdditiveCoupling"),
    ],
)
def test_options_that_do_not_fit(backprop, options, message):
    with pytest.raises(ValueError, match=message):
        Chain(couplings(1), backprop=backprop, **options)


def test_reversible_needs_a_step_that_can_be_undone():
    with pytest.raises(ValueError, match=r"no step has an exact inverse \(the Chain has EulerStep\).*checkpointed"):
        Chain([EulerStep(nn.Identity())], backprop="reversible")
    with pytest.raises(ValueError, match="no step has an exact inverse"):
        Chain(couplings(1, boundary=0), backprop="reversible")


class Shift(nn.Module):
    """A user's own step with an exact inverse: a permutation of streams and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Tanh())

    def forward(self, a, b, c):
        return b, c, a + self.f(b)

    def inverse(self, a, b, c):
        return c - self.f(a), a, b


def test_a_users_own_invertible_step_on_three_streams():
    torch.manual_seed(0)
    steps = [Shift() for _ in range(5)]
    stored, reversible = chain(steps, "stored"), chain(steps, "reversible")
    inputs = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
    assert worst(gradients(reversible, inputs), gradients(stored, inputs)) < 1e-5


def test_exact_refuses_an_inverse_that_does_not_keep_to_the_grid():
    with pytest.raises(ValueError, match=r"step 0 \(Shift\).*exact"):
        Chain([Shift()], backprop="reversible", exact=True)


def test_streams_that_do_not_fit_name_the_step():
    with pytest.raises(ValueError, match=r"step 0 \(AdditiveCoupling\): takes two streams .* got 1; .*split"):
        Chain(couplings(2))(streams()[0])
    with pytest.raises(ValueError, match=r"step 1 \(EulerStep\) takes \(x\), got 2 streams"):
        Chain([*couplings(1), EulerStep(nn.Identity())])(*streams())


@recomputing
def test_a_branch_that_changes_its_input_in_place_is_named(backprop, options):
    steps = couplings(3)
    steps[1].G = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    for network in pair(steps, backprop, options):
        with pytest.raises(ValueError, match=r"step 1 \(AdditiveCoupling\): branch G changes its input in place"):
            network(*streams())


@recomputing
def test_a_branch_that_changes_shape_is_named(backprop, options):
    steps = couplings(3)
    steps[2].F = nn.Conv2d(4, 1, 1)
    for network in pair(steps, backprop, options):
        with pytest.raises(ValueError, match=r"step 2 \(AdditiveCoupling\): branch F gives shape \(3, 1, 6, 6\)"):
            network(*streams())
