"""Step time of integral networks beside the discrete one's, and the time that choosing a new size takes.

    python scripts/bench_integral.py [--batch 64] [--rounds 7]

ResNet-20 on 32x32 images, a training step (forward, backward, zero_grad) of
    discrete          the network that is converted
    native            the integral one at its native size, where sampling is the identity but for the quadrature's weights
    native, products  the same, with the banded products carried out all the same
    drawn             sizes drawn anew each step from [0.5, 1] of the native ones, as in training
    grid_sample       native, each weight sampled by torch's grid_sample (bicubic), as the published library does
one of each in turn on one thread, timed in CPU seconds, which other load on the machine changes little; medians without the
first round, ratios medians of the rounds' ratios. Then ResNet-18 (torchvision's) at 60 %: `resize` and sampling every weight,
and `discretize` as a whole.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from memexp import models
from memexp.backprop import Chain
from memexp.integral import IntegralNetwork, convert, quadrature
from memexp.integral.weights import IntegralConv2d, IntegralLinear


def by_products(network: IntegralNetwork) -> IntegralNetwork:
    """Native sizes given as nodes, so that nothing takes the short way of the identity."""
    network.resize({name: quadrature.uniform(n).tolist() for name, n in network.groups.items()})
    return network


class GridSampled:
    """`sampled` of a layer at its native size: its weight as an image of (out, in) pixels, by torch's grid_sample."""

    def __init__(self, layer: IntegralConv2d | IntegralLinear) -> None:
        self.layer = layer

    def __call__(self, name: str) -> Tensor | None:
        if name != "weight":
            return self.layer.bias
        weight = self.layer.weight
        out, inputs = weight.shape[:2]
        image = weight.view(1, out, inputs, -1).permute(0, 3, 1, 2)
        y, x = torch.meshgrid(torch.linspace(-1, 1, out), torch.linspace(-1, 1, inputs), indexing="ij")
        sampled = functional.grid_sample(
            image, torch.stack([x, y], -1)[None], mode="bicubic", padding_mode="border", align_corners=True
        )
        W = sampled.permute(0, 2, 3, 1).reshape(weight.shape)
        if all(axis.dim != 1 for axis in self.layer.axes["weight"]):
            return W
        q = quadrature.weights("trapezoidal", quadrature.uniform(inputs)).float() * (inputs - 1)
        return W * q.view(1, -1, *(1,) * (weight.ndim - 2))


def by_grid_sample(network: IntegralNetwork) -> IntegralNetwork:
    for layer in network.integral_layers():
        if isinstance(layer, IntegralConv2d | IntegralLinear):
            layer.sampled = GridSampled(layer)  # type: ignore[method-assign]
    return network


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    discrete = models.create("resnet", classes=10, shape=(3, 32, 32), chain=Chain, depth=20).train()
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    fixed = convert(discrete, images[:1], permute=False, fold=False, smallest=1.0)
    variants: dict[str, nn.Module] = {
        "discrete": discrete,
        "native": fixed,
        "native, products": by_products(copy.deepcopy(fixed)),
        "drawn": convert(discrete, images[:1], permute=False, fold=False),
        "grid_sample": by_grid_sample(copy.deepcopy(fixed)),
    }

    def step(network: nn.Module) -> None:
        functional.cross_entropy(network(images), labels).backward()
        network.zero_grad()

    rounds = [
        {name: seconds(partial(step, network)) for name, network in variants.items()} for _ in range(options.rounds + 1)
    ]
    print(
        f"ResNet-20, batch {options.batch}, one thread, CPU seconds, torch {torch.__version__}, {options.rounds} rounds"
    )
    for name in variants:
        median = statistics.median(r[name] for r in rounds[1:])
        ratio = statistics.median(r[name] / r["discrete"] for r in rounds[1:])
        print(f"  {name:18} {1e3 * median:8.1f} ms   {ratio:.2f} times the discrete network's")

    large = convert(torchvision.models.resnet18().eval(), torch.randn(1, 3, 64, 64), permute=False)

    @torch.no_grad()
    def choose() -> None:
        large.resize(0.6)
        for layer in large.integral_layers():
            for name in layer.axes:
                layer.sampled(name)

    chosen = [seconds(choose) for _ in range(options.rounds + 1)][1:]
    whole = [seconds(lambda: large.discretize(0.6)) for _ in range(options.rounds + 1)][1:]
    print(
        f"ResNet-18 at 60 %: resize and sample {statistics.median(chosen):.3f} s, discretize {statistics.median(whole):.3f} s"
    )


if __name__ == "__main__":
    main()
