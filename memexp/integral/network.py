"""An integral network: its groups of channels are continuous, and one training serves every size.

Each training step draws a size for each group, uniform in [smallest, largest] of the native one, from (seed, step) alone: the
step is a buffer, so a resumed run and every rank of a distributed one draw the same. Passes that wait for one backward are of
one step, as a recomputation in it is of the sizes that are drawn then. Where no gradient is taken, the network
has the size that `resize` has set. Activation memory: the base network's at the size drawn.
"""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral as Whole
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_dynamo_compiling

from memexp import edits
from memexp.channels.called import apart
from memexp.channels.hooked import twin
from memexp.channels.outputs import tensors_in
from memexp.integral import passes
from memexp.integral.continuum import Continuum
from memexp.integral.follower import Follower
from memexp.integral.partition import Partition
from memexp.integral.weights import Integral, discretise_
from memexp.modes import evaluating

Size = int | float | Sequence[float]
LEAST = 2  # nodes of a group: the ends of [0, 1]


@dataclass(frozen=True)
class Variation:
    """Total variation of each group's weights along the channel, before and after the permutation."""

    before: dict[str, float]
    after: dict[str, float]

    @property
    def ratio(self) -> float:
        """After over before, of all groups together."""
        return sum(self.after.values()) / sum(self.before.values())


class IntegralNetwork(nn.Module):
    """What `memexp.integral.convert` makes; called as the network that it was made of.

    Attributes:
        network: the base network with integral layers.
        groups: name -> size of each continuous group. discrete: why the other groups of channels stay as they are.
        smallest, largest: sizes of a training step, as shares of the native ones.
        variation: what the permutation did; None if there was none. conversion: how it was converted, for a warm start.
    """

    steps: Tensor
    sizes_vary = True  # from step to step, so that running statistics are of none of them
    variation: Variation | None = None
    conversion: Mapping[str, Any] | None = None

    def __init__(
        self,
        network: nn.Module,
        continua: Mapping[str, Continuum],
        discrete: Mapping[str, str],
        smallest: float = 0.5,
        largest: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < smallest <= largest:
            raise ValueError(
                f"smallest={smallest}, largest={largest}: shares of the native sizes, 0 < smallest <= largest"
            )
        self.network = network
        self.discrete = dict(discrete)
        self.smallest, self.largest, self.seed = smallest, largest, seed
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._continua = dict(continua)
        self._count: int | None = None
        self._frozen: list[str] = []

    @property
    def groups(self) -> dict[str, int]:
        return {name: group.n for name, group in self._continua.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Of evaluation."""
        return {name: group.present(training=False) for name, group in self._continua.items()}

    def extra_repr(self) -> str:
        return f"{len(self._continua)} continuous groups, {len(self.discrete)} discrete"

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.training:
            self._draw()
        elif any(layer.training for layer in self.integral_layers()):
            self._settle()  # normalisations alone are in training mode where their statistics are estimated anew
        self._hold(self.training)
        outputs = self.network(*inputs, **options)
        if self.training and torch.is_grad_enabled() and not is_dynamo_compiling():
            passes.began(self, tensors_in(outputs))
        return outputs

    def resize(self, sizes: Size | Mapping[str, Size] | None = None) -> None:
        """Sets the sizes of evaluation, as for `discretize`; native where none is given. Training steps draw theirs as before.

        Nodes that were trained are given up, and what `train_partitions` has frozen is trained again: `edit()` keeps them.
        """
        wanted = self.partitions({} if sizes is None else sizes)
        self._thaw()
        for name, nodes in wanted.items():
            self._continua[name].size = nodes if isinstance(nodes, int) else tuple(nodes)

    @apart()
    def discretize(self, sizes: Size | Mapping[str, Size] | None = None) -> nn.Module:
        """A plain network of that size with the same outputs as this one at it; this one is left as it is.

        sizes: a share of every group's native size, as 0.6 (at least 2 channels each), or for each group by name a share, a
        number of channels or the nodes themselves; None: the present sizes, or nodes that were trained. The edit `discretise`
        that makes the same of it is `self.edit(sizes)`.
        Raises ValueError for a group that there is not and a size that is impossible.
        """
        # what is sampled is replaced, so that it need not be copied first
        sampled = [getattr(layer, name) for layer in self.integral_layers() for name in layer.axes]
        return edits.apply(twin(self, {id(tensor): tensor for tensor in sampled}), self.edit(sizes))

    discretise = discretize

    def edit(self, sizes: Size | Mapping[str, Size] | None = None) -> dict[str, Any]:
        """The edit that makes this network a plain one of that size."""
        partitions: dict[str, Any] = {
            name: nodes if isinstance(nodes, int) else list(nodes) for name, nodes in self.partitions(sizes).items()
        }
        return {"kind": "discretise", "partitions": partitions}

    def partitions(self, sizes: Size | Mapping[str, Size] | None = None) -> dict[str, int | Sequence[float]]:
        """For each group the number of nodes, or the nodes, that `sizes` (as for `discretize`) means."""
        if sizes is None:
            return {name: _nodes(group) for name, group in self._continua.items()}
        if isinstance(sizes, Mapping):
            if unknown := [name for name in sizes if name not in self._continua]:
                raise ValueError(
                    f"no continuous group is named {', '.join(map(str, unknown))}; there are {', '.join(self._continua)}"
                    + "".join(
                        f"; {name} is discrete: {self.discrete[name]}" for name in unknown if name in self.discrete
                    )
                )
            return {name: _wanted(group, sizes.get(name, group.n)) for name, group in self._continua.items()}
        return {name: _wanted(group, sizes) for name, group in self._continua.items()}

    def counts(self, sizes: Size | Mapping[str, Size] | None = None) -> dict[str, int]:
        """For each group the number of channels that `sizes` (as for `discretize`) means."""
        nodes = self.partitions(sizes)
        return {name: n if isinstance(n, int) else len(n) for name, n in nodes.items()}

    def train_partitions(self, sizes: Size | Mapping[str, Size] | None = None) -> list[nn.Parameter]:
        """Gives each group a trainable partition of its size and freezes all else; returns the partitions' parameters.

        Layers register the partitions that they read, so that recomputation in backward finds them. `discretize()` afterwards
        samples at the nodes that training has found. Nodes that were trained before are given up: it begins with uniform ones.
        Raises ValueError for a quadrature whose nodes or weights forbid it.
        """
        wanted = self.counts(sizes)
        for group in self._continua.values():
            if group.quadrature not in ("trapezoidal", "riemann"):
                raise ValueError(
                    f"quadrature {group.quadrature}: its nodes cannot be trained; use trapezoidal or riemann"
                )
        self._thaw()
        for name, group in self._continua.items():
            group.nodes = Partition(wanted[name]).to(self.steps.device)
        self._frozen = [name for name, p in self.network.named_parameters() if p.requires_grad]
        for p in self.network.parameters():
            p.requires_grad_(False)
        for layer in self.integral_layers():
            found = {
                s.group.name: s.group for axes in layer.axes.values() for axis in axes for s in axis.segments if s.group
            }
            layer.add_module("partitions", nn.ModuleList([group.nodes for group in found.values()]))  # type: ignore[misc]
        return [group.nodes.delta for group in self._continua.values() if group.nodes is not None]

    def integral_layers(self) -> list[Integral]:
        return [module for module in self.network.modules() if isinstance(module, Integral)]

    @torch.no_grad()
    def become_discrete(self, sizes: Mapping[str, Size] | None) -> nn.Module:
        """The network inside, made plain; this object is of no use afterwards. For the `discretise` edit."""
        # a copy shares the tensors that are sampled with the network that it is of, in which they stay frozen
        frozen, self._frozen = self._frozen, []
        self.resize(sizes)
        self._hold(False)
        with evaluating(self):
            for layer in self.integral_layers():
                discretise_(layer)
            for name in frozen:
                self.network.get_parameter(name).requires_grad_()
            for module in self.network.modules():
                for key, hook in list(module._forward_pre_hooks.items()):
                    if isinstance(hook, Follower):
                        hook(module, ())
                        del module._forward_pre_hooks[key]
        return self.network

    def _thaw(self) -> None:
        """Gives up nodes that were trained: all is trained that was trained before them."""
        for group in self._continua.values():
            group.nodes = None
        for layer in self.integral_layers():
            layer._modules.pop("partitions", None)
        for name in self._frozen:
            self.network.get_parameter(name).requires_grad_()
        self._frozen = []

    def _draw(self) -> None:
        if not torch.is_grad_enabled():
            self._settle()
            return
        if passes.waits(self):
            return
        if self._count is None:
            if isinstance(self.steps, FakeTensor) or self.steps.is_meta:
                # without data there is no step: what a step needs at most is the largest size's
                for group in self._continua.values():
                    group.drawn = _share(group, self.largest)
                return
            self._count = int(self.steps)
        generator = random.Random(f"{self.seed}, {self._count}")
        for group in self._continua.values():
            group.drawn = generator.randint(_share(group, self.smallest), _share(group, self.largest))
        self._count += 1
        self.steps.fill_(self._count)

    def _hold(self, training: bool) -> None:
        """Modules that stay in evaluation mode (a frozen BatchNorm) have the size that is drawn for all in a training step."""
        for module in self.network.modules():
            held = training and not module.training
            if isinstance(module, Integral) and module.held != held:
                module.held = held
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, Follower):
                    hook.held = held
                    hook(module, ())  # a number may be read from outside, before its module is called

    def _settle(self) -> None:
        """Statistics that are estimated anew are those of the size that is evaluated."""
        for group in self._continua.values():
            group.drawn = group.size

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._count = None


def _nodes(group: Continuum) -> int | Sequence[float]:
    if group.nodes is None:
        return group.size
    with torch.no_grad():
        found: list[float] = group.nodes().tolist()
    return found


def _share(group: Continuum, share: float) -> int:
    return max(LEAST, round(share * group.n))


def _wanted(group: Continuum, size: Size) -> int | Sequence[float]:
    """What `size` means for this group. Raises ValueError where it is impossible."""
    given: Any = size.tolist() if isinstance(size, Tensor) else size
    if isinstance(given, Whole) and not isinstance(given, bool):
        if int(given) >= LEAST:
            return int(given)
    elif isinstance(given, Real) and not isinstance(given, bool):
        if 0 < float(given) < float("inf"):
            return _share(group, float(given))
    elif isinstance(given, Iterable) and not isinstance(given, str):
        nodes = [float(x) for x in given]
        if (
            len(nodes) >= LEAST
            and nodes[0] >= 0
            and nodes[-1] <= 1
            and all(a <= b for a, b in itertools.pairwise(nodes))
        ):
            return nodes
    raise ValueError(
        f"size {size!r} of group {group.name} is impossible: give a share of its {group.n} channels as 0.6, a number of "
        f"at least {LEAST} channels, or as many ascending nodes in [0, 1]"
    )
