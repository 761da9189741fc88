"""Step time and peak memory of recomputing strategies, and of memcnn and RevTorch, on the same F and G.

    python scripts/bench_engine.py OUT [--batch 100] [--repeats 7] [--threads 2] [--shapes revnet110 9x16 mlp10x64 ...]
                                       [--device cuda] [--precision fp32|tf32|bf16] [--compile] [--graph]

A shape is `revnet110` (9-9-9 units of two streams of 16, 32 and 64 channels, boundaries between), UNITSxWIDTH
(one stage, two streams of WIDTH channels), on 32x32 images, with branches BN-ReLU-conv3x3-BN-ReLU-conv3x3; or
mlpUNITSxWIDTH, two streams of WIDTH numbers, with branches Linear-ReLU-Linear: small steps, of which the engine's own
Python is a large part. `--shapes mlp` is widths 8, 64, 128 and 256. All variants have the same weights. A step is
forward, backward and zero_grad; one of each variant in turn, so that other load on the machine meets all alike. Times
are medians without the first (warm-up) round, on a GPU between two waits for it; ratios are medians of the rounds' ratios.
Peaks are of what the allocator gives out during a step beyond what was there before, parameters' gradients included.
--compile adds stored and reversible with compile=true, after as many calls as compilation takes; --graph, on a GPU, ours as a
CUDA graph, whose peak is that of its recording.
Prints a table; writes bench_engine.json and bench_engine.png to OUT.
"""

import argparse
import copy
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memexp.backprop import AdditiveCoupling, Chain, join, late, split
from memexp.backprop.compiled import compiled
from memexp.memory.allocator import allocated
from memexp.training.graphed import cuda_graph

MB = 1e6
SMALL = ["mlp10x8", "mlp10x64", "mlp10x128", "mlp10x256"]


def branch(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
    )


def layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class Shortcut(nn.Module):
    """Average pool by 2, and zero channels on both sides."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(functional.avg_pool2d(x, 2), (0, 0, 0, 0, self.more // 2, self.more // 2))


def stages(shape: str) -> tuple[list[AdditiveCoupling], int]:
    """The steps of a shape, and the channels of one stream at entry."""
    if shape.startswith("mlp"):
        count, size = map(int, shape.removeprefix("mlp").split("x"))
        return [AdditiveCoupling(layers(size), layers(size)) for _ in range(count)], size
    units, widths = (
        (9, [16, 32, 64]) if shape == "revnet110" else (int(shape.split("x")[0]), [int(shape.split("x")[1])])
    )
    steps: list[AdditiveCoupling] = []
    for width, below in zip(widths, [0, *widths], strict=False):
        for unit in range(units):
            if below and unit == 0:
                steps.append(AdditiveCoupling(branch(below, width, 2), branch(width, width), Shortcut(width - below)))
            else:
                steps.append(AdditiveCoupling(branch(width, width), branch(width, width)))
    return steps, widths[0]


class Whole(nn.Module):
    """A step on two streams as a module on one tensor, as the other libraries want it."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return join(*self.step(*split(x)))


class Checkpoints(nn.Module):
    """Each step in torch.utils.checkpoint."""

    def __init__(self, steps: list[AdditiveCoupling]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        for step in self.steps:
            streams = checkpoint(step, *streams, use_reentrant=False)
        return streams


def memcnn_network(steps: list[AdditiveCoupling]) -> nn.Module:
    import memcnn

    def wrap(step: AdditiveCoupling) -> nn.Module:
        if not step.undoable:
            return Whole(step)
        return memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(Fm=step.F, Gm=step.G))

    return nn.Sequential(*map(wrap, steps))


def revtorch_network(steps: list[AdditiveCoupling]) -> nn.Module:
    import revtorch

    parts: list[nn.Module] = []
    run: list[nn.Module] = []
    for step in [*steps, None]:
        if step is not None and step.undoable:
            run.append(revtorch.ReversibleBlock(step.F, step.G))
            continue
        if run:
            parts.append(revtorch.ReversibleSequence(nn.ModuleList(run)))
            run = []
        if step is not None:
            parts.append(Whole(step))
    return nn.Sequential(*parts)


VARIANTS: dict[str, Callable[[list[AdditiveCoupling]], nn.Module]] = {
    "stored": lambda steps: Chain(steps, "stored"),
    "light": lambda steps: Chain(steps, "light"),
    "checkpointed every 1": lambda steps: Chain(steps, "checkpointed"),
    "checkpointed every sqrt": lambda steps: Chain(steps, "checkpointed", every=round(math.sqrt(len(steps)))),
    "reversible": lambda steps: Chain(steps, "reversible"),
    "reversible exact": lambda steps: Chain(steps, "reversible", exact=True),
    "torch.utils.checkpoint": lambda steps: Checkpoints(steps),
    "memcnn 1.5.2": memcnn_network,
    "RevTorch 0.2.4": revtorch_network,
}


COMPILED = ["stored", "reversible", "reversible exact"]
GRAPHED = ["stored", "light", "checkpointed every 1", "reversible", "reversible exact"]


def pass_of(network: nn.Module, x: Tensor, precision: str) -> Callable[[], Tensor]:
    """Forward and backward; the two-stream engine and the one-tensor libraries get the same tensor and loss."""

    def run() -> Tensor:
        entry = x.clone(memory_format=torch.preserve_format).requires_grad_()  # memcnn frees what it is given
        entry = entry * 1.0
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = network(*split(entry)) if isinstance(network, Chain | Checkpoints) else [network(entry)]
        loss = reduce(torch.add, [y.float().square().sum() for y in outputs]) / x.numel()
        loss.backward()
        return loss.detach()

    return run


def step_of(network: nn.Module, x: Tensor, run: Callable[[], object]) -> Callable[[], None]:
    """A training step; on a GPU what the engine has to say is read at its end, as training does."""
    verdicts: late.Verdicts = []
    if x.is_cuda:
        late.collect(network, verdicts)

    def step() -> None:
        run()
        network.zero_grad(set_to_none=True)
        if x.is_cuda:
            torch.cuda.synchronize()
        late.judge(verdicts)

    return step


def measure(shape: str, options: argparse.Namespace) -> list[dict]:
    with ExitStack() as stack:
        return compared(shape, *variants(shape, options, stack), options)


def variants(
    shape: str, options: argparse.Namespace, stack: ExitStack
) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """The training steps to compare, each tried once, and their peaks; the stack holds what was compiled."""
    torch.manual_seed(0)
    steps, width = stages(shape)
    images = not shape.startswith("mlp")
    x = torch.randn(options.batch, 2 * width, *([32, 32] if images else []))
    layout = torch.channels_last if images else torch.preserve_format
    x = x.to(options.device).to(memory_format=layout)
    runs: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    every = [(name, "") for name in VARIANTS]
    every += [(name, ", compiled") for name in COMPILED if options.compile]
    every += [(name, ", cuda_graph") for name in GRAPHED if options.graph]
    for kind, how in every:
        name = kind + how
        try:
            network = VARIANTS[kind](copy.deepcopy(steps)).to(options.device).to(memory_format=layout)
            if how == ", compiled":
                stack.enter_context(compiled(network))
            run = pass_of(network, x, options.precision)
            step = step_of(network, x, run)
            for _ in range(3 if how else 1):
                step()
            peaks[name] = allocated(step, options.device)[0]
            if how == ", cuda_graph":
                found: list[tuple[Any, Tensor]] = []
                peaks[name] = allocated(partial(record, run, found), options.device)[0]
                step = step_of(network, x, found[0][0].replay)
        except (ImportError, RuntimeError) as error:
            print(f"{name} left out: {type(error).__name__}: {error}")
            continue
        runs[name] = step
    return runs, peaks


def compared(
    shape: str, runs: dict[str, Callable[[], None]], peaks: dict[str, int], options: argparse.Namespace
) -> list[dict]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    rows = []
    for name in runs:
        ratio = statistics.median(t / s for t, s in zip(times[name], times["stored"], strict=True))
        rows.append(
            {
                "shape": shape,
                "variant": name,
                "step_median_s": statistics.median(times[name]),
                "step_min_s": min(times[name]),
                "ratio_to_stored": ratio,
                "peak_bytes": peaks[name],
            }
        )
    return rows


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    markers = dict(zip(dict.fromkeys(row["shape"] for row in rows), "os^Dvp*", strict=False))
    for index, variant in enumerate(VARIANTS):
        for row in rows:
            if row["variant"] == variant:
                axes.scatter(
                    row["peak_bytes"] / MB, row["ratio_to_stored"], color=f"C{index}", marker=markers[row["shape"]]
                )
        axes.scatter([], [], color=f"C{index}", label=variant)
    for shape, marker in markers.items():
        axes.scatter([], [], color="grey", marker=marker, label=shape)
    axes.set_xscale("log")
    axes.set_xlabel("peak memory of a step (MB)")
    axes.set_ylabel("step time / stored")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def record(run: Callable[[], Tensor], found: list[tuple[Any, Tensor]]) -> None:
    found.append(cuda_graph(run, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shapes", nargs="+", default=["revnet110", "9x16", "27x16", "9x32", "9x64"])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="the same with compile=true, too")
    parser.add_argument("--graph", action="store_true", help="the same as a CUDA graph, too; on a GPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
    options.shapes = [each for shape in options.shapes for each in (SMALL if shape == "mlp" else [shape])]
    rows: list[dict] = []
    for shape in options.shapes:
        found = measure(shape, options)
        rows += found
        where = torch.cuda.get_device_name() if options.device.type == "cuda" else f"{options.threads} threads"
        print(f"\n{shape}, batch {options.batch}, {options.precision}, {where}, median of {options.repeats}")
        print(f"{'variant':<26}{'step (s)':>10}{'/ stored':>10}{'peak (MB)':>12}")
        for row in found:
            figures = f"{row['step_median_s']:>10.3f}{row['ratio_to_stored']:>10.3f}{row['peak_bytes'] / MB:>12.1f}"
            print(f"{row['variant']:<26}{figures}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    host = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    told = {name: str(getattr(options, name)) for name in ("batch", "repeats", "threads", "device", "precision")}
    record = {**told, **host, "rows": rows}
    (options.out / "bench_engine.json").write_text(json.dumps(record, indent=2))
    plot(rows, options.out / "bench_engine.png")


if __name__ == "__main__":
    main()
