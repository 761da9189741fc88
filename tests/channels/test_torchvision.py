"""torchvision's classifiers: narrowed against masked at four ratios. The smallest of each kind here, the others are long."""

import equality
import pytest
import torch
import torchvision
from torch import nn

from memexp import channels, edits

SIDES = {
    "alexnet": 64, "vgg11": 32, "vgg11_bn": 32, "resnet18": 32, "resnet34": 32, "resnet50": 32, "resnext50_32x4d": 32,
    "wide_resnet50_2": 32, "densenet121": 32, "densenet169": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 32, "shufflenet_v2_x0_5": 32, "shufflenet_v2_x1_0": 32, "squeezenet1_0": 64,
    "squeezenet1_1": 64, "googlenet": 64, "inception_v3": 96, "mnasnet0_5": 32, "mnasnet1_0": 32, "efficientnet_b0": 32,
    "efficientnet_b1": 32, "efficientnet_v2_s": 32, "regnet_x_400mf": 32, "regnet_x_800mf": 32, "regnet_y_400mf": 32,
    "regnet_y_800mf": 32, "convnext_tiny": 32, "swin_t": 64, "swin_v2_t": 64, "vit_b_16": 224, "maxvit_t": 224,
}  # fmt: skip
QUICK = ("shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1")


def build(name: str, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return equality.randomise(torchvision.models.get_model(name, weights=None, **extra, **settings))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.long]) for n in SIDES])
def test_narrowed_equals_masked(name: str) -> None:
    network, inputs = build(name), torch.randn(1, 3, SIDES[name], SIDES[name])
    graph = channels.trace(network, inputs)
    assert graph.groups
    for ratio in (0.1, 0.3, 0.5, 0.7):
        narrowed, error = equality.difference(network, graph, equality.choose(graph, ratio), inputs)
        assert error < 1e-5
    assert equality.parameters(narrowed) < 0.6 * equality.parameters(network)


@pytest.mark.long
def test_auxiliary_heads_still_fit_in_training() -> None:
    torch.manual_seed(0)
    network, x = torchvision.models.googlenet(num_classes=10, init_weights=False), torch.randn(2, 3, 64, 64)
    graph = channels.trace(network, x)
    assert graph.unread == ()  # training mode runs them, so that what they take stays
    assert "which runs aux1, aux2" in graph.frozen["inception4a.branch1.conv.weight", 0]
    narrowed = edits.apply(network, channels.narrow_edit(graph, equality.choose(graph, 0.3)))
    assert [y.shape for y in narrowed.train()(x)] == [(2, 10)] * 3


def test_window_attention_loses_heads() -> None:
    """A Swin of two stages: heads, the width of the stream, and the table of relative positions."""
    torch.manual_seed(0)
    swin = torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [7, 7], num_classes=5)
    network, inputs = equality.randomise(swin).double(), torch.randn(1, 3, 60, 60, dtype=torch.float64)
    graph = channels.trace(network, inputs)
    heads = [g for g in graph.groups if any("relative_position_bias_table" in m.name for m in g.members)]
    assert [g.size for g in heads] == [2, 2, 4, 4]
    for ratio in (0.3, 0.5, 0.7):
        narrowed, error = equality.difference(network, graph, equality.choose(graph, ratio), inputs)
        assert error < 1e-12
    assert equality.parameters(narrowed) < 0.3 * equality.parameters(network)


def test_a_vision_transformer_loses_heads() -> None:
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(16, 8, 2, 4, 32, 48, num_classes=5)
    network, inputs = equality.randomise(vit).double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    graph = channels.trace(network, inputs)
    assert [g.size for g in graph.groups] == [32, 4, 48, 4, 48]
    for ratio in (0.3, 0.5, 0.7):
        narrowed, error = equality.difference(network, graph, equality.choose(graph, ratio), inputs)
        assert error < 1e-12
    assert narrowed.hidden_dim == 10
    assert narrowed.encoder.layers[0].self_attention.num_heads == 1


@pytest.mark.parametrize("shift", [[0, 0], [3, 3]])
@pytest.mark.parametrize("side", [(7, 7), (14, 14), (10, 16), (7, 20)])
def test_adapted_window_attention_is_the_same_function(shift: list[int], side: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = torchvision.models.swin_transformer.ShiftedWindowAttention(12, [7, 7], shift, 3).eval()
    x = torch.randn(2, *side, 12)
    expected = module(x)
    channels.attention.adapt(module)
    assert type(module).__name__ == "WindowAttention"
    assert torch.allclose(module(x), expected, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "added", "forbidden", "padding"])
def test_adapted_attention_is_the_same_function(batch_first: bool, need_weights: bool, mask: str) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    q, k = (torch.randn(2, t, 12) if batch_first else torch.randn(t, 2, 12) for t in (5, 7))
    masks = {
        "none": {},
        "added": {"attn_mask": torch.randn(5, 7)},
        "forbidden": {"attn_mask": torch.rand(6, 5, 7) > 0.8},
        "padding": {"key_padding_mask": torch.arange(7).expand(2, 7) > 4},
    }
    expected, shares = module(q, k, k, need_weights=need_weights, **masks[mask])
    channels.attention.adapt(module)
    found, own = module(q, k, k, need_weights=need_weights, **masks[mask])
    assert torch.allclose(found, expected, atol=1e-6)
    assert (own is None and shares is None) or torch.allclose(own, shares, atol=1e-6)
