"""A key of a group that is itself swept, or that an experiment's cases choose, which the configuration does not have before."""

import pytest

from memexp.hydra_app import _job_by_job


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("prune.ratio=0.3", "prune.ratio=choice(0.3)"),
        ("optimizer.lr=0.1", "optimizer.lr=0.1"),
        ("prune.ratio=0.3,0.5", "prune.ratio=0.3,0.5"),
        ("seed=1", "seed=1"),
        ("model.base=vgg11", "model.base=choice(vgg11)"),
    ],
)
def test_it_is_looked_at_job_by_job(text, given):
    swept = ["prune", "prune.ratio"] if "," in text else ["prune"]
    assert _job_by_job(text, swept, ["model.base=vgg11"]) == given
