"""A network of a person's own, fitted into a number of bytes: planned without data, applied, and said what it costs."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from memexp.backprop import apply, chains
from memexp.backprop.monitor import gradient
from memexp.config import ConfigError
from memexp.memory.fake import emptied, without_data
from memexp.memory.planner import Plan, Steps, best, measure
from memexp.memory.scratch import scratch
from memexp.memory.tracker import Tracker
from memexp.units import shown_bytes

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Example:
    """A training step on an example, followed; the example is that of `fit`."""

    def __init__(self, network: nn.Module, loss_fn: Callable[..., Tensor], example: Any, optimizer: Optimizer | None):
        self.model, self._loss_fn, self._example = network, loss_fn, example
        self._optimizer = None if optimizer is None else optimizer(p for p in network.parameters() if p.requires_grad)
        self.tracker = Tracker(network, self._optimizer)
        self._latest: Tensor | None = None

    def loss(self) -> Tensor:
        if isinstance(self._example, dict):
            return self._loss_fn(self.model(**self._example))
        if isinstance(self._example, tuple | list):
            inputs, *others = self._example
            return self._loss_fn(self.model(inputs), *others)
        return self._loss_fn(self.model(self._example))

    def step(self) -> None:
        """One training step, tracked."""
        self.tracker.add_inputs(leaf for leaf in tree_flatten(self._example)[0] if isinstance(leaf, Tensor))
        with self.tracker:
            value = self.loss()
            value.backward()
            self._latest = value.detach()
            if self._optimizer is not None:
                self._optimizer.step()
            self.model.zero_grad(set_to_none=True)


def fit(
    network: nn.Module,
    loss_fn: Callable[..., Tensor],
    example: Any,
    limit: str | float,
    *,
    optimizer: Optimizer | None = None,
    blocks: Sequence[str | type[nn.Module]] | None = None,
    compiled: bool = False,
) -> tuple[Plan, nn.Module]:
    """Chooses for each block of a network what is kept for backward, so that a training step fits `limit` and is fastest.

    The network is changed in place (memexp.backprop.apply), keys of its state dict stay. Memory is planned on tensors without
    data, times are measured in a few forward and backward passes; `.grad`, buffers and random state are left as they were.

    >>> plan, network = memexp.memory.fit(network, functional.cross_entropy, (images, labels), limit="6GB")
    >>> print(plan)

    Args:
        loss_fn, example: the loss is `loss_fn(network(inputs), target)` of a tuple (inputs, target), `loss_fn(network(x))` of
            a tensor x, `loss_fn(network(**example))` of a dict. Sizes count, values need not be real.
        limit: bytes at the peak of a step, such as "6GB", parameters and gradients included; or a share of what stored takes.
        optimizer: makes the optimizer whose state counts, such as torch.optim.AdamW; without, none is counted.
        blocks: as of `apply`.
        compiled: plan for calls within memexp.backprop.compiled.compiled(network), where a light step takes no more time.

    Returns:
        The plan, and the network (another object only where an nn.Sequential is itself the network).

    Raises:
        ValueError: the least that any choice takes is above the limit, and what it is; or there are no blocks.
        ConfigError: the network cannot be followed without data, as where shapes depend on values.
    """
    network = apply(network, "budget", blocks=blocks)
    try:
        device = next(network.parameters()).device

        def step() -> None:
            gradient(network, Example(network, loss_fn, example, None).loss)

        _, times = measure(network, step)
        beside = scratch(step, device)
        registered = (*network.parameters(), *network.buffers())
        bare = copy.deepcopy(network, {id(t): _bare(t) for t in registered})
        try:
            with without_data():
                tensors = tree_map(lambda leaf: _empty(leaf) if isinstance(leaf, Tensor) else leaf, example)
                steps = Steps(Example(emptied(bare), loss_fn, tensors, optimizer))
                plan = best(steps, times, limit, compiled=compiled, scratch=beside)
        except RuntimeError as error:  # though with data a step was just taken
            raise ConfigError(
                [
                    f"the network trains, but cannot be followed without data ({error}): use apply(network, 'light') or "
                    "apply(network, 'checkpointed'), which need no plan"
                ]
            ) from error
        if plan.peak > plan.budget:
            raise ValueError(
                f"limit={limit}: the least that a training step of this network takes is {shown_bytes(plan.least)} (stored: "
                f"{shown_bytes(plan.most)}); give at least that, or a smaller batch"
            )
    except BaseException:
        for chain in chains(network):
            chain.choose("stored")
        raise
    plan.apply(network)
    return plan, network


def _bare(tensor: Tensor) -> Tensor:
    """A parameter or buffer of that shape without data."""
    bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
