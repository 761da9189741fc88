"""Where a layer's activation is read: after the ReLU that follows it.

Found by following the layer's output through whatever keeps its shape (BN, sums, pooling of stride 1) to the first ReLU,
module or function, in place or not. Of a group in which no layer's output meets one before a layer or a change of shape, the
activation is the layers' own output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakTensorKeyDictionary

# what is exactly 0 on a whole interval
RELUS = frozenset({"relu", "relu_", "relu6", "hardtanh", "hardtanh_", "hardswish", "threshold", "threshold_"})
LAYERS = ("conv", "linear", "bilinear", "matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm", "einsum", "scaled_dot")

Place = tuple[str, ...]  # the layers that come to one activation
Read = Callable[[Place, Tensor], Tensor]


class Activations(TorchFunctionMode):
    """While entered, calls `read(place, activation)` at each activation; what it returns takes its place.

    after_relu: layers that are read after the ReLU that follows; those whose outputs meet in a sum come to one place.
    own: layers that are read at their own output.
    """

    def __init__(self, network: nn.Module, after_relu: Iterable[str], own: Iterable[str], read: Read) -> None:
        super().__init__()
        self._network, self._own, self._read = network, frozenset(own), read
        self._layers = sorted({*after_relu, *self._own})
        self._from = WeakTensorKeyDictionary()  # tensor -> the layers whose outputs have come to it
        self._waiting: set[str] = set()

    def __enter__(self) -> Self:
        self._hooks = [
            self._network.get_submodule(name).register_forward_hook(self._hook(name)) for name in self._layers
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._arriving(args, kwargs)
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not isinstance(out, Tensor) or name.startswith(LAYERS):
            return out
        here = tuple(
            layer for shape, layers in before if shape == out.shape for layer in layers if layer in self._waiting
        )
        if not here:
            return out
        if name in RELUS:
            self._waiting -= set(here)
            return self._read(tuple(dict.fromkeys(here)), out)
        self._from[out] = tuple(dict.fromkeys(here))
        return out

    def _arriving(self, args: Any, kwargs: Any) -> list[tuple[torch.Size, tuple[str, ...]]]:
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        return [(t.shape, self._from[t]) for t in tensors if t in self._from]

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def made(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output
            if name in self._own:
                return self._read((name,), output)
            self._from[output] = (name,)
            self._waiting.add(name)
            return output

        return made


def places(network: nn.Module, groups: Sequence[Sequence[str]], *inputs: Tensor) -> tuple[set[str], set[str]]:
    """Where the activations of groups of layers are read: the layers after whose ReLU, and those at whose own output."""
    after_relu: set[str] = set()

    def read(place: Place, activation: Tensor) -> Tensor:
        after_relu.update(place)
        return activation

    with torch.no_grad(), Activations(network, {layer for layers in groups for layer in layers}, (), read):
        network(*inputs)
    own = {layer for layers in groups if not after_relu & set(layers) for layer in layers}
    return after_relu, own


def channel_dimension(network: nn.Module, layer: str) -> int:
    """Where a layer's output has its channels: last behind a linear layer, first after the batch behind all others."""
    return -1 if isinstance(network.get_submodule(layer), nn.Linear) else 1
