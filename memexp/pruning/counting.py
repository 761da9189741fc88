"""What a narrowed network would cost, counted on a copy without data: nothing is computed and no weight is copied."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from memexp import edits
from memexp.channels import Graph, narrow_edit
from memexp.channels.called import mapped, samples
from memexp.memory.fake import without_data
from memexp.memory.tracker import track
from memexp.pruning.selection import Kept


@dataclass(frozen=True)
class Use:
    """One call of a module that has no modules inside: the module, narrowed and without data, its arguments, its output."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments: at least one."""
        return [value for value in tree_leaves((self.args, self.kwargs)) if isinstance(value, Tensor)]


class Skeleton:
    """A network without data, in eval mode, that can be narrowed again and again. Made by `skeleton`, used inside it."""

    def __init__(self, network: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> None:
        self._network, self._graph = remade(network, torch.empty_like).eval(), graph
        self.inputs = mapped(torch.empty_like, inputs)

    def narrowed(self, kept: Kept) -> nn.Module:
        """A copy in which only these channels are left."""
        return edits.apply(remade(self._network, torch.empty_like), narrow_edit(self._graph, kept))

    def macs(self, kept: Kept) -> int:
        """Adds-multiplies of one forward pass for one sample."""
        return macs_of(self.narrowed(kept), self.inputs)

    def parameters(self, kept: Kept) -> int:
        return parameters_of(self.narrowed(kept))

    def samples(self) -> int:
        """Of how many samples a forward pass is."""
        with torch.no_grad():
            return samples(self.inputs, self._network(*self.inputs))

    def uses(self, kept: Kept) -> list[Use]:
        """The innermost modules that a forward pass calls with tensors, in order."""
        network = self.narrowed(kept)
        found: list[Use] = []

        def hook(name: str) -> Any:
            def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and (use := Use(name, module, args, kwargs, output)).inputs:
                    found.append(use)

            return note

        hooks = [
            module.register_forward_hook(hook(name), with_kwargs=True)
            for name, module in network.named_modules()
            if not any(child != "parametrizations" for child, _ in module.named_children())
        ]
        with torch.no_grad():
            network(*self.inputs)
        for noted in hooks:
            noted.remove()
        return found


def remade(module: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy with what `make` makes of each parameter and buffer in its place; tied ones stay tied."""
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        made = make(tensor.detach())
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    with _disable_current_modes():
        return copy.deepcopy(module, memo)


@contextmanager
def skeleton(network: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> Iterator[Skeleton]:
    """Inside, tensors have no data (memexp.memory.fake)."""
    with without_data():
        yield Skeleton(network, graph, inputs)


def macs_of(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Adds-multiplies of one forward pass for one sample of `inputs`, as the tracker counts them; for all of it where they are
    no batch (memexp.channels.called.samples)."""
    outputs: list[Any] = []
    with torch.no_grad():
        report = track(lambda: outputs.append(network(*inputs)))
    return report.macs_forward // samples(inputs, outputs[0])


def parameters_of(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
