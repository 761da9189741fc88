"""What one stage of pruning and tuning takes from those before it."""

from types import SimpleNamespace

import pytest

import memexp
from memexp.stages.prune import _of_round
from memexp.training import checkpoint

DATA = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=20", "batch_size=32", "device=cpu", "monitor_every=0"]
SHORT = ["epochs=1", "max_steps=2", "tune.epochs=1", "tune.max_steps=2", "memory.steps=1"]


@pytest.mark.parametrize("measure", ["macs", "params", "latency"])
def test_a_round_makes_up_for_what_the_one_before_missed(measure):
    """Of latency on a machine that became slower meanwhile: both networks were timed once more, side by side."""
    prune = {"prune": "l1_norm", "prune.target": f"{measure}:0.64", "prune.rounds": "2"}
    cfg = memexp.compose([f"{key}={value}" for key, value in prune.items()])
    count = {"before": 100, "after": 90}
    timed = {"before": 0.5, "predicted": 0.4, "before_at_end": 1.0, "after": 0.9}
    first = {"key": "prune-1", "prune": {"macs": count, "parameters": count, "latency": timed}}
    run = SimpleNamespace(cfg=cfg, finished=[first])
    assert float(_of_round(run).target.partition(":")[2]) == pytest.approx(0.64 / 0.9)


def test_activations_vanish_for_new_weights_too(tmp_path):
    asked = ["model=reducenet", "model.depth=8", "tune.scratch=true"]
    memexp.run(memexp.compose([*asked, *DATA, *SHORT, "stages=[train,tune]"]), tmp_path)
    weights = checkpoint.load(tmp_path / "checkpoints/last.pt")["model"]
    assert {float(value) for name, value in weights.items() if name.endswith(".value")} == {0.0}
