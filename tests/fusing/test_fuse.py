"""Fused is trained: to 1e-5 (float32) and 1e-12 (float64) of the largest output, with the layers that one expects."""

import copy

import pytest
import torch
import torchvision
from fusing_networks import BatchNormAct2d, Parallel, build, conv_bn, convolutions, settled, vanished
from torch import nn

from memexp import edits, fusing
from memexp.edits import merge

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}


def fused(network: nn.Module, x: torch.Tensor, level: str) -> nn.Module:
    """What `fuse` gives, after it is seen that it agrees on other inputs, left the network alone and comes from its edits."""
    state = copy.deepcopy(network.state_dict())
    result = fusing.fuse(network, x, level)
    other = torch.randn_like(x)
    with torch.no_grad():
        expected, found = network(other), result.network(other)
        again = edits.apply_all(copy.deepcopy(network).to("meta"), result.edits)
        again.load_state_dict(result.network.state_dict(), assign=True)
        assert torch.equal(again.eval()(other), found)
    bound = BOUNDS[x.dtype]
    assert result.error <= bound
    assert (found - expected).abs().max() <= bound * expected.abs().max()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
    return result.network


INNER = [(20, 1), (20, 2), (20, 4), (56, 1)] + [pytest.param(56, e, marks=pytest.mark.long) for e in (2, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("depth", "expansion"), INNER)
def test_inner_vanishing_is_deployed_as_one_convolution_a_block(depth, expansion, dtype):
    torch.manual_seed(0)
    network = vanished(depth=depth, expansion=expansion).to(dtype)
    deployed = fused(network, torch.randn(2, 3, 32, 32, dtype=dtype), "block")
    assert len(convolutions(deployed)) == {20: 10, 56: 28}[depth]
    assert {conv.kernel_size for conv in convolutions(deployed)} == {(3, 3)}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_merge_with_each_other_when_padding_is_taken_once(dtype):
    torch.manual_seed(0)
    network = vanished(depth=14, padding="once", vanish="schedule", schedule=[[1, None], 1, [1, None]]).to(dtype)
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    assert len(convolutions(fused(network, x, "block"))) == 7
    deployed = convolutions(fused(network, x, "all"))
    assert [(conv.kernel_size[0], conv.stride[0]) for conv in deployed] == [(7, 1), (19, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", ["each", "once"])
def test_a_whole_linear_network_is_one_linear_layer(padding, dtype):
    torch.manual_seed(0)
    network = vanished(depth=20, vanish="all", padding=padding).to(dtype)
    deployed = fused(network, torch.randn(2, 3, 32, 32, dtype=dtype), "all")
    assert [type(module) for module in deployed] == [nn.Flatten, nn.Linear]
    assert deployed[1].weight.shape == (10, 3072)


def test_the_plain_baseline_loses_its_identity_branch():
    network = settled(build(depth=11, plain=True))
    deployed = fused(network, torch.randn(2, 3, 32, 32), "block")
    assert len(convolutions(deployed)) == 10
    assert not any(getattr(module, "shortcut", None) for module in deployed.modules())


RELU = nn.ReLU(inplace=True)
PARALLEL = {
    "with identity": lambda: Parallel(conv_bn(8, 8, 3), conv_bn(8, 8, 1), nn.BatchNorm2d(8), act=nn.ReLU()),
    "bare identity": lambda: Parallel(conv_bn(8, 8, 3), nn.Identity(), act=nn.ReLU(inplace=True)),
    "without identity": lambda: Parallel(conv_bn(8, 6, 3), conv_bn(8, 6, 1), act=nn.ReLU()),
    "stride": lambda: Parallel(conv_bn(8, 6, 3, 2), conv_bn(8, 6, 1, 2), act=nn.Hardswish()),
    "groups": lambda: Parallel(
        conv_bn(8, 8, 3, groups=4), conv_bn(8, 8, 1, groups=4), nn.BatchNorm2d(8), act=nn.ReLU()
    ),
    "depthwise": lambda: Parallel(conv_bn(8, 8, 5, groups=8), conv_bn(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
    "relu called, in place": lambda: Parallel(conv_bn(8, 8, 3), conv_bn(8, 8, 1), functional=True),
    "a longer branch": lambda: Parallel(
        nn.Sequential(*conv_bn(8, 4, 1, padding=1)[:1], nn.Conv2d(4, 8, 3, bias=False)), conv_bn(8, 8, 3), act=nn.ReLU()
    ),
    "sums in a sum": lambda: Parallel(Parallel(conv_bn(8, 8, 3), nn.Identity()), conv_bn(8, 8, 1), act=nn.ReLU()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", PARALLEL)
def test_branches_side_by_side_become_one_convolution(case, dtype):
    torch.manual_seed(0)
    network = settled(nn.Sequential(PARALLEL[case](), nn.MaxPool2d(2))).to(dtype)
    deployed = fused(network, torch.randn(2, 8, 9, 11, dtype=dtype), "all")
    (conv,) = convolutions(deployed)
    assert conv.groups == {"groups": 4, "depthwise": 8}.get(case, 1)
    assert conv.stride == ((2, 2) if case == "stride" else (1, 1))


def test_what_else_reads_a_branch_keeps_it():
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return (y + self.b(x)) * y.mean()

    network = nn.Sequential(Leaky(), nn.ReLU()).eval()
    assert len(convolutions(fused(network, torch.randn(2, 4, 9, 9), "all"))) == 2


# the table of borders: (first, second, what the refusal says)
BORDERS = {
    "1x1 with bias, then 3x3 padded": (nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), "has a bias"),
    "3x3, then 3x3 padded": (
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        "is 3x3",
    ),
    "strided 3x3, then 3x3 padded": (nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1), "has a bias"),
    "3x3, then 1x1 padded": (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, padding=1), "has a bias"),
    "cropped, then padded": (nn.ZeroPad2d(-1), nn.Conv2d(4, 4, 3, padding=1), "is 1x1"),
    "reflected": (
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        "padding_mode='reflect'",
    ),
    "padded on one side": (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, 2), "pads its sides differently"),
    "other strides beside": (
        Parallel(nn.Conv2d(4, 4, 3, 2, 1), nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))),
        nn.Identity(),
        None,
    ),
}


@pytest.mark.parametrize("case", BORDERS)
def test_merges_that_borders_forbid_are_refused_with_the_reason(case):
    first, second, reason = BORDERS[case]
    network = nn.Sequential(first, second, nn.ReLU()).eval()
    x = torch.randn(2, 4, 8, 8)
    assert len(convolutions(fused(network, x, "all"))) == len(convolutions(network))
    if reason is None:
        return
    with pytest.raises(ValueError, match=reason):
        edits.apply(
            network, {"kind": "merge", "merges": [{"into": "1", "gone": ["0"], "inputs": 4, "chain": ["0", "1"]}]}
        )
    assert network[0] is first
    assert any(reason in text for text in fusing.compare(network, x).refused.values())


MERGED = {
    "stride": [nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 5, 3)],
    "strides, odd sizes, groups, dilation": [
        nn.Conv2d(4, 6, 3, (2, 1), 2, 2, groups=2),
        nn.Conv2d(6, 8, (3, 2), 2, groups=2),
    ],
    "1x1 without a bias, then padded": [nn.Conv2d(4, 6, 1, 2, bias=False), nn.Conv2d(6, 5, 3, padding=2)],
    "zeros first": [nn.ZeroPad2d(3), nn.Conv2d(4, 6, 3, 2), nn.Conv2d(6, 5, 3)],
    "padding by name": [nn.Conv2d(4, 6, 3, padding="same"), nn.Conv2d(6, 5, 3, padding="valid")],
    "normalised first": [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)],
}


@pytest.mark.parametrize("case", MERGED)
def test_a_row_of_layers_is_one_convolution(case):
    torch.manual_seed(0)
    network = settled(nn.Sequential(*copy.deepcopy(MERGED[case]), nn.ReLU())).double()
    for size in ((17, 18), (20, 19), (23, 22)):
        deployed = fused(network, torch.randn(2, 4, *size, dtype=torch.float64), "all")
        assert len(convolutions(deployed)) == 1


def test_a_network_without_weights_and_one_of_two_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv_bn(4, 4, 3), conv_bn(4, 4, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(y)

    assert fusing.fuse(nn.Sequential(nn.Flatten()).eval(), torch.randn(2, 4)).edits == []
    inputs = (torch.randn(5, 4, 6, 6), torch.randn(5, 4, 6, 6))
    result = fusing.fuse(settled(Two()), inputs, "all")
    assert len(convolutions(result.network)) == 2
    assert result.edits == [{"kind": "fold", "pairs": [["a.0", "a.1"], ["b.0", "b.1"]]}]


def test_channels_last_stays():
    network = vanished().to(memory_format=torch.channels_last)
    deployed = fusing.fuse(network, torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)).network
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convolutions(deployed))


def test_what_is_not_ready_is_refused_and_left_as_it_is():
    x = torch.randn(2, 3, 32, 32)
    network = settled(build())
    network.set_lambda(0.25)
    with pytest.raises(ValueError, match=r"lambda=0.25"):
        fusing.fuse(network, x)
    network.set_lambda(0.0)
    network.body[1].train()
    with pytest.raises(ValueError, match=r"body\.1 is in train mode"):
        fusing.fuse(network, x)
    assert network.body[1].training
    with pytest.raises(ValueError, match="merge='most'"):
        fusing.fuse(network.eval(), x, "most")
    with pytest.raises(ValueError, match="inplace_relu"):
        fusing.fuse(vanished(inplace_relu=True), x)


def test_a_fused_network_that_differs_is_not_given_out(monkeypatch):
    network, x = vanished(), torch.randn(2, 3, 32, 32)
    right = merge.in_a_row

    def wrong(first: merge.Kernel, second: merge.Kernel, *names: str) -> merge.Kernel:
        kernel = right(first, second, *names)
        return merge.Kernel(kernel.weight * 1.001, *list(vars(kernel).values())[1:])

    monkeypatch.setattr(merge, "in_a_row", wrong)
    before = network(x)
    with pytest.raises(fusing.FusingError, match="differ"):
        fusing.fuse(network, x)
    assert torch.equal(network(x), before)
    with pytest.raises(fusing.FusingError, match=r"nan"):
        fusing.check(network, nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), [x.fill_(float("nan"))])


def test_auto_is_the_fastest_and_every_way_is_compared():
    torch.manual_seed(0)
    network = vanished(padding="once", vanish="schedule", schedule=[1, 1, None])
    x = torch.randn(4, 3, 32, 32)
    found = fusing.compare(network, x, inputs=[x[:1]])
    assert list(found.costs) == ["trained", "none", "block", "auto", "all"]
    latency = {name: figures["latency_4"] for name, figures in found.costs.items()}
    assert latency["auto"] == min(latency[name] for name in ("none", "block", "auto", "all"))
    assert all(result.error <= 1e-5 for result in found.fused.values())
    for figures in found.costs.values():
        assert {"parameters", "macs", "latency_1", "latency_4", "peak_1", "peak_4"} <= figures.keys()
        assert figures["peak_1"] < figures["peak_4"]
        assert figures["peak_1"] > 4 * figures["parameters"]
    block, trained = found.costs["block"], found.costs["trained"]
    assert block["parameters"] == sum(p.numel() for p in found.fused["block"].network.parameters())
    assert block["macs"] < trained["macs"]
    assert block["predicted"] > 0


QUICK = ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf")
SIZES = {"inception_v3": 299, "maxvit_t": 224}


def _folded(arch: str, dtype: torch.dtype) -> None:
    """Nothing for an architecture without BN, and for the largest in float64."""
    torch.manual_seed(0)
    extra = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    network = settled(torchvision.models.get_model(arch, weights=None, **extra))
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return
    if dtype is torch.float64 and sum(p.numel() for p in network.parameters()) > 1e8:
        return  # the two copies would take more memory than a laptop has
    network = network.to(dtype)
    size = SIZES.get(arch, 64)
    result = fusing.fuse(network, torch.randn(2, 3, size, size, dtype=dtype), "none")
    assert result.error <= BOUNDS[dtype]
    assert len(result.edits[0]["pairs"]) > 0


@pytest.mark.parametrize("arch", QUICK)
def test_torchvision_folded_is_trained(arch):
    _folded(arch, torch.float32)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_torchvision_architecture_folded_is_trained(dtype):
    failed = {}
    for arch in torchvision.models.list_models(module=torchvision.models):
        try:
            _folded(arch, dtype)
        except (AssertionError, ValueError) as error:
            failed[arch] = str(error)
    assert failed == {}


@pytest.mark.long
def test_reducenet_20_twice_as_wide_inside_is_deployed_at_least_half_as_fast_again():
    network = vanished(depth=20, expansion=2)
    found = fusing.compare(network, torch.randn(1, 3, 32, 32)).costs
    assert found["trained"]["latency_1"] >= 1.5 * found["block"]["latency_1"]


@pytest.mark.parametrize(("act", "convs"), [(nn.Identity(), 1), (nn.ReLU(), 2)], ids=["identity", "relu"])
def test_timm_s_repvgg_merges_where_nothing_but_normalisation_stands_beside_its_convolutions(act, convs):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    wide, narrow = (nn.Sequential(nn.Conv2d(4, 4, k, padding=k // 2), BatchNormAct2d(4, nn.Identity())) for k in (3, 1))
    network = settled(Parallel(wide, narrow, BatchNormAct2d(4, act), act=nn.ReLU())).double()
    deployed = fused(nn.Sequential(network).eval(), x, "block")
    assert len(convolutions(deployed)) == convs
    assert sum(isinstance(module, nn.BatchNorm2d) for module in deployed.modules()) == convs - 1


@pytest.mark.parametrize("act", [nn.Identity(), nn.ReLU(inplace=True), nn.PReLU(6)], ids=lambda act: type(act).__name__)
def test_batch_normalisation_with_an_activation_in_it_leaves_the_activation(act):
    """timm's: most of its convolutional networks are of it."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    network = settled(nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6, act), nn.Conv2d(6, 5, 1))).double()
    deployed = fused(network, x, "none")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert [name for name in network.state_dict() if ".act." in name] == [
        n for n in deployed.state_dict() if ".act." in n
    ]
