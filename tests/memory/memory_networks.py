"""Small networks and one way to train them, with data and without."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional

from memexp import models
from memexp.backprop import Chain
from memexp.memory.fake import emptied, without_data
from memexp.memory.tracker import Tracker
from memexp.training.precision import Precision
from memexp.training.step import train_step

CPU = torch.device("cpu")


def network(family: str, strategy: str, **options) -> nn.Module:
    chain = functools.partial(Chain, backprop=strategy, **options)
    sizes = {"depth": 38 if family == "revnet" else 20, "units": [2, 2], "channels": [8, 8, 16]}
    return models.create(family, classes=10, shape=(3, 16, 16), chain=chain, **sizes)


@contextmanager
def tracked(family: str, strategy: str, precision: str = "fp32", fake: bool = False, accumulate: int = 1) -> Iterator:
    """Two training steps at 2 images, followed; gives the tracker."""
    model = network(family, strategy).to(memory_format=torch.channels_last)
    with without_data() if fake else nullcontext():
        model = emptied(model) if fake else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        tracker = Tracker(model, optimizer)
        for _ in range(2):
            batches = [(torch.randn(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64)) for _ in range(accumulate)]
            tracker.add_inputs([tensor for batch in batches for tensor in batch])
            with tracker:
                train_step(model, functional.cross_entropy, optimizer, batches, Precision(precision, CPU))
        yield tracker
