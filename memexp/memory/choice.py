"""The choice of what to store, for a model of cost that is exact where a step's cost depends on its neighbours only.

What step i keeps, and what stands beside it while it runs forward or backward, depends on whether it and the steps before
and after it are stored: a stored step shares tensors with its neighbours, and an undone run keeps the output of its last step.
With K_i the bytes that steps 0 ... i keep, and m_i what stands beside K_(i-1) at worst during step i, a choice fits B bytes
when K_(i-1) + m_i is at most B for every i. Most time saved under these nested capacities is a knapsack whose capacity is
checked again at every step: dynamic programming over the steps, the last two choices and the bytes kept solves it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Context = tuple[bool, bool, bool]  # whether the step before, the step itself and the step after are stored
Cell = tuple[int, "Cell | None"]  # a stored step, and those before it: states share them
State = tuple[int, float, Cell | None]  # bytes kept, time saved, what is stored
PARTS = 1000  # states that are followed at a step: beyond them, the best of those that keep about the same
ATTEMPTS = 8


@dataclass
class Costs:
    """Bytes by step and context. base: what stands before the first step; gains: what storing a step saves."""

    base: int
    gains: Sequence[float]
    kept: list[dict[Context, int]] = field(default_factory=list)
    beside: list[dict[Context, int]] = field(default_factory=list)

    def context(self, chosen: frozenset[int], index: int) -> Context:
        return index - 1 in chosen, index in chosen, index + 1 in chosen

    def peak(self, chosen: frozenset[int]) -> int:
        """Of a choice, by the model."""
        held, highest = self.base, 0
        for index, (kept, beside) in enumerate(zip(self.kept, self.beside, strict=True)):
            context = self.context(chosen, index)
            highest = max(highest, held + beside[context])
            held += kept[context]
        return highest

    def saved(self, chosen: frozenset[int]) -> float:
        return sum(self.gains[i] for i in chosen)


def choose(costs: Costs, budget: int, gains: Sequence[float] | None = None) -> frozenset[int] | None:
    """The steps to store for most gain within `budget` bytes; None where nothing fits."""
    gains = costs.gains if gains is None else gains
    count = len(costs.kept)
    states: dict[tuple[bool, bool], list[State]] = {
        (False, False): [(costs.base, 0.0, None)],
        (False, True): [(costs.base, gains[0], (0, None))],
    }
    for i in range(count):
        found: dict[tuple[bool, bool], list[State]] = {}
        for (before, own), reached in states.items():
            for after in (False, True) if i + 1 < count else (False,):
                context = before, own, after
                room, kept = budget - costs.beside[i][context], costs.kept[i][context]
                gain = gains[i + 1] if after else 0.0
                found.setdefault((own, after), []).extend(
                    (held + kept, saved + gain, (i + 1, cell) if after else cell)
                    for held, saved, cell in reached
                    if held <= room
                )
        states = {key: _worthwhile(reached) for key, reached in found.items()}
    best = max((state for reached in states.values() for state in reached), key=lambda s: (s[1], -s[0]), default=None)
    if best is None:
        return None
    chosen, cell = set(), best[2]
    while cell is not None:
        index, cell = cell
        chosen.add(index)
    return frozenset(chosen)


def _worthwhile(states: list[State]) -> list[State]:
    """Without those that keep more than another and save no more."""
    found: list[State] = []
    for state in sorted(states, key=lambda s: (s[0], -s[1])):
        if not found or state[1] > found[-1][1]:
            found.append(state)
    if len(found) <= PARTS:
        return found
    unit = (found[-1][0] - found[0][0]) / PARTS
    parts = {int((state[0] - found[0][0]) / unit): state for state in found}  # the last of a part saves most
    return list(parts.values())


def least(costs: Costs, most: int) -> frozenset[int]:
    """Of the choices of least peak, at most `most`, the one that saves most."""
    low, high, nothing = 0, most, [0.0] * len(costs.gains)
    while high - low > 1:
        middle = (low + high) // 2
        if choose(costs, middle, nothing) is None:
            low = middle
        else:
            high = middle
    return choose(costs, high) or frozenset()


def search(
    budget: int,
    choice: Callable[[int], frozenset[int] | None],
    modelled: Callable[[frozenset[int]], int],
    peak: Callable[[frozenset[int]], int],
    saved: Callable[[frozenset[int]], float],
) -> frozenset[int] | None:
    """The choice that saves most of those looked at whose peak is within the budget; None where none is.

    choice: the best for a number of bytes, as modelled. modelled, peak: bytes of a choice by the model, and in truth. What the
    model has counted wrongly corrects the bytes that the next choice is made for.
    """
    best: frozenset[int] | None = None
    tried: set[frozenset[int]] = set()
    effective = budget
    for _ in range(ATTEMPTS):
        chosen = choice(effective)
        if chosen is None or chosen in tried:
            break
        tried.add(chosen)
        true = peak(chosen)
        if true <= budget and (best is None or saved(chosen) > saved(best)):
            best = chosen
        corrected = budget - (true - modelled(chosen))
        # downwards until a choice fits, so that none comes back; then also up, to what the model has counted too much
        effective = corrected if best is not None else min(corrected, effective - 1)
    return best
