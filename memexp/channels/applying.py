"""Carrying out the edit `narrow` (memexp.edits.narrow) on a network: parameters first, then what modules say of themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from memexp.channels.attention import adapt
from memexp.channels.hooked import make
from memexp.channels.layout import laid_as
from memexp.channels.tensors import tensors_of
from memexp.modes import evaluating


def narrow(network: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`network`, narrowed in place. Works on real, fake and meta tensors; the parameters are new ones.

    Raises ValueError for a name, dimension, index or attribute that is not in the network; the network is then as it was.
    """
    with evaluating(network):  # its train() forgets what was made of the old weights (attention biases of timm's LeViT)
        return _narrowed(network, edit.get("kept", {}), edit.get("attributes", {}))


def _narrowed(
    network: nn.Module, kept: Mapping[str, Mapping[str, Any]], attributes: Mapping[str, Mapping[str, Any]]
) -> nn.Module:
    tensors = tensors_of(network)
    for name, dims in kept.items():
        if name not in tensors:
            raise ValueError(f"edit narrow: the network has no parameter or buffer {name!r}")
        for dim, indices in dims.items():
            _check(name, tensors[name], dim, indices)
    modules = dict(network.named_modules())
    for path, values in attributes.items():
        for key, value in values.items():
            _check_attribute(modules, path, key, value)
    new: dict[int, Tensor] = {}
    for name, dims in kept.items():
        old = tensors[name]
        tensor = laid_as(old, _select(old.detach(), dims))
        new[id(old)] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    for module in modules.values():
        for own in (module._parameters, module._buffers):
            for name, value in own.items():
                if value is not None and id(value) in new:  # a parameter of two names is still one
                    own[name] = new[id(value)]
    for path, module in modules.items():
        if any(name.startswith(f"{path}." if path else "") for name in kept):
            adapt(module)  # before its parts and numbers change, from which it learns the length of its heads
    for module in modules.values():
        make(module)  # weights that a hook makes before each forward have to fit now
        _widths(module)  # from those before, which the attributes may name too
    for path, values in attributes.items():
        for key, value in values.items():
            _set_attribute(modules[path], key, value)
    return network


def _select(tensor: Tensor, dims: Mapping[str, Sequence[int]]) -> Tensor:
    for dim, indices in dims.items():
        tensor = tensor.index_select(int(dim), torch.tensor(indices, dtype=torch.long, device=tensor.device))
    return tensor


def _check(name: str, tensor: Tensor, dim: str, indices: Any) -> None:
    if not dim.isdecimal() or int(dim) >= tensor.ndim:
        raise ValueError(f"edit narrow: {name} has dimensions 0 to {tensor.ndim - 1}, not {dim!r}")
    size = tensor.shape[int(dim)]
    whole = isinstance(indices, list | tuple) and set(map(type, indices)) == {int}
    if not whole or min(indices) < 0 or max(indices) >= size:
        raise ValueError(
            f"edit narrow: {name}, dimension {dim}, keeps {str(indices)[:60]}; give at least one index of 0 to {size - 1}"
        )
    if len(set(indices)) < len(indices):
        raise ValueError(f"edit narrow: {name}, dimension {dim}, keeps an index twice")


def _check_attribute(modules: Mapping[str, nn.Module], path: str, key: str, value: Any) -> None:
    if path not in modules:
        raise ValueError(f"edit narrow: the network has no module {path!r}")
    name, _, item = key.partition(".")
    old: Any = modules[path].__dict__.get(name)
    if item:
        fits = isinstance(old, tuple | list) and item.isdecimal() and int(item) < len(old)
        old = old[int(item)] if fits else None
    if not isinstance(old, int) or isinstance(old, bool):
        raise ValueError(f"edit narrow: {path or 'the network'} has no attribute {key!r} that is a whole number")
    if type(value) is not int or not 0 <= value <= old:
        raise ValueError(f"edit narrow: {path}.{key} is {old} and can be 0 to {old}, not {value!r}")


def _set_attribute(module: nn.Module, key: str, value: int) -> None:
    name, _, item = key.partition(".")
    old = getattr(module, name)
    setattr(module, name, type(old)(value if i == int(item) else v for i, v in enumerate(old)) if item else value)


def _widths(module: nn.Module) -> None:
    """What a module of torch says of its own widths, as its weight has them."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            module.embed_dim = module.kdim = module.vdim = module.in_proj_weight.shape[1]
        else:
            widths = (w.shape[1] for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight))
            module.embed_dim, module.kdim, module.vdim = widths
    elif isinstance(module, _NormBase) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.weight_ih_l0.shape[1]  # type: ignore[index, assignment]
        module._init_flat_weights()  # which its forward reads
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.weight_ih.shape[1]
    elif not isinstance(weight, Tensor):
        return
    elif isinstance(module, _ConvTransposeNd):
        if module.groups > 1:
            module.groups = module.groups * weight.shape[0] // module.in_channels
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        if module.groups > 1:  # whole groups: as many outputs in each as before
            module.groups = module.groups * weight.shape[0] // module.out_channels
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _NormBase):
        module.num_features = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(weight)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
