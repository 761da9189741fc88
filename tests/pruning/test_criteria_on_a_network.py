"""Criteria on a network, against another way to compute them."""

import copy

import pytest
import torch
from criteria_groups import Tiny, group, quadratic, scored
from torch import Tensor, nn
from torch.nn import functional

from memexp.pruning.calibration import Calibration
from memexp.pruning.criteria import CRITERIA
from memexp.pruning.criteria.gradient import Obd, TaylorWeight, hessian_diagonal
from memexp.pruning.criteria.obs import hessian


class Net(nn.Module):
    """conv-BN-ReLU, conv-BN with a shortcut and a ReLU behind the sum, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 5, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(5)
        self.inner = nn.Conv2d(5, 4, 3, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.head(self.inner(x).relu_().mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    made = Net().double()
    for bn in (made.bn1, made.bn2):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    return made


GROUPS = (
    group(5, ("conv1.weight", "conv2.weight"), ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias")),
    group(4, ("inner.weight",), ("bn1.weight",)),
)
IMAGES, LABELS = (
    torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double(),
    torch.tensor([0, 1, 2, 0, 1, 2]),
)


def maps(network: Net, x: Tensor) -> list[Tensor]:
    """The three activations, written out, and the scores at the end."""
    first = functional.relu(network.bn1(network.conv1(x)))
    second = functional.relu(network.bn2(network.conv2(first)) + first)
    third = functional.relu(network.inner(second))
    return [first, second, third, network.head(third.mean((2, 3)))]


def products(network: Net) -> list[Tensor]:
    """sum over the map of a dL/da, one sample at a time: (samples, channels) at each of the three activations."""
    rows = []
    for image, label in zip(IMAGES, LABELS, strict=True):
        *activations, outputs = maps(network, image[None])
        loss = functional.cross_entropy(outputs, label[None])
        found = torch.autograd.grad(loss, activations)
        rows.append([(a * g).sum((2, 3))[0] for a, g in zip(activations, found, strict=True)])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("criterion", "of"),
    [
        ("taylor_activation", lambda p, positions: (p / positions).abs().mean(0)),
        ("fisher", lambda p, positions: p.square().mean(0) / 2),
        ("skeletonization", lambda p, positions: -p.mean(0)),
    ],
)
def test_products_agree_with_autograd_sample_by_sample(net, criterion, of):
    net.eval()
    first, second, third = products(net)
    scores = scored(criterion, net, *GROUPS, data=[(IMAGES, LABELS)])
    torch.testing.assert_close(scores[0], (of(first, 36) + of(second, 36)).detach() / 2)
    torch.testing.assert_close(scores[1], of(third, 4).detach())


def test_skeletonization_is_the_slope_of_the_loss_in_a_channels_gate(net):
    net.eval()
    (_, scores) = scored("skeletonization", net, *GROUPS, data=[(IMAGES, LABELS)])
    for unit in range(4):
        losses = []
        for step in (1e-5, -1e-5):
            gated = copy.deepcopy(net)
            gated.inner.weight.data[unit] *= 1 + step
            gated.inner.bias.data[unit] *= 1 + step
            losses.append(functional.cross_entropy(gated(IMAGES), LABELS).item())
        assert float(scores[unit]) == pytest.approx(-(losses[0] - losses[1]) / 2e-5, abs=1e-8)


def test_apoz_and_entropy_read_behind_the_relu_of_a_sum(net):
    net.eval()
    with torch.no_grad():
        first, second, third, _ = maps(net, IMAGES)
    scores = scored("apoz", net, *GROUPS, data=[(IMAGES, LABELS)])
    torch.testing.assert_close(scores[0], sum((a > 0).double().mean((0, 2, 3)) for a in (first, second)) / 2)
    torch.testing.assert_close(scores[1], (third > 0).double().mean((0, 2, 3)))
    (_, entropies) = scored("entropy", net, *GROUPS, data=[(IMAGES, LABELS)])
    for unit in range(4):
        values = third.mean((2, 3))[:, unit]
        counts = torch.histc(values, 100, float(values.min()), float(values.max())) / 6
        assert float(entropies[unit]) == pytest.approx(float(-torch.special.xlogy(counts, counts).sum()))


def test_taylor_weight_and_snip_agree_with_the_gradient_of_the_mean_loss(net):
    net.eval()
    functional.cross_entropy(net(IMAGES), LABELS).backward()
    terms = {name: (p * p.grad).detach() for name, p in net.named_parameters()}
    net.zero_grad()
    data = [(IMAGES, LABELS)]
    filters = {name: terms[name].flatten(1) for name in ("conv1.weight", "conv2.weight", "inner.weight")}
    (scores, inner) = scored("taylor_weight", net, *GROUPS, data=data)
    torch.testing.assert_close(
        scores, (filters["conv1.weight"].sum(1).square() + filters["conv2.weight"].sum(1).square()) / 2
    )
    torch.testing.assert_close(inner, filters["inner.weight"].sum(1).square())
    (scores, inner) = scored("snip", net, *GROUPS, data=data)
    torch.testing.assert_close(
        scores, (filters["conv1.weight"].abs().sum(1) + filters["conv2.weight"].abs().sum(1)) / 2
    )
    (gates,) = TaylorWeight(gates=True).scores(net, GROUPS[:1], Calibration(data))
    expected = [(terms[f"{bn}.weight"] + terms[f"{bn}.bias"]).square() for bn in ("bn1", "bn2")]
    torch.testing.assert_close(gates, sum(expected) / 2)
    assert all(p.grad is None for p in net.parameters())


def exact_hessian(network: nn.Module, name: str) -> Tensor:
    weight = network.get_parameter(name)

    def loss(w: Tensor) -> Tensor:
        outputs = torch.func.functional_call(network, {name: w.view_as(weight)}, (IMAGES,))
        return functional.cross_entropy(outputs, LABELS)

    return torch.func.hessian(loss)(weight.detach().flatten())


@pytest.mark.long
def test_the_hessian_agrees_with_torch_func_and_its_diagonal_in_the_mean(net):
    net.eval()
    data = [(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])]
    exact = exact_hessian(net, "head.weight")
    torch.testing.assert_close(hessian(net, "head.weight", Calibration(data)), exact)
    estimate = hessian_diagonal(net, ["head.weight"], Calibration(data), probes=2000)["head.weight"]
    assert (estimate.flatten() - exact.diagonal()).abs().max() < 0.15 * exact.diagonal().max()


def test_obd_of_weights_that_do_not_interact_is_exact_with_one_probe():
    """One weight a filter and a quadratic loss: the Hessian is diagonal, so no probe adds noise."""
    network = Tiny([[3.0], [-1.0]])
    data = [(torch.tensor([[2.0]]), torch.zeros(1))]
    (scores,) = Obd(probes=1).scores(network, [group(2, ("0.weight",))], Calibration(data, quadratic))
    assert scores.tolist() == [4 * 9 / 2, 4 * 1 / 2]


DATA_DRIVEN = [name for name, kind in CRITERIA.items() if kind.needs_data]


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
def test_the_order_and_size_of_batches_do_not_matter(net, criterion):
    whole = [(IMAGES, LABELS)]
    uneven = [(IMAGES[4:], LABELS[4:]), (IMAGES[:1], LABELS[:1]), (IMAGES[1:4], LABELS[1:4])]
    for one, other in zip(
        scored(criterion, net, *GROUPS, data=whole), scored(criterion, net, *GROUPS, data=uneven), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_leaves_the_network_and_the_random_state_alone(net, criterion):
    net.train()
    net.inner.weight.requires_grad_(False)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        scores = scored(criterion, net, GROUPS[0], data=[(IMAGES, LABELS)])
    assert scores[0].shape == (5,)
    assert scores[0].isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
    assert not net.inner.weight.requires_grad
    assert net.conv1.weight.requires_grad
    assert not net.conv1._forward_hooks
    net.inner.weight.requires_grad_(True)
