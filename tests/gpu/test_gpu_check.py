"""scripts/gpu_check: on a GPU each of its parts is a test; without one, its parts on an accelerator emulated on the CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"
PARTS = ["placement", "memory", "exact", "drift", "resuming", "waiting", "launches", "limits"]
# kernels of a training step of RevNet-38 (batch 4): a change that launches more shows here
LAUNCHES = {"stored": 333, "checkpointed": 456, "reversible": 464, "reversible backprop.exact=true": 635}


def checked(folder: Path, parts: str) -> list[dict[str, str]]:
    """The rows without a GPU, from a process of its own: an accelerator is registered once and for good."""
    command = [sys.executable, SCRIPT, folder, "--parts", parts]
    without = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=without)
    path = folder / "gpu_check.json"
    assert path.is_file(), done.stderr[-2000:]
    rows: list[dict[str, str]] = json.loads(path.read_text())["rows"]
    assert (done.returncode == 0) == all(row["verdict"] in ("right", "measured") for row in rows)
    return rows


def test_launches_and_waits_of_each_strategy(tmp_path):
    rows = checked(tmp_path, "launches,waiting,drift")
    launches = {row["what"]: int(row["measured"]) for row in rows if row["part"] == "launches"}
    assert launches == LAUNCHES
    waits = {row["what"]: row["measured"] for row in rows if row["part"] == "waiting"}
    assert set(waits) == set(LAUNCHES)
    assert set(waits.values()) == {"none"}  # the host reads nothing in the middle of a step
    assert [row["verdict"] for row in rows if row["part"] == "drift"] == ["right", "right"]


def test_a_part_that_there_is_not_is_refused(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, "--parts", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "nonsense is not one of placement" in done.stderr


@pytest.mark.long
def test_every_part_that_needs_no_gpu(tmp_path):
    rows = checked(tmp_path, "placement,memory,exact,resuming")
    assert len(rows) > 40
    assert [row for row in rows if row["verdict"] != "right"] == []


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_on_a_gpu(part):
    if not torch.cuda.is_available():
        pytest.fail("there is no GPU here; these tests are chosen with -m gpu")
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    rows = list(module.boxed(part, module.PARTS[part], small=False))
    assert rows
    assert [row for row in rows if row.verdict in ("wrong", "failed")] == []
