"""Each criterion against scores computed by hand on tiny layers, and against another way to compute it on a network."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.pruning.calibration import Calibration
from memexp.pruning.criteria import CRITERIA, create
from memexp.pruning.criteria.gradient import Obd, TaylorWeight, hessian_diagonal
from memexp.pruning.criteria.obs import Obs, hessian


@dataclass(frozen=True)
class Member:
    name: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    role: str


@dataclass(frozen=True)
class Group:
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        return len(self.members[0].indices)


def group(size: int, out: tuple[str, ...] = (), norm: tuple[str, ...] = ()) -> Group:
    """A group of hand: channel i is index i of the first dimension of each member."""
    each = tuple((i,) for i in range(size))
    members = [Member(name, 0, each, "out") for name in out] + [Member(name, 0, each, "norm") for name in norm]
    return Group(tuple(members))


class Tiny(nn.Sequential):
    """Linear layers of given weights, one output a filter."""

    def __init__(self, *weights: list[list[float]]) -> None:
        super().__init__()
        for i, weight in enumerate(weights):
            w = torch.tensor(weight)
            layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
            layer.weight.data = w
            self.add_module(str(i), layer)


def scored(criterion, network, *groups, data=(), loss_fn=functional.cross_entropy, seed=0) -> list[Tensor]:
    return create(criterion).scores(network, groups, Calibration(data, loss_fn, seed))


FILTERS = [[3.0, -4.0], [1.0, 1.0], [-2.0, 0.0]]
ROOT2 = math.sqrt(2)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("l1_norm", [7, 2, 2]),
        ("l2_norm", [5, ROOT2, 2]),
        ("signed_sum", [-1, 2, -2]),
        ("mean", [-0.5, 1, -1]),
        ("std", [3.5, 0, 1]),
        # distances: 0-1 sqrt(29), 0-2 sqrt(41), 1-2 sqrt(10)
        ("fpgm", [29**0.5 + 41**0.5, 29**0.5 + 10**0.5, 41**0.5 + 10**0.5]),
        # squares 25, 2, 4: 2/(2+4+25), 4/(4+25), 25/25
        ("lamp", [1, 2 / 31, 4 / 29]),
    ],
)
def test_criteria_of_weights_by_hand(criterion, expected):
    (scores,) = scored(criterion, Tiny(FILTERS), group(3, ("0.weight",)))
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


def test_a_coupled_group_scores_the_mean_of_its_members():
    network = Tiny(FILTERS, [[1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, -2.0]])
    (scores,) = scored("l1_norm", network, group(3, ("0.weight", "1.weight")))
    assert scores.tolist() == [4, 3.5, 2]


def test_biases_and_readers_play_no_part_in_norms():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    network[0].weight.data = torch.tensor(FILTERS)
    each = tuple((i,) for i in range(3))
    members = group(3, ("0.weight",)).members + (Member("0.bias", 0, each, "bias"), Member("1.weight", 1, each, "in"))
    assert scored("l1_norm", network, Group(members))[0].tolist() == [7, 2, 2]


def test_a_channel_owns_all_its_indices_and_any_dimension():
    network = nn.Sequential(nn.ConvTranspose2d(1, 4, 1, bias=False))
    network[0].weight.data = torch.tensor([1.0, -2.0, 4.0, 8.0]).view(1, 4, 1, 1)
    pairs = Group((Member("0.weight", 1, ((0, 2), (1, 3)), "out"),))
    assert scored("l1_norm", network, pairs)[0].tolist() == [5, 10]
    uneven = Group((Member("0.weight", 1, ((0, 1, 2), (3,)), "out"),))
    assert scored("l1_norm", network, uneven)[0].tolist() == [7, 8]


def test_bn_scale_is_the_size_of_gamma_whatever_the_filters_are():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    network[1].weight.data = torch.tensor([-2.0, 0.5, 1.0])
    normalised = group(3, ("0.weight",), ("1.weight", "1.bias", "1.running_mean", "1.running_var"))
    assert scored("bn_scale", network, normalised)[0].tolist() == [2, 0.5, 1]


def test_parametrised_weights_are_scored_as_the_layer_uses_them():
    """Weight norm keeps a direction and a length; what counts is their product."""
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3, bias=False)))
    network[0].weight = torch.tensor(FILTERS)
    parts = group(3, ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"))
    torch.testing.assert_close(scored("l1_norm", network, parts)[0], torch.tensor([7, 2, 2.0]).double())
    data = [(torch.randn(5, 2), torch.randint(3, (5,)))]
    (scores,) = scored("taylor_weight", network, parts, data=data)
    plain = Tiny(FILTERS)
    torch.testing.assert_close(scores, scored("taylor_weight", plain, group(3, ("0.weight",)), data=data)[0])


class Doubled(nn.Module):
    """A linear layer and its ReLU by module, in place or by function, then a sum over the features."""

    def __init__(self, weight: list[list[float]], relu: str) -> None:
        super().__init__()
        self.layer = Tiny(weight)[0]
        self.relu = nn.ReLU(inplace=relu == "inplace")
        self.kind = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return torch.relu(x) if self.kind == "function" else self.relu(x)


# after the ReLU, filter 0 of a sample (x0, x1) is x0, filter 1 is x0 + x1, filter 2 is -x0 - x1 / 2
TINY = [[1.0, 0.0], [1.0, 1.0], [-1.0, -0.5]]
SAMPLES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])


def quadratic(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the samples of sum y^2 / 2 - t sum y, so that dL/dy = y - t."""
    return (outputs.square().sum(1) / 2 - targets * outputs.sum(1)).mean()


@pytest.mark.parametrize("relu", ["module", "inplace", "function"])
@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("apoz", [2 / 4, 3 / 4, 1 / 4]),  # shares that are not zero
        # values 1 0 1 0 | 1 1 2 0 | 0 0 0 1.5, in nats
        ("entropy", [math.log(2), 1.5 * math.log(2), math.log(4) - 0.75 * math.log(3)]),
        # products y (y - t) with t = 2: -1 0 -1 0 | -1 -1 0 0 | 0 0 0 -.75
        ("taylor_activation", [2 / 4, 2 / 4, 0.75 / 4]),
        ("fisher", [2 / 8, 2 / 8, 0.5625 / 8]),
        ("skeletonization", [2 / 4, 2 / 4, 0.75 / 4]),
    ],
)
def test_criteria_of_activations_by_hand(criterion, expected, relu):
    data = [(SAMPLES[:3], torch.full((3,), 2.0)), (SAMPLES[3:], torch.full((1,), 2.0))]
    (scores,) = scored(criterion, Doubled(TINY, relu), group(3, ("layer.weight",)), data=data, loss_fn=quadratic)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        # one sample (1, 2), no ReLU: outputs 1, 3, -2; dL/dy = y - 2: -1, 1, -4; dL/dw = dL/dy x
        ("taylor_weight", [(1 * -1) ** 2, (1 + 2) ** 2, (4 + 0.5 * 8) ** 2]),
        ("snip", [1, 3, 8]),
        # Hessian of a row: x x^T, its diagonal (1, 4)
        ("obd", [0.5, (1 + 4) / 2, (1 + 1) / 2]),
    ],
)
def test_criteria_of_gradients_by_hand(criterion, expected):
    """For obd the filters' elements are independent only in expectation, so many probes and a loose tolerance."""
    made = Obd(probes=4000) if criterion == "obd" else create(criterion)
    data = [(torch.tensor([[1.0, 2.0]]), torch.tensor([2.0]))]
    (scores,) = made.scores(Tiny(TINY), [group(3, ("0.weight",))], Calibration(data, quadratic))
    tolerance = {"atol": 0.1, "rtol": 0.05} if criterion == "obd" else {}
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), **tolerance)


def test_obs_by_hand_and_its_update():
    """Two inputs with H = [[2, 1], [1, 2]], H^-1 = [[2, -1], [-1, 2]] / 3: saliency w^2 / (2 * 2/3)."""
    network = Tiny([[1.0, 2.0]])
    # mean of x x^T over the samples is [[2, 1], [1, 2]]
    inputs = torch.tensor([[3**0.5, 3**0.5 / 2], [1.0, 2.0], [0.0, 0.0]])
    inputs = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).T * 2**0.5
    data = [(inputs, torch.zeros(2))]
    columns = Group((Member("0.weight", 1, ((0,), (1,)), "out"),))  # each weight a unit by itself
    obs = Obs(damping=0.0)
    (scores,) = obs.scores(network, [columns], Calibration(data, quadratic))
    torch.testing.assert_close(scores, torch.tensor([1 / (4 / 3), 4 / (4 / 3)]).double(), rtol=1e-5, atol=1e-6)
    obs.compensate(network, columns, [0])
    # dw = -(w_0 / (2/3)) (2/3, -1/3) = (-1, 1/2)
    torch.testing.assert_close(network[0].weight.detach(), torch.tensor([[0.0, 2.5]]), rtol=1e-5, atol=1e-6)


def test_obs_saliency_is_what_the_loss_grows_by_after_the_update():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    inputs = torch.randn(50, 4, dtype=torch.float64)
    # at the minimum of the loss with respect to layer 0's weights: the targets are what the network says, plus nothing
    targets = network(inputs).detach()
    data = [(inputs, targets)]
    mse = lambda outputs, t: (outputs - t).square().sum(1).mean()  # noqa: E731
    obs = Obs(damping=1e-9)
    filters = group(3, ("0.weight",))
    (scores,) = obs.scores(network, [filters], Calibration(data, mse))
    for unit in range(3):
        pruned = copy.deepcopy(network)
        obs.compensate(pruned, filters, [unit])
        assert pruned[0].weight[unit].abs().max() < 1e-6
        assert mse(pruned(inputs), targets).item() == pytest.approx(scores[unit].item(), rel=1e-4, abs=1e-8)


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


def test_random_scores_are_the_seeds():
    (one,), (again,), (other,) = (scored("random", Tiny(FILTERS), group(3, ("0.weight",)), seed=s) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_layer_used_twice_counts_both_uses():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Tiny([[1.0, 0.0], [0.5, 0.5]])[0]

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(torch.relu(self.layer(x))))

    x = torch.tensor([[1.0, 2.0]])
    network = Twice()
    (scores,) = scored(
        "fisher", network, group(2, ("layer.weight",)), data=[(x, torch.tensor([2.0]))], loss_fn=quadratic
    )
    # first (1, 1.5), second (1, 1.25); dL/dsecond = (-1, -.75), dL/dfirst = (-1 - .375, -.375)
    assert scores.tolist() == pytest.approx([(1 * -1.375 - 1) ** 2 / 2, (1.5 * -0.375 - 1.25 * 0.75) ** 2 / 2])


REFUSALS = [
    ("bn_scale", "bn_scale reads the scales of normalisation layers, and the channels of layer 0 have none"),
    ("apoz", "apoz counts zeros after a ReLU, and none follows layer 0"),
    ("obs", "layer 0 has 6 weights, and a Hessian of 6\\^2 numbers is computed up to 5\\^2"),
]


@pytest.mark.parametrize(("criterion", "message"), REFUSALS)
def test_what_a_criterion_cannot_read_is_refused_by_name(criterion, message):
    made = Obs(largest=5) if criterion == "obs" else criterion
    with pytest.raises(ValueError, match=message):
        scored(made, Tiny(FILTERS), group(3, ("0.weight",)), data=[(SAMPLES, torch.zeros(4))], loss_fn=quadratic)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("l1norm", {}, "criterion='l1norm' is not one of l1_norm, .* Did you mean 'l1_norm'"),
        ("entropy", {"bin": 3}, "criterion=entropy has no option bin; it has bins"),
        ("fpgm", {"bins": 3}, "criterion=fpgm has no option bins; it has none"),
    ],
)
def test_unknown_criteria_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, options)
