"""torch.compile under every strategy. One case goes through the real compiler, the others through its partitioner."""

import copy
import itertools
import warnings

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from memexp import build, compose
from memexp.backprop import AdditiveCoupling, Chain, StepError, apply, chains, compiled
from memexp.memory.meter import Meter
from memexp.models.vanishing import ArtefactReLU, VanishingReLU

STRATEGIES = [
    ("light", {}),
    ("checkpointed", {}),
    ("checkpointed", {"every": 2}),
    ("reversible", {}),
    ("reversible", {"exact": True}),
    ("budget", {"stored": frozenset({0}), "light": frozenset({1})}),
]


def branch(width=8):
    return nn.Sequential(nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh())


def body(dtype=torch.float64, width=8):
    torch.manual_seed(0)
    return Chain([AdditiveCoupling(branch(width), branch(width)) for _ in range(3)]).to(dtype)


def gradients(chain, dtype=torch.float64, width=8):
    """Of the streams and parameters, the outputs and buffers after one step."""
    generator = torch.Generator().manual_seed(1)
    streams = [torch.randn(16, width, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
    outputs = chain(*streams)
    (outputs[0].square() + outputs[1].sin()).sum().backward()
    found = [x.grad for x in (*streams, *chain.parameters())]
    return [*found, *outputs, *(b.clone() for b in chain.buffers())]


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize(("strategy", "options"), STRATEGIES)
def test_gradients_and_statistics_are_those_of_the_uncompiled_network(strategy, options):
    chain = body()
    keys = list(chain.state_dict())
    expected = gradients(copy.deepcopy(chain))
    chain.choose(strategy, **{"exact_bits": 20, **options} if options.get("exact") else options)
    with compiled.compiled(chain) as clock:
        found = gradients(chain)
        assert list(chain.state_dict()) == keys
    tolerance = 1e-4 if options.get("exact") else 1e-12
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert clock.seconds > 0
    assert all(module._compiled_call_impl is None for module in chain.modules())
    assert chain.remade == set()


def test_exact_gives_the_bits_of_stored_through_the_real_compiler():
    found = {}
    for strategy in ("stored", "reversible", "checkpointed"):
        chain = body(torch.float32, 16)
        chain.choose(strategy, exact=True)
        with compiled.compiled(chain):
            found[strategy] = gradients(chain, torch.float32, 16)  # exact verifies each undone run by itself
    for strategy in ("reversible", "checkpointed"):
        assert all(map(torch.equal, found[strategy], found["stored"])), strategy


def kept(chain):
    """Bytes that autograd keeps of a forward pass, parameters and buffers left out."""
    known = {t.untyped_storage()._cdata for t in (*chain.parameters(), *chain.buffers())}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    x = [torch.randn(512, 8, requires_grad=True) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = chain(*x)
    total = sum(t.untyped_storage().nbytes() for address, t in storages.items() if address not in known)
    sum(y.sum() for y in outputs).backward()
    return total


@pytest.mark.usefixtures("partitioned")
def test_light_and_checkpointed_keep_less_in_compiled_code():
    figures = {}
    for strategy in ("stored", "light", "checkpointed"):
        chain = body(torch.float32)
        chain.choose(strategy)
        with compiled.compiled(chain):
            kept(chain)
            figures[strategy] = kept(chain)
    stream = 512 * 8 * 4
    assert figures["checkpointed"] <= 6 * stream + 1000  # one input a branch
    assert figures["light"] <= figures["checkpointed"] + 6 * stream + 3000  # and what a product gives
    assert figures["stored"] > 1.3 * figures["light"]


@pytest.mark.parametrize("model", ["revnet", "resnet", "heunnet"])
def test_stored_is_one_graph(model):
    network = build.network(compose([f"model={model}", "backprop=stored", "dataset=digits"]))
    whole = torch.compile(network, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 32, 32)
    network.eval()
    torch.testing.assert_close(whole(images), network(images))
    torch._dynamo.reset()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = itertools.count(1)

    def forward(self, x):
        return x * next(self.calls)


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize(
    ("branch", "options", "keywords", "said"),
    [
        (Counting, {"check": True}, {}, "gives different results for the same streams"),
        (nn.Tanh, {}, {"contxt": torch.ones(4, 8)}, "no step takes the keyword contxt"),
        (lambda: nn.Linear(8, 1), {}, {}, "branch F gives shape"),
    ],
)
def test_a_network_that_is_compiled_as_a_whole_refuses_what_it_refuses_uncompiled(branch, options, keywords, said):
    chain = Chain([AdditiveCoupling(branch(), nn.Tanh())], **options)
    x = torch.randn(4, 8, requires_grad=True)
    with compiled.compiled(chain), pytest.raises(StepError, match=said):
        chain(x, x, **keywords)


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, context):
        return torch.tanh(self.layer(x) + context)


@pytest.mark.usefixtures("partitioned")
def test_compiled_as_a_whole_streams_stay_in_full_precision_and_nothing_is_warned_of():
    chain = Chain([AdditiveCoupling(Reading(), Reading()) for _ in range(2)])
    x = torch.randn(4, 8).bfloat16()  # as a convolution before the Chain gives it
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = chain(x, x, context=x)
        with compiled.compiled(chain):
            found = chain(x, x, context=x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.01, atol=0.01)  # and of the same type
        assert a.dtype is torch.float32


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize(("between", "whole"), [(nn.Identity, True), (nn.Dropout, False)])
@pytest.mark.parametrize("strategy", ["light", "budget"])
def test_light_is_one_graph_where_nothing_draws_random_numbers(between, whole, strategy, caplog):
    caplog.set_level("INFO", "memexp")
    chain = Chain([branch(), branch()], strategy, **({"light": frozenset({0, 1})} if strategy == "budget" else {}))
    network = nn.Sequential(nn.Linear(8, 8), chain, between(), nn.Linear(8, 2)).double()
    expected, x = copy.deepcopy(network), torch.randn(16, 8, dtype=torch.float64)
    torch.manual_seed(2)
    expected(x).square().sum().backward()
    with compiled.compiled(network):
        torch.manual_seed(2)
        network(x).square().sum().backward()
    assert ("the network as a whole" in caplog.text) is whole
    for a, b in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.usefixtures("partitioned")
def test_a_network_that_is_compiled_by_its_user_keeps_its_strategy():
    chain = body()
    expected = gradients(copy.deepcopy(chain))
    chain.choose("reversible")
    whole = torch.compile(chain, backend="eager")
    generator = torch.Generator().manual_seed(1)
    streams = [torch.randn(16, 8, generator=generator).double().requires_grad_() for _ in range(2)]
    outputs = whole(*streams)
    assert "Recompute" in type(outputs[0].grad_fn.next_functions[0][0]).__name__  # the last step is stored
    (outputs[0].square() + outputs[1].sin()).sum().backward()
    torch.testing.assert_close(streams[0].grad, expected[0])


@pytest.mark.parametrize("kind", [VanishingReLU, ArtefactReLU])
def test_lambda_moves_without_compiling_anew(kind):
    counter = torch._dynamo.testing.CompileCounter()
    activation = kind()
    whole = torch.compile(activation, backend=counter, dynamic=False)
    x = torch.linspace(-2, 2, 9)
    for value in (1.0, 0.75, 0.3, 0.0):
        activation.set(value)
        torch.testing.assert_close(whole(x.clone()), activation(x.clone()))
    assert counter.frame_count == 1
    torch._dynamo.reset()


class Drawing(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


@pytest.mark.usefixtures("partitioned")
@pytest.mark.parametrize(("strategy", "left"), [("light", 1), ("checkpointed", 0), ("stored", 0)])
def test_what_draws_random_numbers_is_replayed_by_the_engine(strategy, left, caplog):
    caplog.set_level("INFO", "memexp")
    chain = Chain(
        [nn.Sequential(nn.Linear(8, 8), Drawing(), nn.Linear(8, 8)), nn.Sequential(nn.Tanh(), nn.Linear(8, 8))]
    )
    chain = chain.double()
    plan = {
        "stored": frozenset({0}) if strategy == "stored" else (),
        "light": frozenset({0, 1} if strategy == "light" else ()),
    }
    chain.choose("budget", **plan)
    with compiled.compiled(chain):
        x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
        weight = chain[0][0].weight

        def loss():
            torch.manual_seed(5)
            return chain(x).square().sum()

        loss().backward()
        moved = torch.randn_like(weight)
        with torch.no_grad():
            weight.add_(1e-6 * moved)
            above = loss()
            weight.sub_(2e-6 * moved)
            below = loss()
    assert ((above - below) / 2e-6).item() == pytest.approx((weight.grad * moved).sum().item(), rel=1e-5)
    assert f"{2 - left} steps one by one, {left} left" in caplog.text


def test_a_network_of_which_nothing_is_compiled_is_told(caplog):
    class Unknown(nn.Sequential):
        pass

    with compiled.compiled(Chain([Unknown(nn.Linear(8, 8), nn.Tanh())] * 2, "light")):
        pass
    assert "compiles nothing here: the steps (Unknown)" in caplog.text


@pytest.mark.usefixtures("partitioned")
def test_the_tracker_follows_the_uncompiled_step_and_says_so():
    figures = []
    for through in (False, True):
        chain = body(torch.float32)
        chain.choose("light")
        optimizer = torch.optim.SGD(chain.parameters(), 0.1)
        meter = Meter.for_device(torch.device("cpu"), 1)
        with compiled.compiled(chain) if through else torch.enable_grad():
            for number in range(3):
                x = [torch.ones(64, 8), torch.ones(64, 8)]
                with meter.step(number, chain, optimizer, [(x[0], x[1])]):
                    sum(y.sum() for y in chain(*x)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
        figures.append(meter.results())
    assert figures[0]["how"] == "tracked"
    assert figures[1]["how"] == "tracked over uncompiled steps"
    assert figures[0]["peak"] == figures[1]["peak"] > 0


def test_blocks_taken_in_place_are_compiled(partitioned):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=4).double().train()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = copy.deepcopy(network)
    expected(images).square().sum().backward()
    apply(network, "checkpointed")
    with compiled.compiled(network):
        network(images).square().sum().backward()
        assert all(step._compiled_call_impl for chain in chains(network) for step in chain if list(step.children()))
    for a, b in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-9)
