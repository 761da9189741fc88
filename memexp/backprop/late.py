"""What the engine has to say of a pass, said when it suits: to read it at once is to wait for the device."""

from collections.abc import Callable

from torch import nn

from memexp.backprop.wrapped import chains

Verdicts = list[Callable[[], None]]


def collect(network: nn.Module, verdicts: Verdicts | None) -> None:
    """From now on the network's Chains append to `verdicts` what they have to say; None: they say it at once."""
    for chain in chains(network):
        chain.verdicts = verdicts


def judge(verdicts: Verdicts) -> None:
    """Says all of it, and forgets it. Raises or warns."""
    while verdicts:
        verdicts.pop(0)()
