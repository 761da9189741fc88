"""Objects that a call hands to its steps: caches, lists, flags. Recomputed, such blocks were silently wrong."""

import copy
import gc
import weakref
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional

from memexp.backprop import AdditiveCoupling, Chain, StepError, apply


class Layer:
    keys: torch.Tensor | None = None


class Cache:
    """As those of transformers: a layer's keys are joined to those that are there."""

    def __init__(self):
        self.layers = []

    def update(self, index, keys):
        while len(self.layers) <= index:
            self.layers.append(Layer())
        layer = self.layers[index]
        layer.keys = keys if layer.keys is None else torch.cat([layer.keys, keys], 1)
        return layer.keys


class Caching(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def attend(self, x, keys):
        return x + functional.scaled_dot_product_attention(self.q(x), keys, keys)

    def forward(self, x, cache=None):
        return self.attend(x, cache.update(self.index, self.k(x)))


class Flagged(Caching):
    """Makes its keys once, and says so in a dict of sets."""

    def forward(self, x, cache=None):
        made, keys = cache
        if self.index not in made["made"]:
            made["made"].add(self.index)
            keys[self.index] = self.k(x) * (1 + len(keys))
            return self.attend(x, keys[self.index])
        return self.attend(x, keys[self.index].detach())


class Counting(Caching):
    """Reads how many were before it."""

    def forward(self, x, cache=None):
        cache.append(None)
        return self.attend(x, self.k(x) * len(cache))


class Sharing(Caching):
    """Reads what the first has left."""

    def forward(self, x, cache=None):
        cache.setdefault("keys", self.k(x))
        return self.attend(x, cache["keys"])


HANDED = {Caching: Cache, Flagged: lambda: ({"made": set()}, {}), Counting: list}


class Network(nn.Module):
    def __init__(self, kind, count=4):
        super().__init__()
        self.blocks = nn.ModuleList(kind(index) for index in range(count))

    def forward(self, x, cache):
        for block in self.blocks:
            x = block(x, cache=cache)
        return x


def gradients(network, cache):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    network(x, cache).square().sum().backward()
    return [p.grad for p in network.parameters()]


@pytest.mark.parametrize("backprop", ["checkpointed", "light", "budget"])
@pytest.mark.parametrize("kind", HANDED)
def test_a_block_that_changes_what_it_is_handed_has_the_gradient_of_stored(kind, backprop):
    torch.manual_seed(0)
    network = Network(kind)
    expected = gradients(copy.deepcopy(network), HANDED[kind]())
    found = gradients(apply(network, backprop), HANDED[kind]())
    assert all(map(torch.equal, found, expected))


def test_after_backward_the_object_is_as_it_was():
    network, cache = apply(Network(Caching), "checkpointed"), Cache()
    y = network(torch.randn(2, 3, 8), cache)
    layers = list(cache.layers)
    keys = [layer.keys for layer in layers]
    y.sum().backward()
    assert cache.layers == layers
    assert all(layer.keys is k for layer, k in zip(layers, keys, strict=True))
    assert [tuple(k.shape) for k in keys] == [(2, 3, 8)] * 4


def test_after_backward_it_is_gone_without_waiting_for_garbage_to_be_collected():
    network, cache = apply(Network(Caching), "checkpointed"), Cache()
    alive = weakref.ref(cache)
    gc.disable()
    try:
        network(torch.randn(2, 3, 8), cache).sum().backward()
        del cache
        assert alive() is None
    finally:
        gc.enable()


def test_an_object_that_is_emptied_before_backward_stays_empty():
    network, cache = Chain([Counting(0), Counting(1)], "checkpointed"), []
    y = network(torch.randn(2, 3, 8), cache=cache)
    cache.clear()
    y.sum().backward()
    assert cache == []


@pytest.mark.parametrize("kind", [list, deque])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_steps_recomputed_together_see_each_other(every, kind):
    torch.manual_seed(0)
    steps = [Counting(index) for index in range(4)]
    x = torch.randn(2, 3, 8)

    def run(chain):
        chain(x, cache=kind()).square().sum().backward()
        return [p.grad for p in chain.parameters()]

    expected = run(Chain(copy.deepcopy(steps)))
    assert all(map(torch.equal, run(Chain(steps, "checkpointed", every=every)), expected))


def test_a_gradient_asked_of_what_a_recomputed_block_has_left_is_refused_not_lost():
    torch.manual_seed(0)
    network = Network(Caching)
    x = torch.randn(2, 3, 8)

    def loss(network):
        cache = Cache()
        return network(x, cache).sum() + cache.layers[1].keys.square().sum()

    with pytest.raises(
        StepError, match=r"a tensor that step 0 \(Caching\) hands out beside its outputs .*=stored or light"
    ):
        loss(apply(copy.deepcopy(network), "checkpointed")).backward()
    found, expected = apply(copy.deepcopy(network), "light"), network
    loss(found).backward()
    loss(expected).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_later_block_that_reads_what_another_has_left_is_refused_when_recomputed():
    torch.manual_seed(0)
    network = Network(Sharing)
    expected = gradients(copy.deepcopy(network), {})
    found = gradients(apply(copy.deepcopy(network), "light"), {})
    wanted = [g for g in expected if g is not None]
    assert all(map(torch.equal, [g for g in found if g is not None], wanted))
    with pytest.raises(StepError, match=r"a tensor that step 0 \(Sharing\) hands out beside its outputs"):
        gradients(apply(network, "checkpointed"), {})


def test_a_tensor_written_in_place_in_an_object_is_refused_in_forward():
    class Writing(Caching):
        def forward(self, x, cache=None):
            cache.keys[self.index] = self.k(x).mean((0, 1))
            return x + cache.keys.sum()

    cache = Layer()
    cache.keys = torch.zeros(4, 8)
    network = apply(Network(Writing), "checkpointed")
    with pytest.raises(StepError, match=r"shape \(4, 8\) in what is handed in as given .* written in place"):
        network(torch.randn(2, 3, 8), cache)


class Noting(nn.Linear):
    def forward(self, x, notes=None):
        notes.append(len(notes))
        return super().forward(x) * len(notes)


class Reading(nn.Linear):
    def forward(self, x, notes=None):
        return super().forward(x) * notes["scale"]


def couplings(kind):
    torch.manual_seed(0)
    return [AdditiveCoupling(kind(4, 4), kind(4, 4)) for _ in range(3)]


def test_an_undone_step_may_read_an_object_but_not_change_it():
    streams = torch.randn(2, 4), torch.randn(2, 4)
    with pytest.raises(
        StepError, match=r"changes what it is handed as notes, .* use backprop=checkpointed, light or stored"
    ):
        Chain(couplings(Noting), "reversible")(*streams, notes=[])
    chain, stored = Chain(couplings(Reading), "reversible"), Chain(couplings(Reading))
    notes = {"scale": 2.0}
    loss = sum(y.square().sum() for y in chain(*streams, notes=notes))
    notes["scale"] = 3.0
    loss.backward()
    assert notes == {"scale": 3.0}
    sum(y.square().sum() for y in stored(*streams, notes={"scale": 2.0})).backward()
    for p, q in zip(chain.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def transformers_of(kind):
    import transformers

    sizes = {
        "num_attention_heads": 4,
        "vocab_size": 100,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 128,
    }
    t5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}
    return {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=100)
        ),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2)),
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4)
        ),
        "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=100, **t5)),
    }[kind]()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mixtral", "t5"])
def test_language_models_fill_a_cache_of_keys_while_they_train(kind):
    torch.manual_seed(0)
    network = transformers_of(kind).train()
    ids = torch.randint(1, 100, (4, 16))

    def run(network):
        torch.manual_seed(1)
        network(input_ids=ids, labels=ids).loss.backward()
        return [p.grad for p in network.parameters()]

    expected = run(copy.deepcopy(network))
    for found, wanted in zip(run(apply(network, "checkpointed")), expected, strict=True):
        torch.testing.assert_close(found, wanted)
