"""Training: sizes drawn from (seed, step) alone, resumed bitwise, gradients under every strategy."""

import copy

import pytest
import torch
from integral_networks import build, drawn, relative, shape, small, step
from torch import Tensor, nn
from torch.nn import functional

from memexp.backprop import AdditiveCoupling, Chain
from memexp.integral import convert

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([1, 5, 0, 9])


class Streams(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.cat(self.body(x, 2 * x), 1)
        return y


def coupled() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 4))


@pytest.mark.parametrize(
    ("name", "other"),
    [("revnet14", "reversible"), ("revnet14", "checkpointed"), ("resnet20", "checkpointed")],
)
def test_gradients_under_strategies(name: str, other: str) -> None:
    found = []
    for backprop in ("stored", other):
        network = convert(build(name, backprop).double(), IMAGES[:1].double(), permute=False, fold=False).train()
        for _ in range(2):  # two steps of different sizes
            network.zero_grad()
            functional.cross_entropy(network(IMAGES.double()), LABELS).backward()
        found.append((dict(network.named_parameters()), dict(network.named_buffers()), drawn(network)))
    (stored, buffers, sizes), (others, their_buffers, their_sizes) = found
    assert sizes == their_sizes
    assert any(size < n for size, n in zip(sizes.values(), network.groups.values(), strict=True))
    for key, p in stored.items():
        assert p.grad is not None
        assert others[key].grad is not None, key
        torch.testing.assert_close(others[key].grad, p.grad, rtol=1e-9, atol=1e-12)
    for key, buffer in buffers.items():  # running statistics move once a step
        torch.testing.assert_close(their_buffers[key], buffer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backprop", ["checkpointed", "reversible"])
def test_two_passes_before_one_backward_have_one_size(backprop: str) -> None:
    """A recomputation had the sizes of the second, and the gradient of the first was another's."""
    grads = []
    for strategy in ("stored", backprop):
        torch.manual_seed(0)
        body = Chain([AdditiveCoupling(coupled(), coupled()) for _ in range(2)], backprop=strategy)
        network = convert(Streams(body).double(), torch.randn(1, 4, dtype=torch.float64)).train()
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):  # each step draws anew
            network.zero_grad()
            x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
            (network(x[0]).square().sum() + network(x[1]).exp().sum()).backward()
        assert int(network.steps) == 2
        grads.append([p.grad for p in network.parameters()])
    for a, b in zip(*grads, strict=True):
        assert a is not None
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


def test_a_loss_of_features_inside_draws_anew_in_each_step_though_outputs_are_kept() -> None:
    network, kept, sizes = small(), [], set()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for layer in network.integral_layers()[:1]:
        layer.register_forward_hook(lambda layer, inputs, y: kept.append(y))
    for _ in range(4):
        outputs = network(torch.randn(2, 3, 10, 10))
        kept.pop().square().mean().backward()
        optimizer.step()
        sizes.add(tuple(drawn(network).values()))
    assert outputs.requires_grad
    assert int(network.steps) == 4
    assert len(sizes) > 1


def test_evaluation_between_forward_and_backward_changes_no_gradient() -> None:
    grads = []
    for between in (False, True):
        network = convert(build("revnet14", "reversible").double(), IMAGES[:1].double(), permute=False).train()
        loss = functional.cross_entropy(network(IMAGES.double()), LABELS)
        if between:
            network.eval()
            with torch.no_grad():
                network(IMAGES.double())
            network.train()
        loss.backward()
        grads.append([p.grad for p in network.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_sizes_come_from_seed_and_step_alone() -> None:
    one, two = small(), small()
    state = torch.get_rng_state()
    images = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    seen = []
    for index in range(12):
        torch.manual_seed(index)  # another rank has other random numbers and other images
        one(images)
        seen.append(drawn(one))
    torch.set_rng_state(state)
    for sizes in seen:
        two(images + 1)
        assert drawn(two) == sizes
    assert torch.equal(torch.get_rng_state(), state)  # no global random number is used
    for name, n in one.groups.items():
        values = {sizes[name] for sizes in seen}
        assert max(2, round(0.4 * n)) <= min(values)
        assert max(values) <= n
        assert n < 8 or len(values) > 3
    other = small()
    other.seed = 1
    other(images)
    assert drawn(other) != seen[0]


def test_all_sizes_of_the_range_are_drawn() -> None:
    network = small()
    values = set()
    for _ in range(200):
        network._draw()
        values.add(drawn(network)["inner"])
    assert values == set(range(4, 11))


def test_evaluation_has_the_size_that_was_set() -> None:
    network = small()
    images = torch.randn(2, 3, 10, 10)
    native = network.eval()(images)
    network.train()(images)
    assert drawn(network) != network.groups
    assert network.sizes == network.groups
    again = small()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(network.eval()(images), again.eval()(images))
    assert relative(network(images), native) < 1  # running statistics have moved, sizes have not


def test_statistics_estimated_anew_are_those_of_the_evaluated_size() -> None:
    network = small()
    network.resize(0.5)
    with torch.no_grad():
        network(torch.randn(2, 3, 10, 10))
    assert drawn(network) == network.sizes
    assert int(network.steps) == 0  # no training step


def test_resumed_bitwise() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(6, 3, 10, 10, generator=generator), torch.randint(5, (6,), generator=generator)) for _ in range(6)
    ]
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches[:3]:
        step(network, images, labels, optimizer)
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    ahead = [step(network, images, labels, optimizer) for images, labels in batches[3:]]
    again = small()
    again.load_state_dict(saved[0])
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    optimizer.load_state_dict(saved[1])
    assert [step(again, images, labels, optimizer) for images, labels in batches[3:]] == ahead
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_training_lowers_the_loss_at_all_sizes() -> None:
    torch.manual_seed(0)
    network = small()
    images, labels = torch.randn(32, 3, 10, 10), torch.arange(32) % 5
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)

    def losses() -> list[float]:
        found = []
        for size in (1.0, 0.7, 0.5):
            plain = network.discretize(size).train()  # with the batch's own statistics
            with torch.no_grad():
                found.append(float(functional.cross_entropy(plain(images), labels)))
        return found

    before = losses()
    for _ in range(100):
        step(network, images, labels, optimizer)
    after = losses()
    assert all(a < 0.8 * b for a, b in zip(after, before, strict=True)), (before, after)


def test_without_data_a_step_has_the_largest_sizes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    network = small()
    fake = copy.deepcopy(network)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in fake.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        made = mode.from_tensor(tensor.detach())
                        table[name] = nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made
        y = fake(torch.randn(2, 3, 10, 10))
        y.sum().backward()
    assert drawn(fake) == fake.groups
    network(torch.randn(2, 3, 10, 10)).sum().backward()  # and real ones work as before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet20", "flattened"])
def test_gradients_at_other_sizes_are_those_of_the_plain_network_at_that_size(
    name: str, layout: torch.memory_format
) -> None:
    """A kernel of BN once read a strided weight as a contiguous one: gradients were wrong by a factor of 200, in silence."""
    network = convert(build(name), torch.randn(2, *shape(name)), fold=False, smallest=0.7, largest=0.7)
    x = torch.randn(8, *shape(name))
    found = []
    for dtype, form in ((torch.float64, torch.contiguous_format), (torch.float32, layout)):
        net = copy.deepcopy(network).to(dtype).to(memory_format=form).train()
        net(x.to(dtype).contiguous(memory_format=form)).square().mean().backward()
        found.append({key: p.grad.double() for key, p in net.named_parameters() if p.grad is not None})
    assert len(found[0]) > 8
    for key, right in found[0].items():
        error = float((found[1][key] - right).norm() / right.norm().clamp_min(1e-6))
        assert error < 0.05, (key, error)  # a plain network on channels_last images has 0.01: ReLUs that turn over
