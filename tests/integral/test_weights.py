"""Integral layers by themselves: exact at native size, against sums written out by hand, plain copies with the same outputs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp.integral import continuum, kernel, quadrature
from memexp.integral.axis import Axis, Segment
from memexp.integral.continuum import Continuum
from memexp.integral.weights import Integral, continue_, discretise_


def group(n: int, size: int | None = None, name: str = "trapezoidal") -> Continuum:
    found = Continuum(f"g{n}", n, name)
    found.size = size or n
    return found


def axis(dim: int, *segments: Segment) -> Axis:
    return Axis(dim, segments, integrated=dim == 1)


def layers(
    sizes: dict[str, int], name: str = "trapezoidal"
) -> list[tuple[str, nn.Module, dict[str, tuple[Axis, ...]], Tensor]]:
    """Cases: a layer, its axes, and an input for its native size."""
    a, b = group(10, sizes.get("a"), name), group(6, sizes.get("b"), name)
    out = Segment(a)
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    inputs, norm = axis(1, Segment(b)), ("weight", "bias", "running_mean", "running_var")
    twice, outer = axis(0, Segment(a, 1, 2)), axis(0, out)
    flat = torch.randn(3, 24, dtype=torch.float64)
    return [
        ("plain", nn.Conv2d(6, 10, 3, padding=1), {"weight": (outer, inputs), "bias": (outer,)}, x[:, :6]),
        ("reflected", nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"), {"weight": (inputs,)}, x[:, :6]),
        ("depthwise", nn.Conv2d(10, 20, 3, groups=10), {"weight": (twice,), "bias": (twice,)}, x[:, :10]),
        (
            "grouped",
            nn.Conv2d(12, 20, 3, groups=2, bias=False),
            {"weight": (axis(0, Segment(a, 2)), inputs)},
            x[:, :12],
        ),
        ("concatenated", nn.Conv2d(16, 10, 1), {"weight": (outer, axis(1, out, Segment(b))), "bias": (outer,)}, x),
        ("partly discrete", nn.Conv2d(9, 10, 1), {"weight": (axis(1, Segment(None, 1, 3), Segment(b)),)}, x[:, :9]),
        ("flattened", nn.Linear(6 * 4, 7), {"weight": (axis(1, Segment(b, 1, 4)),)}, flat),
        ("norm", nn.BatchNorm2d(10), {name: (outer,) for name in norm}, x[:, :10]),
    ]


def made(case: tuple[str, nn.Module, dict[str, tuple[Axis, ...]], Tensor]) -> tuple[nn.Module, Integral, Tensor]:
    _, layer, axes, x = case
    layer = layer.double().eval()
    if isinstance(layer, nn.BatchNorm2d):
        for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
            tensor.copy_(torch.rand(10) + 0.5)
    return copy.deepcopy(layer), continue_(layer, axes), x


NAMES = [case[0] for case in layers({})]


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("name", quadrature.NAMES)
def test_native_size_is_exact(index: int, name: str) -> None:
    plain, integral, x = made(layers({}, name)[index])
    torch.testing.assert_close(integral(x), plain(x), rtol=0, atol=1e-12)
    assert {k: v.shape for k, v in integral.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("sizes", [{"a": 7, "b": 4}, {"a": 2, "b": 9}, {}])
def test_discretised_copy_is_plain_with_the_same_outputs(index: int, sizes: dict[str, int]) -> None:
    case = layers(sizes)[index]
    plain, integral, x = made(case)
    dim = 1
    inputs = {"a": sizes.get("a", 10), "b": sizes.get("b", 6)}
    width = {"plain": inputs["b"], "reflected": inputs["b"], "depthwise": inputs["a"], "grouped": 2 * inputs["b"],
             "concatenated": inputs["a"] + inputs["b"], "partly discrete": 3 + inputs["b"], "flattened": 4 * inputs["b"],
             "norm": inputs["a"]}[case[0]]  # fmt: skip
    x = torch.randn(2, width, *x.shape[dim + 1 :], dtype=torch.float64)
    right = integral(x)
    discrete = discretise_(copy.deepcopy(integral))
    assert type(discrete) is type(plain)
    torch.testing.assert_close(discrete(x), right)
    bias = {} if isinstance(plain, nn.BatchNorm2d) else {"bias": plain.bias is not None}
    rebuilt = type(plain)(**{k: getattr(discrete, k) for k in arguments(discrete)}, **bias).double().eval()
    rebuilt.load_state_dict(discrete.state_dict())  # its figures are those of its tensors
    torch.testing.assert_close(rebuilt(x), right)


def arguments(layer: nn.Module) -> list[str]:
    if isinstance(layer, nn.Conv2d):
        return ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    return ["in_features", "out_features"] if isinstance(layer, nn.Linear) else ["num_features"]


def test_sampled_weight_is_the_papers_sum() -> None:
    """W[k, l] = q_l sum_ij lambda_ij u(P_out[k] (n - 1) - i) u(P_in[l] (n - 1) - j), written out."""
    out, inputs = group(7, 5), group(6, 4)
    layer = continue_(
        nn.Conv2d(6, 7, 1, bias=False).double(), {"weight": (axis(0, Segment(out)), axis(1, Segment(inputs)))}
    )
    W = layer.eval().sampled("weight").detach()  # type: ignore[union-attr]
    lam = functional.pad(layer.weight[:, :, 0, 0].detach()[None, None], (2, 2, 2, 2), mode="replicate")[0, 0]  # type: ignore[union-attr,index]
    P_out, P_in = quadrature.uniform(5), quadrature.uniform(4)
    q = torch.tensor([1 / 6, 1 / 3, 1 / 3, 1 / 6], dtype=torch.float64) * 5  # over the native step 1/5
    for k in range(5):
        for l in range(4):  # noqa: E741
            total = sum(
                lam[i + 2, j + 2] * kernel.u(P_out[k] * 6 - i) * kernel.u(P_in[l] * 5 - j)
                for i in range(-2, 9) for j in range(-2, 8)
            )  # fmt: skip
            assert float(W[k, l, 0, 0]) == pytest.approx(float(q[l] * total), abs=1e-12)


def test_gradients_reach_lambda() -> None:
    out, inputs = group(7, 5), group(6, 4)
    layer = continue_(
        nn.Linear(6, 7).double(),
        {"weight": (axis(0, Segment(out)), axis(1, Segment(inputs))), "bias": (axis(0, Segment(out)),)},
    )
    layer.eval()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    leaves = [p.detach().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(f, (x, *leaves))


def test_sampling_is_in_full_precision_under_autocast() -> None:
    layer = continue_(nn.Conv2d(6, 7, 1), {"weight": (axis(1, Segment(group(6, 4))),)}).eval()
    right = layer.sampled("weight")
    with torch.autocast("cpu", torch.bfloat16):
        W = layer.sampled("weight")
        assert layer(torch.randn(1, 4, 2, 2)).dtype == torch.bfloat16
    assert W is not None
    assert W.dtype == torch.float32
    assert torch.equal(W, right)


def test_batch_norm_moves_native_statistics_once_a_step() -> None:
    channels = group(9)
    layer = continue_(
        nn.BatchNorm2d(9, momentum=0.5),
        {k: (axis(0, Segment(channels)),) for k in ("weight", "bias", "running_mean", "running_var")},
    )
    ramp = torch.linspace(-1, 1, 5)
    x = torch.randn(64, 5, 8, 8) + ramp.view(1, 5, 1, 1)
    channels.drawn = 5
    layer.train()
    for _ in range(12):
        layer(x)
    wide = functional.interpolate(x.mean((0, 2, 3))[None, None], 9, mode="linear", align_corners=True)[0, 0]
    torch.testing.assert_close(layer.running_mean, wide, rtol=0, atol=2e-3)
    assert int(layer.num_batches_tracked) == 12
    channels.size = 5
    torch.testing.assert_close(layer.eval()(x), functional.batch_norm(x, None, None, training=True), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("trapezoidal", [0.0, 0.05, 0.11, 0.2, 0.45, 0.8, 1.0]),
        ("trapezoidal", [0.0, 0.3, 0.31, 0.7, 0.72, 0.9, 1.0]),  # drawn together
        ("riemann", [0.1, 0.2, 0.3, 0.6, 0.9]),
        ("simpson", [0.0, 0.13, 0.22, 0.33, 0.41, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),  # as many as native ones
        ("gauss_legendre", 11),
        ("gauss_legendre", 6),
    ],
)
def test_statistics_at_nodes_that_stand_anywhere_are_those_of_the_channels_there(name: str, nodes: Any) -> None:
    """What running statistics are sampled as is the mean and variance of the very images that they were estimated on."""
    channels = Continuum("channels", 11, name)
    layer = continue_(
        nn.BatchNorm2d(11, momentum=1.0),
        {k: (axis(0, Segment(channels)),) for k in ("weight", "bias", "running_mean", "running_var")},
    )
    if isinstance(nodes, int):
        channels.size = channels.drawn = nodes
    else:
        channels.size = channels.drawn = tuple(nodes)
    m = channels.present(training=True)
    torch.manual_seed(0)
    x = torch.randn(32, m, 5, 5) * (1 + 0.2 * torch.rand(m, 1, 1)) + torch.randn(m, 1, 1)
    y = layer.train()(x)
    torch.testing.assert_close(layer.eval()(x), y, rtol=0, atol=0.06)


@pytest.mark.parametrize("nodes", [None, (0.0, 0.05, 0.1, 0.31, 0.4, 0.43, 0.6, 0.9, 1.0)])
def test_sampled_variance_is_never_below_the_least(nodes: tuple[float, ...] | None) -> None:
    channels = group(9)
    channels.size = nodes or 31
    layer = nn.BatchNorm2d(9)
    layer.running_var.copy_(torch.tensor([1e-4, 9, 1e-4, 1e-4, 9, 9, 1e-4, 9, 1e-4]))  # type: ignore[union-attr]
    sampled = continue_(layer, {"running_var": (axis(0, Segment(channels)),)}).eval().sampled("running_var")
    assert sampled is not None
    assert float(sampled.min()) >= 0.99e-4


@pytest.mark.parametrize(
    "groups", [[group(9, name="gauss_legendre")], [group(5, 6), group(4, 3)]], ids=["other nodes", "other sizes"]
)
def test_nor_is_it_where_as_many_nodes_as_native_ones_stand_elsewhere(groups: list[Continuum]) -> None:
    """After training it was negative between them, and scores were no numbers."""
    layer = continue_(nn.BatchNorm2d(9), {"running_var": (axis(0, *map(Segment, groups)),)}).eval()
    layer.running_var.copy_(torch.tensor([1e-4, 9, 1e-4, 1e-4, 9, 9, 1e-4, 9, 1e-4]))  # type: ignore[operator, union-attr]
    sampled = layer.sampled("running_var")
    assert sampled is not None
    assert float(sampled.min()) >= 0.99e-4


@pytest.mark.parametrize("name", quadrature.NAMES)
@pytest.mark.parametrize("var", [[1.0, 0.2, 3.0, 1.0, 0.5], [4.0, 0.01, 4.0, 0.01, 4.0], [1.0, 1.0, 0.001, 1.0]])
def test_at_native_size_no_variance_is_another(name: str, var: list[float]) -> None:
    """With Gauss-Legendre the floor was that of lambda, above some of what is sampled of it: a conversion was refused."""
    layer = nn.BatchNorm2d(len(var)).double()
    layer.running_var.copy_(torch.tensor(var))  # type: ignore[union-attr]
    axes = {"running_var": (axis(0, Segment(group(len(var), name=name))),)}
    sampled = continue_(layer, axes).eval().sampled("running_var")
    torch.testing.assert_close(sampled, torch.tensor(var).double(), rtol=1e-6, atol=0)


def test_other_layers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="ConvTranspose2d has no integral form"):
        continue_(nn.ConvTranspose2d(4, 4, 1), {})


@pytest.mark.parametrize("resident", [False, True], ids=["on the host", "on a device"])
def test_samples_are_held_in_so_many_bytes(resident: bool) -> None:
    """On the host there were so many entries, however large: of layers of 4,096 channels, a hundred gigabytes in the end."""
    made = []

    def make(*key: Any) -> Any:
        made.append(key)
        return continuum._make_resident(key, torch.float32, torch.device("cpu")) if resident else continuum._make(*key)

    held = continuum._Held(make, most=3000)
    keys = [("trapezoidal", m, 16, True, False) for m in (10, 12, 14, 16)]  # 640, 768, 896 and 64 bytes
    for key in [*keys, *keys]:
        (S, q, _), right = held(*key), continuum._make(*key)
        assert [None if a is None else a.tolist() for a in (S, q)] == [
            None if a is None else a.tolist() for a in right[:2]
        ]
    assert len(made) == 4
    for m in (20, 24, 10):  # 1280 and 1536 bytes: the longest unused go
        held("trapezoidal", m, 16, True, False)
        assert sum(map(continuum._size, held._held.values())) == held._bytes <= 3000
    assert len(made) == 7
    assert isinstance(continuum._resident if resident else continuum._fixed, continuum._Held)
