"""What is read a step late of a device is read before a network is evaluated, so that no wrong weights are the best."""

import pytest

import memexp
from memexp.backprop import StepError
from memexp.training.loop import Trainer

SMALL = [
    *("model=revnet", "model.units=[1,1,1]", "model.channels=[8,8,8,8]", "dataset=digits", "dataset.limit=32"),
    *("dataset.test_limit=16", "batch_size=16", "max_steps=4", "memory.steps=1", "precise_batchnorm=false"),
]


def test_a_step_that_was_wrong_is_never_the_best(tmp_path, monkeypatch):
    step = Trainer._step

    def wrong():
        raise StepError("a stream reaches 300")

    def last_of_the_epoch(self, batches):
        loss = step(self, batches)
        if self.progress.step == 1:
            self._verdicts.append(wrong)
        return loss

    monkeypatch.setattr(Trainer, "_step", last_of_the_epoch)
    with pytest.raises(StepError, match="reaches 300"):
        memexp.run(memexp.compose(SMALL), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))
