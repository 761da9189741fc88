"""Groups of channels found and removed, by memexp and by Torch-Pruning, in one table.

    python scripts/bench_channels.py [--only resnet50,vit_b_16] [--size 0] [--repeats 5]

For each of torchvision's classifiers, and for this project's families: whether the network is handled (a random half of the
channels of every group is removed, and the narrowed network runs), whether its outputs equal those of the masked network (the
removed filters and entries of normalisations zero; statistics of a LayerNorm over the channels that stay), the share of the
parameters that is left, and the CPU seconds until all groups are known, the first call and the median of others. memexp: trace.
Torch-Pruning: build_dependency and get_all_groups; then BasePruner with random importance at a ratio of one half, heads of
nn.MultiheadAttention given as its documentation says, the rest as it is by default. Networks are random; statistics and affine
parameters are drawn. One thread. A cell says what went wrong where something did.
"""

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from memexp import channels, edits, models
from memexp.backprop import Chain
from memexp.channels.narrowing import KeptStatistics

try:
    import torch_pruning as tp
except ImportError:
    tp = None

# the least side that the architecture allows, or nearly
SIDES = {
    "alexnet": 64, "vgg11": 32, "vgg11_bn": 32, "vgg16": 32, "resnet18": 32, "resnet34": 32, "resnet50": 32,
    "resnext50_32x4d": 32, "wide_resnet50_2": 32, "densenet121": 32, "densenet169": 32, "mobilenet_v2": 32,
    "mobilenet_v3_small": 32, "mobilenet_v3_large": 32, "shufflenet_v2_x0_5": 32, "shufflenet_v2_x1_0": 32,
    "squeezenet1_0": 64, "squeezenet1_1": 64, "googlenet": 64, "inception_v3": 96, "mnasnet0_5": 32, "mnasnet1_0": 32,
    "efficientnet_b0": 32, "efficientnet_b1": 32, "efficientnet_v2_s": 32, "regnet_x_400mf": 32, "regnet_x_800mf": 32,
    "regnet_y_400mf": 32, "regnet_y_800mf": 32, "convnext_tiny": 32, "swin_t": 64, "swin_v2_t": 64, "vit_b_16": 224,
    "maxvit_t": 224,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "memexp resnet-20": {"name": "resnet", "depth": 20},
    "memexp resnet-29 bottleneck": {"name": "resnet", "depth": 29, "bottleneck": True},
    "memexp resnet simple": {"name": "resnet", "depth": 4, "kind": "simple"},
    "memexp resnet ode tied": {
        "name": "resnet", "depth": 50, "kind": "ode", "units": [3, 3], "channels": [16, 16, 32], "tied": True,
    },
    "memexp revnet-38": {"name": "revnet", "depth": 38},
    "memexp revnet bottleneck": {
        "name": "revnet", "depth": 38, "units": [2, 2], "channels": [16, 16, 32], "bottleneck": True,
    },
    "memexp heunnet": {"name": "heunnet", "depth": 4},
    "memexp vgg16": {"name": "vgg16"},
}  # fmt: skip


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in FAMILIES:
        network = models.create(classes=10, shape=(3, 32, 32), chain=Chain, **FAMILIES[name])
    else:
        extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(name, weights=None, **extra)
    for key, tensor in network.state_dict(keep_vars=True).items():
        low, high = {"running_mean": (-0.3, 0.3), "running_var": (0.5, 2.0)}.get(key.rpartition(".")[2], (0.0, 0.0))
        if tensor.ndim == 1 and isinstance(tensor, nn.Parameter):
            low, high = (0.5, 1.5) if key.endswith("weight") else (-0.5, 0.5)
        if tensor.is_floating_point() and (low != high or not tensor.any()):
            tensor.data.uniform_(low or -0.1, high or 0.1)
    return network.eval()


def timed(find: Callable[[], Any], repeats: int) -> str:
    times = []
    for _ in range(repeats + 1):
        started = time.process_time()
        find()
        times.append(time.process_time() - started)
    return f"{times[0]:8.3f} {statistics.median(times[1:]):8.3f}"


def verdict(narrowed: Tensor, masked: Tensor) -> str:
    error = float((narrowed - masked).abs().max() / masked.abs().max())
    return f"{'equal' if error < 1e-5 else 'WRONG'} {error:.0e}"


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def ours(network: nn.Module, x: Tensor, repeats: int) -> str:
    seconds = timed(lambda: channels.trace(network, x), repeats)
    graph = channels.trace(network, x)
    draw = random.Random(0)
    kept = {i: sorted(draw.sample(range(g.size), max(1, g.size // 2))) for i, g in enumerate(graph.groups)}
    narrowed = edits.apply(copy.deepcopy(network), channels.narrow_edit(graph, kept))
    with torch.no_grad():
        told = verdict(narrowed(x), channels.masked(network, graph, kept)(x))
    return f"{told:12} {size(narrowed) / size(network):5.2f} {seconds}"


def theirs(network: nn.Module, x: Tensor, repeats: int) -> str:
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    seconds = timed(
        lambda: list(tp.DependencyGraph().build_dependency(network, x).get_all_groups(ignored_layers=[last])), repeats
    )
    pruned = copy.deepcopy(network)
    heads = {m: m.num_heads for m in pruned.modules() if isinstance(m, nn.MultiheadAttention)}
    names = {module: name for name, module in pruned.named_modules()}
    ignored = [m for m in pruned.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    importance = tp.importance.RandomImportance()
    pruner = tp.pruner.BasePruner(
        pruned, x, importance, pruning_ratio=0.5, ignored_layers=[ignored], num_heads=heads, prune_num_heads=bool(heads)
    )
    masked = copy.deepcopy(network)
    parts = dict(masked.named_modules())
    left: dict[str, list[int]] = {}  # of each layer, which of its first outputs are still there
    with torch.no_grad():
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                module = dependency.target.module
                outs = nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm | nn.Conv2d | nn.Linear
                if isinstance(module, outs) and "out" in dependency.handler.__name__:
                    _zero(parts[names[module]], left, names[module], list(indices))
            group.prune()
    kept = {
        id(parts[name].weight): torch.tensor(indices)
        for name, indices in left.items()
        if isinstance(parts[name], nn.LayerNorm)
    }
    with torch.no_grad():
        narrowed = pruned(x)
        with KeptStatistics(kept):
            told = verdict(narrowed, masked(x))
    return f"{told:12} {size(pruned) / size(network):5.2f} {seconds}"


def _zero(layer: nn.Module, left: dict[str, list[int]], name: str, indices: list[int]) -> None:
    weight: Any = layer.weight
    own = left.setdefault(name, list(range(len(weight))))
    gone = {own[i] for i in indices}
    left[name] = [i for i in own if i not in gone]
    for tensor in (weight, layer.bias):
        if isinstance(tensor, Tensor):
            tensor.index_fill_(0, torch.tensor(sorted(gone)), 0)


def attempt(measure: Callable[[nn.Module, Tensor, int], str], name: str, x: Tensor, repeats: int) -> str:
    try:
        return measure(build(name), x, repeats)
    except Exception as error:  # whatever a library raises is its answer
        return f"FAILED {type(error).__name__}: {str(error).partition(chr(10))[0][:60]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, separated by commas; all by default")
    parser.add_argument("--size", type=int, default=0, help="side of the images; by default the least that each allows")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Torch-Pruning {tp.__version__ if tp else 'not installed: left out'}")
    print(
        "columns: equal to masked, relative error, parameters left, CPU seconds of the first call, median of later ones"
    )
    for name in options.only.split(",") if options.only else [*FAMILIES, *SIDES]:
        side = options.size or SIDES.get(name, 32)
        x = torch.randn(1, 3, side, side)
        print(f"{name:28} {side:3} memexp        {attempt(ours, name, x, options.repeats)}", flush=True)
        if tp:
            print(f"{'':28} {'':3} Torch-Pruning {attempt(theirs, name, x, options.repeats)}", flush=True)


if __name__ == "__main__":
    main()
