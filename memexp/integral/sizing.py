"""The size of an integral network that meets a target: an equal share of all groups, as nearly as whole channels allow."""

from collections.abc import Callable

from torch import nn

from memexp.integral.network import IntegralNetwork

NEAR = 0.02  # of the target, as pruning has it
STEPS = 20  # halvings of [0, 1]: finer than a channel of any group


def sizes_for(network: IntegralNetwork, left: float, cost: Callable[[nn.Module], float]) -> dict[str, int]:
    """The number of channels of each group whose plain network costs nearest to `left` of the native one's.

    left: above 0 and below 1. cost: of a plain network, such as its parameters or MACs; larger for larger ones. All groups have
    the same share of their native channels; where that is too coarse, the first of them have one channel more.
    Raises ValueError where no size comes within 2 % of it.
    """
    whole = cost(network.discretize(1.0))
    costs: dict[tuple[int, ...], float] = {}

    def at(sizes: dict[str, int]) -> float:
        key = tuple(sizes.values())
        if key not in costs:
            costs[key] = cost(network.discretize(sizes)) / whole
        return costs[key]

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(_equal(network, middle)) < left else (low, middle)
    fewer, more = _equal(network, low), _equal(network, high)
    apart = [name for name in fewer if fewer[name] < more[name]]
    choices = [fewer | {name: more[name] for name in apart[:count]} for count in range(len(apart) + 1)]
    best = min(choices, key=lambda sizes: abs(at(sizes) - left))
    if abs(at(best) / left - 1) > NEAR:
        raise ValueError(
            f"target: {left:g} of the native size cannot be met within {NEAR:.0%}: it comes to {at(best):.3g} at the nearest, "
            f"as sizes are whole channels, at least two of each group, and {len(network.discrete)} groups stay as they are"
        )
    return best


def _equal(network: IntegralNetwork, share: float) -> dict[str, int]:
    return network.counts(max(share, 2.0**-STEPS))
