import pytest
import torch

from memexp.backprop import compiled


@pytest.fixture
def partitioned(monkeypatch):
    """Graphs as inductor gets them, run by eager kernels: no C++ compiler, the same choice of what is kept."""
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager_decomp_partition")
    yield
    torch._dynamo.reset()
