import sys
from pathlib import Path

import pytest
import torch

from memexp.backprop import compiled

# `importmode=importlib` leaves sys.path alone; the networks that these tests share are a plain module beside them
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def partitioned(monkeypatch):
    """Graphs as inductor gets them, run by eager kernels: no C++ compiler, the same choice of what is kept."""
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager_decomp_partition")
    yield
    torch._dynamo.reset()
