"""What training takes on a GPU, in time and memory, beside its peers. Parts of gpu_check.py."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from gpu_training import IMAGES, TIMED, Row, Training, peak, verdict

import memexp
from memexp.backprop.compiled import compiled
from memexp.models import families


def times(small: bool) -> Iterator[Row]:
    """Step times over stored's, of one card in one run; and the allocator's peak of a step beside."""
    for batch, precision, graph in (
        (100, "fp32", False),
        (100, "fp32", True),
        (100, "bf16", True),
        (1024, "bf16", True),
    ):
        network = ["model=revnet", "model.depth=110", f"precision={precision}"]
        yield from _beside("times", f"RevNet-110, batch {batch}, {precision}", network, batch, graph=graph)


def through_a_compiler(small: bool) -> Iterator[Row]:
    """The same with compile=true."""
    network = ["model=revnet", "model.depth=38", "precision=bf16"]
    for through in (False, True):
        yield from _beside("compiled", "RevNet-38, batch 100, bf16", network, 100, through=through, graph=True)


def pixels(small: bool) -> Iterator[Row]:
    """The same of ImageNet's sizes."""
    for model, depth in (("resnet", 101), ("revnet", 104)):
        network = [f"model={model}", f"model.depth={depth}", "dataset=imagenet", "precision=bf16"]
        yield from _beside("pixels", f"{model}-{depth} at 224 pixels, batch 128, bf16", network, 128, size=224)


def _beside(
    part: str, label: str, network: list[str], batch: int, through: bool = False, size: int = 32, graph: bool = False
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
            seconds = training.seconds(10)
        base = base or seconds
        told = f"{1e3 * seconds:.1f} ms, {seconds / base:.2f} of stored, peak {found[0] / 2**20:.0f} MiB"
        del training  # before the next one takes its memory
        yield Row(part, f"{label}, {' '.join([strategy, *extra])}", told, "", "measured")


def peers(small: bool) -> Iterator[Row]:
    """memcnn, RevTorch and torch's checkpoints beside it: scripts/bench_engine.py, on this card in one process."""
    for precision in ("fp32", "bf16"):
        options = ["--shapes", "revnet110", "9x32", "--precision", precision, "--repeats", "9", "--graph"]
        rows = {(row["shape"], row["variant"]): row for row in _bench("bench_engine", *options)["rows"]}
        for (shape, name), row in rows.items():
            others = [rows[shape, other] for other in ("memcnn 1.5.2", "RevTorch 0.2.4") if (shape, other) in rows]
            told, limit, held = "", "", True
            if others and name.startswith("reversible"):
                seconds, taken = (min(other[key] for other in others) for key in ("step_median_s", "peak_bytes"))
                limit = f"less than the best of theirs: {1e3 * seconds:.1f} ms, {taken / 2**20:.0f} MiB"
                held = row["peak_bytes"] < taken and row["step_median_s"] < seconds
                # launched one by one, Python's time decides, which is another on each machine
                told = verdict(held) if name.endswith("cuda_graph") else "measured"
            figures = f"{1e3 * row['step_median_s']:.1f} ms, {row['ratio_to_stored']:.2f} of stored"
            figures += f", peak {row['peak_bytes'] / 2**20:.0f} MiB"
            yield Row("peers", f"{shape}, batch 100, {precision}, {name}", figures, limit, told or "measured")


def budgets(small: bool) -> Iterator[Row]:
    """Plans for a budget beside torch.compile's own budgets: scripts/bench_budget.py, on this card in one process."""
    options = ["--networks", "resnet20:1024", "--budgets", "3", "--compiled", "1", "--torch", "0", "0.5"]
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
