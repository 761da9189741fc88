"""The run on disk of which the tests of this folder take copies."""

import shutil
import sys
from pathlib import Path

import pytest

import memexp

# `importmode=importlib` leaves sys.path alone; what these tests share is a plain module beside them
sys.path.insert(0, str(Path(__file__).parent))

from saved_runs import TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    memexp.run(memexp.compose([*TINY, "epochs=2"]), path)
    return path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")
