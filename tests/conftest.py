import copy
import gc
from functools import cache

import pytest
import torch
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

import memexp.overriding  # noqa: F401  which tells Hydra where plugins are, before it looks for them
from memexp.backprop import compiled
from memexp.paths import CONF


def pytest_collection_finish():
    """What is imported by now stays: the collector, which went through it again and again, has a seventh of all time less."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _parsed_once():
    """The files of conf/, which no test changes, are parsed once and not in each of thousands of compositions."""
    Plugins.instance()  # which registers what reads files
    files = SourcesRegistry.instance().resolve("file")
    load, source = files.load_config, files("main", f"file://{CONF}")
    parsed = cache(lambda name: load(source, name))

    def known(self, config_path):
        same = (self.provider, self.path) == (source.provider, source.path)
        return copy.deepcopy(parsed(config_path)) if same else load(self, config_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "load_config", known)
        yield


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
