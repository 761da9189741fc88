"""What the tests of runs on disk share: small runs, and what is done to them."""

import json
from pathlib import Path

import torch

TINY = ["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", "dataset=digits", "device=cpu", "log_every=1"]
TINY += ["dataset.limit=96", "dataset.test_limit=40"]
SHORT = ["model=resnet", "model.units=[1]", "model.channels=[4,4]", "dataset=digits", "dataset.limit=32"]
SHORT += ["dataset.test_limit=16", "max_steps=1"]
OLD = Path(__file__).parents[1] / "runs" / "schema-1"  # written by the version before stages


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def flipped_bit(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    state["model"]["stem.0.weight"].view(torch.int32)[0] ^= 1
    torch.save(state, run / "checkpoints/last.pt")
