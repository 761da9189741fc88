"""A network of a person's own, fitted into a number of bytes: planned without data, applied, and said what it costs."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from memexp.backprop import apply, chains
from memexp.backprop.apply import as_it_is
from memexp.backprop.monitor import gradient
from memexp.channels.hooked import twin
from memexp.config import ConfigError
from memexp.memory.fake import emptied, without_data
from memexp.memory.planner import Plan, Steps, best
from memexp.memory.scratch import scratch
from memexp.memory.timed import measure
from memexp.memory.tracker import Tracker
from memexp.units import parse_bytes, shown_bytes

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Example:
    """A training step on an example, followed; the example is that of `fit`.

    needed: numbers of steps, of all of its Chains, that have to run. called: those that ran last.
    """

    def __init__(
        self,
        network: nn.Module,
        loss_fn: Callable[..., Tensor],
        example: Any,
        optimizer: Optimizer | None = None,
        needed: Iterable[int] = (),
    ) -> None:
        self.model, self._loss_fn, self._example = network, loss_fn, example
        self._optimizer = None if optimizer is None else optimizer(p for p in network.parameters() if p.requires_grad)
        self.tracker = Tracker(network, self._optimizer)
        self._latest: Tensor | None = None
        self._needed = set(needed)
        self.called: list[int] | None = None

    def loss(self) -> Tensor:
        """Raises ValueError where it is no number that can be trained, or other steps ran than the time before."""
        called: list[int] = []
        steps = [step for chain in chains(self.model) for step in chain]
        hooks = [step.register_forward_pre_hook(lambda *_, i=i: called.append(i)) for i, step in enumerate(steps)]
        try:
            value = _number(self._evaluate())
        finally:
            for hook in hooks:
                hook.remove()
        differing = self._needed.difference(called)
        if self.called is not None and called != self.called:
            pairs = zip_longest(called, self.called)
            differing |= next({*pair} - {None} for pair in pairs if pair[0] != pair[1])
        if differing:
            raise ConfigError(
                [
                    f"{self._name(steps[min(differing)])} is called in one pass and not in the next, as where layers are "
                    "dropped at random or values say which run: no plan holds for every pass; have all run while it is made, "
                    "or use apply(network, 'light') or apply(network, 'checkpointed'), which need no plan"
                ]
            )
        self.called = called
        return value

    def _name(self, step: nn.Module) -> str:
        names = {module: name for name, module in self.model.named_modules()}
        block = step if step in names else getattr(step, "block", step)  # what is wrapped is registered, not the step
        return f"block {names.get(block, '')} ({step._get_name()})"

    def _evaluate(self) -> Any:
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


def _number(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"loss_fn gives {found}: it has to give the loss, a tensor of one number")
    if not loss.requires_grad:
        raise ValueError(
            "the loss that loss_fn gives needs no gradient: it has to depend on parameters that are trained, without detach "
            "or no_grad on the way"
        )
    return loss


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
    data, times are measured in a few forward and backward passes; `.grad`, buffers, attributes of modules and torch's random
    state are left as they were. Chains of its own keep `exact`. Where it raises, blocks and strategies are as before.

    >>> plan, network = memexp.memory.fit(network, functional.cross_entropy, (images, labels), limit="6GB")
    >>> print(plan)

    Args:
        loss_fn, example: the loss is `loss_fn(network(inputs), target)` of a tuple (inputs, target), `loss_fn(network(x))` of
            a tensor x, `loss_fn(network(**example))` of a dict, also a tokenizer's. Sizes count, values need not be real.
        limit: bytes at the peak of a step, such as "6GB", parameters and gradients included; or a share of what stored takes.
        optimizer: makes the optimizer whose state counts, such as torch.optim.AdamW; without, none is counted.
        blocks: as of `apply`.
        compiled: plan for calls within memexp.backprop.compiled.compiled(network), where a light step takes no more time.

    Returns:
        The plan, and the network (another object only where an nn.Sequential is itself the network).

    Raises:
        ValueError: the least that any choice takes is above the limit, and what it is; `limit` or `optimizer` is none;
            there are no blocks, nothing that is trained, or no loss.
        ConfigError: the network cannot be followed without data, as where shapes depend on values; or not every pass calls
            the same blocks.
    """
    _check(limit, optimizer)
    if isinstance(example, Mapping):  # some, such as transformers' BatchEncoding, are no dicts
        example = dict(example)
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(
            f"{type(network).__name__} has no parameter that is trained (requires_grad): a training step of such a network "
            "cannot be planned; use apply(network, 'light') or apply(network, 'checkpointed'), which need no plan"
        )
    put_back = as_it_is(network)
    grids = {chain: chain.strategy.rounding for chain in chains(network)}
    try:
        network = apply(network, "budget", blocks=blocks)
        for chain, grid in grids.items():
            if grid is not None:
                chain.choose("budget", exact=True, exact_bits=grid.bits)
        with torch.inference_mode(False), torch.enable_grad():
            plan = _plan(network, loss_fn, example, limit, optimizer, compiled)
    except BaseException:
        put_back()
        raise
    plan.apply(network)
    return plan, network


def _check(limit: Any, optimizer: Any) -> None:
    """What can be said before anything is evaluated. Raises ValueError."""
    known = isinstance(limit, int | float) and not isinstance(limit, bool) and 0 <= limit <= 1
    with suppress(ValueError):
        known = known or parse_bytes(limit) > 1  # a share in quotes would be taken for so many bytes
    if not known:
        raise ValueError(
            f"limit={limit!r}: use bytes, such as '6GB' (10^9), '900MiB' (2^20) or a plain number, or a share of what stored "
            "takes, a number in 0..1"
        )
    if optimizer is not None and not callable(optimizer):
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}: give what makes one of parameters, such as torch.optim.AdamW or "
            "lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)"
        )


def _plan(
    network: nn.Module,
    loss_fn: Callable[..., Tensor],
    example: Any,
    limit: str | float,
    optimizer: Optimizer | None,
    compiled: bool,
) -> Plan:
    """Of a network whose Chains have a budget."""
    measured = Example(network, loss_fn, example)

    def step() -> None:
        gradient(network, measured.loss)

    _, times = measure(network, step)
    beside = scratch(step, next(network.parameters()).device)
    try:
        bare = _without_data(network)
        with without_data():
            empty = cache(_empty)  # a target that is the input, too, is there once
            tensors = tree_map(lambda leaf: empty(leaf) if isinstance(leaf, Tensor) else leaf, example)
            steps = Steps(Example(emptied(bare), loss_fn, tensors, optimizer, measured.called or ()))
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
    return plan


def _without_data(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no data, and whose other tensors no graph (a map of attention, kept)."""
    copies: dict[int, Any] = {id(t): _bare(t) for t in (*network.parameters(), *network.buffers())}
    try:
        return twin(network, copies)
    except Exception as error:  # whatever an object's own way of being copied raises
        raise ConfigError(
            [
                f"{_uncopied(network, copies)} cannot be copied ({str(error).splitlines()[0]}), but the network is followed "
                "without data on a copy: have it made where it is used, or use apply(network, 'light') or "
                "apply(network, 'checkpointed'), which need no plan"
            ]
        ) from error


def _uncopied(network: nn.Module, copies: dict[int, Any]) -> str:
    """Name of the first attribute that cannot be copied."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            try:
                if key != "_modules":
                    copy.deepcopy(value, dict(copies))
            except Exception:
                return f"attribute {key} of {name or 'the network'} (a {type(value).__name__})"
    return "the network"


def _bare(tensor: Tensor) -> Tensor:
    """A parameter or buffer of that shape without data."""
    bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
