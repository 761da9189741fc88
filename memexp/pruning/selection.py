"""Which channels go, and in what order: a scope turns scores into one list of removals, of which a prefix is carried out.

layer     every layer gives the same share of its channels, its least scores first
global    least scores of the whole network first, but each layer keeps a share (`floor`) of its channels
list      each named layer gives its own share, all others nothing

A share r of n channels leaves floor((1 - r) n), as Li et al. 2017 count, and never fewer than one. In rounds n is the number of
channels before the first (`whole`): rounded anew in each, shares would add up to more.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

Channel = tuple[int, int]  # group, channel
Scores = Mapping[int, Sequence[float]]  # group -> the score of each channel
Sizes = Mapping[int, int]  # group -> its channels
Kept = dict[int, list[int]]  # group -> the channels that stay; groups that lose none are left out
Cost = Callable[[Kept], float]

TOLERANCE = 0.02  # how far from a target a pruned network may be, relative to it
CLOSE = 0.005  # how near to a target a search ends early
FURTHER = 64  # removals that are tried one by one where single channels cost much


class OutOfReach(ValueError):
    """A target that is not met however much goes."""


def left(channels: int, ratio: float) -> int:
    """How many of a layer's channels a share leaves."""
    return max(1, math.floor((1 - ratio) * channels + 1e-9))


def by_layer(scores: Scores, whole: Sizes) -> list[Channel]:
    """Every layer in step: after a share of this list each layer has lost that share."""
    ranked = [
        (removed / whole[group], group, channel)
        for group, score in scores.items()
        for removed, channel in enumerate(_least_first(score)[:-1], start=whole[group] - len(score) + 1)
    ]
    return [(group, channel) for _, group, channel in sorted(ranked, key=lambda entry: entry[:2])]


def over_all(scores: Scores, whole: Sizes, floor: float, comparable: bool) -> list[Channel]:
    """Least scores first, until each layer has its floor. Scores that are not comparable are divided by their layer's rms."""
    ranked = []
    for group, score in scores.items():
        rms = 1.0 if comparable else math.sqrt(sum(s * s for s in score) / len(score)) or 1.0
        leaving = _leaving(score, at_least(whole[group], floor))
        ranked += [(score[channel] / rms, group, channel) for channel in leaving]
    return [(group, channel) for _, group, channel in sorted(ranked)]


def share_of_all(removals: Sequence[Channel], sizes: Sizes, whole: Sizes, ratio: float) -> Sequence[Channel]:
    """As many of `removals` as make it the share `ratio` of all channels. Raises ValueError where floors leave fewer to go."""
    total = sum(sizes.values())
    count = max(0, total - left(sum(whole.values()), ratio))
    if count > len(removals):
        raise ValueError(
            f"ratio={ratio:g} is {count} of {total} channels, and with every layer at its floor {len(removals)} go: choose a "
            "smaller ratio or a smaller floor"
        )
    return removals[:count]


def layer_by_layer(scores: Scores, staying: Mapping[int, int]) -> list[Channel]:
    """One layer after the other, in the order of `staying`: how many channels of each stay."""
    return [(group, channel) for group, count in staying.items() for channel in _leaving(scores[group], count)]


def shares(scores: Scores, whole: Sizes, ratios: Mapping[int, float]) -> list[Channel]:
    """Each group its own share."""
    return layer_by_layer(scores, {group: left(whole[group], ratio) for group, ratio in ratios.items()})


def at_least(channels: int, floor: float) -> int:
    """How many channels of a layer a floor keeps."""
    return max(1, math.ceil(floor * channels - 1e-9))


def kept(removals: Iterable[Channel], sizes: Sizes) -> Kept:
    """What stays of the groups that lose channels."""
    gone: dict[int, set[int]] = {}
    for group, channel in removals:
        gone.setdefault(group, set()).add(channel)
    return {group: [c for c in range(sizes[group]) if c not in lost] for group, lost in sorted(gone.items())}


def meet(target: str, share: float, removals: Sequence[Channel], sizes: Sizes, cost: Cost) -> Kept:
    """What stays when as many of `removals` are carried out as bring `cost` to `share` of the whole network's.

    The prefix is found by false position; where one channel costs more than the tolerance, later ones that do not go in its
    place. Raises ValueError, naming `target`, where all removals do not reach it, and where no choice comes within 2 % of it.
    """
    full = cost({})
    wanted = share * full
    tried: dict[int, float] = {}

    def after(count: int) -> float:
        if count not in tried:
            tried[count] = cost(kept(removals[:count], sizes))
        return tried[count]

    _check_reach(target, share, after(len(removals)) / full)
    low, high, count = 0, len(removals), len(removals)
    tried[0] = full
    while high - low > 1 and abs(after(count) - wanted) > CLOSE * wanted:
        # a straight line through both ends, and every third time the middle, so that no end stays for long
        span = after(low) - after(high)
        line = 0.5 if len(tried) % 3 == 0 or span <= 0 else (after(low) - wanted) / span
        count = min(max(low + round(line * (high - low)), low + 1), high - 1)
        low, high = (count, high) if after(count) > wanted else (low, count)
    best = min(tried, key=lambda n: abs(tried[n] - wanted))
    if abs(tried[best] - wanted) <= TOLERANCE * wanted:
        return kept(removals[:best], sizes)
    chosen = list(removals[:low])
    for removal in islice(removals, low, low + FURTHER):
        now = cost(kept([*chosen, removal], sizes))
        if now >= wanted * (1 - TOLERANCE):
            chosen.append(removal)
            if now <= wanted * (1 + TOLERANCE):
                return kept(chosen, sizes)
    near = sorted(value / full for n, value in tried.items() if n in (low, high))
    raise ValueError(
        f"target={target} cannot be met within {TOLERANCE:.0%}: single channels of this network are worth more; next to "
        f"it are {' and '.join(f'{value:.3f}' for value in near)}"
    )


def reach(target: str, share: float, removals: Sequence[Channel], sizes: Sizes, cost: Cost) -> None:
    """Raises ValueError, as `meet`, where all removals together do not reach the target."""
    _check_reach(target, share, cost(kept(removals, sizes)) / cost({}))


def _check_reach(target: str, share: float, least: float) -> None:
    if least > share * (1 + TOLERANCE):
        raise OutOfReach(
            f"target={target} cannot be met: with every layer at its least width {least:.3f} of the whole network is left; "
            "choose a larger share, or let more layers or more of each layer go"
        )


def _leaving(score: Sequence[float], staying: int) -> list[int]:
    """The least scores that go where so many stay."""
    return _least_first(score)[: max(0, len(score) - staying)]


def _least_first(score: Sequence[float]) -> list[int]:
    return sorted(range(len(score)), key=lambda channel: (score[channel], channel))
