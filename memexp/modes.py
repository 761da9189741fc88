"""Training and evaluation mode of a network that is only looked at."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, every module is in eval mode; afterwards each is in the mode that it was in."""
    whole, modes = network.training, [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        # a method of the user's that does more (merges weights, and takes them apart) is asked as well
        network.train(whole)
        for module, training in modes:
            module.training = training
