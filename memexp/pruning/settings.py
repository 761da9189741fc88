"""What is asked of a pruning, checked before any work."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

SCOPES = ("layer", "global")
ORDERS = ("sequential", "energy", "latency")
MEASURES = ("macs", "params", "latency")


@dataclass(frozen=True)
class Target:
    """`share` of the whole network's MACs, parameters or latency."""

    measure: str
    share: float

    @staticmethod
    def parse(text: str) -> "Target":
        """ "macs:0.5". Raises ValueError for another measure and for a share that is not between 0 and 1."""
        measure, _, number = str(text).partition(":")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if measure not in MEASURES or not 0 < share < 1:
            raise ValueError(
                f"target={text!r} is not allowed: give one of {', '.join(MEASURES)}, a colon and the share that stays, above "
                "0 and below 1, such as macs:0.5"
            )
        return Target(measure, share)

    def __str__(self) -> str:
        return f"{self.measure}:{self.share:.9g}"


@dataclass(frozen=True)
class Settings:
    """How many channels go, and where from.

    ratio: the share of channels that goes. target: what stays, such as "macs:0.5". scope: layer | global | the share of each
    named layer. floor: the least share of a layer's channels that stays, in scope=global and in the orders energy and
    latency. order: sequential, all layers in step | energy, the layers of most energy first, each by at most `ratio` (null: to
    its floor) | latency, NetAdapt, in steps that each save `step` of the latency.
    """

    ratio: float | None = None
    target: str | None = None
    scope: str | Mapping[str, float] = "layer"
    order: str = "sequential"
    floor: float = 0.1
    step: float = 0.05

    def of_round(self, rounds: int, left: float = 1.0, round: int = 1) -> "Settings":
        """What round `round` (from 1) of `rounds` is asked for, each by an equal factor, so that the last reaches the whole.

        Shares of channels, or weights, are of those before the first round, and what has gone counts. A target is of the
        network that the round begins with; left: the share of the whole network's MACs, parameters or latency that the rounds
        before have left, so that what one round misses of its target the next makes up for.
        """

        def part(ratio: float) -> float:
            return float(1 - (1 - ratio) ** (round / rounds))

        target = None
        if self.target is not None:
            whole = Target.parse(self.target)
            target = str(Target(whole.measure, whole.share ** (round / rounds) / left))
        ratio = None if self.ratio is None else part(self.ratio)
        scope = {k: part(v) for k, v in self.scope.items()} if isinstance(self.scope, Mapping) else self.scope
        return replace(self, ratio=ratio, target=target, scope=scope)

    def check(self) -> Target | None:
        """The target, parsed. Raises ValueError for a value that is not allowed and for what does not go together."""
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(
                f"ratio={self.ratio:g} is not allowed: the share of channels that goes is above 0 and below 1, as no layer can "
                "do without any"
            )
        for name in ("floor", "step"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value:g} is not allowed: use a number above 0 and below 1")
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r} is not one of {', '.join(ORDERS)}")
        target = None if self.target is None else Target.parse(self.target)
        if isinstance(self.scope, Mapping):
            self._check_list()
            return None
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r} is not allowed: use layer, global or a list such as {{conv1: 0.5}}")
        if self.order == "sequential":
            if (self.ratio is None) == (target is None):
                raise ValueError(f"ratio={self.ratio}, target={self.target}: give one of the two")
        elif target is None or self.scope != "layer":
            raise ValueError(
                f"order={self.order} goes until a target is met, layer by layer: set target and scope=layer"
            )
        if self.order == "latency" and (target is None or target.measure != "latency" or self.ratio is not None):
            raise ValueError(f"order=latency needs target=latency:SHARE and no ratio, not target={self.target}")
        if self.scope == "global" and self.ratio is not None and self.ratio > 1 - self.floor:
            raise ValueError(
                f"ratio={self.ratio:g} with floor={self.floor:g} cannot be: each layer keeps its floor, so at most "
                f"{1 - self.floor:g} of the channels go"
            )
        return target

    def _check_list(self) -> None:
        assert isinstance(self.scope, Mapping)
        if self.ratio is not None or self.target is not None or self.order != "sequential":
            raise ValueError("scope: a list of layers settles every width: leave ratio, target and order out")
        if not self.scope:
            raise ValueError("scope is an empty list: name at least one layer and its share, such as {conv1: 0.5}")
        for layer, ratio in self.scope.items():
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
                raise ValueError(
                    f"scope: layer {layer} has the share {ratio!r}: use a number of at least 0 and below 1, as no layer can do "
                    "without any channel"
                )
