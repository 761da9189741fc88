"""The layer table that people know from torchsummary: output shapes and parameters of each layer, and totals in MB.

As there, MB is 2^20 bytes; the output of every module but plain containers is counted once forward and once backward, also
where it works in place and where it holds layers that are counted themselves; each use of a module has a line. Left out is
an average pool to the size that its input has: it changes nothing, and the published table of VGG16 is without it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memexp.backprop import Chain
from memexp.backprop.untouched import untouched
from memexp.memory.fake import without_data
from memexp.modes import evaluating

MIB = 2**20
CONTAINERS = (nn.Sequential, nn.ModuleList, Chain)


@dataclass(frozen=True)
class Layer:
    """One use of a layer. elements: of its output, for one image. parameters: its own; 0 where a line before has them."""

    name: str
    shape: tuple[int, ...]
    elements: int
    parameters: int


@dataclass(frozen=True)
class Summary:
    """Sizes in MB of 2^20 bytes for one float32 image."""

    layers: list[Layer]
    parameters: int
    trainable: int
    input_mb: float
    forward_backward_mb: float
    parameters_mb: float

    @property
    def total_mb(self) -> float:
        return self.input_mb + self.forward_backward_mb + self.parameters_mb


def summarise(network: nn.Module, shape: tuple[int, int, int]) -> Summary:
    """Follows one image of `shape` (channels, height, width) without data through `network`, in evaluation mode."""
    layers: list[Layer] = []
    seen: set[nn.Module] = set()
    hooks = []

    def after(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(module, nn.AdaptiveAvgPool2d) and getattr(inputs[0], "shape", None) == getattr(
            output, "shape", ()
        ):
            return
        outputs = [y for y in (output if isinstance(output, tuple) else (output,)) if isinstance(y, Tensor)]
        parameters = 0 if module in seen else sum(p.numel() for p in module.parameters(recurse=False))
        seen.add(module)
        elements = sum(y.numel() // 2 for y in outputs)  # the batch is two images: BN of a 1x1 map needs that to train
        layers.append(
            Layer(
                f"{type(module).__name__}-{len(layers) + 1} ({name})", tuple(outputs[0].shape[1:]), elements, parameters
            )
        )

    for name, module in network.named_modules():
        if module is not network and not isinstance(module, CONTAINERS):
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: after(name, m, x, y)))
    try:
        with evaluating(network), untouched(network), without_data(), torch.no_grad():
            device = next(network.parameters()).device
            network(torch.empty(2, *shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    parameters = sum(p.numel() for p in network.parameters())
    return Summary(
        layers,
        parameters,
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        4 * shape[0] * shape[1] * shape[2] / MIB,
        2 * 4 * sum(layer.elements for layer in layers) / MIB,
        4 * parameters / MIB,
    )


def text(summary: Summary) -> str:
    """The table for a terminal."""
    width = max(len(layer.name) for layer in summary.layers)
    lines = [f"{'layer':<{width}}  {'output shape':>22}  {'parameters':>14}"]
    lines += [
        f"{layer.name:<{width}}  {'[-1, ' + ', '.join(map(str, layer.shape)) + ']':>22}  {layer.parameters:>14,}"
        for layer in summary.layers
    ]
    lines += [
        f"total parameters           {summary.parameters:,}",
        f"trainable parameters       {summary.trainable:,}",
        f"input (MB)                 {summary.input_mb:.2f}",
        f"forward/backward pass (MB) {summary.forward_backward_mb:.2f}",
        f"parameters (MB)            {summary.parameters_mb:.2f}",
        f"estimated total (MB)       {summary.total_mb:.2f}",
        "for one image in float32; MB is 2^20 bytes here, as in torchsummary",
    ]
    return "\n".join(lines)
