"""Whether runs show what an experiment's source claimed: comparisons of measured figures, declared in shown/ID.yaml.

A check says of one side that it is at least or at most so far from another:

    figure: accuracy.top1      key of results.json, or `kept`
    of: {arm: RevNet}          settings of the runs that it is the figure of; of a list, each value by itself
    than: {arm: ResNet}        of the runs, or {figure: KEY} of the same runs, or a number, that it is compared with
    over: model.depth          in place of `than`: the runs with the largest value are compared with those with the least
    least: -1, most: 1         what the difference may be; either may be left out
    above: 0                   what it must be more than, where it is to be a gain
    ratio: true                of the quotient in place of the difference
    each: [model.base]         a comparison for each combination of values of these settings
    diverged: true             it holds, too, where what is compared was trained and all of its runs ended in nan

Runs of one scale are compared with those of the same; and of one length, batch, ..., where both sides have several.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memexp.report.collect import Group, number
from memexp.report.experiments import about
from memexp.report.settings import ALWAYS
from memexp.report.tables import COLUMNS, columns, figure_of
from memexp.units import shown_figure

MOST_TOLD, MOST_FAILED = 4, 12  # comparisons that a verdict spells out, where all hold and where some do not
ALIKE = ("dataset", "precision", *ALWAYS)  # what both sides of a comparison have, if both have several of it
Check = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """left and right: the two figures, None where one was not measured. bar: what was asked of them. divisor: of their unit."""

    text: str
    left: float | None
    right: float | None
    holds: bool | None
    bar: str = ""
    divisor: float = 1.0

    def __str__(self) -> str:
        left, right = (_figure(value, self.divisor) for value in (self.left, self.right))
        left = "ended in nan" if self.holds and self.left is None else left
        return f"{self.text}: {left} against {right}{f' ({self.bar})' if self.bar else ''}"


def verdict(groups: Sequence[Group]) -> list[str]:
    """What was claimed, and whether these runs show it, a sentence for each scale; nothing where no experiment says it."""
    told = about(run for group in groups for run in group.runs)
    if "claim" not in told:
        return []
    checks = list(itertools.chain.from_iterable(map(_single, told.get("checks", ()))))
    scales: dict[str, list[Group]] = {}
    for group in groups:
        scale = group.first.get("scale") or group.first.setting("scale") or "paper"  # one that was refused has none
        scales.setdefault(str(scale), []).append(group)
    says = [_sentence(of_one, scale, len(scales) > 1, checks) for scale, of_one in scales.items()]
    return [f"Claimed: {told['claim']}", *says]


def _sentence(groups: Sequence[Group], scale: str, several: bool, checks: Sequence[Check]) -> str:
    found = [comparison for check in checks for comparison in compared(groups, check)]
    measured = [comparison for comparison in found if comparison.holds is not None]
    failed = [comparison for comparison in measured if not comparison.holds]
    of_scale = ", at the small scale," if scale == "laptop" else f", at scale={scale}," if several else ""
    most = MOST_FAILED if failed else MOST_TOLD
    shown, more = (failed or measured)[:most], max(0, len(failed or measured) - most)
    spelled = "; ".join(map(str, shown)) + (f"; and {more} more" if more else "")
    missing = len(found) - len(measured)
    if not measured:
        return f"These runs{of_scale} cannot say: what is compared has not been measured."
    if not failed:
        how = "show it in part" if missing else "show it"
        all_of = f"all {len(measured)} comparisons" if len(measured) > 1 else "the comparison"
        made = " that could be made" if missing else ""
        says = f"These runs{of_scale} {how}: {all_of}{made} hold{'' if len(measured) > 1 else 's'} ({spelled})."
    else:
        how = "do not show it" if len(failed) == len(measured) else "show it in part"
        holding = f"{len(measured) - len(failed)} of {len(measured)}"
        says = f"These runs{of_scale} {how}: {holding} comparisons hold; not {spelled}."
    return says + (f" {missing} more could not be made." if missing else "")


def _single(check: Check) -> Iterator[Check]:
    """A check for each combination of the values that `of` lists."""
    of = check.get("of", {})
    lists = [value if isinstance(value, list) else [value] for value in of.values()]
    for values in itertools.product(*lists):
        yield {**check, "of": dict(zip(of, values, strict=True))}


def compared(groups: Sequence[Group], check: Check) -> Iterator[Comparison]:
    """The comparisons of one check."""
    trained = [group for group in groups if group.done or check.get("diverged")]
    subject = _matching(trained, check.get("of", {}))
    keys = [*check.get("each", ()), *_alike(subject, trained, check)]
    values = dict.fromkeys(tuple(str(group.first.setting(key)) for key in keys) for group in subject)
    for value in values or [()]:
        at = dict(zip(keys, value, strict=False))
        yield _compared(_matching(subject, at), _matching(trained, at), check, at)


def _alike(subject: Sequence[Group], groups: Sequence[Group], check: Check) -> Iterator[str]:
    """The settings of ALIKE of which the subject has several, and what it is compared with the same."""
    than = check.get("than")
    other = than if isinstance(than, Mapping) and "figure" not in than else check.get("of", {})
    for key in ALIKE:
        values = {str(group.first.setting(key)) for group in subject}
        others = {str(group.first.setting(key)) for group in _matching(groups, other)}
        if len(values) > 1 and values == others and key not in (*check.get("each", ()), *other, check.get("over")):
            yield key


def _compared(subject: Sequence[Group], others: Sequence[Group], check: Check, at: Mapping[str, str]) -> Comparison:
    than, key, against = check.get("than"), str(check["figure"]), ""
    if (over := check.get("over")) is not None:
        places = {id(group): place for group in subject if (place := number(group.first.setting(over))) is not None}
        ends = (max(places.values(), default=None), min(places.values(), default=None))
        sides = [[group for group in subject if places.get(id(group)) == end] for end in ends]
        left, right = (_mean(side, key) if ends[0] != ends[1] else None for side in sides)
        against = f", {over} {_short(ends[0])} against {_short(ends[1])}"
    else:
        left = _mean(subject, key)
        if isinstance(than, Mapping) and "figure" in than:
            right, against = _mean(subject, str(than["figure"])), f" against {_unit(subject, str(than['figure']))[0]}"
        elif isinstance(than, Mapping):
            right, against = _mean(_matching(others, than), key), f" against {_named(than)}"
        else:
            right = float(than) if than is not None else 0.0
    heading, divisor = _unit([*subject, *others], key)
    text = _named({**check.get("of", {}), **at})
    text = f"{check.get('name', heading)}{f' of {text}' if text else ''}{against}"
    bar = _bar(check, divisor)
    if check.get("diverged") and right is not None and _lost(subject):
        return Comparison(text, None, right, True, bar, divisor)
    if left is None or right is None or (check.get("ratio") and not right):
        return Comparison(text, left, right, None, bar, divisor)
    difference = left / right if check.get("ratio") else left - right
    holds = check.get("least", difference) <= difference <= check.get("most", difference)
    holds = holds and difference > check.get("above", -math.inf)
    return Comparison(text, left, right, holds, bar, divisor)


def _lost(groups: Sequence[Group]) -> bool:
    """Whether there were runs and the loss of all of them was not finite in the end."""
    runs = [run for group in groups for run in group.runs]
    return bool(runs) and all(run.status == "nan" for run in runs)


def _unit(groups: Sequence[Group], key: str) -> tuple[str, float]:
    """What a figure is called in tables, with its unit, and what it is divided by there."""
    known = [*columns([run for group in groups for run in group.runs]), *COLUMNS]
    return next(((heading, divisor) for heading, name, divisor, _ in known if name == key), (key, 1.0))


def _bar(check: Check, divisor: float) -> str:
    """What the difference, or the quotient, was to be."""
    words = {"least": "at least", "most": "at most", "above": "more than"}
    if "least" in check and check["least"] == check.get("most"):
        words = {"least": "just"}
    ratio = bool(check.get("ratio"))
    told = [
        f"{word} {check[key] / (1 if ratio else divisor):{'' if ratio else '+'}g}"
        for key, word in words.items()
        if key in check
    ]
    return " and ".join(told) + (" times" if ratio and told else "")


def _figure(value: float | None, divisor: float) -> str:
    if value is None:
        return "not measured"
    value /= divisor
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
