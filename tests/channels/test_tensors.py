"""A network's tensors are its parameters and buffers, whatever it saves of them and under which names."""

from collections.abc import Callable
from typing import Any

import equality
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memexp import channels, integral


class Buffered(nn.Module):
    """Two convolutions with something that is as long as their channels between them."""

    own: Tensor

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), between
        self.register_buffer("own", torch.rand(shape) + 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self.first(x), self.own).relu())
        return y


class Saved(Buffered):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class Cloned(Buffered):
    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: value.clone() for name, value in super().state_dict(*args, **options).items()}


def renamed(network: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> dict[str, Any]:
    return {f"model.{name}": value for name, value in state.items()}


def mask(y: Tensor, own: Tensor) -> Tensor:
    return y * own.view(-1, 1, 1)


def hooked() -> nn.Module:
    network = Buffered(mask, (8,))
    network._register_state_dict_hook(renamed)
    return network


KINDS: dict[str, Callable[[], nn.Module]] = {
    "mask": lambda: Buffered(mask, (8,)),
    "table of positions": lambda: Buffered(lambda y, own: (y.flatten(2).mT + own).mT.unflatten(2, (4, 4)), (16, 8)),
    "means": lambda: Buffered(lambda y, own: functional.batch_norm(y, own, torch.ones_like(own)), (8,)),
    "renamed by a hook": hooked,
    "more than tensors": lambda: Saved(mask, (8,)),
    "clones": lambda: Cloned(mask, (8,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_saved_under_its_name_is_narrowed(kind: str) -> None:
    torch.manual_seed(0)
    network, x = KINDS[kind]().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = channels.trace(network, x)
    narrowed, error = equality.difference(network, graph, {0: [0, 3, 6]}, x)
    assert error < 1e-12
    assert narrowed.get_buffer("own").shape[-1] == 3


class Angles(nn.Module):
    """Heads whose channels are turned by angles that are alike in all, and positions among which some are masked."""

    angles: Tensor
    allowed: Tensor

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 3 * 3 * 5), nn.Linear(3 * 5, 4)
        self.register_buffer("angles", torch.rand(6, 5), persistent=persistent)
        self.register_buffer("allowed", torch.rand(2, 6, 6), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(2, 6, 3, -1, 5).permute(2, 0, 3, 1, 4).unbind(0)
        shares = (q * self.angles) @ (k * self.angles).mT
        shares = (shares + self.allowed.unsqueeze(1)).softmax(-1)
        y: Tensor = self.out((shares @ v).transpose(1, 2).flatten(2))
        return y


@pytest.mark.parametrize("persistent", [True, False])
def test_tables_that_are_alike_in_all_heads_leave_the_heads_free(persistent: bool) -> None:
    torch.manual_seed(0)
    network, x = Angles(persistent).double().eval(), torch.randn(2, 6, 4, dtype=torch.float64)
    graph = channels.trace(network, x)
    assert [group.size for group in graph.groups] == [3]
    assert equality.difference(network, graph, {0: [0, 2]}, x)[1] < 1e-12


def test_a_network_that_saves_more_than_tensors_is_converted() -> None:
    kept = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), Saved(mask, (8,)))
    kept[3].first = nn.Conv2d(8, 8, 1)
    assert integral.convert(kept.eval(), torch.randn(2, 3, 6, 6)).groups == {"0": 8, "2": 8}
