"""What recomputed steps hand out beside their outputs: auxiliary losses, features that hooks keep. A gradient is never lost."""

import copy
import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from memexp.backprop import AdditiveCoupling, Chain, StepError, apply


class WithLoss(nn.Module):
    """Leaves a loss of its own in an attribute; made of what backward can do without the step, or not."""

    def __init__(self, of_weights=False):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.of_weights = of_weights
        self.loss = None

    def forward(self, x):
        y = torch.tanh(self.layer(x))
        self.loss = self.layer.weight.sum() if self.of_weights else y.square().sum()
        return y


class Tabled(nn.Module):
    """Makes a constant once and keeps it, as masks and tables of positions are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(4.0)
        return self.layer(x) * self.table


class Network(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.blocks = nn.ModuleList(kind(**options) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def gradients(network, more):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    network.zero_grad()
    (network(x).sum() + more(network)).backward()
    return [p.grad for p in network.parameters()]


def losses(network):
    return sum(block.loss for block in network.blocks)


def made(kind, **options):
    torch.manual_seed(0)
    return Network(kind, **options)


@pytest.mark.parametrize("backprop", ["checkpointed", "budget"])
def test_the_gradient_of_a_loss_left_in_an_attribute_is_refused_not_lost(backprop):
    with pytest.raises(
        StepError, match=r"a tensor that step 0 \(WithLoss\) hands out beside its outputs .*=stored or light"
    ):
        gradients(apply(made(WithLoss), backprop), losses)


def test_where_no_tensor_of_the_step_is_needed_for_it_it_is_right():
    expected = gradients(made(WithLoss, of_weights=True), losses)
    found = gradients(apply(made(WithLoss, of_weights=True), "checkpointed"), losses)
    assert all(map(torch.allclose, found, expected))


class Holding(nn.Module):
    """A block with a Chain of its own."""

    def __init__(self, within):
        super().__init__()
        self.chain = Chain([WithLoss(), WithLoss()], **within)

    def forward(self, x):
        return self.chain(x)

    @property
    def loss(self):
        return sum(step.loss for step in self.chain)


@pytest.mark.parametrize("within", ["stored", "light", "checkpointed"])
def test_also_where_the_step_has_a_chain_of_its_own(within):
    def run(backprop, more):
        torch.manual_seed(0)
        chain = Chain([Holding({"backprop": within}) for _ in range(2)], backprop)
        (chain(torch.randn(5, 4)).sum() + more(chain)).backward()
        return [p.grad for p in chain.parameters()]

    assert all(map(torch.equal, run("checkpointed", lambda c: 0), run("stored", lambda c: 0)))
    with pytest.raises(StepError, match=r"step 0 \(Holding\) hands out beside its outputs"):
        run("checkpointed", lambda c: c[0].loss)


def test_also_where_the_step_is_a_chain():
    chain = Chain([Chain([WithLoss(), WithLoss()]), WithLoss()], "checkpointed")
    y = chain(torch.randn(5, 4))
    with pytest.raises(StepError, match=r"step 0 \(Chain\) hands out beside its outputs"):
        (y.sum() + chain[0][1].loss).backward()


@pytest.mark.parametrize("part", [lambda step: step, lambda step: step.layer])
def test_also_where_the_step_or_a_layer_of_it_is_compiled(part):
    chain = Chain([WithLoss(), WithLoss()], "checkpointed")
    for step in chain:
        part(step).compile(backend="aot_eager")
    y = chain(torch.randn(5, 4))
    with pytest.raises(StepError, match=r"step 0 \(WithLoss\) hands out beside its outputs"):
        (y.sum() + chain[0].loss).backward()


def test_light_has_it():
    found = gradients(apply(made(WithLoss), "light"), losses)
    assert all(map(torch.equal, found, gradients(made(WithLoss), losses)))


@pytest.mark.parametrize(
    "options",
    [{"backprop": "checkpointed"}, {"backprop": "reversible"}, {"backprop": "reversible", "exact": True}],
    ids=["checkpointed", "reversible", "exact"],
)
def test_features_that_a_hook_keeps_of_layers_within_are_refused_not_lost(options):
    torch.manual_seed(0)
    steps = [AdditiveCoupling(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 4)) for _ in range(3)]
    features = []
    steps[1].F[0].register_forward_hook(lambda module, args, output: features.append(output))
    streams = torch.randn(5, 4), torch.randn(5, 4)
    chain = Chain(copy.deepcopy(steps), **options)
    y1, y2 = chain(*streams)
    (y1.sum() + y2.sum()).backward(retain_graph=True)  # who does not ask for it is not disturbed
    with pytest.raises(StepError, match=r"step (1|0 .* to step 2) \(AdditiveCoupling\) hands out beside its outputs"):
        (y1.sum() + features[0].square().sum()).backward()


@pytest.mark.parametrize("backprop", ["checkpointed", "budget", "light"])
def test_a_table_that_is_made_once_stays_a_constant(backprop):
    network, stored = apply(made(Tabled), backprop), made(Tabled)
    for _ in range(2):
        found, expected = gradients(network, lambda n: 0), gradients(stored, lambda n: 0)
        assert all(map(torch.equal, found, expected))
        assert not any(block.table.requires_grad for block in network.blocks)


def test_what_a_hook_on_a_block_keeps_has_its_gradient():
    def run(network):
        kept = []
        handle = network.blocks[1].register_forward_hook(lambda module, args, output: kept.append(output))
        found = gradients(network, lambda n: kept[0].square().sum())
        handle.remove()
        return found

    for found, expected in zip(run(apply(made(Tabled), "checkpointed")), run(made(Tabled)), strict=True):
        torch.testing.assert_close(found, expected)


class Dressed(nn.Module):
    """Gives an object of a class of its own."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 4), kind

    def forward(self, x):
        return self.kind(torch.tanh(self.layer(x)))


def test_an_output_in_a_dataclass_has_its_gradient_once_torch_knows_the_class():
    @dataclass
    class Hidden:
        states: torch.Tensor

    def run(network):
        network(torch.ones(2, 4)).states.sum().backward()
        return network.layer.weight.grad

    torch.manual_seed(0)
    network = Dressed(Hidden)
    expected = run(copy.deepcopy(network))
    apply(network, "checkpointed", blocks=[Dressed])
    with pytest.raises(StepError, match=r"Dressed.* hands out beside its outputs .*register_dataclass"):
        run(network)
    torch.utils._pytree.register_dataclass(Hidden)
    assert torch.equal(run(network), expected)


class Remembering(nn.Module):
    """Leaves what it computes in what it is handed, in an attribute, and in a list that all share."""

    shared: list[torch.Tensor] = []

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, notes=None):
        self.last = torch.tanh(self.layer(x))
        self.shared.append(self.last)
        notes.append(self.last * 2)
        return self.last + x


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_left_behind_keeps_no_pass_in_memory(every):
    chain = Chain([Remembering() for _ in range(4)], "checkpointed", every=every)
    alive = []
    for _ in range(3):
        x = torch.randn(5, 4)
        hidden = x * chain[0].layer.weight.sum()
        y = chain(hidden, notes=[])
        alive.append(weakref.ref(y.grad_fn.node.call))
        y.sum().backward()
        del x, hidden, y
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3
    Remembering.shared.clear()


def test_a_second_backward_needs_a_graph_that_is_kept():
    chain = Chain([Tabled(), Tabled()], "checkpointed")
    y = chain(torch.randn(5, 4)).sum()
    y.backward(retain_graph=True)
    first = chain[0].layer.weight.grad.clone()
    y.backward()
    assert torch.equal(chain[0].layer.weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="a second time"):
        y.backward()


class Passing(nn.Module):
    """Gives one of its streams as it is, and a part of what it makes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x, y):
        return y, self.layer(x)[:, :4], x


def test_outputs_that_are_streams_or_views_have_their_gradients():
    torch.manual_seed(0)
    step = Passing()

    def run(chain):
        start = torch.ones(5, 4, requires_grad=True)
        outputs = chain(start * 2, start * 3)
        sum((k + 1) * y.square().sum() for k, y in enumerate(outputs)).backward()
        found = [start.grad, *(p.grad.clone() for p in step.parameters())]
        step.zero_grad()
        return found

    for found, expected in zip(run(Chain([step], "checkpointed")), run(Chain([step])), strict=True):
        torch.testing.assert_close(found, expected)


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x.relu_())


@pytest.mark.parametrize("needs", [False, True])
def test_a_stream_written_in_place_is_named_also_where_torch_refuses_it_first(needs):
    with pytest.raises(StepError, match=r"step 0 \(Writing\) changes a stream in place"):
        Chain([Writing()], "checkpointed")(torch.randn(2, 4, requires_grad=needs))


@pytest.mark.parametrize("way", ["a hook on all modules", "a forward of the instance"])
@pytest.mark.parametrize("options", [{"backprop": "checkpointed"}, {"backprop": "reversible", "exact": True}])
def test_what_is_kept_of_torchs_own_layers_is_refused_too(way, options):
    torch.manual_seed(0)
    kept = []
    branches = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)]
    steps = branches if "exact" not in options else [AdditiveCoupling(*branches[:2]), AdditiveCoupling(*branches[2:])]
    layer = branches[1][0]

    def patched(x):
        kept.append(nn.functional.linear(x, layer.weight, layer.bias))
        return kept[-1]

    def listen(module, inputs, output):
        kept.extend([output] if module is layer else [])

    streams = [torch.randn(5, 4)] * (2 if "exact" in options else 1)
    if way == "a hook on all modules":
        handle = nn.modules.module.register_module_forward_hook(listen)
    else:
        layer.forward = patched
    y = Chain(steps, **options)(*streams)
    if way == "a hook on all modules":
        handle.remove()
    with pytest.raises(StepError, match="hands out beside its outputs"):
        (sum(part.sum() for part in y) + kept[0].square().sum()).backward()
