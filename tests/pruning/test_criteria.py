"""Each criterion against scores computed by hand on tiny layers."""

import copy
import math

import pytest
import torch
from criteria_groups import Group, Member, Tiny, group, quadratic, scored
from torch import Tensor, nn

from memexp.pruning.calibration import Calibration
from memexp.pruning.criteria import create
from memexp.pruning.criteria.gradient import Obd
from memexp.pruning.criteria.obs import Obs

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


def test_distances_between_filters_that_are_nearly_or_quite_equal():
    """As one by one, though they come of a product of matrices: far from 0, close together, and the same."""
    torch.manual_seed(0)
    filters = 100 + torch.cat([torch.randn(6, 40), torch.randn(6, 40) * 1e-3, torch.ones(3, 40)]).double()
    network = nn.Sequential(nn.Linear(40, 15, dtype=torch.float64))
    network[0].weight.data = filters
    (scores,) = scored("fpgm", network, group(15, ("0.weight",)))
    one_by_one = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    torch.testing.assert_close(scores, one_by_one, rtol=1e-9, atol=0)
    network[0].weight.data = filters[-1:].expand(15, 40) / 3
    assert scored("fpgm", network, group(15, ("0.weight",)))[0].tolist() == [0.0] * 15


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
