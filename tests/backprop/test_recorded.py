"""What a step sees of torch in its first pass: which tensors are trained, whether anything is recorded, what is switched."""

import pytest
import torch
from chain_networks import loss
from chain_pairs import pair, recomputing
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from memexp.backprop import AdditiveCoupling, Chain, StepError


class Biased(nn.Module):
    """Gives beside its output what later blocks read: a mask that nothing is trained of, and a bias that is.

    zeros: makes the mask.
    """

    def __init__(self, zeros):
        super().__init__()
        self.layer, self.zeros = nn.Linear(4, 4), zeros

    def forward(self, x, mask=None, bias=None):
        if mask is None:
            mask, bias = self.zeros(4), self.layer.bias * 2
        flags.append((x.requires_grad, mask.requires_grad, bias.requires_grad))
        return self.layer(x) + mask + bias, mask, bias


flags: list[tuple[bool, ...]] = []


def view_of_zeros(size):
    return torch.zeros(1, size)[0]


@pytest.mark.parametrize("zeros", [torch.zeros, view_of_zeros])
@pytest.mark.parametrize("masks", [(), (torch.ones(4), torch.ones(4))], ids=["made", "given"])
def test_what_depends_on_nothing_trained_is_not_taken_for_trained(masks, zeros):
    """Attention on a GPU chooses its kernel by that, and with it the numbers that dropout draws (T5's bias)."""

    def run(backprop):
        torch.manual_seed(0)
        flags.clear()
        chain = Chain([Biased(zeros) for _ in range(3)], backprop)
        outputs = chain(torch.ones(2, 4), *masks)
        sum(y.sum() for y in outputs).backward()
        return [y.requires_grad for y in outputs], list(flags), [p.grad for p in chain.parameters()]

    of_outputs, seen, grads = run("stored")
    assert of_outputs == [True, False, not masks]
    found, flagged, theirs = run("checkpointed")
    assert found == of_outputs
    assert flagged[:3] == seen
    assert [f[1:] for f in flagged[3:]] == [f[1:] for f in reversed(seen)]
    assert all(map(torch.equal, theirs, grads))


@pytest.mark.parametrize("options", [{"backprop": "checkpointed"}, {"backprop": "reversible", "exact": True}])
@pytest.mark.parametrize("trained", [True, False])
def test_attention_in_evaluation_mode_is_computed_as_where_it_is_recorded(options, trained):
    """torch has a fused kernel for where it is not, which rounds otherwise; exact was refused for it."""

    def run(backprop):
        torch.manual_seed(0)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(4)]
        layers[0].requires_grad_(trained)
        # a stream with one reader: several add up their gradients in another order
        branches = [nn.Sequential(nn.Linear(16, 16), layer) for layer in layers]
        pairs = zip(branches[::2], branches[1::2], strict=True)
        steps = [AdditiveCoupling(f, g) for f, g in pairs] if "exact" in options else branches
        chain = Chain(steps, **(backprop | {"exact": True} if "exact" in options else backprop)).eval()
        x = torch.randn(2, 3, 16)
        outputs = chain(x, x * 2) if "exact" in options else (chain(x),)
        sum(y.square().sum() for y in outputs).backward()
        return [*outputs, *(p.grad for p in chain.parameters() if p.requires_grad)]

    assert all(map(torch.equal, run(options), run({"backprop": "stored"})))


class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            self.layer.weight.clamp_(-0.1, 0.1)
        return self.layer(x)


class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        (slope,) = torch.autograd.grad(self.layer(x).tanh().square().sum(), x, create_graph=True)
        return x - slope


class Functional(Energy):
    def forward(self, x):
        return x - torch.func.grad(lambda x: self.layer(x).tanh().square().sum())(x)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Clamped, r"step 0 \(Clamped\) changes a parameter in place in its own forward.*stored or light"),
        (Energy, r"step 0 \(Energy\): differentiates in its own forward.*stored or light"),
        (Functional, r"step 0 \(Functional\) differentiates in its own forward with torch.func.*=stored, or .*=light"),
    ],
)
def test_what_a_step_does_in_its_forward_that_cannot_be_done_twice_is_named(kind, said):
    with pytest.raises((RuntimeError, StepError), match=said):
        Chain([kind()], "checkpointed")(torch.ones(2, 4, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("backprop", ["stored", "light", "checkpointed"])
def test_an_output_may_be_written_to(backprop):
    torch.manual_seed(0)
    y = Chain([nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)))], backprop)(torch.ones(2, 4))
    y += 1
    y.square().sum().backward()


class Asking(nn.Module):
    """Notes what is switched where it is evaluated."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        switched.append((torch.backends.cuda.flash_sdp_enabled(), torch.get_default_dtype()))
        return self.layer(x) * torch.linspace(0, 1, 4)


switched: list[object] = []


@recomputing
def test_what_is_switched_around_the_forward_pass_alone_is_so_in_backward(backprop, options):
    """Attention under dropout draws other numbers by another kernel, and a table of positions is rounded otherwise."""
    stored, other = pair([AdditiveCoupling(Asking(), Asking()) for _ in range(3)], backprop, options)
    results = []
    for network in (stored.double(), other.double()):
        inputs = [torch.randn(2, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]
        switched.clear()
        torch.set_default_dtype(torch.float64)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                value = loss(network(*inputs))
        finally:
            torch.set_default_dtype(torch.float32)
        value.backward()
        assert set(switched) == {(False, torch.float64)}
        assert (torch.backends.cuda.flash_sdp_enabled(), torch.get_default_dtype()) == (True, torch.float32)
        results.append(len(switched))
    assert results[1] > results[0]
