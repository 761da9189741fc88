"""`memexp train` as a Hydra application: its flags, the names of run directories, the outcome."""

import argparse
import os
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from memexp import config, jobs, launcher, overriding, sweeper
from memexp.config import CONFIG_NAME
from memexp.paths import CONF, from_here
from memexp.record import RunDirectoryError

CHDIR = (
    "hydra.job.chdir: true is not taken: a run's files go to its directory anyway, and the paths of its settings are those of "
    "where it is started."
)


def train(arguments: list[str], hydra_only: bool) -> int:
    """Checks a command line and gives it to Hydra, which composes the run or the sweep. Returns the exit status.

    hydra_only: the command asks Hydra about itself (help, completion); nothing is run, so nothing is checked.
    """
    job_name, multirun, outcome = "train", False, _Outcome()
    if not hydra_only:
        directories, arguments = _directories(arguments)
        arguments = [text if text.startswith("-") else overriding.readable(text) for text in arguments]
        options, unknown = get_args_parser().parse_known_intermixed_args(arguments)
        _check_flags(options, unknown)
        if any(text.lstrip("+").lower() == "hydra.job.chdir=true" for text in options.overrides):
            raise config.ConfigError([CHDIR])
        multirun = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
        name = options.config_name or CONFIG_NAME
        overrides = options.overrides
        if multirun and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise config.ConfigError(
                [
                    f"-m: torchrun's {os.environ['WORLD_SIZE']} processes train one run together, and a sweep is many; start "
                    "the sweep without torchrun, or torchrun for each of its runs."
                ]
            )
        if not multirun:
            overrides, told = sweeper.one_run(overrides, name, directories)
            if told:
                print(f"warning: {told}", file=sys.stderr)
        if options.cfg == "job" and not options.package:  # composed once: this is what people wait for
            print(OmegaConf.to_yaml(config.compose(overrides, name, directories), resolve=options.resolve), end="")
            return 0
        if multirun:
            cfg = config.first_valid(sweeper.planned(options.overrides, name, directories), name, directories)
        else:
            cfg = config.compose(overrides, name, directories)
        if not multirun and "hydra.mode=RUN" not in options.overrides:  # a sweep's job has a record of what is refused
            from memexp import stages

            stages.foresee(cfg)
            outcome.foreseen = True
    if multirun:
        job_name = "sweep"
        started = launcher.start_sweep(name, directories)
        outcome.sweep = jobs.Sweep(started.config_name, started.config_dirs)
        typed = sweeper.with_arms_quoted(options.overrides, name, directories)
        constant = ",".join(f"'{key}'" for key in overriding.constant_keys(typed))
        own = f"hydra.job.config.override_dirname.exclude_keys=[{constant}]"
        # what is set of a group that is itself swept may not be there before an option is chosen, as with prune=l1_norm,random
        swept = overriding.swept_keys(typed)
        same = [text for text in typed if text.partition("=")[0] not in swept]
        left = config.of_no_option(
            same, name, directories
        )  # of what an experiment's cases choose, as model.base of the INN
        overrides = [own, *(_job_by_job(text, swept, left) for text in typed)]
    if not hydra_only:
        arguments = [*_flags(arguments, options.overrides), *_searched(directories), *overrides]
    application = hydra.main(config_path=str(CONF), config_name=CONFIG_NAME, version_base="1.3")(outcome.carry_out)
    argv, sys.argv = sys.argv, ["memexp" if hydra_only else f"memexp {job_name}", *arguments]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what goes wrong instead of printing it: cli.py explains it
    try:
        application()
    except (HydraException, OmegaConfBaseException) as error:  # some are OSErrors, too; a run's own are in the outcome
        for job in sweeper.planned(options.overrides, name, directories) if multirun else ():
            config.compose_unchecked(job, name, directories)  # the first that cannot be says why
        if error.__cause__ is None:
            raise config.ConfigError([overriding.one_line(error)]) from error
        raise
    except OSError as error:  # Hydra makes the directory before the run can look at it
        if error.filename is None:
            raise
        raise RunDirectoryError(
            f"{error.filename} cannot be written: {error.strerror}. Choose another directory with hydra.run.dir=DIR (of a "
            "sweep: hydra.sweep.dir=DIR), or run from one that you may write."
        ) from error
    except KeyboardInterrupt:
        if not multirun or started.stopped is None:  # else the exit status of the sweep says so
            raise
    except ValueError as error:
        # a study of which no trial was done has no best one
        if isinstance(error, config.ConfigError) or not (multirun and launcher.nothing_done()):
            raise
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
        status = launcher.finish_sweep() if multirun else 0
    if outcome.error is not None:
        raise outcome.error
    return status


def _check_flags(options: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Raises ConfigError for flags that there are not, and for those of Hydra's that would run what has not been checked, or
    that nothing would read.
    """
    problems = [
        f"{text}: there is no such flag of train; settings are written without dashes, as in epochs=3."
        for text in unknown
    ]
    problems += [
        f"{flag}: {value} is not taken; --config-dir DIR adds a directory of your own configs, and -cn NAME is one of them."
        for flag, value in (("-cp", options.config_path), ("--experimental-rerun", options.experimental_rerun))
        if value is not None
    ]
    if options.cfg is None:
        given = {"--resolve": options.resolve, "--package": options.package}
        problems += [
            f"{flag}: goes with --cfg, which shows the configuration." for flag, value in given.items() if value
        ]
    if problems:
        raise config.ConfigError(problems)


def _directories(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The directories of a user's own configs, of which Hydra would take the last, and the other arguments."""
    parser = argparse.ArgumentParser(prog="memexp train", add_help=False, allow_abbrev=False)
    parser.add_argument("-cd", "--config-dir", action="append", default=[])
    found, rest = parser.parse_known_args(arguments)
    return found.config_dir, rest


def _searched(directories: Sequence[str]) -> list[str]:
    """The same for Hydra: a flag for the first, then an override for the others."""
    first, others = directories[:1], [overriding.quoted(f"file://{Path(path).absolute()}") for path in directories[1:]]
    return [
        *(f"--config-dir={path}" for path in first),
        *([f"hydra.searchpath=[{','.join(others)}]"] if others else []),
    ]


def _flags(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments without the overrides among them, as Hydra wants those in one row."""
    left, flags = list(overrides), []
    for text in arguments:
        if left and text == left[0]:
            left.pop(0)
        else:
            flags.append(text)
    return flags


def _job_by_job(text: str, swept: Sequence[str], left: Sequence[str]) -> str:
    """An override of a swept group's key, or of one that is there in jobs alone, as a choice of one, which Hydra looks at job
    by job; any other as it is.
    """
    key, _, value = text.partition("=")
    of_a_swept_group = "." in key and key not in swept and key.split(".")[0] in swept
    return f"{key}=choice({value})" if of_a_swept_group or text in left else text


class _Outcome:
    """The task that Hydra calls. It keeps the run's error, as Hydra would print it in its own way.

    sweep: that the run is a job of, without the other jobs; the task is then carried out in another process, perhaps elsewhere,
    to which all of this is sent. foreseen: what the stages would refuse has been looked at.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.sweep: jobs.Sweep | None = None
        self.foreseen = False

    def carry_out(self, cfg: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        shown = from_here(hydra_config.runtime.output_dir)
        if self.sweep is not None:
            job = jobs.Job(hydra_config.job.num, list(hydra_config.overrides.task), shown)
            return launcher.in_worker(job, self.sweep)
        if hydra_config.job.chdir:  # of a user's own YAML
            self.error = config.ConfigError([CHDIR])
            return None
        from memexp.record import summary
        from memexp.run import run
        from memexp.training.console import start_logging

        start_logging()
        try:
            if str(hydra_config.run.dir) == "":
                raise config.ConfigError(
                    ["hydra.run.dir: '' is not allowed; it takes the run directory, and . is this one."]
                )
            settings = OmegaConf.to_yaml({"hydra": hydra_config}, resolve=False)
            results = run(cfg, shown, list(hydra_config.overrides.task), hydra=settings, foreseen=self.foreseen)
        except Exception as error:
            self.error = error
        else:
            print(summary(results, shown))
        return None


class EveryLauncher(Callback):
    """Puts OtherLauncher around a sweep's launcher, where that is not memexp's own, and seeds a search."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sampler = OmegaConf.select(config, "hydra.sweeper.sampler")
        unseeded = isinstance(sampler, DictConfig) and "seed" in sampler and sampler.seed is None
        if unseeded and OmegaConf.select(config, "hydra.sweeper.storage") is None:
            with read_write(config), open_dict(config):  # started again, it asks for the same trials, which are done
                sampler.seed = config.seed
        target = "hydra_plugins.memexp_launcher."
        inner = config.hydra.launcher
        if not str(inner.get("_target_", "")).startswith(target):
            with read_write(config), open_dict(config):
                config.hydra.launcher = {"_target_": f"{target}OtherLauncher", "_recursive_": False, "launcher": inner}


def _run_name(*, _root_: Any) -> str:
    return config.run_name(_root_)


def job_name(overrides: str, *, _root_: Any) -> str:
    """The directory of a sweep's job: what is swept, and the hash of its whole configuration, so that no two jobs share one
    and each has the same on every start.
    """
    try:
        digest = config.config_hash(_root_)
    except OmegaConfBaseException:  # the job will be refused for it
        digest = sha256("\n".join(map(str, _root_.hydra.overrides.task)).encode()).hexdigest()[:8]
    return "-".join(filter(None, [launcher.short(overrides), digest]))


# The resolvers that conf/config.yaml names run directories with; also where another launcher's process imports this file.
OmegaConf.register_new_resolver("memexp.run", _run_name, replace=True)
OmegaConf.register_new_resolver("memexp.job", job_name, replace=True)
