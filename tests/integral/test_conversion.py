"""Whole networks: exact at native size, plain copies at any other, groups found, permutation."""

import copy
import itertools

import pytest
import torch
from fusing_networks import BatchNormAct2d
from integral_networks import Flattened, build, relative, shape
from torch import nn

from memexp.channels import Graph, Group, Member
from memexp.integral import convert, quadrature
from memexp.integral.conversion import stretches
from memexp.integral.weights import Integral


@pytest.mark.parametrize("name", ["flattened", "resnet20", "revnet38", "vgg11", "nin", "torchvision/resnet18"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_native_size_is_exact(name: str, dtype: torch.dtype, tolerance: float) -> None:
    network = build(name).to(dtype)
    x = torch.randn(2, *shape(name), dtype=dtype)
    before = copy.deepcopy(network.state_dict())
    integral = convert(network, x[:1], permute=False)
    assert relative(integral(x), network(x)) <= tolerance
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())  # left as it was


@pytest.mark.parametrize("name", quadrature.NAMES)
@pytest.mark.parametrize("fold", [True, False])
def test_native_size_is_exact_with_any_quadrature(name: str, fold: bool) -> None:
    network = build("flattened").double()
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64)
    assert relative(convert(network, x, quadrature=name, fold=fold)(x), network(x)) <= 1e-12


@pytest.mark.parametrize("act", [nn.Identity(), nn.ReLU()], ids=["identity", "relu"])
def test_timm_s_normalisation_with_an_activation_in_it_is_continuous_too(act: nn.Module) -> None:
    """Before a convolution, or beside one, it stays; most of timm's convolutional networks are of it."""
    torch.manual_seed(0)
    norm = BatchNormAct2d(12, act)
    network = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Tanh(), norm, nn.Conv2d(12, 5, 3)).double()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    network(x)
    integral = convert(network.eval(), x)
    assert integral.groups == {"0": 12}
    assert relative(integral(x), network(x)) <= 1e-12
    plain = integral.discretize(7)
    integral.resize(7)
    assert (type(plain[2]), plain[2].num_features) == (BatchNormAct2d, 7)
    assert vars(plain[2]).keys() == vars(norm).keys()
    assert relative(integral(x), plain(x)) <= 1e-12
    integral.train()(x).sum().backward()
    assert all(p.grad is not None for p in integral.parameters())


def test_groups_are_found_without_naming_layers() -> None:
    """Residual sum with a depthwise and a grouped reader, concatenation with itself, flatten."""
    integral = convert(Flattened(), torch.randn(1, 3, 10, 10))
    assert integral.groups == {"stem": 4, "inner": 10, "twice": 8, "hidden": 11}  # stem: by the groups of `grouped`
    assert {key.split("[")[0] for key in integral.discrete} == {
        "stem.weight",
        "grouped.weight",
        "scores.weight",
        "scores.bias",
    }


def test_channels_around_a_padded_shortcut_are_groups_of_their_own() -> None:
    groups = convert(build("resnet20"), torch.randn(1, 3, 32, 32), permute=False).groups
    assert {name: n for name, n in groups.items() if "#" in name} == {
        "body.3.f.5#1": 8, "body.3.f.5#2": 8, "body.6.f.5#1": 16, "body.6.f.5#2": 16,
    }  # fmt: skip
    assert groups["stem.0"] == 16


def test_both_streams_of_a_coupling_are_one_group() -> None:
    integral = convert(build("revnet38"), torch.randn(1, 3, 32, 32), permute=False)
    assert integral.groups["body.0.0"] == 16  # of 32 channels of the stem
    integral.resize({"body.0.0": 10})
    assert integral.discretize().body[0][0].weight.shape[0] == 20  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("name", "fold"),
    [("flattened", True), ("flattened", False), ("resnet20", False), ("revnet38", True), ("nin", True)],
)
def test_plain_networks_of_any_size(name: str, fold: bool) -> None:
    network = build(name)
    x = torch.randn(2, *shape(name))
    integral = convert(network, x[:1], permute=False, fold=fold)
    counts = []
    for size in (1.0, 0.8, 0.6, 0.4):
        plain = integral.discretize(size)
        counts.append(sum(p.numel() for p in plain.parameters()))
        assert not [m for m in plain.modules() if isinstance(m, Integral)]
        integral.resize(size)
        assert relative(plain(x), integral(x)) <= 1e-5
        assert {p.requires_grad for p in plain.parameters()} == {True}
    folded = sum(p.numel() for p in convert(network, x[:1], permute=False, fold=fold).network.parameters())
    assert counts[0] == folded
    assert all(0.35 < b / a < 0.85 for a, b in itertools.pairwise(counts)), counts
    integral.resize()
    assert relative(integral(x), network(x)) <= 1e-5  # and back


def test_sizes_of_single_groups() -> None:
    integral = convert(build("vgg11"), torch.randn(1, 3, 32, 32), permute=False)
    plain = integral.discretize({"features.4": 100, "features.8": 0.5, "classifier.0": 600})
    widths = {name: m.weight.shape[0] for name, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert widths == {
        "features.0": 64, "features.4": 100, "features.8": 128, "features.11": 256, "features.15": 512, "features.18": 512,
        "features.22": 512, "features.25": 512, "classifier.0": 600, "classifier.3": 10,
    }  # fmt: skip
    assert plain(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_permutation_changes_nothing_and_lowers_total_variation() -> None:
    generator = torch.Generator().manual_seed(0)
    network = build("flattened").double()
    with torch.no_grad():  # smooth weights in a shuffled order
        x = torch.linspace(0, 3, 10, dtype=torch.float64)[torch.randperm(10, generator=generator)]
        waves = torch.rand(12, 1, generator=generator, dtype=torch.float64)
        network.inner.weight.copy_(torch.sin(x + 6 * waves).T[:, :, None, None])  # type: ignore[operator,union-attr]
        network.back.weight.copy_(torch.cos(x + 6 * waves)[:, :, None, None])  # type: ignore[operator,union-attr]
    images = torch.randn(2, 3, 10, 10, dtype=torch.float64)
    integral = convert(network, images)
    assert relative(integral(images), network(images)) <= 1e-12
    assert integral.variation is not None
    assert integral.variation.after["inner"] < 0.5 * integral.variation.before["inner"]
    assert integral.variation.ratio < 1
    for name, n in integral.groups.items():
        assert integral.variation.after[name] <= integral.variation.before[name], (name, n)


def test_batch_norm_that_is_kept_follows_its_group() -> None:
    network = build("resnet20").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    integral = convert(network, x)
    norms = {name for name, m in integral.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert "network.body.1.f.0" in norms  # before a convolution: it cannot be folded
    assert "network.stem.1" not in norms
    assert relative(integral(x), network(x)) <= 1e-12
    integral.resize(0.5)
    assert integral(x).isfinite().all()


def test_channels_that_are_not_side_by_side_everywhere_are_parted() -> None:
    def member(name: str, dim: int, *indices: tuple[int, ...]) -> Member:
        return Member(name, dim, indices, "out" if dim == 0 else "in")

    groups = [
        Group(
            5,
            (member("a.weight", 0, (0,), (1,), (2,), (3,), (4,)), member("b.weight", 1, (0,), (1,), (2,), (4,), (3,))),
        ),
        Group(2, (member("c.weight", 0, (0, 1), (2, 3)), member("d.weight", 1, (0,), (1,)))),  # flattened
        Group(2, (member("e.weight", 0, (0, 4), (1, 5)),)),  # concatenated with itself
        Group(2, (member("f.weight", 0, (0, 4), (1, 3)),)),  # mirrored
    ]
    parts, where = stretches(Graph(groups, {}, {}, ()))
    assert [(part.name, part.size) for part in parts] == [
        ("a", 3), ("a", 1), ("a", 1), ("c", 2), ("e", 2), ("f", 1), ("f", 1),
    ]  # fmt: skip
    assert where[0, 2] == (0, 2)
    assert where[0, 4] == (2, 0)
    assert parts[3].places["c.weight", 0].tolist() == [[0, 1], [2, 3]]


def test_exportable() -> None:
    integral = convert(build("resnet20"), torch.randn(1, 3, 32, 32), permute=False)
    plain = integral.discretize(0.6).eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(plain, (x,))
    torch.testing.assert_close(exported.module()(x), plain(x))


ADMITTED = [
    "alexnet", "densenet121", "densenet201", "efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s", "googlenet",
    "inception_v3", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "regnet_x_400mf",
    "regnet_x_800mf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "resnet18", "resnet34", "resnet50",
    "resnet101", "resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1",
    "vgg11", "vgg11_bn", "vgg16", "wide_resnet50_2",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("arch", ADMITTED)
def test_torchvision(arch: str) -> None:
    from torchvision import models

    torch.manual_seed(0)
    builder = models.get_model_builder(arch)
    options = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    network = builder(weights=None, **options).eval()
    x = torch.randn(1, 3, *(2 * [299 if arch == "inception_v3" else 96]))
    integral = convert(network, x, permute=False)
    assert relative(integral(x), network(x)) <= 1e-5
    integral.resize(0.6)
    plain = integral.discretize(0.6)
    assert relative(plain(x), integral(x)) <= 1e-5
    assert sum(p.numel() for p in plain.parameters()) < 0.85 * sum(p.numel() for p in network.parameters())


def test_only_the_groups_that_are_asked_for_are_continuous() -> None:
    network, x = build("resnet20"), torch.randn(2, 3, 32, 32)
    integral = convert(network, x, groups=["body.[78].f.2"])
    assert list(integral.groups) == ["body.7.f.2", "body.8.f.2"]
    assert integral.discrete["body.6.f.2"] == "it is not among the groups that are asked for"
    assert relative(integral(x), network(x)) < 1e-5
    half = integral.discretize(0.5)
    assert half.get_submodule("body.7.f.2").out_channels == 32
    assert half.get_submodule("body.6.f.2").out_channels == 64
    with pytest.raises(ValueError, match=r"'body\.99' fits no group; there are stem\.0, body"):
        convert(network, x, groups=["body.99"])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_mode_of_the_caller_makes_no_difference(mode) -> None:
    """What is made can be trained, and is as exact as it is elsewhere."""
    network = build("flattened")
    x = torch.randn(2, *shape("flattened"))
    with mode():
        integral = convert(network, x)
        plain = integral.discretize(0.6)
    assert relative(integral.eval()(x), network(x)) < 1e-5
    for made in (integral, plain):
        made.train()(x).sum().backward()
        assert all(p.grad is not None for p in made.parameters())
