import pytest
import torch

from memexp.backprop import compiled


@pytest.fixture
def partitioned(monkeypatch):
    """Graphs as inductor gets them, run by eager kernels: no C++ compiler, the same choice of what is kept."""
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager_decomp_partition")
    yield
    torch._dynamo.reset()


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made and not rendered: three files of each take longer than all else of a small run."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@pytest.fixture
def unestimated(monkeypatch):
    """Runs are not estimated, which takes longer than the few steps of a small one; tests/memory looks at that."""
    monkeypatch.setattr("memexp.run.estimated_peak", lambda current: None)



@pytest.fixture
def untimed(monkeypatch):
    """Latencies are those of five calls, and not of as many as take 0.2 s."""
    monkeypatch.setattr("memexp.fusing.measure.SECONDS", 0.0)
