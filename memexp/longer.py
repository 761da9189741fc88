"""What may change when a run goes on, and the checkpoint that it goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from memexp.choices import FIRST_WEIGHTS
from memexp.config import ConfigError
from memexp.sequence import keys, recipe_of

# What may change when a run goes on: how long, what is written down, where it is computed, where its data and its teacher lie.
LONGER = {"epochs": "train", "max_steps": "train", "tune.epochs": "tune", "tune.max_steps": "tune"}  # whose recipe
FREE = (
    *("device", "cuda_graph", "log_every", "checkpoint_every", "evaluate_every", "monitor_every", "monitor_gradient"),
    *("dataset.root", "dataset.workers", "dataset.skip_broken", "dataset.download", "memory.", "report.", "profile."),
)
# What may differ in a checkpoint of the same run: what processes share, of which there may be others now, and first weights.
OF_A_START = ("batch_size", "accumulate", *(f"model.{key}" for key in FIRST_WEIGHTS))
TEACHER = "distill.teacher"  # which lies elsewhere, perhaps; it is the same as before, or none


def made_longer(before: DictConfig, after: DictConfig) -> set[str]:
    """The recipes of which stages are made longer. Raises ConfigError for any other change that would make it another run."""
    problems: list[str] = []
    trained = set(map(recipe_of, keys(after)))
    more: dict[str, str] = {}
    for key, old, new in differences(before, after):
        if key in LONGER and (new is None or (old is not None and new >= old)):
            more[key] = LONGER[key]
        elif key in LONGER:
            than = (
                "would only end this run, which has none, sooner"
                if old is None
                else f"is less than the {old!r} of this run"
            )
            problems.append(f"{key}: {new!r} {than}; it can only be made longer.")
        elif not (_free(key) or (key == TEACHER and None not in (old, new))):
            problems.append(
                f"{key}: the run has {old!r}, and {new!r} would make it another run; start a new one, from these weights with "
                "init_from=RUN."
            )
    longer = set(more.values()) & trained  # tune.epochs follows epochs, whether or not there is a stage tune
    if more and not longer:
        problems.append(
            f"{', '.join(more)}: no stage of this run is made longer by it; its stages: {', '.join(keys(after))}."
        )
    if problems:
        raise ConfigError(problems)
    return longer


def _free(key: str) -> bool:
    return any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE)


def as_long(before: Any, after: Mapping[str, Any]) -> bool:
    """Whether two configurations of one run, as plain data, ask for as many steps: what else may change makes it no other."""
    if not isinstance(before, Mapping):
        return False
    old, new = (dict(_leaves(dict(node), "")) for node in (before, after))
    return all(old.get(key) == new.get(key) for key in LONGER)


def differences(before: DictConfig, after: DictConfig) -> list[tuple[str, Any, Any]]:
    old, new = (dict(_leaves(OmegaConf.to_container(cfg), "")) for cfg in (before, after))
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def _leaves(node: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]


def start_of(path: Path, cfg: DictConfig) -> str:
    """The checkpoint to go on from: where the run stands, or the end of the first stage that is made longer and has one.

    Longer than the checkpoint has it, as results.json may ask for more since a start that did not come to save anything.
    """
    from memexp.training import checkpoint

    last = path / "checkpoints" / "last.pt"
    if not any(other.name != "best.pt" for other in last.parent.glob("*.pt")):
        return "last"
    there, state = checkpoint.load_last(last, to_train=True)
    if state["config"] is None:  # of schema 1, which had no stages
        return there.stem
    then, now = dict(_leaves(state["config"], "")), dict(_leaves(OmegaConf.to_container(cfg), ""))
    for key, value in then.items():  # an earlier version lacks some
        if key in now and value != now[key] and not (_free(key) or key in (*LONGER, *OF_A_START, TEACHER)):
            told = f"it has {key}={value!r}, and this run {now[key]!r}"
            raise ConfigError(
                [f"{there} is of another run: {told}; put back its own, or start a run from that one with init_from."]
            )
    longer = {stage for key, stage in LONGER.items() if key in then and then[key] != OmegaConf.select(cfg, key)}
    done = [str(figures["key"]) for figures in state["stages"]]
    start = next((key for key in done if recipe_of(key) in longer), there.stem)
    if not (end := last.with_name(f"{start}.pt")).exists():
        raise ConfigError([f"{start} cannot be made longer: {end}, where it ended, is not there any more"])
    return start
