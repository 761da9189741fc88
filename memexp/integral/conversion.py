"""From a discrete network to an integral one that computes the same, in one call: groups are found, not named.

1. BatchNorm is folded into the layer before it where there is one, and else kept as a function of the channel.
2. The channels of each group are put into the order in which its weights are smoothest (memexp.integral.permutation).
3. Each group of channels that live and die together becomes a continuous variable; a group whose channels are not in one order
   wherever they are (a shuffle), or that a layer without an integral form reads, stays discrete, and is listed with the reason.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memexp import edits
from memexp.channels import Graph, trace, warn_of_unread
from memexp.channels.called import apart, copied
from memexp.channels.comparing import WHY, changing, difference
from memexp.channels.drawing import drawn_alike
from memexp.channels.hooked import duplicate
from memexp.channels.outputs import tensors_in
from memexp.channels.tensors import tensors_of
from memexp.fusing.flow import trace as watch
from memexp.fusing.foldable import found as found_folds
from memexp.integral import permutation
from memexp.integral.axis import Axis, Segment
from memexp.integral.continuum import Continuum
from memexp.integral.follower import Follower
from memexp.integral.network import LEAST, IntegralNetwork, Variation
from memexp.integral.quadrature import check
from memexp.integral.weights import Integral, continue_, form
from memexp.modes import evaluating

NOT_ASKED = "it is not among the groups that are asked for"
Place = tuple[str, int]  # a tensor's name, and a dimension of it


@dataclass(frozen=True)
class Stretch:
    """Channels of one group that stand side by side wherever they are.

    places: for each (tensor, dimension) the indices of each channel, (size, indices a channel). name: of the layer that gives
    them out, or of the network's own parameter that does.
    """

    name: str
    places: dict[Place, np.ndarray]

    @property
    def size(self) -> int:
        return len(next(iter(self.places.values())))


def stretches(graph: Graph) -> tuple[list[Stretch], dict[tuple[int, int], tuple[int, int]]]:
    """The groups of `graph` in stretches, and for each (group, channel) its (stretch, channel there).

    A zero-padded shortcut is surrounded by channels of one group; a shuffle leaves none side by side.
    """
    found: list[Stretch] = []
    where: dict[tuple[int, int], tuple[int, int]] = {}
    for number, group in enumerate(graph.groups):
        source = next((member for member in group.members if member.role == "out"), group.members[0])
        # channels of one group may have more places than others: those are not side by side
        widest = {member: max(map(len, member.indices)) for member in group.members}
        places = {
            (member.name, member.dim): np.array([(*own, *[-1] * (widest[member] - len(own))) for own in member.indices])
            for member in group.members
        }
        broken = np.zeros(group.size - 1, dtype=bool)
        for indices in places.values():
            # from channel to channel all indices move on by the length of a run of consecutive ones
            run = np.cumprod(np.diff(indices, axis=1, prepend=indices[:, :1] - 1) == 1, axis=1).sum(1)
            broken |= (np.diff(indices, axis=0) != run[:-1, None]).any(1) | (run[1:] != run[:-1])
        for part in np.split(np.arange(group.size), np.flatnonzero(broken) + 1):
            where.update({(number, channel): (len(found), i) for i, channel in enumerate(part.tolist())})
            found.append(
                Stretch(
                    source.name.rpartition(".")[0] or source.name,
                    {place: indices[part] for place, indices in places.items()},
                )
            )
    return found, where


@apart()
def convert(network: nn.Module, *example_inputs: Any, **options: Any) -> IntegralNetwork:
    """An integral network with the outputs of `network` in evaluation at its native size; `network` is left as it is.

    example_inputs: what the network is called with; a batch of one or two is enough.
    options, each with its default:
        permute=True: whether channels are put in their smoothest order; what that did is the result's `variation`.
        fold=True: whether BatchNorm is folded where it follows a convolution or fully connected layer.
        quadrature="trapezoidal": or riemann, simpson, gauss_legendre (memexp.integral.quadrature).
        groups=None: names of the groups to be made continuous, or patterns as "body.6.*"; None: all that can be.
        smallest=0.5, largest=1.0: sizes that a training step draws from, as shares of the native ones; seed=0: of these draws.

    Raises ValueError where nothing can be made continuous, naming the reasons; for an operation whose channels cannot be
    followed, naming it; for a network that is integral already; and where the result's outputs are not the network's.
    """
    return convert_(duplicate(network), *example_inputs, **options)


def convert_(
    network: nn.Module,
    *example_inputs: Any,
    permute: bool = True,
    fold: bool = True,
    quadrature: str = "trapezoidal",
    groups: Sequence[str] | None = None,
    smallest: float = 0.5,
    largest: float = 1.0,
    seed: int = 0,
) -> IntegralNetwork:
    """`convert`, of `network` itself: its layers become the integral ones."""
    check(quadrature)
    for module in network.modules():
        if isinstance(module, Integral):
            raise ValueError(
                "the network is integral already: .resize(0.6) gives it another size, .discretize() a plain network"
            )
        if isinstance(module, nn.TransformerEncoderLayer):  # off its fused path, which reads its layers' weights itself
            module.activation_relu_or_gelu = 0
    with evaluating(network):
        expected, flow = _outputs(network, example_inputs), watch(network, example_inputs)
        pairs = found_folds(network, flow, example_inputs)[0] if fold else []
    if pairs:
        edits.apply(network, {"kind": "fold", "pairs": pairs})
    graph = trace(network, *example_inputs)
    warn_of_unread(graph)
    parts, where = stretches(graph)
    reasons = {i: why for i, part in enumerate(parts) if (why := _why_discrete(network, part, flow.loose))}
    tensors = tensors_of(network)
    real = not any(tensor.is_meta for tensor in tensors.values())
    for number in changing(network, graph, *example_inputs) if real else ():
        reasons |= {i: WHY for (group, _), (i, _) in where.items() if group == number}
    names = _names(parts)
    reasons |= {i: NOT_ASKED for i in _left_out(names, groups) if i not in reasons}
    if len(reasons) == len(parts):
        listed = (
            "; ".join(f"{names[i]}: {why}" for i, why in reasons.items())
            or graph.why_fixed()
            or "it has no channels that could be removed"
        )
        raise ValueError(f"{type(network).__name__}: no group of channels can be made continuous: {listed}")
    continua = {i: Continuum(names[i], part.size, quadrature) for i, part in enumerate(parts) if i not in reasons}
    variation = Variation({}, {})
    if permute and real:
        for i, group in continua.items():
            variation.before[group.name], variation.after[group.name] = _permute(parts[i], tensors)
    for path, axes in _axes(parts, continua, tensors).items():
        continue_(network.get_submodule(path), axes)
    _follow(network, graph, where, continua)
    discrete = {names[i]: why for i, why in reasons.items()}
    # a kernel's positions are no channels
    discrete |= {f"{tensor}[{dim}]": why for (tensor, dim), why in graph.frozen.items() if dim < 2}
    continuous = {group.name: group for group in continua.values()}
    found = IntegralNetwork(network, continuous, discrete, smallest, largest, seed)
    found.variation = variation if variation.before else None
    found.training = network.training  # its parts keep their own modes
    if real:
        _compare(found, expected, example_inputs)
    return found


def _left_out(names: Sequence[str], groups: Sequence[str] | None) -> list[int]:
    """The groups that are not among those asked for. Raises ValueError for a pattern that fits none."""
    if groups is None:
        return []
    for pattern in groups:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"groups: {pattern!r} fits no group; there are {', '.join(names)}")
    return [i for i, name in enumerate(names) if not any(fnmatchcase(name, pattern) for pattern in groups)]


def _why_discrete(network: nn.Module, part: Stretch, loose: Mapping[str, str]) -> str | None:
    if part.size < LEAST:
        return "its channels are not side by side wherever they are"
    for tensor, _ in part.places:
        path, _, name = tensor.rpartition(".")
        layer = network.get_submodule(path)
        if form(layer) is None or name not in ("weight", "bias", "running_mean", "running_var"):
            return f"{tensor} is of a {type(layer).__name__}, which has no integral form"
        if path in loose:
            return f"{path} {loose[path]}"
    return None


def _names(parts: list[Stretch]) -> list[str]:
    """The layers that give them out, numbered where one gives out several."""
    counts = Counter(part.name for part in parts)
    seen: Counter[str] = Counter()
    names = []
    for part in parts:
        seen[part.name] += 1
        names.append(f"{part.name}#{seen[part.name]}" if counts[part.name] > 1 else part.name)
    return names


def _axes(
    parts: list[Stretch], continua: Mapping[int, Continuum], tensors: Mapping[str, Tensor]
) -> dict[str, dict[str, tuple[Axis, ...]]]:
    """For each layer with continuous dimensions, the axes of each of its tensors."""
    owners: dict[Place, np.ndarray] = {}
    for i in continua:
        for (tensor, dim), indices in parts[i].places.items():
            owner = owners.setdefault((tensor, dim), np.full(tensors[tensor].shape[dim], -1))
            owner[indices.flatten()] = i
    found: dict[str, dict[str, tuple[Axis, ...]]] = {}
    for (tensor, dim), owner in sorted(owners.items()):
        path, _, name = tensor.rpartition(".")
        segments: list[Segment] = []
        at = 0
        while at < len(owner):
            i = int(owner[at])
            if i < 0:
                places = int(np.argmax(np.append(owner[at:] >= 0, True)))
                segments.append(Segment(None, 1, places))
                at += places
                continue
            first = parts[i].places[tensor, dim][0]
            places = int(np.argmin(np.append(np.isin(np.arange(at, len(owner)), first), False)))
            last = segments[-1] if segments else None
            if last and last.group is continua[i] and last.inner == places:
                segments[-1] = Segment(last.group, last.outer + 1, places)
            else:
                segments.append(Segment(continua[i], 1, places))
            at += places * parts[i].size
        axes = found.setdefault(path, {})
        axes[name] = (*axes.get(name, ()), Axis(dim, tuple(segments), integrated=dim == 1))
    return found


def _follow(
    network: nn.Module,
    graph: Graph,
    where: Mapping[tuple[int, int], tuple[int, int]],
    continua: Mapping[int, Continuum],
) -> None:
    """Numbers that modules keep follow the widths that they state; those of integral layers are not read."""
    found: dict[str, list[tuple[str, int | None, Axis]]] = {}
    for number in graph.numbers:
        segments: list[Segment] = []
        for channel in number.channels:
            i, position = where[channel] if channel is not None else (-1, 0)
            group = continua.get(i)
            if group is None:
                segments.append(Segment(None))
            elif position == 0:
                segments.append(Segment(group))
        module = network.get_submodule(number.module)
        if any(segment.group for segment in segments) and not isinstance(module, Integral):
            found.setdefault(number.module, []).append((number.name, number.index, Axis(0, tuple(segments))))
    for path, attributes in found.items():
        network.get_submodule(path).register_forward_pre_hook(Follower(attributes))


def _permute(part: Stretch, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
    """Puts the channels in the order that was found; the total variation of their weights before and after."""
    places = [(tensors[tensor], dim, torch.from_numpy(indices)) for (tensor, dim), indices in part.places.items()]
    rows = [
        W.detach().movedim(dim, 0)[at].reshape(part.size, -1) for W, dim, at in places if isinstance(W, nn.Parameter)
    ]
    D = permutation.distances(torch.cat(rows, 1))
    order = permutation.shortest(D)
    with torch.no_grad():
        for W, dim, at in places:
            W.index_copy_(dim, at.flatten(), W.index_select(dim, at[order].flatten()))
    return permutation.length(D, np.arange(part.size)), permutation.length(D, order)


def _outputs(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Of the network in evaluation, with random layers as they are there."""
    with torch.no_grad(), drawn_alike():
        return tensors_in(network(*copied(inputs)))


def _compare(found: IntegralNetwork, expected: list[Tensor], inputs: tuple[Any, ...]) -> None:
    """Raises ValueError where converted outputs are others than rounding explains."""
    with evaluating(found):
        outputs = _outputs(found, inputs)
    for y, right in zip(outputs, expected, strict=True):
        if y.shape != right.shape:
            raise ValueError(
                f"{type(found.network).__name__}: converted, it gives an output of shape {tuple(y.shape)}, not "
                f"{tuple(right.shape)}: that depends on values; convert the part before it (a backbone)"
            )
        error = difference(y, right)
        if not error <= torch.finfo(right.dtype if right.is_floating_point() else torch.float32).eps ** 0.5:
            raise ValueError(
                f"{type(found.network).__name__}: converted, its outputs differ by {error:.1e} of the largest: the order of "
                "some channels matters in it in a way that was not seen; permute=false leaves the order as it is"
            )
