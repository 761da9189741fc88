"""`memexp train` as a Hydra application: its flags, the names of run directories, the outcome."""

import os
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from memexp import config, launcher
from memexp.config import CONFIG_NAME
from memexp.paths import CONF

LONGEST_NAME = 120  # a directory name of overrides longer than this is cut and given a hash


def train(arguments: list[str], hydra_only: bool) -> int:
    """Checks a command line and gives it to Hydra, which composes the run or the sweep. Returns the exit status.

    hydra_only: the command asks Hydra about itself (help, completion); nothing is run, so nothing is checked.
    """
    job_name = "train"
    outcome = _Outcome()
    if not hydra_only:
        options = get_args_parser().parse_args(arguments)
        directories = [options.config_dir] if options.config_dir else []
        multirun = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
        name = options.config_name or CONFIG_NAME
        if options.cfg == "job" and not options.package:  # composed once: this is what people wait for
            print(
                OmegaConf.to_yaml(config.compose(options.overrides, name, directories), resolve=options.resolve), end=""
            )
            return 0
        config.check_command_line(options.overrides, name, directories, multirun)
        job_name = "sweep" if multirun else "train"
        launcher.start_sweep(name, directories)
    _name_directories()
    application = hydra.main(config_path=str(CONF), config_name=CONFIG_NAME, version_base="1.3")(outcome.carry_out)
    argv, sys.argv = sys.argv, [f"memexp {job_name}", *arguments]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what goes wrong instead of printing it: cli.py explains it
    try:
        application()
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    if outcome.error is not None:
        raise outcome.error
    return launcher.sweep_status()


class _Outcome:
    """The task that Hydra calls. It keeps the run's error, as Hydra would print it in its own way."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def carry_out(self, cfg: DictConfig) -> None:
        from memexp.record import summary
        from memexp.run import run
        from memexp.training.console import start_logging

        start_logging()
        hydra_config = HydraConfig.get()
        directory = Path(hydra_config.runtime.output_dir)
        shown = Path(os.path.relpath(directory))
        try:
            settings = OmegaConf.to_yaml({"hydra": hydra_config}, resolve=False)
            results = run(cfg, shown, list(hydra_config.overrides.task), hydra=settings)
        except Exception as error:
            self.error = error
        else:
            print(summary(results, shown))


def _name_directories() -> None:
    """The resolvers that conf/config.yaml names run directories with."""
    OmegaConf.register_new_resolver("memexp.run", _run_name, replace=True)
    OmegaConf.register_new_resolver("memexp.job", job_name, replace=True)


def _run_name(*, _root_: Any) -> str:
    return config.run_name(_root_)


def job_name(overrides: str) -> str:
    """The directory of a sweep's job: its overrides where they make a short file name, the same on every start."""
    name = re.sub(r"[^\w.,=+-]+", "-", overrides).strip("-") or "default"
    if name != overrides or len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{sha256(overrides.encode()).hexdigest()[:8]}"
    return name
