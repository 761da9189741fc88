"""Whether runs show what an experiment's source claimed: comparisons of measured figures, declared in shown/ID.yaml.

A check says of one side that it is at least or at most so far from another:

    figure: accuracy.top1      key of results.json, or `kept`
    of: {arm: RevNet}          settings of the runs that it is the figure of; of a list, each value by itself
    than: {arm: ResNet}        of the runs, or {figure: KEY} of the same runs, or a number, that it is compared with
    over: model.depth          in place of `than`: the runs with the largest value are compared with those with the least
    least: -1, most: 1         what the difference may be; either may be left out
    ratio: true                of the quotient in place of the difference
    each: [seed]               a comparison for each combination of values of these settings
"""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memexp.report.collect import Group, number
from memexp.report.experiments import about
from memexp.report.tables import figure_of
from memexp.units import shown_figure

MOST_TOLD, MOST_FAILED = 4, 12  # comparisons that a verdict spells out, where all hold and where some do not
Check = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """left and right: the two figures, None where one was not measured."""

    text: str
    left: float | None
    right: float | None
    holds: bool | None

    def __str__(self) -> str:
        return f"{self.text}: {_figure(self.left)} against {_figure(self.right)}"


def verdict(groups: Sequence[Group]) -> list[str]:
    """What was claimed, and whether these runs show it, a sentence each; nothing where no experiment says it."""
    told = about(run for group in groups for run in group.runs)
    if "claim" not in told:
        return []
    checks = itertools.chain.from_iterable(map(_single, told.get("checks", ())))
    found = [comparison for check in checks for comparison in compared(groups, check)]
    measured = [comparison for comparison in found if comparison.holds is not None]
    failed = [comparison for comparison in measured if not comparison.holds]
    small = ", at the small scale," if any(g.first.get("scale") == "laptop" for g in groups) else ""
    most = MOST_FAILED if failed else MOST_TOLD
    shown, more = (failed or measured)[:most], max(0, len(failed or measured) - most)
    spelled = "; ".join(map(str, shown)) + (f"; and {more} more" if more else "")
    if not measured:
        says = "These runs cannot say: what is compared has not been measured."
    elif not failed:
        all_of = f"all {len(measured)} comparisons hold" if len(measured) > 1 else "the comparison holds"
        says = f"These runs{small} show it: {all_of} ({spelled})."
    else:
        how = "do not show it" if len(failed) == len(measured) else "show it in part"
        says = f"These runs{small} {how}: {len(measured) - len(failed)} of {len(measured)} comparisons hold; not {spelled}."
    missing = len(found) - len(measured)
    return [f"Claimed: {told['claim']}", says + (f" {missing} more could not be made." if missing and measured else "")]


def _single(check: Check) -> Iterator[Check]:
    """A check for each combination of the values that `of` lists."""
    of = check.get("of", {})
    lists = [value if isinstance(value, list) else [value] for value in of.values()]
    for values in itertools.product(*lists):
        yield {**check, "of": dict(zip(of, values, strict=True))}


def compared(groups: Sequence[Group], check: Check) -> Iterator[Comparison]:
    """The comparisons of one check."""
    done = [group for group in groups if group.done]
    subject = _matching(done, check.get("of", {}))
    keys = check.get("each", ())
    values = dict.fromkeys(tuple(str(group.first.setting(key)) for key in keys) for group in subject)
    for value in values or [()]:
        at = dict(zip(keys, value, strict=False))
        yield _compared(_matching(subject, at), _matching(done, at), check, at)


def _compared(subject: Sequence[Group], others: Sequence[Group], check: Check, at: Mapping[str, str]) -> Comparison:
    than, key, against = check.get("than"), str(check["figure"]), ""
    if (over := check.get("over")) is not None:
        places = {id(group): place for group in subject if (place := number(group.first.setting(over))) is not None}
        ends = (max(places.values(), default=None), min(places.values(), default=None))
        sides = [[group for group in subject if places.get(id(group)) == end] for end in ends]
        left, right = (_mean(side, key) for side in sides)
        against = f", {over} {_short(ends[0])} against {_short(ends[1])}"
    else:
        left = _mean(subject, key)
        if isinstance(than, Mapping) and "figure" in than:
            right, against = _mean(subject, str(than["figure"])), f" against {than['figure']}"
        elif isinstance(than, Mapping):
            right, against = _mean(_matching(others, than), key), f" against {_named(than)}"
        else:
            right = float(than) if than is not None else 0.0
    text = _named({**check.get("of", {}), **at})
    text = f"{check.get('name', key)}{f' of {text}' if text else ''}{against}"
    if left is None or right is None or (check.get("ratio") and not right):
        return Comparison(text, left, right, None)
    difference = left / right if check.get("ratio") else left - right
    holds = check.get("least", difference) <= difference <= check.get("most", difference)
    return Comparison(text, left, right, holds)


def _figure(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1000 else shown_figure(value, 2)


def _matching(groups: Sequence[Group], wanted: Mapping[str, Any]) -> list[Group]:
    return [group for group in groups if all(str(group.first.setting(k)) == str(v) for k, v in wanted.items())]


def _mean(groups: Sequence[Group], key: str) -> float | None:
    found = [figure.mean for group in groups if (figure := figure_of(group, key)) is not None]
    return statistics.fmean(found) if found else None


def _named(settings: Mapping[str, Any]) -> str:
    """arm and group options by themselves, other settings with the last part of their key."""
    pairs = itertools.starmap(
        lambda key, value: str(value) if "." not in key else f"{_last(key)} {value}", settings.items()
    )
    return ", ".join(pairs)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
