"""The choice of what each step keeps, for a model of cost that is exact where a step's cost depends on its neighbours only.

A step is kept least of (undone or checkpointed), light, or stored. What step i keeps, and what stands beside it while it runs
forward or backward, depends on its own choice and on whether the steps before and after it are kept least of or not: light and
stored steps share tensors with their neighbours, and an undone run keeps the output of its last step. With K_i the bytes that
steps 0 ... i keep, and m_i what stands beside K_(i-1) at worst during step i, a choice fits B bytes when K_(i-1) + m_i is at
most B for every i. Most time saved under these nested capacities is a multiple-choice knapsack whose capacity is checked again
at every step: dynamic programming over the steps, the choices for neighbours and the bytes kept solves it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LEAST, LIGHT, STORED = WORDS = (0, 1, 2)
Choice = tuple[int, ...]  # a word for each step
Context = tuple[
    bool, int, bool
]  # the step's own word, and whether the step before and the step after are kept more than least of
Cell = tuple[int, int, "Cell | None"]  # a step that is, its word, and those before it: states share them
State = tuple[int, float, Cell | None]  # bytes kept, time saved, what is chosen
PARTS = 1000  # states that are followed at a step: beyond them, the best of those that keep about the same
ATTEMPTS = 8


@dataclass
class Costs:
    """Bytes by step and context. base: what stands before the first step; gains: what each word saves for a step."""

    base: int
    gains: Sequence[Sequence[float]]
    kept: list[dict[Context, int]] = field(default_factory=list)
    beside: list[dict[Context, int]] = field(default_factory=list)

    def peak(self, chosen: Choice) -> int:
        """Of a choice, by the model."""
        held, highest = self.base, 0
        around = (LEAST, *chosen, LEAST)
        for index, (kept, beside) in enumerate(zip(self.kept, self.beside, strict=True)):
            context = around[index] != LEAST, chosen[index], around[index + 2] != LEAST
            highest = max(highest, held + beside[context])
            held += kept[context]
        return highest

    def saved(self, chosen: Choice) -> float:
        return sum(gains[word] for gains, word in zip(self.gains, chosen, strict=True))


def choose(costs: Costs, budget: int, free: bool = False) -> Choice | None:
    """The choice of most gain within `budget` bytes; None where nothing fits. free: any that fits."""
    count = len(costs.kept)
    gains: Sequence[Sequence[float]] = [[0.0] * len(WORDS)] * count if free else costs.gains
    states: dict[tuple[bool, int], list[State]] = {
        (False, word): [(costs.base, gains[0][word], (0, word, None) if word else None)] for word in WORDS
    }
    for i in range(count):
        found: dict[tuple[bool, int], list[State]] = {}
        for (before, own), reached in states.items():
            for after in WORDS if i + 1 < count else (LEAST,):
                context = before, own, after != LEAST
                room, kept = budget - costs.beside[i][context], costs.kept[i][context]
                gain = gains[i + 1][after] if i + 1 < count else 0.0
                found.setdefault((own != LEAST, after), []).extend(
                    (held + kept, saved + gain, (i + 1, after, cell) if after else cell)
                    for held, saved, cell in reached
                    if held <= room
                )
        states = {key: _worthwhile(reached) for key, reached in found.items()}
    best = max((state for reached in states.values() for state in reached), key=lambda s: (s[1], -s[0]), default=None)
    if best is None:
        return None
    chosen, cell = [LEAST] * count, best[2]
    while cell is not None:
        index, word, cell = cell
        chosen[index] = word
    return tuple(chosen)


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


def least(costs: Costs, most: int) -> Choice:
    """Of the choices of least peak, at most `most`, the one that saves most."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if choose(costs, middle, free=True) is None:
            low = middle
        else:
            high = middle
    return choose(costs, high) or (LEAST,) * len(costs.kept)


def search(
    budget: int,
    choice: Callable[[int], Choice | None],
    modelled: Callable[[Choice], int],
    peak: Callable[[Choice], int],
    saved: Callable[[Choice], float],
) -> Choice | None:
    """The choice that saves most of those looked at whose peak is within the budget; None where none is.

    choice: the best for a number of bytes, as modelled. modelled, peak: bytes of a choice by the model, and in truth. What the
    model has counted wrongly corrects the bytes that the next choice is made for.
    """
    best: Choice | None = None
    tried: set[Choice] = set()
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
