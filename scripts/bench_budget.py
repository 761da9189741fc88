"""Memory against time: budgets of memexp between least and stored, beside torch.compile's own budget of activations.

    python scripts/bench_budget.py OUT [--networks resnet20:32 resnet56:100 revnet110:100] [--budgets 10] [--torch 0 0.3 ...]
                                       [--compiled 5] [--rounds 5] [--threads 1] [--device cuda]

A network is resnetDEPTH or revnetDEPTH, a colon and the batch, on 32x32 images. kept: bytes that autograd keeps between
forward and backward, each storage once (parameters and the batch left out). peak: bytes at the peak of a step beyond those
before it, as torch's allocator reports them, which sees compiled code, too; for memexp's uncompiled ones the peak of a whole
step, planned and tracked, stands beside. A step is forward and backward; one of each variant in turn, so that other load meets
all alike; times are medians of the rounds without the first, without compilation: CPU seconds of this process, on a GPU seconds
between two waits for it. Torch's budgets
(torch._functorch.config.activation_memory_budget) are of the whole network in one graph; memexp's are uncompiled but for the
lines that say so (compile=true), as is the line `stored`. Writes bench_budget.json and bench_budget.png to OUT.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import memexp
from memexp import backprop, build, memory
from memexp.backprop.compiled import compiled, within
from memexp.memory.allocator import allocated
from memexp.memory.tracker import Tracker

MB = 1e6
Step = Callable[[], None]


def network(name: str, device: torch.device) -> nn.Module:
    kind, depth = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    torch.manual_seed(0)
    cfg = memexp.compose([f"model={kind}", f"model.depth={depth}", "dataset=cifar10", "backprop=stored"])
    return build.network(cfg).to(device).to(memory_format=torch.channels_last).train()


def chosen(net: nn.Module, name: str) -> nn.Module:
    for chain in backprop.chains(net):
        chain.choose(name)
    return net


def kept(net: nn.Module, batch: tuple[Tensor, Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass, parameters, buffers and the batch left out."""
    known = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers(), *batch)}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = functional.cross_entropy(net(batch[0]), batch[1])
        total = sum(t.untyped_storage().nbytes() for address, t in found.items() if address not in known)
    loss.backward()
    return total


def tracked(step: Step, net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Bytes at the peak of a step, and those kept when backward begins, as memexp's tracker sees them."""
    tracker = Tracker(net, inputs=batch)
    with tracker:
        step()
    report = tracker.report()
    return report.peak, report.kept


def variants(
    name: str, batch: tuple[Tensor, Tensor], budgets: int, through: bool = False
) -> Iterator[tuple[dict[str, Any], nn.Module]]:
    """memexp's: figures so far, and the network."""
    for strategy in ("stored", "light", "checkpointed"):
        yield {"who": "memexp", "what": strategy}, chosen(network(name, batch[0].device), strategy)
    ends, _ = memory.fit(network(name, batch[0].device), functional.cross_entropy, batch, limit=1.0)
    for number in range(budgets):
        limit = ends.least + (ends.most - ends.least) * (number + 0.5) / budgets
        plan, fitted = memory.fit(
            network(name, batch[0].device), functional.cross_entropy, batch, limit=f"{limit:.0f}B", compiled=through
        )
        yield {"who": "memexp", "what": "budget", "budget": plan.budget, "planned": plan.peak}, fitted


def torchs(name: str, shares: list[float], batch: tuple[Tensor, Tensor]) -> Iterator[tuple[dict[str, Any], nn.Module]]:
    """Torch's, the whole network in one graph, each compiled under its own budget and called once."""
    for share in shares:
        # a compiler of its own: what is compiled anew later on, or taken from a cache, is under the same budget
        model: Any = torch.compile(network(name, batch[0].device), backend=within(share), dynamic=False)
        functional.cross_entropy(model(batch[0]), batch[1]).backward()
        yield {"who": "torch.compile", "what": f"budget {share:g}"}, model


def measure(name: str, size: int, options: argparse.Namespace, stack: ExitStack) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (size,), generator=generator)
    batch = images.to(options.device, memory_format=torch.channels_last), labels.to(options.device)
    rows, steps = [], []
    made = [*variants(name, batch, options.budgets), *torchs(name, options.torch, batch)]
    for figures, net in variants(name, batch, options.compiled, True) if options.compiled else ():
        stack.enter_context(compiled(net))
        functional.cross_entropy(net(batch[0]), batch[1]).backward()
        net.zero_grad(set_to_none=True)
        made.append((figures | {"who": "memexp compiled"}, net))
    for figures, net in made:

        def step(net: nn.Module = net) -> None:
            functional.cross_entropy(net(batch[0]), batch[1]).backward()
            net.zero_grad(set_to_none=True)
            if batch[0].is_cuda:
                torch.cuda.synchronize()

        if figures["who"] == "memexp":
            figures["tracked"], figures["kept"] = tracked(step, copy.copy(net), batch)
        else:
            figures["kept"] = kept(net, batch)
        step()
        figures["peak"], _ = allocated(step, options.device)
        rows.append(figures)
        steps.append(step)
    times: list[list[float]] = [[] for _ in steps]
    clock = time.perf_counter if options.device.type == "cuda" else time.process_time
    for _ in range(options.rounds + 1):
        for own, step in zip(times, steps, strict=True):
            started = clock()
            step()
            own.append(clock() - started)
    for figures, own in zip(rows, times, strict=True):
        figures["seconds"] = statistics.median(own[1:])
    for figures in rows:
        figures["over_stored"] = figures["seconds"] / rows[0]["seconds"]
    return rows


def shown(name: str, size: int, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{name}, batch {size}",
        f"{'':28} {'kept MB':>9} {'planned':>9} {'tracked':>9} {'peak MB':>9} {'ms':>8} {'of stored':>9}",
    ]
    for row in rows:
        cells = [f"{row[key] / MB:9.1f}" if key in row else " " * 9 for key in ("kept", "planned", "tracked", "peak")]
        over = "  over its budget" if row.get("tracked", 0) > row.get("budget", float("inf")) else ""
        figures = f"{1e3 * row['seconds']:8.1f} {row['over_stored']:9.2f}"
        lines.append(f"{row['who'] + ' ' + row['what']:28} {' '.join(cells)} {figures}{over}")
    return "\n".join(lines)


def picture(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(found), 3.6), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for who in dict.fromkeys(row["who"] for row in rows):
            points = sorted((row["peak"] / MB, row["over_stored"]) for row in rows if row["who"] == who)
            axes.plot(
                *zip(*points, strict=True), "o-", markersize=3, label=who + (", uncompiled" if who == "memexp" else "")
            )
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("peak of a step beyond what stood before (MB)")
        axes.set_ylabel("time of a step over stored, uncompiled")
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", nargs="+", default=["resnet20:32", "resnet56:100", "revnet110:100"])
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument(
        "--torch", nargs="*", type=float, default=[0.0, 0.3, 0.6, 1.0], help="none: without torch.compile"
    )
    parser.add_argument("--compiled", type=int, default=5, help="budgets with compile=true; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for text in options.networks:
        name, size = text.split(":")
        with ExitStack() as stack:
            found[f"{name}, batch {size}"] = rows = measure(name, int(size), options, stack)
        print(shown(name, int(size), rows), flush=True)
    about = {
        "torch": torch.__version__,
        "threads": options.threads,
        "machine": platform.processor() or platform.machine(),
    }
    (options.out / "bench_budget.json").write_text(json.dumps({"about": about, "networks": found}, indent=1))
    picture(found, options.out / "bench_budget.png")


if __name__ == "__main__":
    main()
