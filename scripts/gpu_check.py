"""What memexp does on a GPU, part by part: measured, expected, verdict. Without one, the parts that need none are done on an
accelerator that is emulated on the CPU (emulated_accelerator.py), and nothing is said of times.

    python scripts/gpu_check.py [OUT] [--parts placement,memory,...] [--small]

Each part has a box of time; one that fails or runs over writes its row and the next goes on. Writes gpu_check.json and
gpu_check.md to OUT (outputs/gpu_check). Exit status 1 if a verdict is "wrong" or "failed".
"""

import argparse
import gc
import json
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
GPU = torch.cuda.is_available()
if not GPU:
    import emulated_accelerator as npu

import memexp  # noqa: E402  once the emulated accelerator is registered
from memexp import backprop, build  # noqa: E402
from memexp.backprop.compiled import compiled  # noqa: E402
from memexp.memory.scratch import scratch  # noqa: E402
from memexp.models import families  # noqa: E402
from memexp.training import recipe  # noqa: E402
from memexp.training.graphed import Graphed  # noqa: E402
from memexp.training.loop import Trainer  # noqa: E402

DEVICE = torch.device("cuda:0" if GPU else "npu:0")
IMAGES = ["dataset=cifar10"]
SMALL = {
    "revnet": ["model=revnet", "model.units=[2,1]", "model.channels=[8,8,16]"],
    "resnet": ["model=resnet", "model.kind=simple", "model.depth=4"],
    "heunnet": ["model=heunnet", "model.depth=4"],
    "reducenet": ["model=reducenet", "model.depth=8"],
    "inn": ["model=inn", "model.base=resnet8"],
    "vgg16": ["model=vgg16", "model.layout=cifar"],
}


@dataclass
class Row:
    """One thing that was looked at. verdict: right, wrong, measured (nothing is expected of it) or failed."""

    part: str
    what: str
    measured: str
    expected: str
    verdict: str


class Training:
    """A training step of a configuration on random images, on the device."""

    def __init__(self, *overrides: str, batch: int = 8, size: int = 32, graph: bool = False) -> None:
        self.cfg = memexp.compose([*IMAGES, f"batch_size={batch}", *overrides])
        torch.manual_seed(0)
        network = build.network(self.cfg).to(DEVICE)
        self.network = network.to(memory_format=torch.channels_last) if GPU else network
        self.recipe = recipe.make(self.cfg, self.network, DEVICE, 10)
        self.recipe.precision.set_up()
        if graph:
            self.recipe.graphed = Graphed(self.network)
        self.verdicts: list[Callable[[], None]] = []
        for chain in backprop.chains(self.network):
            chain.verdicts = self.verdicts  # as the training loop does
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, size, size, generator=generator)
        self.batch = images.to(DEVICE), torch.randint(10, (batch,), generator=generator).to(DEVICE)

    def step(self) -> Tensor:
        return self.recipe.step(self.network, [self.batch])

    def judge(self) -> None:
        """What the engine has to say of the steps so far. Raises or warns."""
        while self.verdicts:
            self.verdicts.pop(0)()

    def weights(self, steps: int) -> dict[str, Tensor]:
        for _ in range(steps):
            self.step()
        self.judge()
        return {name: value.detach().cpu() for name, value in self.network.state_dict().items()}

    def seconds(self, steps: int = 20) -> float:
        for _ in range(5):
            self.step()
        times = []
        for _ in range(steps):
            wait()
            started = time.perf_counter()
            self.step()
            wait()
            times.append(time.perf_counter() - started)
        self.judge()
        return statistics.median(times)


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def verdict(right: bool) -> str:
    return "right" if right else "wrong"


def placement(small: bool) -> Iterator[Row]:
    """Every model, strategy and precision: all tensors on the device, a finite loss."""
    for name, overrides in SMALL.items():
        cfg = memexp.compose([*IMAGES, *overrides])
        for strategy in families.proposed(cfg.model, ()):
            for precision in ("fp32", "bf16") if small else ("fp32", "tf32", "bf16", "fp16"):
                limit = ["backprop.limit=0.5"] if strategy == "budget" else []
                try:
                    training = Training(*overrides, f"backprop={strategy}", f"precision={precision}", *limit, batch=4)
                    loss = float(training.step())
                    away = [key for key, value in training.network.state_dict().items() if value.device != DEVICE]
                    found, right = f"loss {loss:.3f}", not away and loss == loss
                except Exception as error:
                    found, right = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}", False
                yield Row("placement", f"{name}, {strategy}, {precision}", found, "all on the device", verdict(right))


def memory(small: bool) -> Iterator[Row]:
    """The allocator's peak against the estimate and what kernels take beside tensors, and how it grows with depth."""
    batch = 16 if small else 100
    flat = {}
    cases = [("revnet", depth, strategy) for depth in (38, 74, 110) for strategy in ("stored", "reversible")]
    cases += [("revnet", 164, "reversible"), ("resnet", 32, "stored"), ("resnet", 110, "light")]
    for model, depth, strategy in cases[1:2] + cases[3:4] + cases[7:8] if small else cases:
        overrides = [f"model={model}", f"model.depth={depth}", f"backprop={strategy}"]
        training = Training(*overrides, batch=batch)
        training.step()
        training.step()
        with peak() as found:
            training.step()
        kernels = scratch(training.step, DEVICE)
        expected = memexp.estimate(training.cfg)["peak"] + kernels
        own = sum(value.numel() * value.element_size() for value in training.network.state_dict().values())
        flat[model, depth, strategy] = found[0] - 3 * own  # weights, gradients and momentum
        near = 0.95 < found[0] / expected < 1.02
        label = f"{model}-{depth}, {strategy}, batch {batch}"
        told = f"{expected / 2**20:.1f} MiB" + (f", {kernels / 2**20:.1f} of it in kernels" if kernels else "")
        yield Row("memory", label, f"{found[0] / 2**20:.1f} MiB", told, verdict(near))
    most = 74 if small else 110
    growth = flat["revnet", most, "reversible"] / flat["revnet", 38, "reversible"]
    label = f"revnet-{most} over revnet-38, reversible, without weights"
    yield Row("memory", label, f"{growth:.2f}", "flat: below 1.1", verdict(growth < 1.1))


@contextmanager
def peak() -> Iterator[list[int]]:
    """Bytes at the peak of what is done inside."""
    found: list[int] = []
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append(torch.cuda.max_memory_allocated())
    else:
        npu.memory.peak = npu.memory.live
        yield found
        found.append(npu.memory.peak)


def exact(small: bool) -> Iterator[Row]:
    """Bitwise the weights of stored after some steps, whatever the precision and the choice of kernels."""
    steps, revnet = (2 if small else 10), SMALL["revnet"]
    for precision in ("fp32", "bf16") if not GPU else ("fp32", "tf32", "bf16"):
        for autotuned, deterministic in ((False, True), (False, False), (True, False)) if GPU else ((False, False),):
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = autotuned, deterministic
            ways = [(strategy, False) for strategy in ("stored", "reversible", "checkpointed")]
            for strategy, graph in [*ways, *((strategy, True) for strategy, _ in ways if GPU)]:
                options = [f"backprop={strategy}", "backprop.exact=true", f"precision={precision}"]
                weights = Training(*revnet, *options, graph=graph).weights(steps)
                if (strategy, graph) == ways[0]:
                    expected = weights
                    continue
                right = same(expected, weights)
                label = f"{precision}, {strategy}{', cuda_graph' if graph else ''}, autotuned={autotuned}"
                label += f", deterministic={deterministic}, {steps} steps"
                yield Row("exact", label, "stored's bits" if right else "others", "stored's bits", verdict(right))
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False


def drift(small: bool) -> Iterator[Row]:
    """How far the reversible gradient is from stored's without exact."""
    for precision, most in (("fp32", 1e-4), ("bf16", 0.3)):
        networks = [
            Training(*SMALL["revnet"], f"backprop={strategy}", f"precision={precision}")
            for strategy in ("stored", "reversible")
        ]
        gradients = []
        for training in networks:
            with training.recipe.precision.autocast():
                loss = training.recipe.loss_fn(training.network(training.batch[0]), training.batch[1])
            loss.backward()
            gradients.append(
                torch.cat([p.grad.flatten().float().cpu() for p in training.network.parameters() if p.grad is not None])
            )
        error = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
        yield Row("drift", f"gradient, {precision}", f"{error:.1e}", f"below {most:g}", verdict(error < most))


def resuming(small: bool) -> Iterator[Row]:
    """A run of the command, stopped and resumed: the same weights as one that was not."""
    run = [*SMALL["revnet"], "dataset=digits", "dataset.limit=96", "dataset.test_limit=40", f"device={DEVICE.type}"]
    run += ["epochs=2", "monitor_every=0", "deterministic=true", "ema=0.9"]
    with tempfile.TemporaryDirectory() as folder:
        memexp.run(memexp.compose(run), f"{folder}/whole")
        original = Trainer._step

        def stopping(self: Trainer, batches: Any) -> Tensor:
            if self.progress.step == 3:
                raise KeyboardInterrupt
            return original(self, batches)

        with patch.object(Trainer, "_step", stopping), suppress(KeyboardInterrupt):
            memexp.run(memexp.compose([*run, "checkpoint_every=3"]), f"{folder}/parts")
        memexp.resume(f"{folder}/parts")
        states = [
            torch.load(f"{folder}/{name}/checkpoints/last.pt", weights_only=True, map_location="cpu")["model"]
            for name in ("whole", "parts")
        ]
        right = same(*states)
    yield Row(
        "resuming",
        "train, stopped after 3 of 6 steps",
        "the same bits" if right else "others",
        "the same bits",
        verdict(right),
    )


def waiting(small: bool) -> Iterator[Row]:
    """Reads of the host between the start of a step and the end of its backward."""
    for strategy, extra in STRATEGIES:
        training = Training(*SMALL["revnet"], f"backprop={strategy}", *extra)
        training.step()
        label = " ".join([strategy, *extra])
        if GPU:
            torch.cuda.set_sync_debug_mode("error")
            try:
                training.step()
                found, right = "none", True
            except RuntimeError as error:
                found, right = str(error).splitlines()[0][:80], False
            finally:
                torch.cuda.set_sync_debug_mode("default")
        else:
            with npu.counted() as counts:
                training.step()
            right = not counts.reads
            found = "; ".join(f"{count} x {line}" for line, count in counts.reads.items()) or "none"
        yield Row("waiting", label, found, "none", verdict(right))


STRATEGIES: list[tuple[str, list[str]]] = [
    ("stored", []),
    ("checkpointed", []),
    ("reversible", []),
    ("reversible", ["backprop.exact=true"]),
]
TIMED = [STRATEGIES[0], ("light", []), *STRATEGIES[1:]]


def launches(small: bool) -> Iterator[Row]:
    """Kernels of a training step of RevNet-38, over stored's and a forward pass's."""
    counted = {}
    for strategy, extra in STRATEGIES:
        training = Training("model=revnet", "model.depth=38", f"backprop={strategy}", *extra, batch=4)
        training.step()
        counted[strategy, *extra] = kernels(training.step)
    training = Training("model=revnet", "model.depth=38", "backprop=stored", batch=4)

    def forward() -> None:
        with torch.no_grad():
            training.network(training.batch[0])

    whole = counted["stored",] + kernels(forward)
    most = {("reversible",): 1.15, ("reversible", "backprop.exact=true"): 1.3}
    for key, count in counted.items():
        limit = most.get(key)
        told = verdict(count <= limit * whole) if limit else "measured"
        expected = f"at most {limit} of {whole}" if limit else ""
        yield Row("launches", " ".join(key), str(count), expected, told)


def kernels(function: Callable[[], Any]) -> int:
    if not GPU:
        with npu.counted() as counts:
            function()
        return counts.kernels
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        wait()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def limits(small: bool) -> Iterator[Row]:
    """A run that does not fit ends with a message that says what would."""
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        run = [
            "model=revnet",
            "model.depth=110",
            "backprop=stored",
            "dataset=synthetic",
            "batch_size=4096",
            "max_steps=2",
        ]
        with tempfile.TemporaryDirectory() as folder:
            try:
                memexp.run(memexp.compose([*run, "device=cuda", "dataset.images=4096"]), folder)
                found = "it ran"
            except torch.OutOfMemoryError:
                found = json.loads((Path(folder) / "results.json").read_text())["error"].splitlines()[-1][:100]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    yield Row("limits", "RevNet-110, batch 4096, 2 % of the memory", found, "what fits", verdict(found != "it ran"))


def times(small: bool) -> Iterator[Row]:
    """Step times over stored's, of one card in one run; and the allocator's peak of a step beside."""
    cifar = ["model=revnet", "model.depth=110"]
    for graph in (True, False):
        for batch in (100, 1024):
            for precision in ("fp32", "bf16"):
                network = [*cifar, f"precision={precision}"]
                yield from _beside(f"RevNet-110, batch {batch}, {precision}", network, batch, graph=graph)
    yield from _beside("RevNet-110, batch 100, fp32", cifar, 100, through=True)


def pixels(small: bool) -> Iterator[Row]:
    """The same of ImageNet's sizes."""
    for model, depth in (("resnet", 101), ("revnet", 104)):
        network = [f"model={model}", f"model.depth={depth}", "dataset=imagenet", "precision=bf16"]
        for through in (False, True):
            yield from _beside(
                f"{model}-{depth} at 224 pixels, batch 128, bf16", network, 128, through=through, size=224
            )


def _beside(
    label: str, network: list[str], batch: int, through: bool = False, size: int = 32, graph: bool = False
) -> Iterator[Row]:
    label += ", compiled" * through + ", cuda_graph" * graph
    base = 0.0
    for strategy, extra in TIMED:
        overrides = [*network, f"backprop={strategy}", *extra]
        if strategy not in families.proposed(memexp.compose([*IMAGES, *network]).model, ()):
            continue
        torch.cuda.empty_cache()
        training = Training(*overrides, batch=batch, size=size, graph=graph)
        with (
            compiled(training.network) if through else nullcontext(),
            peak() as found,
        ):  # a recording takes its memory once
            seconds = training.seconds(12)
        base = base or seconds
        told = f"{1e3 * seconds:.1f} ms, {seconds / base:.2f} of stored, peak {found[0] / 2**20:.0f} MiB"
        del training  # before the next one takes its memory
        yield Row("times", f"{label}, {' '.join([strategy, *extra])}", told, "", "measured")


def peers(small: bool) -> Iterator[Row]:
    """memcnn, RevTorch and torch's checkpoints beside it: scripts/bench_engine.py, on this card in one process."""
    for precision in ("fp32", "bf16"):
        found = _bench("bench_engine", "--shapes", "revnet110", "9x32", "--precision", precision, "--repeats", "11")
        rows = {(row["shape"], row["variant"]): row for row in found["rows"]}
        theirs = [name for name in ("memcnn 1.5.2", "RevTorch 0.2.4") if ("9x32", name) in rows]
        for (shape, name), row in rows.items():
            others = [rows[shape, other]["step_median_s"] for other in theirs]
            against = min(others) if name.startswith("reversible") and others else None
            yield Row(
                "peers",
                f"{shape}, batch {found['batch']}, {precision}, {name}",
                f"{1e3 * row['step_median_s']:.1f} ms, {row['ratio_to_stored']:.2f} of stored, "
                f"peak {row['peak_bytes'] / 2**20:.0f} MiB",
                f"at most {1e3 * against:.1f} ms, the faster peer's" if against else "",
                verdict(row["step_median_s"] <= against) if against else "measured",
            )


def budgets(small: bool) -> Iterator[Row]:
    """Plans for a budget beside torch.compile's own budgets: scripts/bench_budget.py, on this card in one process."""
    options = ["--networks", "resnet56:256", "--budgets", "4", "--compiled", "3", "--torch", "0", "0.5", "1"]
    for label, rows in _bench("bench_budget", *options)["networks"].items():
        for row in rows:
            held = row.get("tracked", 0) <= row.get("budget", float("inf"))
            told = (
                f"{1e3 * row['seconds']:.1f} ms, {row['over_stored']:.2f} of stored, peak {row['peak'] / 2**20:.0f} MiB"
            )
            limit = f"within {row['budget'] / 2**20:.0f} MiB as tracked" if "budget" in row else ""
            yield Row(
                "budgets", f"{label}, {row['who']} {row['what']}", told, limit, verdict(held) if limit else "measured"
            )


def _bench(name: str, *options: str) -> dict[str, Any]:
    """What a benchmark writes down. Raises what it said where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), folder, "--device", "cuda", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        found: dict[str, Any] = json.loads((Path(folder) / f"{name}.json").read_text())
        return found


@dataclass
class Part:
    carry_out: Callable[[bool], Iterator[Row]]
    seconds: int
    needs_gpu: bool = False


PARTS = {
    "placement": Part(placement, 70),
    "memory": Part(memory, 40),
    "exact": Part(exact, 50),
    "drift": Part(drift, 10),
    "resuming": Part(resuming, 30),
    "waiting": Part(waiting, 20),
    "launches": Part(launches, 20),
    "limits": Part(limits, 20, needs_gpu=True),
    "times": Part(times, 80, needs_gpu=True),
    "pixels": Part(pixels, 70, needs_gpu=True),
    "peers": Part(peers, 60, needs_gpu=True),
    "budgets": Part(budgets, 60, needs_gpu=True),
}


class OverTime(Exception):
    """A part has used up its box of time."""


def boxed(name: str, part: Part, small: bool) -> Iterator[Row]:
    """The rows of a part, and one of how it ended if that was not its end."""

    def over(*_: Any) -> None:
        raise OverTime

    gc.collect()  # no part pays for another's networks
    signal.signal(signal.SIGALRM, over)
    signal.alarm(part.seconds if GPU else 4 * part.seconds)
    try:
        yield from part.carry_out(small)
    except OverTime:
        yield Row(name, "the rest", f"not done within {part.seconds} s", "", "measured")
    except Exception as error:
        yield Row(name, "the rest", f"{type(error).__name__}: {str(error).splitlines()[0][:100]}", "", "failed")
    finally:
        signal.alarm(0)


def machine() -> dict[str, str | None]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "device": torch.cuda.get_device_name() if GPU else "emulated on the CPU: nothing is said of times",
        "driver": _driver() if GPU else None,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()) if GPU else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--parts", default=",".join(PARTS), help="those to do, with commas between")
    parser.add_argument("--small", action="store_true", default=not GPU, help="less of each part; without a GPU always")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts.split(",") if name not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)} is not one of {', '.join(PARTS)}")
    about, rows = machine(), []
    print(", ".join(f"{key} {value}" for key, value in about.items() if value))
    for name in options.parts.split(","):
        part = PARTS[name]
        if part.needs_gpu and not GPU:
            rows.append(Row(name, "all of it", "needs a GPU", "", "measured"))
            continue
        for row in boxed(name, part, options.small):
            rows.append(row)
            print(f"{row.part:10} {row.what:55} {row.measured:50} {row.expected:28} {row.verdict}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table = ["| part | what | measured | expected | verdict |", "|---|---|---|---|---|"]
    table += [f"| {row.part} | {row.what} | {row.measured} | {row.expected} | {row.verdict} |" for row in rows]
    (options.out / "gpu_check.json").write_text(
        json.dumps({"machine": about, "rows": list(map(asdict, rows))}, indent=1)
    )
    (options.out / "gpu_check.md").write_text("\n".join(table) + "\n")
    return int(any(row.verdict in ("wrong", "failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
