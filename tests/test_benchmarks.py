"""The comparisons in scripts/ run, each as small as it goes: nothing else notices when what they call has changed its name."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SMALL = {
    "bench_loop": ("--rounds 1 --steps 8 --batch 4 --depth 8", "ratio "),
    "bench_optim": ("--depth 8 --steps 2", "memexp Ranger"),
    "bench_data": ("--images 40 --rounds 1 --batch 8", "images/s"),
    "bench_integral": ("--batch 2 --rounds 2", "native"),
    "bench_channels": ("--only resnet18 --size 64 --repeats 1", "resnet18"),
    "bench_engine": ("OUT --shapes 2x8 --batch 4 --repeats 1", "reversible"),
    "bench_budget": ("OUT --networks resnet8:4 --budgets 2 --compiled 0 --torch --rounds 1", "memexp"),
}


def test_every_one_is_tried():
    assert {path.stem for path in SCRIPTS.glob("bench_*.py")} == set(SMALL)


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name, tmp_path):
    options, told = SMALL[name]
    command = [sys.executable, SCRIPTS / f"{name}.py", *options.replace("OUT", str(tmp_path)).split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert told in done.stdout
