"""Which settings of several runs set them apart, and which they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memexp.choices import STARTS
from memexp.report.experiments import about

if TYPE_CHECKING:
    from memexp.report.collect import Run

GROUPS = ("model", "dataset", "backprop", "optimizer", "precision", "prune", "schedule", "deploy")
# What changes no figure of a run: how it is called and written down, and where its data lie.
IDLE: tuple[str, ...] = (
    "seed",
    "name",
    "experiment",
    "scale",
    "overwrite",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
)
IDLE += ("monitor_every", "monitor_gradient", "case.id", "dataset.root", "dataset.download", "dataset.skip_broken")
IDLE += ("dataset.epochs", "dataset.batch_size")  # defaults of `epochs` and `batch_size`, which count
IDLE_GROUPS = ("report.", "memory.", "profile.", "hydra.", "hydra/")
ALWAYS = ("batch_size", "epochs", "max_steps", "optimizer.lr", "device")  # what every reader asks


def varying(runs: Sequence[Run]) -> list[str]:
    """The settings, groups first, in which the runs differ and which matter; not the seed.

    Left out is what follows from those before it, unless it was asked for: the number of epochs that a data set brings along.
    Arms of an experiment stand before all others, and what follows from them is left out, too.
    """
    lead = ["arm", *about(runs).get("settings", ())]
    led = len({str(run.setting("arm")) for run in runs}) > 1 or len(lead) > 1
    asked = [key for key in dict.fromkeys(key for run in runs for key in run.overrides) if _matters(key)]
    leaves = [
        key for key in dict.fromkeys(key for run in runs for key, _ in _leaves(run.get("config"))) if _matters(key)
    ]
    scale = ["scale"] if any(run.get("experiment") for run in runs) else []  # it changes an experiment's runs alone
    found: list[str] = []
    for key in dict.fromkeys([*lead, *scale, *GROUPS, *asked, *leaves]):
        values = [value for run in runs if (value := _told(run, key)) is not None or run.composed]
        if key in lead or key in asked:
            differ = len(set(map(str, values))) > 1
            differ = differ and not (led and key not in lead and _follows(key, found, runs))
        else:  # a run that was refused has no configuration
            differ = len({str(value) for value in values if value is not None}) > 1 and not _follows(key, found, runs)
        if differ:
            found.append(key)
    return [*found, "dataset.root"] if _of_other_data(found, runs) else found


def _of_other_data(found: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether runs that agree in these settings have read other images, of another place."""
    images: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        if run.get("fingerprint") is not None:
            images.setdefault(tuple(str(run.setting(key)) for key in found), set()).add(str(run.get("fingerprint")))
    return any(len(prints) > 1 for prints in images.values())


def shared(runs: Sequence[Run]) -> dict[str, str]:
    """Settings that are the same in all runs: groups, what every reader asks, and what was given on a command line.

    A run that was refused has no configuration, and is not asked.
    """
    composed = [run for run in runs if run.composed] or runs
    asked = dict.fromkeys(key for run in runs for key in run.overrides)
    found = {}
    for key in dict.fromkeys([*GROUPS, *asked, *ALWAYS]):
        values = {str(run.setting(key)) for run in composed}
        if (
            len(values) == 1
            and values != {"None"}
            and (_matters(key) or key in ("seed", "scale"))
            and not key.startswith("case.")
        ):
            found[key] = values.pop()
    return found


def _matters(key: str) -> bool:
    return key not in IDLE and not key.startswith(IDLE_GROUPS) and not key.endswith(".name")


def _told(run: Run, key: str) -> Any:
    """A setting; of the run that it starts from, the name without the seed of both at its end."""
    value = run.setting(key)
    return value.removesuffix(f"-{run.seed}") if key in STARTS and isinstance(value, str) else value


def _follows(key: str, before: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether runs that agree in the settings `before` agree in `key`, too; or do not have it, being of another option."""
    values: dict[tuple[str, ...], str] = {}
    for run in runs:
        value = _told(run, key)
        place = tuple(str(run.setting(other)) for other in before)
        if value is not None and values.setdefault(place, str(value)) != str(value):
            return False
    return True


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping) or any("." in str(key) for key in node):  # a table by names of layers, as a whole
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
