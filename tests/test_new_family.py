"""A further family is one module, one entry, one YAML: with these three it trains, is estimated, planned and compared."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import memexp

MODULE = '''
from torch import nn

from memexp.backprop import EulerStep


def build(*, classes, shape, chain, depth, width=8):
    """Residual convolutions of one width."""
    steps = [EulerStep(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Tanh()), 1 / depth) for _ in range(depth)]
    stem = nn.Conv2d(shape[0], width, 3, stride=4)
    return nn.Sequential(stem, chain(steps), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
'''
ENTRY = """

@dataclass
class PlainOptions:
    name: str
    depth: Positive
    width: Positive


FAMILIES["plain"] = Family(
    "memexp.models.plain.build",
    PlainOptions,
    ("stored", "checkpointed", "adjoint", "budget"),
    depths=lambda model, shape: Depths(range(1, 30)),
)
"""
SMALL = ["model=plain", "dataset.limit=64", "dataset.test_limit=20", "device=cpu", "batch_size=16"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The project with the three additions."""
    top = tmp_path_factory.mktemp("project")
    here = Path(memexp.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(here, top / "memexp", ignore=ignored)
    shutil.copytree(here.parent / "conf", top / "conf", ignore=ignored, dirs_exist_ok=True)
    (top / "memexp/models/plain.py").write_text(MODULE)
    with open(top / "memexp/models/families.py", "a") as file:
        file.write(ENTRY)
    (top / "conf/model/plain.yaml").write_text("name: plain\ndepth: 6\nwidth: 8\n")
    return top


def run(tree: Path, *commands: list[str]) -> str:
    """What the commands print, in one process of that project."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    code = f"from memexp.cli import main; raise SystemExit(max(map(main, {commands!r})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(tree) -> str:
    """What a training under a budget prints, and an estimate with what fits behind it."""
    train = ["train", *SMALL, "max_steps=4", "backprop=budget", "backprop.limit=0.95", "hydra.run.dir=run"]
    return run(tree, train, ["estimate", *SMALL, "memory.limit=1200kB", "--json"])


def test_it_trains_under_a_strategy_of_its_own_and_is_planned(tree, told):
    results = json.loads((tree / "run/results.json").read_text())
    assert results["status"] == "done"
    assert results["memory"]["peak"] == results["strategy"]["predicted"]["peak"] <= results["strategy"]["budget"]


def test_it_is_estimated_with_what_fits(told):
    found = json.loads(told.splitlines()[-1])
    assert found["limit"]["depth"] in range(1, 30)
    assert {name for name, *_ in found["limit"]["strategies"]} == {"stored", "checkpointed", "adjoint", "budget"}


@pytest.mark.long
def test_its_strategies_are_compared(tree):
    run(tree, ["bench", *SMALL, "--steps", "1", "--output", "bench"])
    found = json.loads((tree / "bench/bench.json").read_text())
    assert [case["name"] for case in found] == ["stored", "checkpointed", "adjoint"]
    assert [case["error"] for case in found] == [None] * 3


def test_what_it_does_not_have_is_refused(tree):
    code = "import memexp; memexp.compose(['model=plain', 'backprop=reversible', 'model.widht=3'])"
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert "Did you mean 'model.width'?" in done.stderr
