"""What is taken as drawing no random numbers draws none: else its recomputation would differ, and the gradient with it."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models import regnet, resnet

from memexp.backprop import AdditiveCoupling, Chain, StepError
from memexp.backprop.quiet import is_quiet


def in_place_of_forward():
    layer = nn.Linear(8, 8)
    own = layer.forward
    layer.forward = lambda x: functional.dropout(own(x), 0.5)
    return layer


def by_a_hook():
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda _, inputs, y: functional.dropout(y, 0.5))
    return layer


def by_a_hook_before():
    layer = nn.Linear(8, 8)
    layer.register_forward_pre_hook(lambda _, inputs: functional.dropout(inputs[0], 0.5))
    return layer


def by_a_class_of_its_own():
    class Drawing(nn.Linear):
        def forward(self, x):
            return functional.dropout(super().forward(x), 0.5)

    return Drawing(8, 8)


@pytest.mark.parametrize("make", [in_place_of_forward, by_a_hook, by_a_hook_before, by_a_class_of_its_own])
@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_layers_that_draw_in_ways_of_their_users_are_replayed(backprop, make):
    gradients = []
    for strategy in ("stored", backprop):
        torch.manual_seed(0)
        chain = Chain([AdditiveCoupling(make(), nn.Sequential(make(), nn.Tanh())) for _ in range(2)], strategy).double()
        outputs = chain(*(torch.randn(4, 8, dtype=torch.float64) for _ in range(2)))
        sum(y.square().sum() for y in outputs).backward()
        gradients.append([p.grad for p in chain.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def computed(name, registered):
    """A layer, of whose parameters one is computed from another tensor."""
    layer, source = nn.Linear(8, 8), torch.ones(8, 8, requires_grad=True)
    if name == "bias":
        source = torch.ones(8, requires_grad=True)
    del layer._parameters[name]
    layer.register_buffer(name, source * 2) if registered else setattr(layer, name, source * 2)
    return layer


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_a_tensor_in_place_of_a_parameter_does_not_lose_its_gradient_unseen(backprop, registered, name):
    steps = [AdditiveCoupling(computed(name, registered), nn.Linear(8, 8))]
    steps += [AdditiveCoupling(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2)]
    outputs = Chain(steps, backprop)(*(torch.randn(4, 8) for _ in range(2)))
    with pytest.raises(StepError, match=r"step 0 \(AdditiveCoupling\).*gradient would be lost"):
        sum(y.square().sum() for y in outputs).backward()


@pytest.mark.parametrize(
    "change",
    [
        lambda step: setattr(step, "F", nn.Linear(8, 8)),
        lambda step: setattr(step, "F", step.G),
        lambda step: setattr(step.G, "0", nn.Linear(8, 8)),
        lambda step: step.G.append(nn.Linear(8, 8)),
    ],
    ids=["branch", "shared", "layer", "more"],
)
@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_a_module_that_has_been_replaced_before_backward_is_seen_as_it_was(backprop, change):
    gradients = []
    for strategy in ("stored", backprop):
        torch.manual_seed(0)
        steps = [AdditiveCoupling(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())) for _ in range(4)]
        chain = Chain(steps, strategy).double()
        parameters = list(chain.parameters())
        outputs = chain(*(torch.randn(4, 8, dtype=torch.float64) for _ in range(2)))
        change(chain[0])
        now = list(map(id, chain.modules()))
        sum(y.square().sum() for y in outputs).backward()
        assert list(map(id, chain.modules())) == now
        gradients.append([p.grad for p in parameters])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]),
        lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1]),
        lambda: torchvision.models.mobilenet_v2(width_mult=0.25, dropout=0.0),
        lambda: regnet.RegNet(regnet.BlockParams.from_init_params(3, 8, 8.0, 2.5, 8, se_ratio=0.25)),
    ],
)
def test_torchvisions_blocks_draw_nothing_and_write_to_running_statistics_alone(make):
    network = make()
    drawing = {type(module) for module in network.modules() if not is_quiet([module], [])}
    assert drawing <= {nn.Dropout}
    before, state = {key: buffer.clone() for key, buffer in network.named_buffers()}, torch.get_rng_state()
    with torch.no_grad():
        network(torch.ones(2, 3, 32, 32))
    assert drawing or torch.equal(torch.get_rng_state(), state)
    changed = {key for key, buffer in network.named_buffers() if not torch.equal(buffer, before[key])}
    assert {key.rpartition(".")[2] for key in changed} == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_forward_that_is_put_into_torchvisions_class_is_not_taken_for_its_own(monkeypatch):
    class Block(resnet.BasicBlock):
        pass

    Block.__module__ = "torchvision.models.resnet"
    assert is_quiet([Block(8, 8)], [])

    class Drawing(resnet.BasicBlock):
        def forward(self, x):
            return functional.dropout(super().forward(x))

    Drawing.__module__ = "torchvision.models.resnet"
    assert not is_quiet([Drawing(8, 8)], [])
