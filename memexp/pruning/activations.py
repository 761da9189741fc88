"""Where a layer's activation is read: after the activation function that follows it, which is 0 for a channel that is removed.

Found by following the layer's output through what keeps each number at its place or moves whole dimensions (pointwise
functions, normalisations, sums, pooling of stride 1, transpositions) to the first such function, module or not, in place or
not; where zeros are counted, to the first ReLU. Of a group in which no layer's output meets one before something else, the
activation is the layers' own output.

Which dimension has the channels is known from the layer that makes them. That the first one has the samples is tried out, by
another number of samples: lengths may coincide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakTensorKeyDictionary

from memexp.backprop.cheap import is_pointwise
from memexp.channels import called

aten = torch.ops.aten
# exactly 0 on a whole interval, with some bounds; by name, without the underscores of those in place and of hidden ones
RELUS = frozenset({"relu", "relu6", "hardtanh", "hardswish", "threshold"})
# 0 at 0, and there alone
OTHERS = frozenset({"elu", "selu", "celu", "gelu", "silu", "mish", "leaky_relu", "rrelu", "prelu", "tanh", "softsign"})
# functions of torch that keep each number, or the window around it, at its place, though made of operations that do not
KEEPING = (
    *("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm", "local_response_norm", "normalize"),
    *("softmax", "log_softmax", "prelu", "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool"),
)
COPIES = {aten.clone, aten._to_copy, aten.detach, aten.alias, aten.masked_fill, aten.masked_fill_}
RESHAPES = {aten.view, aten._unsafe_view, aten.expand, aten.slice}  # as they are where the shape is
TRANSPOSITIONS = {aten.permute, aten.transpose, aten.transpose_, aten.t, aten.t_}

Axes = tuple[int, int]  # of the samples and of the channels
Place = tuple[str, ...]  # the layers that come to one activation
Read = Callable[[Place, Tensor], Tensor]


class Activations(TorchFunctionMode):
    """While entered, calls `read(place, activation)` at each activation, (samples, channels, ...); what it returns takes its
    place.

    after: layers that are read after the activation function that follows; those whose outputs meet in a sum come to one
    place. own: layers that are read at their own output. zeros: only a ReLU ends what is followed, as zeros are counted behind
    it. called: the layers that gave an output with a row for each sample.
    """

    def __init__(
        self, network: nn.Module, after: Iterable[str], own: Iterable[str], read: Read, zeros: bool = False
    ) -> None:
        super().__init__()
        self._network, self._own, self._read, self._zeros = network, frozenset(own), read, zeros
        self._layers = sorted({*after, *self._own})
        self._from = WeakTensorKeyDictionary()  # tensor -> by layer whose output has come to it: the axes
        self._waiting: set[str] = set()
        self.called: set[str] = set()

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
        kwargs = kwargs or {}
        before = [
            (t.shape, self._from[t]) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor) and t in self._from
        ]
        if not before:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        ends = name in RELUS and _is_zero(func, args, kwargs, not self._zeros)
        ends |= name in OTHERS and not self._zeros
        with _Operations() as operations:
            out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        if ends or name.startswith(KEEPING):
            operations.found.clear()
        here = self._here(before, operations, out)
        if not ends:
            self._from[out] = here
            return out
        self._waiting -= here.keys()
        for axes in dict.fromkeys(here.values()):
            out = self._given(tuple(layer for layer in here if here[layer] == axes), axes, out)
        return out

    def _here(
        self, before: Sequence[tuple[torch.Size, dict[str, Axes]]], operations: _Operations, out: Tensor
    ) -> dict[str, Axes]:
        """By layer whose output comes to `out`, channel by channel: its axes there."""
        found: dict[str, set[Axes]] = {}
        for shape, layers in before:
            order = operations.order(shape, out.shape)
            for layer, (samples, channels) in layers.items() if order else ():
                if layer in self._waiting:
                    found.setdefault(layer, set()).add((order.index(samples), order.index(channels)))
        # a sum in which a layer's channels lie along two dimensions has none
        return {layer: axes.pop() for layer, axes in found.items() if len(axes) == 1}

    def _given(self, place: Place, axes: Axes, out: Tensor) -> Tensor:
        activation = out.movedim(axes, (0, 1))
        read = self._read(place, activation)
        return out if read is activation else read.movedim((0, 1), axes)

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def made(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or (axes := _axes(module, output)) is None:
                return output
            self.called.add(name)
            if name in self._own:
                return self._given((name,), axes, output)
            self._from[output] = {name: axes}
            self._waiting.add(name)
            return output

        return made


class _Operations(TorchDispatchMode):
    """The operations that one function of torch is made of, but for those that take no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, tuple[Any, ...], bool]] = []  # with arguments, and whether the shape is as it was

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(a, Tensor) for a in tree_iter((args, kwargs))):
            self.found.append(
                (func, args, getattr(out, "shape", None) == getattr(args[0] if args else None, "shape", 0))
            )
        return out

    def order(self, shape: torch.Size, result: torch.Size) -> list[int]:
        """For each dimension of the result the one of what was given that it is; none where numbers move within."""
        if len(self.found) == 1 and self.found[0][0]._overloadpacket in TRANSPOSITIONS:
            func, args, _ = self.found[0]
            return list(
                func(torch.empty(tuple(range(len(shape))), device="meta"), *args[1:]).shape
            )  # lengths that tell
        keeps = all(
            is_pointwise(func) or func._overloadpacket in (COPIES | RESHAPES if same else COPIES)
            for func, _, same in self.found
        )
        return list(range(len(shape))) if keeps and shape == result else []


def places(
    network: nn.Module, groups: Sequence[Sequence[str]], inputs: called.Inputs, zeros: bool = False
) -> tuple[set[str], set[str]]:
    """Where the activations of groups of layers are read: the layers after whose activation function, and those at whose own
    output. zeros: as of Activations.

    Raises ValueError for an activation of which the samples are not the rows, and where that cannot be tried out.
    """
    after: set[str] = set()

    def read(place: Place, activation: Tensor) -> Tensor:
        after.update(place)
        return activation

    with torch.no_grad():
        with Activations(network, {layer for layers in groups for layer in layers}, (), read, zeros) as found:
            network(*called.copied(inputs))
        own = {layer for layers in groups if not after & set(layers) for layer in layers if layer in found.called}
        other = 3 if called.rows(inputs) == 2 else 2

        def check(place: Place, activation: Tensor) -> Tensor:
            check_rows(place, activation, other)
            return activation

        with Activations(network, after, own, check, zeros):
            try:
                network(*called.mapped(lambda x: x[:1].repeat_interleave(other, 0), inputs))
            except RuntimeError as fault:
                raise ValueError(
                    f"the network cannot be called with {other} samples ({str(fault).partition(chr(10))[0]}), and to tell them "
                    "apart in an activation their number must be free: choose a criterion that reads weights"
                ) from fault
    return after, own


def check_rows(place: Place, activation: Tensor, samples: int) -> None:
    """Raises ValueError where the rows are not the samples."""
    if len(activation) != samples:
        raise ValueError(
            f"layer {place[0]} has an activation of {len(activation)} rows for {samples} samples, which cannot be told "
            "apart where samples are not the first dimension (time is, or both are one): choose a criterion that reads weights"
        )


def gives_channels(module: nn.Module, dim: int) -> bool:
    """Whether it is known where the module's output has the channels that its weight makes along `dim`."""
    if isinstance(module, _ConvTransposeNd):
        return dim == int(module.groups == 1)
    return isinstance(module, nn.Linear | _ConvNd) and dim == 0


def _axes(module: nn.Module, output: Tensor) -> Axes | None:
    """Where a layer's output has samples and channels; None where it is of one sample alone."""
    if isinstance(module, _ConvNd):
        return (0, 1) if output.ndim == len(module.kernel_size) + 2 else None
    return (0, output.ndim - 1) if output.ndim > 1 else None


def _is_zero(func: Any, args: Any, kwargs: Any, at_0: bool) -> bool:
    """Whether the function, with its bounds, is 0 for all numbers below or above some, or at_0: Hardtanh(-1, 1) is there."""
    x = args[0] if args else kwargs["input"]
    numbers = x.new_tensor([-1e4, 1e4, 0] if at_0 else [-1e4, 1e4])
    found = func(numbers, *args[1:], **kwargs) if args else func(**kwargs | {"input": numbers})
    return bool((found == 0).any())
