"""Growing a network back: the edit `grow`, with the statistics of real batches in the blocks' BN, and the check."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from memexp import edits
from memexp.channels.called import Inputs, copied
from memexp.channels.hooked import duplicate
from memexp.channels.tensors import check_values
from memexp.edits import grow as growth
from memexp.edits.fold import affine, wide
from memexp.fusing.flow import refuse_training, trace
from memexp.fusing.foldable import missed
from memexp.fusing.fused import Fused, check


def growable(network: nn.Module, example_input: Inputs) -> list[str]:
    """Layers that may grow: plain convolutions of batches, larger than 1x1, that are called once, and of which the network
    reads nothing that a block has not."""
    flow, modules = trace(network, example_input), dict(network.named_modules())
    names = [
        name
        for name, calls in flow.layers().items()
        if growth.unfit(network, modules[name]) is None
        and modules[name].kernel_size != (1, 1)
        and len(calls) == 1
        and name not in flow.loose
    ]
    read = _read(network, names, example_input)
    return [name for name in names if name not in read]


def grow(
    network: nn.Module,
    batches: Iterable[Inputs],
    expansion: float = 2,
    seed: int = 0,
    layers: Sequence[str] | None = None,
) -> Fused:
    """The network with its convolutions grown into blocks that compute the same, ready to be trained on at lambda = 0.

    batches: real inputs, in eval mode's form, whose statistics go into the BN of the blocks and on which outputs are compared.
    layers: by default all that `growable` finds. `network` itself is left as it is.

    Raises ValueError for a module in train mode, no batches, no layers, and what the edit refuses; FusingError where outputs
    differ by more than 1e-5 of the largest.
    """
    refuse_training(network)
    check_values(network)
    every = list(batches)
    if not every:
        raise ValueError("grow: no batches, and the statistics of its normalisations are those of real ones")
    names = growable(network, every[0]) if layers is None else list(layers)
    if not names:
        raise ValueError("grow: the network has no plain convolution larger than 1x1")
    edit = {"kind": "grow", "layers": names, "expansion": expansion, "seed": seed}
    grown = edits.apply(duplicate(network), edit)
    for name, error in ({} if layers is None else _read(network, names, every[0])).items():
        raise ValueError(
            f"grow: {name}: the network reads what only a convolution has ({error}): leave it out of layers"
        )
    blocks = [grown.get_submodule(name).get_submodule("f") for name in names]
    moments = _moments(
        grown, {layer: name for name, f in zip(names, blocks, strict=True) for layer in _convolutions(f)}, every
    )
    for f, inner, outer in zip(blocks, moments[::2], moments[1::2], strict=True):
        settle(f, inner, outer)
    return Fused(grown, [edit], check(network, grown, every, "grown", "another seed draws other blocks"))


def _read(network: nn.Module, names: Sequence[str], example_input: Inputs) -> dict[str, str]:
    """Layers of which the network reads attributes, such as the width, and what is said where a block is in their place."""
    return missed(network, {name: nn.Sequential(network.get_submodule(name)) for name in names}, example_input)


@torch.no_grad()
def settle(f: nn.Module, inner: tuple[Tensor, Tensor], outer: tuple[Tensor, Tensor]) -> None:
    """Puts statistics into the BN of conv - BN - act - conv1x1 - BN at lambda = 0, and undoes them behind it.

    inner, outer: mean and variance of what the first and the second convolution give out. With z the first's output, the
    second gives A (s z + t), and the whole a (A (s z + t)) + b, before and after.
    """
    norm, second, last = (f.get_submodule(index) for index in ("1", "3", "4"))
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(second, nn.Conv2d)
    assert isinstance(last, nn.BatchNorm2d)
    (m1, v1), (m2, v2) = inner, outer
    (s, t), (a, b) = affine(norm), affine(last)
    A = wide(second.weight).flatten(1)
    _set(norm, m1, v1, torch.ones_like(s), torch.zeros_like(s))
    second.weight.copy_((A * (s * (v1 + norm.eps).sqrt()))[..., None, None])
    # A s m1 + A t no longer passes through the second convolution: the mean behind it is less by that, and b makes up for it
    _set(last, m2 - A @ (s * m1 + t), v2, a * (v2 + last.eps).sqrt(), a * m2 + b)


def _set(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.weight.copy_(weight)
    norm.bias.copy_(bias)


def _convolutions(f: nn.Module) -> Iterator[nn.Module]:
    yield f.get_submodule("0")
    yield f.get_submodule("3")


@torch.no_grad()
def _moments(
    network: nn.Module, layers: Mapping[nn.Module, str], batches: Sequence[Inputs]
) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of each channel that the layers give out, over all batches. layers: by what has grown, for messages."""
    sums: dict[nn.Module, list[Tensor]] = {}

    def see(layer: nn.Module, _: object, output: Tensor) -> None:
        if output.ndim != 4:
            raise ValueError(
                f"grow: a layer gives {tuple(output.shape)}, as of one image alone, and what grows normalises batches: give "
                "batches of images, (n, channels, h, w)"
            )
        z = wide(output)
        new = [z.new_tensor(z.numel() / z.shape[1]), z.sum((0, 2, 3)), z.square().sum((0, 2, 3))]
        sums[layer] = [a + b for a, b in zip(sums[layer], new, strict=True)] if layer in sums else new

    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        for batch in batches:
            network(*copied(batch))
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for layer, name in layers.items():
        if layer not in sums:
            raise ValueError(
                f"grow: {name} is called by another way than its place in the network (an object of its own, say), "
                "where what grows does not come: name other layers by layers="
            )
        count, total, squares = sums[layer]
        mean = total / count
        found.append((mean, (squares / count - mean.square()).clamp(min=0)))
    return found
