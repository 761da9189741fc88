"""memexp.memory.fit: any network into a number of bytes, with the gradients and names that it had."""

import copy
import sys
from collections import UserDict
from pathlib import Path

import pytest
import torch
from fit_blocks import Block, Looped, Streams, big, layers, noted, square, two_streams
from torch import nn
from torch.nn import functional
from torch.nn.utils import weight_norm

from memexp.backprop import apply, chains
from memexp.memory import fit, track

sys.path.insert(0, str(Path(__file__).parents[1] / "backprop"))

from foreign_networks import images, made

MiB = 2**20


def step(network, example, loss_fn=functional.cross_entropy):
    torch.manual_seed(3)
    inputs, *others = example
    loss_fn(network(inputs), *others).backward()


def agrees(network, example, share):
    """Fitted into a share of stored's peak it takes no more, as planned, and its gradients are stored's."""
    before, state = copy.deepcopy(network), copy.deepcopy(network.state_dict())
    plan, fitted = fit(network, functional.cross_entropy, example, share)
    assert list(fitted.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in fitted.state_dict().items())
    assert all(p.grad is None for p in fitted.parameters())
    reports = [track(lambda n=n: step(n, example), n, inputs=example) for n in (before, fitted)]
    assert abs(plan.most - reports[0].peak) <= 512  # the loss of the step before is held while a step is planned
    assert abs(plan.peak - reports[1].peak) <= 512
    assert reports[1].peak <= share * reports[0].peak
    scale = max(p.grad.norm() for p in before.parameters())
    for p, expected in zip(fitted.parameters(), before.parameters(), strict=True):
        assert (p.grad - expected.grad).norm() <= 1e-6 * max(expected.grad.norm(), 1e-3 * scale)
    return plan


@pytest.mark.parametrize(("name", "share"), [("looped", 0.6), ("vit", 0.6), ("named", 0.8)])
def test_within_the_limit_the_gradients_are_those_of_stored(name, share):
    plan = agrees(made(name), (images(32), torch.randint(5, (32,))), share)
    assert plan.least <= plan.peak <= plan.budget < plan.most
    assert f"{plan.most / MiB:.1f} MiB" in str(plan)


def test_what_does_not_fit_is_told_what_the_least_is_and_is_as_before():
    network = made("vit")
    modules = list(network.modules())
    with pytest.raises(
        ValueError, match=r"limit=1MB: the least that a training step .* takes is .* MiB \(stored: .* MiB\)"
    ):
        fit(network, functional.cross_entropy, (images(32), torch.randint(5, (32,))), "1MB")
    assert list(network.modules()) == modules
    assert chains(network) == []


@pytest.mark.parametrize(
    "network",
    [
        lambda: Looped(layers() for _ in range(3)),
        lambda: Looped([nn.Sequential(layers(), layers()), layers()]),
        lambda: nn.Sequential(*(layers() for _ in range(3))),
        lambda: nn.Sequential(*layers(), *layers()),
        lambda: apply(Looped(layers() for _ in range(3)), "light"),
        lambda: apply(nn.Sequential(*(layers() for _ in range(3))), "checkpointed", every=2),
        lambda: Streams(two_streams(backprop="reversible", exact=True, exact_bits=14)),
        lambda: Streams(two_streams(backprop="budget", stored=frozenset({1}))),
    ],
)
@pytest.mark.parametrize("loss_fn", [square, lambda y: (y.sum(), y)])
def test_a_refused_fit_leaves_blocks_and_strategies_as_they_were(network, loss_fn):
    network = network()

    def state():
        inplace = [getattr(m, "inplace", None) for m in network.modules()]
        forwards = [vars(m).get("forward") for m in network.modules()]
        strategies = [(chain, chain.backprop, chain.options, chain.strategy) for chain in chains(network)]
        return list(network.modules()), inplace, forwards, strategies

    before = state()
    with pytest.raises(ValueError, match=r"the least that a training step|loss_fn gives a tuple"):
        fit(network, loss_fn, torch.randn(8, 16), "1KB")
    assert state() == before


@pytest.mark.parametrize("options", [{"exact": True}, {"exact": True, "exact_bits": 12}, {}])
@pytest.mark.parametrize("backprop", ["stored", "reversible", "checkpointed", "budget"])
def test_a_chain_stays_the_same_function(backprop, options):
    network, x = Streams(two_streams(backprop=backprop, **options)), torch.randn(64, 16)
    before, rounding = network(x), network.chain.strategy.rounding
    fit(network, square, x, 1.0)
    assert network.chain.backprop == "budget"
    assert network.chain.strategy.rounding == rounding
    assert torch.equal(network(x), before)


def test_a_function_that_holds_the_network_is_planned_with_it():
    network, x = Looped(layers() for _ in range(2)), torch.randn(8, 16)
    plain = fit(copy.deepcopy(network), square, x, 1.0)[0]
    network.forward = lambda x, forward=network.forward: forward(x)
    plan = fit(network, square, x, 1.0)[0]
    assert (plan.peak, plan.most, plan.least) == (plain.peak, plain.most, plain.least)


def test_advice_to_name_blocks_can_be_followed():
    network = Looped([layers() for _ in range(3)], skip=lambda index: index == 2)
    with pytest.raises(
        ValueError, match=r"is not called by its forward, or without any tensor, .* name the blocks that are called"
    ):
        fit(network, square, torch.randn(8, 16), 1.0)
    fit(network, square, torch.randn(8, 16), 1.0, blocks=["blocks.0", "blocks.1"])
    assert len(chains(network)) == 2


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    "block", [lambda: Block(noted), lambda: nn.Sequential(weight_norm(nn.Linear(16, 16)), nn.Tanh())]
)
def test_what_a_forward_keeps_is_followed_and_left(block, ran):
    network, x = Looped(block() for _ in range(3)), torch.randn(8, 16)
    if ran:
        network(x)
    own = "layer", "way", "calls", "latest", "weight"
    before = [{key: vars(m)[key] for key in own if key in vars(m)} for m in network.modules()]
    values = [buffer.clone() for buffer in network.buffers()]
    fit(network, square, x, 1.0)
    assert [{key: vars(m)[key] for key in own if key in vars(m)} for m in network.modules()] == before
    assert all(map(torch.equal, network.buffers(), values))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_planned_where_the_caller_records_nothing(mode):
    network, x = Looped(layers() for _ in range(3)), torch.randn(64, 16)
    plans = [str(fit(copy.deepcopy(network), square, x, 1.0)[0])]
    with mode():
        plans.append(str(fit(network, square, x, 1.0)[0]))
        assert not network(x).requires_grad
    assert plans[0] == plans[1]


@pytest.mark.parametrize("kind", [dict, UserDict])  # a tokenizer's is one of these
def test_state_of_an_optimizer_counts_and_an_example_may_be_keywords(kind):
    network, example = Looped(layers() for _ in range(3)), kind(x=torch.randn(8, 16))
    plans = [
        fit(copy.deepcopy(network), square, example, 1.0, optimizer=optimizer)[0]
        for optimizer in (None, torch.optim.Adam)
    ]
    state = 2 * sum(-(-p.nbytes // 512) * 512 for p in network.parameters())
    assert plans[1].most >= plans[0].most + state


def test_a_target_that_is_the_input_too_counts_once():
    network, x = Looped(layers() for _ in range(3)), torch.randn(512, 16)
    agreed = fit(copy.deepcopy(network), lambda y, t: (y - t).square().sum(), (x, x), 1.0)[0]
    other = fit(copy.deepcopy(network), lambda y, t: (y - t).square().sum(), (x, x.clone()), 1.0)[0]
    assert other.most - agreed.most == x.nbytes


NAMES = [
    "resnet50", "vgg16_bn", "convnext_tiny", "swin_t", "vit_b_16", "densenet121", "efficientnet_b0", "vit_tiny",
    "edgenext_xx_small",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("name", "share"), [*((name, 0.6) for name in NAMES), ("resnet10t", 0.85)])
def test_networks_of_torchvision_and_timm(name, share):
    torch.manual_seed(0)
    build, count = big()[name]
    agrees(build(), (torch.randn(count, 3, 64, 64), torch.randint(1000, (count,))), share)


@pytest.mark.long
def test_a_network_most_of_whose_memory_is_its_stem_s_says_what_the_least_is():
    build, count = big()["resnet10t"]
    with pytest.raises(
        ValueError, match=r"limit=0.6: the least that a training step of this network takes is [\d.]+ MiB"
    ):
        fit(build(), functional.cross_entropy, (torch.randn(count, 3, 64, 64), torch.randint(1000, (count,))), 0.6)


@pytest.mark.long
def test_an_encoder_of_transformers():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "vocab_size": 100,
    }
    network = BertForSequenceClassification(BertConfig(**sizes))
    ids = torch.randint(100, (16, 32))
    example = {"input_ids": ids, "attention_mask": (ids > 10).long(), "labels": torch.randint(2, (16,))}
    before = copy.deepcopy(network)
    plan, network = fit(network, lambda output: output.loss, example, 0.6)
    assert list(network.state_dict()) == list(before.state_dict())

    def run(model):
        torch.manual_seed(3)
        model(**example).loss.backward()

    peaks = [track(lambda n=n: run(n), n, inputs=example.values()).peak for n in (before, network)]
    assert peaks[1] <= 0.6 * peaks[0]
    assert plan.peak <= plan.budget
    pairs = zip(network.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs)
