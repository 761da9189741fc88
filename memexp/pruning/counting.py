"""What a narrowed network would cost, counted on a copy without data: nothing is computed and no weight is copied.

A forward that reads values, to go one way or another by them, is run with those that it has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from memexp.channels import Graph, narrow_edit
from memexp.channels.applying import narrow
from memexp.channels.called import copied, mapped, samples
from memexp.channels.hooked import make, twin
from memexp.memory import flops
from memexp.memory.fake import without_data
from memexp.pruning.selection import Kept


@dataclass(frozen=True)
class Use:
    """One call of a layer: the module, narrowed and without data, its arguments, its output."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments: at least one."""
        return [value for value in tree_leaves((self.args, self.kwargs)) if isinstance(value, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        """Those of what it gave: at least one; of a recurrent layer its states too."""
        return [value for value in tree_leaves(self.output) if isinstance(value, Tensor)]


class Skeleton:
    """A network without data, in eval mode, that can be narrowed again and again. Made by `skeleton`, used inside it.

    values: with its data.
    """

    def __init__(self, network: nn.Module, graph: Graph, inputs: Sequence[Tensor], values: bool = False) -> None:
        with _disable_current_modes():  # narrowed on meta, which takes a tenth of the time
            self._network, self._graph = remade(network, torch.clone if values else _on_meta).eval(), graph
            self._meta_inputs = mapped(_on_meta, inputs)
        self._devices = [tensor.device for tensor in _tensors(network)]
        self._given, self._values = inputs, values
        if values:
            self._like_on_meta = False

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What a forward pass is called with, that it may write to."""
        return copied(self._given) if self._values else mapped(torch.empty_like, self._given)

    def narrowed(self, kept: Kept) -> nn.Module:
        """A copy in which only these channels are left."""
        network = self._left(kept)
        if not self._values:
            devices = iter(self._devices)
            network = remade(
                network, lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=next(devices))
            )
        for module in network.modules():
            make(module)
        return network

    def _left(self, kept: Kept) -> nn.Module:
        """The same on the meta device, where tensors have no data."""
        with _disable_current_modes():
            return narrow(remade(self._network, lambda t: t), narrow_edit(self._graph, kept))

    def macs(self, kept: Kept) -> int:
        """Adds-multiplies of one forward pass for one sample."""
        found = self._macs_on_meta(kept) if self._like_on_meta else None
        return macs_of(self.narrowed(kept), self.inputs) if found is None else found

    @cached_property
    def _like_on_meta(self) -> bool:
        """Whether the forward is there what it is elsewhere: it may go another way by the device of its tensors."""
        found = self._macs_on_meta({})
        return found is not None and found == macs_of(self.narrowed({}), self.inputs)

    def runs_on_meta(self) -> bool:
        """Whether its forward runs there, where no value can be read."""
        return self._macs_on_meta({}) is not None

    def _macs_on_meta(self, kept: Kept) -> int | None:
        try:
            with _disable_current_modes():  # as for narrowing
                return macs_of(self._left(kept), self._meta_inputs)
        except Exception:  # a forward that makes tensors on a device of its own, or reads a number
            self._like_on_meta = False
            return None

    def parameters(self, kept: Kept) -> int:
        return parameters_of(self._left(kept))

    def samples(self) -> int:
        """Of how many samples a forward pass is."""
        inputs = self.inputs
        with torch.no_grad():
            return samples(inputs, self.narrowed({})(*inputs))

    def uses(self, kept: Kept) -> list[Use]:
        """The layers that a forward pass calls with tensors, in order: modules that have none inside, and attention of torch's,
        which reads the weights of the one that it has."""
        network = self.narrowed(kept)
        found: list[Use] = []

        def hook(name: str) -> Any:
            def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                use = Use(name, module, args, kwargs, output)
                if use.inputs and use.outputs:
                    found.append(use)

            return note

        modules = dict(network.named_modules())
        attention = {module for module in modules.values() if isinstance(module, nn.MultiheadAttention)}
        hooks = [
            module.register_forward_hook(hook(name), with_kwargs=True)
            for name, module in modules.items()
            if (module in attention or not any(child != "parametrizations" for child, _ in module.named_children()))
            and modules[name.rpartition(".")[0]] not in attention
        ]
        with torch.no_grad():
            network(*self.inputs)
        for noted in hooks:
            noted.remove()
        return found


def remade(module: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy with what `make` makes of each parameter and buffer in its place; tied ones stay tied."""
    memo: dict[int, Any] = {}
    for tensor in _tensors(module):
        with torch.no_grad():
            made = make(tensor)
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    with _disable_current_modes():
        return twin(module, memo)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@contextmanager
def skeleton(network: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> Iterator[Skeleton]:
    """Inside, tensors have no data (memexp.memory.fake), unless the network's forward reads them."""
    if _reads_values(network, graph, inputs):
        yield Skeleton(network, graph, inputs, values=True)
        return
    with without_data():
        yield Skeleton(network, graph, inputs)


def _reads_values(network: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> bool:
    """Whether the forward reads a value, or gives a shape that depends on values: without data it would go another way."""
    try:
        with without_data() as read:
            bones = Skeleton(network, graph, inputs)
            if not bones.runs_on_meta():
                bones.samples()  # under no mode of ours, which would stand for the reader
    except Exception:  # of a shape, or where one made of zeros does not fit
        return True
    return bool(read)


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def macs_of(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Adds-multiplies of one forward pass for one sample of `inputs`, as the tracker counts them; for all of it where they are
    no batch (memexp.channels.called.samples)."""
    with torch.no_grad(), _Products() as products:
        outputs = network(*inputs)
    return products.flops // 2 // samples(inputs, outputs)


class _Products(TorchDispatchMode):
    """Counts as the tracker does, and looks at nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.flops += flops.count(func, args, kwargs or {}, out) or 0
        return out


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
