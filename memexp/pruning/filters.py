"""The filters of a group: which elements of which parameters each of its coupled channels owns.

A group's channels live and die together (memexp.channels). Its "out" members are the layers that make the channels, one
filter each; its "norm" members scale them; its "bias" members, which are added to them, and its "in" members, which read
them, play no part in a score. Scores of a coupled group are combined in one way everywhere: each member is scored by itself,
and a channel's score is the mean over members.
"""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from memexp.channels import Group, Member
from memexp.channels.hooked import made_of, makers


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: "features.0" of "features.0.weight", parametrised or not; "" is the network."""
    return _parts(name)[0]


def label(name: str) -> str:
    """What people call the layer by: a parameter of the network itself by its own name."""
    layer, own = _parts(name)
    return layer or own


def _parts(name: str) -> tuple[str, str]:
    """The layer, and its tensor."""
    layer, marker, rest = f".{name}".partition(".parametrizations.")
    layer, own = (layer, rest.partition(".")[0]) if marker else f".{name}".rsplit(".", 1)
    return layer[1:], own


def effective(network: nn.Module, name: str) -> str:
    """The name of the tensor that the layer computes with: "0.weight" of "0.parametrizations.weight.original1", or of
    "0.weight_orig", which torch.nn.utils.prune masks."""
    layer, own = _parts(name)
    return f"{layer}.{made_of(network.get_submodule(layer), own)}".removeprefix(".")


def tensor_of(network: nn.Module, name: str) -> Tensor:
    """The tensor of that effective name, of the parameters as they are now."""
    layer, _, attribute = name.rpartition(".")
    module = network.get_submodule(layer)
    maker = makers(module).get(attribute)
    found = getattr(module, attribute) if maker is None else maker(module)
    assert isinstance(found, Tensor)
    return found


def key(group: Group) -> tuple[tuple[str, int, int], ...]:
    """What names a group in a narrowed network as well."""
    return tuple((member.name, member.dim, len(member.indices[0])) for member in group.members)


def members(network: nn.Module, group: Group, role: str) -> dict[str, Member]:
    """The group's parameters of that role by effective name, each once; buffers, such as a mask of weights, are none."""
    return {
        effective(network, member.name): member
        for member in group.members
        if member.role == role and not _is_buffer(network, member.name)
    }


def weights(network: nn.Module, group: Group) -> dict[str, Member]:
    """The filters that make the group's channels: its "out" members but for vectors, which are factors of a filter."""
    return {name: m for name, m in members(network, group, "out").items() if tensor_of(network, name).ndim > 1}


def _is_buffer(network: nn.Module, name: str) -> bool:
    layer, _, attribute = name.rpartition(".")
    return attribute in network.get_submodule(layer)._buffers


def normalised(network: nn.Module, group: Group, criterion: str) -> dict[str, Member]:
    """The scales and shifts of the group's normalisations: its "norm" and "bias" members of normalisation layers.

    Slopes of a PReLU and scales of a branch (LayerScale) are none. Raises ValueError, naming `criterion`, where no layer
    normalises the group by a scale.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    found = {
        name: m
        for name, m in (members(network, group, "norm") | members(network, group, "bias")).items()
        if m.name in parameters and _normalises(network.get_submodule(layer_of(name)))
    }
    if not any(is_scale(name) for name in found):
        raise ValueError(
            f"criterion={criterion} reads the scales of normalisation layers, and the channels of layer {layers(group)[0]} "
            "have none: choose another criterion, or leave that layer out by scope={LAYER: ratio}"
        )
    return found


def is_scale(name: str) -> bool:
    """Whether a parameter of a normalisation layer is its scale, not its shift."""
    return name.rpartition(".")[2] not in ("bias", "beta")


def _normalises(module: nn.Module) -> bool:
    """Whether its class is a normalisation by name, or made of one: many libraries have a LayerNorm or RMSNorm of their own."""
    return any(re.search(r"Norm(\dd)?$", kind.__name__) for kind in type(module).__mro__)


def check_plain(network: nn.Module) -> None:
    """Raises ValueError for an integral network, whose weights are samples of others."""
    if any(hasattr(module, "become_discrete") for module in network.modules()):
        raise ValueError(
            "the network is integral: its channels and weights are samples, and none can go; choose its size by "
            ".discretize(0.6) or prune=integral prune.keep=0.6, and prune what that leaves"
        )


def layers(group: Group) -> list[str]:
    """The layers that make the group's channels; any of these names names the group."""
    return list(dict.fromkeys(label(member.name) for member in group.members if member.role == "out"))


def rows(tensor: Tensor, indices: Sequence[Sequence[int]], dim: int) -> Tensor:
    """(channels, elements): what each channel owns of `tensor` along `dim`, in the tensor's dtype.

    A channel with fewer indices than another is filled up with zeros.
    """
    flat = tensor.detach().movedim(dim, 0).flatten(1) if tensor.ndim > 1 else tensor.detach()[:, None]
    longest = max(len(own) for own in indices)
    if any(len(own) != longest for own in indices):
        flat = torch.cat([flat, flat.new_zeros(1, flat.shape[1])])
    absent = len(flat) - 1
    index = [list(own) + [absent] * (longest - len(own)) for own in indices]
    return flat[torch.tensor(index, device=flat.device)].flatten(1)


def combined(scores: Iterable[Tensor]) -> Tensor:
    """The mean over a group's members, in float64 on the CPU."""
    return torch.stack([score.double().cpu() for score in scores]).mean(0)
