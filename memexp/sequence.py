"""The stages of a run, in order, from its configuration. Nothing imports torch: validation asks first.

`stages: null` derives them from the groups; a list on the command line overrides it. A stage's key is its name, numbered where
the name comes more than once: prune-1, tune-1, prune-2, tune-2.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memexp.choices import INTEGRAL
from memexp.schema import nearest

STAGES = (  # one module each in memexp.stages
    *("train", "prune", "tune", "discretise", "partition", "deploy", "grow", "evaluate", "study"),
)
RECIPES = {"train": "train", "tune": "tune", "partition": "tune"}  # stages that train -> whose keys say how
AT_INITIALISATION = ("snip",)  # criteria that prune before anything is trained
NEEDS_TRAINED = ("tune", "partition", "grow")  # what can only start from a network that has been trained


def keys(cfg: Mapping[str, Any]) -> list[str]:
    """The keys of a run's stages."""
    names = list(cfg["stages"]) if cfg.get("stages") is not None else _derived(cfg)
    counts = Counter(names)
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name}-{seen[name]}" if counts[name] > 1 else name)
    return found


def study_of(cfg: Mapping[str, Any]) -> Any:
    """What an experiment measures without a training run, if it does."""
    case = cfg.get("case")
    return case.get("study") if isinstance(case, Mapping) else None


def stage_of(key: str) -> str:
    """The stage of a key: `tune` of tune-2."""
    return key.rpartition("-")[0] if key.rpartition("-")[2].isdecimal() else key


def recipe_of(key: str) -> str | None:
    """Whose keys say how the stage `key` trains; None for one that does not."""
    return RECIPES.get(stage_of(key))


def unused(cfg: Mapping[str, Any]) -> list[str]:
    """What is set for a stage that this run does not have."""
    names = set(map(stage_of, keys(cfg)))
    wanted = {
        "prune": {"prune", "discretise", "partition"},
        "deploy": {"deploy"},
        "discretise.sizes": {"discretise"},
        "tune.scratch": {"tune"},
    }
    given = {
        "prune": (cfg.get("prune") or {}).get("name"),
        "deploy": (cfg.get("deploy") or {}).get("name"),
        "discretise.sizes": (cfg.get("discretise") or {}).get("sizes"),
        "tune.scratch": "true" if (cfg.get("tune") or {}).get("scratch") else None,
    }
    return [f"{key}={given[key]}" for key, stages in wanted.items() if given[key] and not names & stages]


def problems(cfg: Mapping[str, Any]) -> Iterator[str]:
    """What cannot work of the stages that `cfg` asks for."""
    names: Sequence[str] | None = cfg.get("stages")
    if names is None:
        return
    if not names:
        yield f"stages: [] is not allowed; it takes at least one of {', '.join(STAGES)}."
    for name in dict.fromkeys(names):
        if name not in STAGES:
            yield f"stages: {name!r} is not one of {', '.join(STAGES)}.{nearest(str(name), STAGES)}"
    if "study" in names:
        yield "stages: a study is asked for by an experiment (case.study), not by its name."
    for stage in ("prune", "deploy"):
        if stage in names and cfg.get(stage) is None:
            yield f"stages: {stage} needs to know how; set {stage}=OPTION."
    resampled = (cfg.get("prune") or {}).get("name") == INTEGRAL
    if "discretise" in names and not resampled and not (cfg.get("discretise") or {}).get("sizes"):
        yield "stages: discretise needs to know the sizes; set discretise.sizes, such as [1,0.6], or prune=integral."
    if "prune" in names and resampled:
        yield "stages: prune=integral is carried out by the stage discretise; name that in place of prune."
    if resampled and "discretise" in names:
        for late in dict.fromkeys(names[names.index("discretise") + 1 :]):
            if late in ("partition", "discretise"):
                yield f"stages: {late} comes after discretise, which leaves a plain network; put it before, or leave it out."
    rounds = (cfg.get("prune") or {}).get("rounds")
    if isinstance(rounds, int) and rounds > 1 and list(names).count("prune") not in (0, rounds):
        yield f"prune.rounds: {rounds}, but stages has {list(names).count('prune')} prune; name it once for each round."
    if "partition" in names and not resampled:
        yield "stages: partition needs to know the size whose nodes it trains; set prune=integral prune.keep=0.6."
    first = names[0] if names else None
    if first in NEEDS_TRAINED and cfg.get("init_from") is None:
        yield f"stages: {first} comes first, but it needs a trained network; put train before it, or set init_from=RUN."


def _derived(cfg: Mapping[str, Any]) -> list[str]:
    if study_of(cfg) is not None:
        return ["study"]
    prune, deploy = cfg.get("prune") or {}, ["deploy"] if cfg.get("deploy") is not None else []
    name = prune.get("name")
    sampled = name == INTEGRAL or (cfg.get("discretise") or {}).get("sizes")
    rounds = int(prune.get("rounds", 0))
    names = ["train", *["prune", "tune"] * rounds]
    if name in AT_INITIALISATION:
        names = [*["prune"] * rounds, "train"]
    if sampled:
        names += ["partition", "discretise"] if prune.get("tune") == "partition" else ["discretise"]
    return [*names, *deploy, "evaluate"]
