"""Training and evaluation mode of a network that is only looked at."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def evaluating(network: nn.Module) -> AbstractContextManager[None]:
    """Inside, every module is in eval mode; afterwards each is in the mode that it was in."""
    return _in_mode(network, False)


def as_trained(network: nn.Module) -> AbstractContextManager[None]:
    """The same in training mode, but for the modules that the network itself keeps in eval mode, as it may in its `train`."""
    return _in_mode(network, True)


def trained_normalisations(network: nn.Module) -> list[_BatchNorm]:
    """Batch normalisations that are in training mode where the network is."""
    with as_trained(network):
        return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]


@contextmanager
def _in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    whole, modes = network.training, [(module, module.training) for module in network.modules()]
    network.train() if training else network.eval()
    try:
        yield
    finally:
        # a method of the user's that does more (merges weights, and takes them apart) is asked as well
        network.train(whole)
        for module, mode in modes:
            module.training = mode
