"""Hydra's basic sweep, every combination of what is swept, for each of a list of cases that have little else in common."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from memexp import config, overriding
from memexp.config import ConfigError
from memexp.launcher import Sweeps
from memexp.overriding import quoted, values_of
from memexp.schema import nearest

TARGET = "hydra_plugins.memexp_sweeper.CasesSweeper"  # where Hydra finds it


class CasesSweeper(Sweeper):
    """`hydra.sweeper.cases=[['model=resnet','model.depth=32'],['model=revnet','model.depth=38']]`

    A case is a list of overrides, each of which may give several values; what is typed on the command line comes after it and
    wins. Cases that have names (`{ResNet: [...], RevNet: [...]}`) give them to their jobs as `arm`, and `arm=ResNet` chooses
    among them. params: an experiment's own sweep, key -> choices. %{key} in a case is what its job has of a key, where ${key}
    is what the sweep has. max_batch_size: jobs given to the launcher at once; None: all.

    Written anew rather than derived from Hydra's BasicSweeper, whose module Hydra executes again when it looks for plugins.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        cases: Sequence[Sequence[str]] | Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        listed: Any = list(cases.values()) if isinstance(cases, Mapping) else cases
        if cases is not None and not (_is_list(listed) and all(map(_is_list, listed))):
            raise ConfigError(
                [
                    f"hydra.sweeper.cases: {cases!r} is not allowed; it takes a list of lists of overrides, or a "
                    "list of overrides for each of several names."
                ]
            )
        if max_batch_size is not None and max_batch_size < 1:
            raise ConfigError(
                [f"hydra.sweeper.max_batch_size: {max_batch_size!r} is not allowed; it takes at least 1."]
            )
        if params is not None and not isinstance(params, Mapping):
            raise ConfigError([f"hydra.sweeper.params: {params!r} is not allowed; it takes the choices of each key."])
        self.cases = [[str(text).replace("%{", "${") for text in case] for case in listed or [[]]]
        self.arms = list(map(str, cases)) if isinstance(cases, Mapping) else []
        if self.arms:
            self.cases = [[f"arm={quoted(arm)}", *case] for arm, case in zip(self.arms, self.cases, strict=True)]
        self.params = params or {}
        self.max_batch_size = max_batch_size
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        jobs = self.jobs(OverridesParser.create(config_loader=self.hydra_context.config_loader), arguments)
        if (sweep := Sweeps.current) is not None:
            if overriding.swept_keys(arguments):  # each experiment, or scale of one, has its own cases and params
                own: Any = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
                jobs = list(planned(arguments, sweep.config_name, sweep.config_dirs, own))
            sweep.total = len(jobs)
        returned = []
        size = self.max_batch_size or len(jobs)
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            self.validate_batch_is_legal(batch)
            returned.append(self.launcher.launch(batch, initial_job_idx=start))
        return returned

    def jobs(self, parser: OverridesParser, typed: Sequence[str] = ()) -> list[list[str]]:
        """The overrides of each job, each once: every combination, for each case. A later choice for a key replaces an earlier
        one. parser: knows the options of groups, for a glob.

        Raises ConfigError for a sweep over an interval, which takes a sweeper that optimises. What is no override stands in
        its jobs, which are refused for it.
        """
        own = [f"{key}={choices}" for key, choices in self.params.items()]
        named = [text for text in typed if self.arms and text.startswith("arm=")]
        others = [text for text in typed if text not in named]
        choices = {overriding.key_of(parser, text): values_of(parser, text) for text in [*own, *others]}
        known = {overriding.key_of(parser, text) for text in others}  # of which a case's own choices are none any more
        chosen = self.cases
        if named:
            chosen = [self.cases[_place(name, self.arms)] for name in _names(parser, named[-1], self.arms)]
        kept = [[text for text in texts if overriding.key_of(parser, text) not in known] for texts in chosen]
        cases = [case for texts in kept for case in itertools.product(*(values_of(parser, text) for text in texts))]
        found = [(*case, *job) for job in itertools.product(*choices.values()) for case in cases]
        return [list(job) for job in dict.fromkeys(found)]


def one_run(
    overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]
) -> tuple[list[str], str | None]:
    """The overrides of one run: before them those of the arm of the experiment that `arm=` names, if it names one. And what is
    to be said of a run that is none of the arms of its experiment.

    Raises ConfigError for an arm that the experiment does not have, or that is several runs.
    """
    chosen = next((text for text in overrides if text.startswith("experiment=")), None)
    if chosen is None:
        return list(overrides), None
    typed = [text for text in overrides if text.startswith("arm=")]
    others = [text for text in overrides if text not in typed]
    cases = config.sweeper_of(others, config_name, config_dirs).get("cases")
    if not isinstance(cases, Mapping):
        return list(overrides), None
    parser = overriding.parser(config_dirs)
    if typed:
        arms = list(map(str, cases))
        arm = arms[_place(_names(parser, typed[-1], arms)[0], arms)]
        return [*_of_arm(arm, cases[arm], others, parser), *others], None
    told = (
        f"{chosen} has {len(cases)} arms, and this run is none of them but what they have in common; -m runs all, and "
        f"arm=NAME one: {'; '.join(map(str, cases))}"
    )
    return list(overrides), told if len(cases) > 1 else None


def _place(arm: str, arms: list[str]) -> int:
    if arm not in arms:
        raise ConfigError([f"arm: '{arm}' is not one of {'; '.join(arms)}.{nearest(arm, arms)}"])
    return arms.index(arm)


def _of_arm(arm: str, case: Sequence[str], others: Sequence[str], parser: OverridesParser) -> list[str]:
    keys = {overriding.key_of(parser, text) for text in others}
    (texts,) = CasesSweeper(cases={arm: case}).cases
    found = {text: values_of(parser, text) for text in texts if overriding.key_of(parser, text) not in keys}
    if several := [text for text, values in found.items() if len(values) > 1]:
        raise ConfigError(
            [f"arm: '{arm}' is several runs ({', '.join(several)}); -m runs them, or give one value of each."]
        )
    return list(found)


def with_arm(overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]) -> list[str]:
    """The overrides of `one_run`."""
    named = any(text.startswith("arm=") for text in overrides)
    return one_run(overrides, config_name, config_dirs)[0] if named else list(overrides)


def _names(parser: OverridesParser, text: str, arms: Sequence[str]) -> list[str]:
    """The values of an override of `arm`; the name of an arm may be typed as it is, whatever is in it."""
    plain = text.partition("=")[2]
    try:
        (override,) = parser.parse_overrides([text])
        found = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException:
        return [plain]
    return (
        [plain] if plain in arms else [str(value.text if isinstance(value, QuotedString) else value) for value in found]
    )


def with_arms_quoted(overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path]) -> list[str]:
    """The overrides of a sweep; the name of one of its experiment's arms, typed as it is, in quotes, as Hydra would read commas
    as several values and brackets not at all.
    """
    others = [text for text in overrides if not text.startswith("arm=")]
    if len(others) == len(overrides):
        return others
    cases = config.sweeper_of(overriding.jobs(others, config_dirs)[0], config_name, config_dirs).get("cases")
    arms = {f"arm={arm}": f"arm={quoted(str(arm))}" for arm in (cases if isinstance(cases, Mapping) else ())}
    return [arms.get(text, text) for text in overrides]


def planned(
    overrides: Sequence[str], config_name: str, config_dirs: Sequence[str | Path], hydra: Sequence[str] = ()
) -> Iterator[list[str]]:
    """The overrides of each job of a sweep, those of an experiment's own cases and keys among them.

    hydra: overrides of Hydra's own settings that no job is told. For a sweeper that is not this one, an interval stands there
    with its ends.
    """
    parser = overriding.parser(config_dirs)
    for typed in overriding.jobs(with_arms_quoted(overrides, config_name, config_dirs), config_dirs):
        settings = config.sweeper_of([*hydra, *typed], config_name, config_dirs)
        if settings.pop("_target_", None) != TARGET:  # others, too, have keys and choices of an experiment's own
            _check_search(settings)
            params = settings.get("params")
            own = [f"{key}={choices}" for key, choices in params.items()] if isinstance(params, Mapping) else []
            yield from overriding.jobs([*own, *typed], config_dirs)
            continue
        yield from CasesSweeper(**settings).jobs(parser, typed)


def _check_search(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for what Optuna would refuse in words of its own, once the study is made."""
    found = {key: settings[key] for key in ("n_trials", "n_jobs") if key in settings}
    problems = [
        f"hydra.sweeper.{key}: {value!r} is not allowed; it takes a whole number at least 1."
        for key, value in found.items()
        if not isinstance(value, int) or value < 1
    ]
    direction = settings.get("direction", "minimize")
    named = [getattr(one, "name", one) for one in (direction if isinstance(direction, list) else [direction])]
    if not set(named) <= {"minimize", "maximize"}:
        problems.append(f"hydra.sweeper.direction: {direction!r} is not allowed; it takes minimize | maximize.")
    if problems:
        raise ConfigError(problems)


def _is_list(value: Any) -> bool:
    """A list that is not empty."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def count(settings: Mapping[str, Any]) -> int:
    """The number of jobs of a sweep with these `cases` and `params`, nothing else being swept."""
    sweeper = CasesSweeper(cases=settings.get("cases"), params=settings.get("params"))
    return len(sweeper.jobs(overriding.parser()))
