"""Run directories as a run leaves them, without a run."""

import json
from pathlib import Path

from memexp.record import SCHEMA


def add(
    root: Path, folder: str, model: str = "resnet", depth: int = 32, top1: float = 70.0, seed: int = 0, **more
) -> None:
    results = {
        "schema": SCHEMA,
        "status": "done",
        "seed": seed,
        "model": model,
        "dataset": "cifar10",
        "backprop": "stored",
        "overrides": [f"model={model}", f"model.depth={depth}", f"seed={seed}"],
        "config": {"model": {"name": model, "depth": depth}, "batch_size": 100},
        "parameters": 1000 * depth,
        "accuracy": {"top1": top1, "error": 100 - top1},
        "memory": {"peak": depth * 2**20, "activations": depth * 2**19, "how": "tracked"},
        "time": {"step_median": depth / 1000, "images_per_second": 10.0},
    }
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "results.json").write_text(json.dumps(results | more, default=str))


def log(root: Path, folder: str, *entries: dict) -> None:
    (root / folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
