"""One step of Ranger against torch.optim.RAdam(foreach=True) and pytorch_optimizer's Ranger, in one run.

    python scripts/bench_optim.py [--depth 110] [--steps 120] [--threads 1] [--device cuda]

The parameters are those of a ResNet for CIFAR, with random gradients. One step of each in turn, so that other load on the
machine meets all alike; the first twelve are warm-up. Times are medians and means over the others, means because a
synchronisation of Lookahead comes every sixth step. pytorch_optimizer is left out, and that is said, where it is not
installed (pip install memexp[bench]).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import nn
from torch.optim import Optimizer

from memexp import models
from memexp.backprop import Chain
from memexp.optim import Ranger

WARM_UP = 12


def parameters(depth: int, device: torch.device) -> list[nn.Parameter]:
    torch.manual_seed(0)
    network = models.create("resnet", classes=10, shape=(3, 32, 32), chain=Chain, depth=depth)
    params = list(network.to(device).to(memory_format=torch.channels_last).parameters())
    for p in params:
        p.grad = torch.randn_like(p) * 0.01
    return params


def contestants() -> dict[str, Callable[[list[nn.Parameter]], Optimizer]]:
    found: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
        "torch RAdam(foreach)": lambda p: torch.optim.RAdam(p, betas=(0.95, 0.999), eps=1e-5, foreach=True),
        "memexp Ranger": Ranger,
    }
    try:
        import pytorch_optimizer
    except ImportError:
        print("pytorch_optimizer is not installed: left out")
    else:
        found[f"pytorch_optimizer {version('pytorch_optimizer')} Ranger"] = pytorch_optimizer.Ranger
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("depth", 110), ("steps", 120), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    wait = torch.cuda.synchronize if options.device.type == "cuda" else int
    torch.set_num_threads(options.threads)
    optimizers = {name: make(parameters(options.depth, options.device)) for name, make in contestants().items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(options.steps + WARM_UP):
        for name, optimizer in optimizers.items():
            wait()
            started = time.perf_counter()
            optimizer.step()
            wait()
            times[name].append(time.perf_counter() - started)
    on = f"{options.device}, {options.threads} threads"
    print(f"torch {torch.__version__}, {on}, ResNet-{options.depth}, {options.steps} steps")
    means = {name: statistics.fmean(steps[WARM_UP:]) for name, steps in times.items()}
    for name, steps in times.items():
        ratios = ", ".join(f"{means[name] / mean:.2f}" for mean in means.values())
        median = statistics.median(steps[WARM_UP:])
        print(f"{name:36} median {median * 1e3:7.2f} ms, mean {means[name] * 1e3:7.2f} ms, over each: {ratios}")


if __name__ == "__main__":
    main()
