"""What fits a given memory: largest batch and depth, fastest strategy, each found by tracing training steps. And a process
that is held to it.
"""

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from memexp import data
from memexp.config import ConfigError
from memexp.edits import Edit
from memexp.memory.planner import plan
from memexp.memory.trace import STEPS, trace
from memexp.models import families
from memexp.paths import CONF
from memexp.units import shown_bytes

_before: dict[torch.device, float] = {}  # what the process might have of a device that it is held to less of


@dataclass(frozen=True)
class Answer:
    """For one configuration and one limit in bytes.

    batch: the largest that fits, in `batch_peak` bytes, 0 where not even the fewest images do; with backprop=budget that of its
    least plan. depth: the largest, None where the model has none to choose; depth_is_more: it may be more, as deeper ones were
    not traced. strategies: (name, peak, adds-multiplies) of each that is valid for the model, at the batch asked for.
    """

    limit: int
    peak: int
    batch: int
    batch_peak: int
    depth: int | None
    depth_is_more: bool
    strategies: list[tuple[str, int, int]]

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    @property
    def fastest(self) -> str | None:
        """The strategy that fits with the fewest adds-multiplies."""
        fitting = [(macs, name) for name, peak, macs in self.strategies if peak <= self.limit]
        return min(fitting, key=lambda pair: pair[0])[1] if fitting else None  # of equals the first, which is simplest


def answer(cfg: DictConfig, limit: int, edits: Sequence[Edit] = ()) -> Answer:
    """edits: what has changed the network that the configuration builds; its depth is then settled, too.

    Raises ConfigError, saying what the least is, where no batch fits with any strategy.
    """

    def peak_of(changed: DictConfig, images: int) -> int:
        return trace(_with(changed, "batch_size", images), edits=edits).report.peak

    strategies = [(name, *_cost(_with_strategy(cfg, name, limit), edits)) for name in _strategies(cfg)]
    peak, _ = _cost(cfg, edits)
    peaks = functools.cache(lambda images: peak_of(cfg, images))
    fewest = _fewest(peaks)
    batch, batch_peak = largest(peaks, limit, cfg.batch_size, fewest)
    if batch == 0:
        least = min(peak_of(_with_strategy(cfg, name, limit), fewest) for name in _strategies(cfg))
        if least > limit:
            raise ConfigError(
                [
                    f"memory.limit: {shown_bytes(limit)} is below the least that this network takes, "
                    f"{shown_bytes(least)} at batch_size={fewest}; use a smaller network or at least that limit"
                ]
            )
    depth, more = (None, False) if edits else _depth(cfg, limit)
    return Answer(limit, peak, batch, batch_peak, depth, more, strategies)


def _fewest(peak: Callable[[int], int]) -> int:
    """Images that a forward pass takes at least: of one, batch normalisation may have too few values."""
    try:
        peak(1)
    except ConfigError:
        return 2
    return 1


def check_holdable(device: torch.device) -> None:
    """Raises ConfigError for a device on which no process can be held to a limit."""
    if device.type != "cuda":
        raise ConfigError(
            [f"memory.enforce: true needs CUDA, whose allocator can be held to a limit, and the device is {device}."]
        )


def hold(limit: int | None, device: torch.device) -> None:
    """Holds this process to `limit` bytes of a CUDA device; what its allocator would reserve beyond is out of memory.

    limit: None where it is not known yet; the device is looked at nevertheless.

    Raises ConfigError for a device that cannot be held to a limit, and where it has less than that.
    """
    check_holdable(device)
    if limit is None:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    if limit > total:
        raise ConfigError(
            [f"memory.enforce: {device} has {shown_bytes(total)}, less than the limit, {shown_bytes(limit)}."]
        )
    # what is cut off a block that was freed serves others only where segments grow
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    _before.setdefault(device, torch.cuda.get_per_process_memory_fraction(device))
    torch.cuda.set_per_process_memory_fraction(limit / total, device)


def hold_to_budget(cfg: DictConfig, figures: Mapping[str, Any], beside: int, device: torch.device) -> None:
    """Holds this process to the budget of its plan, where memory.enforce asks for that and there is no memory.limit.

    figures: of the plan, as memexp.memory.planned.set_up returns them. beside: bytes on the device that are not in it. Raises
    ConfigError for a budget below the least that the run takes.
    """
    if not cfg.memory.enforce or cfg.memory.limit is not None:
        return
    if figures["least_peak"] > figures["budget"]:  # it would be out of memory at once
        raise ConfigError(
            [
                f"memory.enforce: true would hold this run to its budget of {shown_bytes(figures['budget'])}, and the "
                f"least that it takes is {shown_bytes(figures['least_peak'])}; give at least that as backprop.limit, or "
                "use memory.enforce=false."
            ]
        )
    hold(figures["budget"] + beside, device)


def release() -> None:
    """Ends what `hold` has begun: a later run of the process may have what it might have before."""
    while _before:
        device, share = _before.popitem()
        torch.cuda.set_per_process_memory_fraction(share, device)


def largest(peak: Callable[[int], int], limit: int, start: int, least: int = 1, most: int = 1 << 24) -> tuple[int, int]:
    """The largest n in least..most with peak(n) <= limit, and its peak; (0, peak(least)) where not even `least` fits.

    Peaks grow with n, nearly linearly, so interpolation finds it in a few evaluations.
    """
    low, at_low = least, peak(least)
    if at_low > limit:
        return 0, at_low
    high = max(least + 1, start)
    at_high = peak(high)
    while at_high <= limit and high < most:
        slope = max((at_high - at_low) / (high - low), 1e-9)
        low, at_low = high, at_high
        high = min(most, max(low + 1, int(low + (limit - at_low) / slope * 1.02) + 1))
        at_high = peak(high)
    if at_high <= limit:
        return high, at_high
    while high - low > 1:
        guess = low + int((limit - at_low) / max(at_high - at_low, 1) * (high - low))
        guess = min(max(guess, low + 1), high - 1)
        found = peak(guess)
        if found <= limit:
            low, at_low = guess, found
            if high - low > 1 and (above := peak(low + 1)) > limit:
                high, at_high = low + 1, above
        else:
            high, at_high = guess, found
    return low, at_low


def _depth(cfg: DictConfig, limit: int) -> tuple[int | None, bool]:
    """The largest depth that fits (None where there is none to choose), and whether it may be more."""
    found = families.of(cfg.model).depths(cfg.model, data.describe(cfg.dataset)[1])
    if found is None:
        return None, False
    for key, value in found.fixed.items():
        cfg = _with(cfg, f"model.{key}", value)
    depths = found.values
    at = bisect.bisect_left(depths, cfg.model.depth) + 1
    n, _ = largest(lambda n: trace(_with(cfg, "model.depth", depths[n - 1])).report.peak, limit, at, most=len(depths))
    return (depths[n - 1] if n else 0), n == len(depths) and found.endless


def _strategies(cfg: DictConfig) -> tuple[str, ...]:
    return families.proposed(cfg.model, otherwise=(cfg.backprop.name,))


def _cost(cfg: DictConfig, edits: Sequence[Edit]) -> tuple[int, int]:
    """Peak bytes and adds-multiplies of a training step, with its plan where backprop=budget."""
    budget = cfg.backprop.name == "budget"
    report = (trace(cfg, plan(cfg, edits=edits).apply, edits) if budget else trace(cfg, edits=edits)).report
    return report.peak, (report.macs_forward + report.macs_backward) // STEPS


def _with(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    changed = cfg.copy()
    OmegaConf.update(changed, key, value)
    return changed


def _with_strategy(cfg: DictConfig, name: str, limit: int) -> DictConfig:
    """The strategy with its own defaults, or as configured where it is the configured one; a budget is given `limit`."""
    changed = cfg.copy()
    if name != cfg.backprop.name:
        changed.backprop = OmegaConf.load(CONF / "backprop" / f"{name}.yaml")
    if name == "budget":
        changed.backprop.limit = f"{limit}B"
    return changed
