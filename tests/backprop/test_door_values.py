"""Types, values and calls that a user may give: right, or one sentence that names it (cases A7, A8, A13)."""

import copy

import pytest
import torch
from chain_networks import Offset, gradients, loss, same_bits
from door_steps import pairs, vectors
from torch import nn
from torch.autograd import forward_ad

from memexp.backprop import AdditiveCoupling, Chain, StepError


def test_a7_exact_with_a_batch_of_none():
    assert all(g.sum() == 0 for g in gradients(Chain(pairs(3), "reversible", exact=True), vectors(batch=0))[2:])


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)

    def forward(self, tokens):
        return self.table(tokens).chunk(2, -1)


def test_a7_exact_with_token_ids_before_an_embedding():
    steps = [Embed(), *pairs(3)]
    tokens = torch.arange(10)
    expected = gradients(Chain(copy.deepcopy(steps), exact=True), [tokens])
    assert same_bits(gradients(Chain(steps, "reversible", exact=True), [tokens]), expected)


class To(nn.Module):
    def __init__(self, dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


@pytest.mark.parametrize("backprop", ["stored", "reversible"])
@pytest.mark.parametrize(
    ("dtype", "branch", "message"),
    [
        (torch.int64, nn.Identity(), r"a stream is of torch.int64, .*pass it as a keyword"),
        (torch.complex64, nn.Identity(), r"a stream is of torch.complex64, .*view_as_real"),
        (torch.float32, To(torch.float64), r"branch G gives torch.float64 for a stream of torch.float32"),
        (torch.bfloat16, nn.Linear(4, 4, dtype=torch.bfloat16), r"branch G has weights in torch.bfloat16"),
    ],
)
def test_a7_types_that_exact_cannot_keep_are_named(backprop, dtype, branch, message):
    steps = pairs(3, nn.Identity)
    steps[0].G = branch
    inputs = [x.detach().to(dtype) for x in vectors()]
    with pytest.raises(StepError, match=rf"step 0 \(AdditiveCoupling\): {message}"):
        Chain(steps, backprop, exact=True)(*inputs)


def test_a7_forward_mode_passes_straight_through_the_grid():
    network = Chain(pairs(2), "reversible", exact=True)
    inputs, tangents = vectors(torch.float64), vectors(torch.float64)
    network.double()
    with forward_ad.dual_level(), network.using("stored"):
        outputs = network(*[forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)])
        found = [forward_ad.unpack_dual(y).tangent for y in outputs]
    expected = torch.autograd.functional.jvp(lambda *x: Chain(list(network))(*x), tuple(inputs), tuple(tangents))[1]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a8_transforms_are_refused_by_name():
    network = Chain(pairs(3), "reversible")
    x = tuple(vectors())
    with pytest.raises(StepError, match=r"step 0 \(AdditiveCoupling\) .*torch.func.*using\('stored'\)"):
        torch.func.grad(lambda a, b: loss(network(a, b)))(*x)
    with pytest.raises(StepError, match=r"step 0 .*torch.func"):
        torch.func.vmap(lambda a, b: network(a, b))(*x)
    with pytest.raises(StepError, match=r"step 0 .*tracing and export.*no_grad"):
        torch.jit.trace(network, x, check_trace=False)
    with forward_ad.dual_level(), pytest.raises(StepError, match=r"step 0 .*forward-mode AD"):
        network(forward_ad.make_dual(x[0], x[0].detach()), x[1])
    with network.using("stored"):
        torch.func.grad(lambda a, b: loss(network(a, b)))(*x)


@pytest.mark.parametrize("stream", [None, 3, [1.0]])
def test_a8_streams_are_tensors(stream):
    with pytest.raises(StepError, match=rf"stream 1 is a {type(stream).__name__}: .*keyword"):
        Chain(pairs(2), "reversible")(vectors()[0], stream)
    with pytest.raises(StepError, match="at least one stream"):
        Chain(pairs(2))()


def test_a8_functions_lazy_modules_and_results_that_are_no_tensors():
    with pytest.raises(StepError, match=r"AdditiveCoupling: F is .*nn.Module"):
        AdditiveCoupling(torch.tanh, nn.Tanh())
    with pytest.raises(StepError, match=r"step 1 is .*nn.Module"):
        Chain([nn.Tanh(), torch.tanh])
    lazy = Chain(pairs(2, lambda: nn.LazyLinear(4)), "reversible")
    with pytest.raises(StepError, match=r"step 0 .*lazy module.*torch.no_grad"):
        lazy(*vectors())
    with torch.no_grad():
        lazy(*vectors())
    gradients(lazy, vectors())
    nothing = nn.Identity()
    nothing.forward = lambda *x: None
    with pytest.raises(StepError, match=r"step 0 \(Identity\) gives a NoneType"):
        Chain([nothing])(*vectors())


@pytest.mark.parametrize(
    ("backprop", "options", "message"),
    [
        ("budget", {"stored": {99}}, r"stored=\[99\]: the Chain has steps 0 to 1"),
        ("reversible", {"exact": "yes"}, "exact='yes': use true or false"),
        ("stored", {"check": "yes"}, "check='yes': use true or false"),
    ],
)
def test_a8_values_of_options(backprop, options, message):
    with pytest.raises(ValueError, match=message):
        Chain(pairs(2), backprop, **options)


@pytest.mark.parametrize("backprop", ["stored", "checkpointed", "reversible"])
def test_a13_evaluation_with_gradients_may_leave_the_range_unless_it_is_undone(backprop):
    steps = pairs(3)
    steps[1] = AdditiveCoupling(Offset(400.0), Offset(0.0))
    network = Chain(steps, backprop, exact=True).eval()
    value = loss(network(*vectors()))
    if backprop == "reversible":
        with pytest.raises(StepError, match=r"step 1 .*reaches 40.*exact_bits=14"):
            value.backward()
    else:
        value.backward()
