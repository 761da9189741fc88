"""What of a network stays discrete, and what cannot be converted at all."""

import pytest
import torch
from integral_networks import Flattened, relative
from torch import nn

from memexp import edits
from memexp.integral import convert


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w).relu() @ self.v


def test_what_cannot_be_is_one_clear_message() -> None:
    x = torch.randn(1, 3, 10, 10)
    with pytest.raises(
        ValueError, match=r"Sequential: no group of channels can be made continuous: 0: 0\.weight is of a ConvTr"
    ):
        convert(nn.Sequential(nn.ConvTranspose2d(3, 4, 1), nn.Conv2d(4, 2, 1)), x)
    with pytest.raises(ValueError, match="continuous: w: w is of a OwnParameter, which has no integral form"):
        convert(OwnParameter(), torch.randn(1, 5))
    with pytest.raises(ValueError, match="use one of trapezoidal"):
        convert(Flattened(), x, quadrature="midpoint")
    integral = convert(Flattened(), x)
    with pytest.raises(ValueError, match=r"the network is integral already: \.resize"):
        convert(integral, x)
    for sizes, message in [
        ({"nothing": 4}, "no continuous group is named nothing; there are stem, inner, twice, hidden"),
        ({"inner": 1}, "size 1 of group inner is impossible: give a share of its 10 channels"),
        ({"inner": [0.0, 0.7, 0.3]}, "size .* of group inner is impossible"),
        (0.0, "size 0.0 of group stem is impossible"),
        (float("nan"), "size nan"),
        (True, "size True"),
        ("half", "size 'half'"),
    ]:
        with pytest.raises(ValueError, match=message):
            integral.discretize(sizes)  # type: ignore[arg-type]
    plain = integral.discretize(0.5)
    with pytest.raises(ValueError, match="Flattened is no integral network, or one that was made discrete before"):
        edits.apply(plain, integral.edit(0.5))
    with pytest.raises(ValueError, match=r"smallest=0\.7, largest=0\.5"):
        convert(Flattened(), x, smallest=0.7, largest=0.5)


class Read(nn.Module):
    """A weight that is read outside of its layer: by the network itself, or as another layer's own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 9)
        self.d = nn.Linear(9, 5)
        if kind == "shared":
            self.b.weight = nn.Parameter(self.b.weight)
            self.e = nn.Linear(8, 8)
            self.e.weight = self.b.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        x = self.e(self.b(x).relu()) if self.kind == "shared" else nn.functional.linear(x, self.b.weight.sign())
        y: torch.Tensor = self.d(self.c(x.relu()).relu())
        return y


@pytest.mark.parametrize(("kind", "words"), [("shared", "shares a parameter"), ("outside", "is read outside of it")])
def test_a_layer_whose_weight_is_read_elsewhere_stays_discrete(kind: str, words: str) -> None:
    torch.manual_seed(0)
    network, x = Read(kind).double().eval(), torch.randn(3, 6, dtype=torch.float64)
    integral = convert(network, x)
    assert integral.groups == {"c": 9}
    assert any(words in why for why in integral.discrete.values())
    assert relative(integral(x), network(x)) < 1e-12
    integral.resize(0.7)
    assert relative(integral(x), integral.discretize(0.7)(x)) < 1e-12


def test_an_encoder_of_torch_is_kept_off_the_path_that_reads_its_layers_weights() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    network, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 6, 16)
    integral = convert(network, x)
    assert integral.groups == {"layers.0.linear1": 24, "layers.1.linear1": 24}
    with torch.no_grad():
        assert relative(integral(x), network(x)) < 1e-5
        integral.resize(0.5)
        assert relative(integral(x), integral.discretize(0.5)(x)) < 1e-5


class Split(nn.Module):
    """A part whose number is read by the network before it is called."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.widths, self.b, self.c = (6, 8), nn.Linear(6, 5), nn.Linear(8, 5)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.b(left.relu()) + self.c(right.relu())
            return y

    def __init__(self) -> None:
        super().__init__()
        self.a, self.part = nn.Linear(7, 14), self.Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.part(*self.a(x).split(list(self.part.widths), 1))
        return y


def test_numbers_that_are_read_from_outside_of_their_module_follow() -> None:
    torch.manual_seed(0)
    network, x = Split().double().eval(), torch.randn(3, 7, dtype=torch.float64)
    integral = convert(network, x)
    assert sorted(integral.groups.values()) == [6, 8]
    for share in (0.5, 1.0, 0.7):
        integral.resize(share)
        assert relative(integral(x), integral.discretize(share)(x)) < 1e-12
    integral.train()(x).sum().backward()
