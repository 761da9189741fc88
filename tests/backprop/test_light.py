"""Light: what is cheap to make is remade, bit for bit, on any network; and it is less than stored keeps."""

import copy
import gc
import weakref

import pytest
import torch
from chain_networks import basic, chain, couplings, gradients, loss, same_bits, streams
from torch import nn
from torch.nn import functional

from memexp.backprop import Chain, EulerStep
from memexp.memory.allocator import allocated


class Written(nn.Module):
    """A module by its forward, with layers to use: two convolutions, a normalisation."""

    def __init__(self, forward, channels=8):
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.n, self.m = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        for p in (*self.n.parameters(), *self.m.parameters()):
            nn.init.uniform_(p, 0.5, 1.5)  # a weight of 1 hides in which order is multiplied
        self.written = forward

    def forward(self, x):
        return self.written(self, x)


def post_activation(s, x):
    return functional.relu_(s.m(s.b(functional.relu_(s.n(s.a(x))))).add_(x))


def dense(s, x):
    new = s.a(functional.relu(s.n(x)))
    both = torch.cat((new, x[:, :4]), 1)
    return s.b(functional.silu(both)[:, :8])


def used_twice(s, x):
    y = functional.relu(s.n(s.a(x)))
    return s.b(y) + s.a(y) * y


def written_after_it_was_read(s, x):
    y = s.a(x)
    both = torch.cat((y, y.detach()[:, :2]), 1)  # made of y as it is now
    z = both.sigmoid()
    y.relu_()
    return z[:, :8] * s.b(y)


def written_through_a_view(s, x):
    y = s.n(s.a(x))
    y[:, ::2].mul_(0.5)
    return s.b(functional.relu(y))


def written_after_two_views_were_read(s, x):
    y = s.a(x)
    p, q = y[:, 2:], y[:, :4]
    larger = [functional.interpolate(v, scale_factor=2) for v in (p, q)]
    z = sum(functional.conv2d(v, s.b.weight[:, : v.shape[1]], stride=2, padding=1) for v in larger)
    y.relu_()
    return s.b(y) + z


def written_through_a_view_that_was_read(s, x):
    y = s.a(x)
    p = y[:, 4:]
    z = functional.conv2d(functional.interpolate(p, scale_factor=2), s.b.weight[:, :4], stride=2, padding=1)
    p.relu_()
    return s.b(y) + z


def few_of_many_channels(s, x):
    y = s.a(x)
    p = y[:, :2]
    return functional.conv2d(torch.cat((p + 1, p), 1), s.b.weight[:, :4], padding=1)


def convolution_overwritten(s, x):
    return s.b(functional.relu_(s.a(x)))


def gated(s, x):
    p, q = s.n(s.a(x)).chunk(2, 1)
    return s.b(torch.cat((functional.gelu(p) * q, functional.hardswish(q)), 1))


def attention(s, x):
    y = functional.layer_norm(s.a(x).flatten(2).transpose(1, 2), (8,))
    weights = functional.dropout((y @ y.transpose(1, 2)).softmax(-1), 0.2)
    return (weights @ y).transpose(1, 2).reshape(x.shape)


def pooled(s, x):
    y = functional.max_pool2d(functional.relu(s.n(s.a(x))), 2)
    return functional.interpolate(functional.leaky_relu(functional.group_norm(s.b(y), 2)), scale_factor=2) + x


def drawn(s, x):
    return s.b(functional.dropout(functional.relu_(s.n(s.a(x))), 0.3)) + functional.rrelu(s.m(x), training=True)


def normalised_where_elements_lie_apart(s, x):
    y = s.n(s.a(x).transpose(2, 3))
    return s.b(functional.relu(y[..., :4])).repeat(1, 1, 1, 2) + s.m(y[:, :, 1:-1, 1:-1]).mean()


def of_products_within_a_kernel(s, x):
    turns = torch.tensor([[0.9, -0.3, 0.0], [0.3, 0.9, 0.1]]).expand(len(x), 2, 3)
    grid = functional.affine_grid(turns, x.shape, align_corners=False)
    y = functional.relu(s.n(s.a(functional.grid_sample(x, grid, align_corners=False))))
    return s.b(y) + functional.bilinear(x, x, torch.linspace(-1, 1, 512).view(8, 8, 8))


FORWARDS = [
    of_products_within_a_kernel,
    post_activation, dense, used_twice, written_after_it_was_read, written_through_a_view, written_after_two_views_were_read,
    written_through_a_view_that_was_read, few_of_many_channels, convolution_overwritten, gated, attention, pooled, drawn,
    normalised_where_elements_lie_apart,
]  # fmt: skip


def pair(steps, **options):
    return chain(steps, "stored", **options), chain(steps, "light", **options)


def wide(seed=1):
    return [torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()]


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("mode", ["train", "eval", "bf16", "channels_last", "frozen"])
def test_gradients_and_statistics_are_those_of_stored_to_the_last_bit(forward, mode):
    torch.manual_seed(0)
    stored, light = pair([Written(forward) for _ in range(2)])
    for network in (stored, light):
        network.train(mode != "eval")
        if mode == "channels_last":
            network.to(memory_format=torch.channels_last)
        if mode == "frozen":
            network[0].a.weight.requires_grad_(False)
            network[1].n.requires_grad_(False)
    found = []
    for network in (stored, light):
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
            found.append([g for g in gradients(network, wide()) if g is not None])
    assert same_bits(found[1], found[0])
    assert same_bits(list(light.buffers()), list(stored.buffers()))


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)
def test_it_never_keeps_more_than_stored(forward):
    torch.manual_seed(0)
    kept = [allocated(lambda n=n: loss(n(*wide())))[1] for n in pair([Written(forward) for _ in range(3)])]
    assert kept[1] <= kept[0]
    if forward not in (convolution_overwritten, attention, few_of_many_channels):
        assert kept[1] < kept[0]


@pytest.mark.parametrize(("exact", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_couplings_keep_two_of_four_maps_a_branch(exact, dropout):
    stored, light = pair(couplings(4, channels=8, boundary=2, dropout=dropout), exact=exact)
    assert same_bits(gradients(light, streams(8)), gradients(stored, streams(8)))
    assert same_bits(list(light.buffers()), list(stored.buffers()))
    if not dropout:  # which keeps what it has drawn
        kept = [allocated(lambda n=n: loss(n(*streams(8, size=16))))[1] for n in (stored, light)]
        assert kept[1] < 0.6 * kept[0]


def test_layers_in_a_row_are_light_together():
    """Normalised, activated and pooled maps go, and only what convolutions give stays: also from one step to the next."""
    layers = [m for _ in range(4) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    stored, light = pair(layers)
    assert same_bits(gradients(light, wide()), gradients(stored, wide()))
    x = torch.randn(8, 8, 32, 32)
    kept = [allocated(lambda n=n: loss(n(x)))[1] for n in (stored, light)]
    one = x.nbytes
    assert kept[0] > 8 * one
    assert kept[1] < 5.5 * one  # four of convolutions, and what leaves


ACTIVATIONS = [
    *(nn.LeakyReLU, nn.Hardswish, nn.ReLU6, nn.Hardtanh, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Hardsigmoid, nn.SiLU),
]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_as_light_as_relu_whatever_tags_its_operation_has(activation, inplace):
    def body(act):
        torch.manual_seed(0)
        layers = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), act, nn.Conv2d(8, 8, 3, padding=1)
        return [EulerStep(nn.Sequential(*layers))]

    stored, light = pair(body(activation(inplace=inplace)))
    assert same_bits(gradients(light, wide()), gradients(stored, wide()))
    x = torch.randn(8, 8, 32, 32)
    kept = [allocated(lambda n=n: loss(n(x)))[1] for n in (light, chain(body(nn.ReLU(inplace)), "light"))]
    assert kept[0] == kept[1]


def test_backward_twice_and_second_derivatives_are_those_of_stored():
    stored, light = pair([Written(post_activation), Written(gated)])
    results = []
    for network in (stored, light):
        (x,) = wide()
        value = loss(network(x))
        once = torch.autograd.grad(value, [x, *network[0].parameters()], retain_graph=True)
        again = torch.autograd.grad(value, [x, *network[0].parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), [x])
        assert same_bits(list(again), list(once))
        results.append([*once, *second])
    assert same_bits(results[1], results[0])


@pytest.mark.parametrize("what", ["weight", "stream"])
def test_what_was_changed_in_place_since_is_an_error(what):
    light = chain([EulerStep(basic(8))], "light")
    (x,) = wide()
    inner = x * 1.0
    value = loss(light(inner))
    with torch.no_grad():
        (light[0].f[0].weight if what == "weight" else inner.detach()).mul_(2)
    with pytest.raises(RuntimeError, match=r"(changed|modified).* (in ?place|inplace)"):
        value.backward()


def test_what_is_remade_is_gone_after_its_last_user():
    light = Chain([EulerStep(basic(16)) for _ in range(8)], "light")
    x = torch.randn(8, 16, 32, 32).requires_grad_()
    stored = Chain(copy.deepcopy(list(light)), "stored")
    peaks = [allocated(lambda n=n: loss(n(x)).backward())[0] for n in (stored, light)]
    assert peaks[1] < 0.65 * peaks[0]


def test_without_gradients_it_is_stored():
    stored, light = pair([Written(gated)])
    with torch.no_grad():
        assert torch.equal(light(*wide()), stored(*wide()))


KEEPING = [
    *(
        torch.tanh,
        torch.sigmoid,
        torch.exp,
        functional.relu,
        torch.rsqrt,
        torch.norm,
        torch.logsumexp,
        torch.cumprod,
        torch.std,
    ),
    *(functional.softmax, functional.log_softmax, torch.amax, functional.layer_norm, torch.max),
]


@pytest.mark.parametrize("function", KEEPING, ids=lambda function: function.__name__)
def test_a_pass_of_which_there_is_no_backward_does_not_stay_in_memory(function):
    """Nodes that save their own output would hold themselves."""
    more = {torch.logsumexp: (-1,), torch.cumprod: (-1,), functional.softmax: (-1,), functional.log_softmax: (-1,)}
    more |= {functional.layer_norm: ((64,),), torch.amax: (-1,)}

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            y = self.layer(x)
            made.append(weakref.ref(y))
            function(y.abs() + 1, *more.get(function, ()))
            return functional.silu(y)

    made = []
    y = Chain([Step(), Step()], "light")(torch.randn(32, 64))
    del y
    gc.collect()
    assert [ref() for ref in made] == [None, None]


def test_a_pass_that_fails_does_not_stay_in_memory():
    """As one that runs out of memory, and is taken again with a smaller batch."""

    def forward(s, x):
        y = s.a(x)
        made.append(weakref.ref(y))
        s.b(functional.relu(s.n(y)))
        raise MemoryError

    made = []
    with pytest.raises(MemoryError):
        Chain([Written(post_activation), Written(forward)], "light")(*wide())
    gc.collect()
    assert made[0]() is None


class Viewed(nn.Module):
    """Reads the bits of a tensor as something else."""

    def __init__(self, how, dtype=torch.float32):
        super().__init__()
        self.layer, self.how = nn.Linear(64, 64, dtype=dtype), how

    def forward(self, x):
        return x + self.how(torch.tanh(self.layer(x)))


@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        (lambda z: z.conj() * torch.tanh(z), torch.complex64),
        (lambda z: torch.complex(z.real.tanh(), z.imag.sigmoid()), torch.complex64),
        (lambda z: torch.view_as_complex(torch.view_as_real(z).tanh()), torch.complex64),
        (lambda z: torch._neg_view(z) * torch.tanh(z.imag), torch.complex64),
        (lambda h: torch.where(h.view(torch.int32) % 4 != 0, h, 0.0) * h, torch.float32),
        (lambda h: h * (h.view(torch.int32) & 1), torch.float32),
    ],
    ids=["conj", "parts", "view_as_real", "neg", "where", "bits"],
)
def test_bits_that_are_read_as_something_else(how, dtype):
    torch.manual_seed(0)
    steps, x = [Viewed(how, dtype) for _ in range(2)], torch.randn(32, 64, dtype=dtype)

    def run(backprop):
        network = Chain(copy.deepcopy(steps), backprop)
        network(x).abs().square().mean().backward()
        return [p.grad for p in network.parameters()]

    assert all(map(torch.equal, run("light"), run("stored")))


def test_an_operation_that_gives_no_tensor():
    """`equal` is tagged as pointwise."""
    steps, x = [Viewed(lambda h: h * h if torch.equal(h, h) else h)], torch.randn(32, 64)
    found, expected = (gradients(Chain(steps, backprop), [x]) for backprop in ("light", "stored"))
    assert all(map(torch.equal, found, expected))
