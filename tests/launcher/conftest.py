"""Jobs of a sweep without their processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from memexp import jobs
from memexp.jobs import Job, Sweep

# `importmode=importlib` leaves sys.path alone; what these tests share is a plain module beside them
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(0, ["model.depth=8"], tmp_path / "job", hash="abc")


@pytest.fixture
def run(job, monkeypatch):
    def carry_out(processes, sweep: Sweep | None = None) -> str:
        monkeypatch.setattr(jobs, "run_process", processes)
        jobs.carry_out(job, sweep or Sweep("config", []))
        return str(job.status)

    return carry_out


@pytest.fixture
def started(monkeypatch) -> list[tuple[list[str], dict]]:
    """Commands and options of the processes that are started; in their place, one that does nothing."""
    calls: list[tuple[list[str], dict]] = []
    original = subprocess.Popen

    def popen(command, **options):
        calls.append((command[3:], options))
        return original([sys.executable, "-c", "pass"])

    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    return calls
