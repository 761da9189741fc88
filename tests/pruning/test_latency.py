"""Latency: the table, its predictions, NetAdapt's steps; with a clock that counts, and once with a real one."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp import edits
from memexp.channels import trace
from memexp.memory import track
from memexp.pruning import Settings, prune, remove
from memexp.pruning.counting import skeleton
from memexp.pruning.latency import Table, measured

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DATA = [(IMAGES[:3], torch.tensor([0, 1, 2])), (IMAGES[3:], torch.tensor([3]))]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in [(3, 16), (16, 16), (16, 24)]:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


class Clock:
    """Seconds that are a module's MACs in nanoseconds; `outside` more for the whole network."""

    def __init__(self, outside: float = 0.0) -> None:
        self.outside, self.calls = outside, 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
        self.calls += 1
        whole = isinstance(module, nn.Sequential)
        assert not any(type(t).__name__ == "FakeTensor" for t in (*module.parameters(), *inputs))
        with torch.no_grad():
            return track(lambda: module(*inputs)).macs_forward * 1e-9 + (self.outside if whole else 0.0)


def widths(network: nn.Module) -> list[int]:
    return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]


def test_a_prediction_is_the_sum_over_layers_at_their_new_widths():
    net, clock = network(), Clock()
    graph, table = trace(net, IMAGES), Table(net, (IMAGES,), clock)
    pruned, _ = prune(net, IMAGES, ratio=0.5)
    with skeleton(net, graph, (IMAGES,)) as bones:
        assert table.predict(bones, {}) == pytest.approx(table.whole)
        half = {n: list(range(group.size // 2)) for n, group in enumerate(graph.groups)}
        assert table.predict(bones, half) == pytest.approx(clock(pruned, (IMAGES,)))
        calls = clock.calls
        table.predict(bones, half)
        assert clock.calls == calls  # the table is filled once


def test_what_lies_between_modules_follows_the_size_of_their_inputs():
    net = network()
    graph, table = trace(net, IMAGES), Table(net, (IMAGES,), Clock(outside=1.0))
    with skeleton(net, graph, (IMAGES,)) as bones:
        half = {n: list(range(group.size // 2)) for n, group in enumerate(graph.groups)}
        assert table.predict(bones, {}) == pytest.approx(table.whole)
        # maps halve, the 3 x 16 x 16 images do not
        before = sum(use.inputs[0].numel() for use in bones.uses({}))
        after = sum(use.inputs[0].numel() for use in bones.uses(half))
        assert after < 0.55 * before
        assert table.predict(bones, half) == pytest.approx(after / before, rel=0.01)


def test_equal_layers_share_an_entry():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(5)])
    clock = Clock()
    table = Table(net, (IMAGES,), clock)
    with skeleton(net, trace(net, IMAGES), (IMAGES,)) as bones:
        table.predict(bones, {})
    assert clock.calls == 2  # the whole and one layer


def test_a_latency_target_is_met_by_all_layers_in_step():
    result = remove(network(), IMAGES, "l1_norm", Settings(target="latency:0.6"), measure=Clock())
    figure = result.record["latency"]
    assert figure["predicted"] / figure["before"] == pytest.approx(0.6, rel=0.02)
    assert figure["after"] == pytest.approx(figure["predicted"])


def loss_of(net: nn.Module) -> float:
    net.eval()
    with torch.no_grad():
        return sum(functional.cross_entropy(net(x), y).item() * len(x) for x, y in DATA) / 4


def test_each_step_takes_the_layer_with_the_least_loss_and_just_enough_channels():
    net = network()
    settings = Settings(target="latency:0.9", order="latency", step=0.1)
    result = remove(net, IMAGES, "l1_norm", settings, data=DATA, measure=Clock())
    (step,) = result.record["steps"]
    # by hand: for each layer the fewest least-l1 channels with which MACs fall by a tenth, and the loss with them gone
    macs = [9 * 3 * 256, 9 * 16 * 64, 9 * 16 * 16]  # of one channel of a layer's own
    reads = [9 * 16 * 64, 9 * 24 * 16, 10]  # and of what reads it
    whole = sum(m * n for m, n in zip(macs, (16, 16, 24), strict=True)) + 240
    found = {}
    for layer, own, read in zip(("0", "4", "8"), macs, reads, strict=True):
        count = -(-whole // (10 * (own + read)))
        order = net.get_submodule(layer).weight.detach().abs().sum((1, 2, 3)).argsort()
        if count <= 0.9 * len(order):
            kept = order[count:].sort().values.tolist()
            group = next(g for g in result.groups if g["layers"] == [layer])
            found[layer] = (loss_of(remove_these(net, layer, kept)), count, kept, group)
    best = min(found, key=lambda layer: found[layer][0])
    assert step["layers"] == [best]
    assert (step["removed"], found[best][3]["kept"]) == found[best][1:3]
    assert step["loss"] == pytest.approx(found[best][0], rel=1e-5)


def remove_these(net: nn.Module, layer: str, kept: list[int]) -> nn.Module:
    masked = copy.deepcopy(net)
    gone = [i for i in range(len(masked.get_submodule(layer).weight)) if i not in kept]
    norm = masked[int(layer) + 1]
    for tensor in (masked.get_submodule(layer).weight, masked.get_submodule(layer).bias, norm.weight, norm.bias):
        tensor.data[gone] = 0
    return masked


def test_steps_go_on_to_the_target_with_tuning_between_and_one_edit_for_all():
    net = network()
    tuned: list[list[int]] = []

    def tune(module: nn.Module) -> None:
        tuned.append(widths(module))
        with torch.no_grad():
            module[-1].bias.add_(1)

    settings = Settings(target="latency:0.6", order="latency", step=0.1)
    result = remove(net, IMAGES, "l1_norm", settings, data=DATA, tune=tune, measure=Clock())
    figure, steps = result.record["latency"], result.record["steps"]
    assert len(steps) == len(tuned) >= 4
    assert all(sum(a) > sum(b) for a, b in pairwise(tuned))
    assert figure["predicted"] / figure["before"] == pytest.approx(0.6, rel=0.03)
    assert figure["after"] == pytest.approx(figure["predicted"])
    torch.testing.assert_close(result.network[-1].bias, net[-1].bias + len(steps))
    again = edits.apply(network(), result.edit)
    again.load_state_dict(result.network.state_dict())
    assert result.record["check"]["error"] < 1e-5
    for group, (before, after) in zip(result.groups, result.record["widths"].values(), strict=True):
        assert len(group["kept"]) == after < before or after == before == len(group["kept"])


def test_a_latency_out_of_reach_is_refused():
    settings = Settings(target="latency:0.01", order="latency", step=0.2, floor=0.5)
    with pytest.raises(ValueError, match=r"target=latency:0.01 cannot be met: at 0\..* no layer can give another 0.2"):
        remove(network(), IMAGES, "l1_norm", settings, data=DATA, measure=Clock())


def test_a_real_clock_takes_longer_for_more_work():
    narrow, wide = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 256, 3)
    assert 0 < measured(narrow, (IMAGES,)) < measured(wide, (IMAGES,))


class Scaled(nn.Module):
    """A module of a user's own, without modules inside, called in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 12))

    def forward(self, x: Tensor, factor: float, y: Tensor) -> Tensor:
        return functional.linear(x, self.weight) * factor + y


class Several(nn.Module):
    """Layers of several inputs, by position and by name, some of which are no tensors."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.b = kind, nn.Linear(6, 12)
        self.a = nn.Sequential(nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 12))
        self.own = nn.Bilinear(12, 12, 12) if kind == "bilinear" else Scaled()
        self.c = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.kind == "bilinear":
            return self.c(self.own(a, b))
        return self.c(self.own(a, 0.5, b) if self.kind == "position" else self.own(a, y=b, factor=0.5))


@pytest.mark.parametrize("kind", ["bilinear", "position", "name"])
@pytest.mark.parametrize("order", ["sequential", "energy", "latency"])
def test_layers_of_several_inputs_have_an_energy_and_a_latency(kind, order):
    net, x = Several(kind), torch.randn(4, 6)
    measure = "latency" if order == "latency" else "macs"
    clock = lambda module, inputs: track(lambda: module(*inputs)).macs_forward * 1e-9  # noqa: E731
    settings = Settings(target=f"{measure}:0.7", order=order)
    result = remove(net, x, "l1_norm", settings, data=[(x, torch.arange(4))], measure=clock)
    assert result.record["macs"]["after"] < 0.75 * result.record["macs"]["before"]
    table = Table(net, (x,), clock)
    with skeleton(net, trace(net, x), (x,)) as bones:
        assert table.predict(bones, {}) == pytest.approx(table.whole)  # a sum over all of its layers
