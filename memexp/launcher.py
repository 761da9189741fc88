"""Launches the jobs of a sweep: here, `n_jobs` at a time, or through any other launcher of Hydra's (joblib, submitit, ...).
A sweep started again runs only what is not done; at its end all its jobs stand in one report.
"""

import copy
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from memexp import jobs
from memexp.config import ConfigError
from memexp.jobs import Job, Sweep
from memexp.onlooker import telling
from memexp.overriding import swept_keys
from memexp.paths import from_here
from memexp.record import NotWritten, RunDirectoryError, read_json, write_text
from memexp.visible import visible

LONGEST_NAME = 120  # bytes of a name that is made of overrides; what is longer is cut
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Sweeps:
    """The sweep that this process has started, if any."""

    current: Sweep | None = None
    folder: Path | None = None
    paper: str | None = None


def start_sweep(config_name: str, config_dirs: Sequence[str]) -> Sweep:
    Sweeps.current = Sweep(config_name, [str(Path(path).absolute()) for path in config_dirs])
    Sweeps.folder = Sweeps.paper = None
    return Sweeps.current


def finish_sweep() -> int:
    """Prints the report of all jobs, and returns the exit status: 0 when every job is done, 2 when all were refused for their
    configuration, 128+n when stopped, else 1.
    """
    sweep = Sweeps.current
    if sweep is None or not sweep.jobs:
        return 0
    if Sweeps.folder is not None:
        _print_report(Sweeps.folder, [job.directory for job in sweep.jobs], Sweeps.paper, sweep.config_dirs)
    return sweep_status(sweep)


def make_folder() -> Path:
    """The folder of the sweep's report, made once its jobs are known to be sound. Raises RunDirectoryError before the work
    begins where it cannot be written.
    """
    assert Sweeps.folder is not None
    try:
        Sweeps.folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=Sweeps.folder).close()
    except OSError as error:
        raise RunDirectoryError(
            f"the folder of the sweep, {Sweeps.folder}, cannot be written: {error.strerror}. Choose another with "
            "hydra.sweep.dir=DIR, or run from a directory that you may write."
        ) from error
    return Sweeps.folder


def sweep_status(sweep: Sweep) -> int:
    if sweep.stopped is not None:
        return 128 + sweep.stopped
    if all(job.status == "refused" for job in sweep.jobs):
        return 2
    return int(any(job.status != "done" for job in sweep.jobs))


def nothing_done() -> bool:
    """Whether there were jobs and none is done."""
    sweep = Sweeps.current
    return sweep is not None and bool(sweep.jobs) and all(job.status != "done" for job in sweep.jobs)


class _Recorded(Launcher):
    """What every launcher of jobs has: it knows them, looks at how they ended, and says so to the sweeper."""

    config: DictConfig | None = None
    hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        sweep = Sweeps.current
        assert sweep is not None
        sweep.total = int(OmegaConf.select(config, "hydra.sweeper.n_trials") or 0)  # Optuna's
        Sweeps.folder = folder_of(config)
        Sweeps.paper = config.case.get("id") if config.case else None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        sweep = Sweeps.current
        assert sweep is not None
        if sweep.stopped is not None:  # in a batch before this one; what the sweeper still asks for is not looked at
            raise KeyboardInterrupt
        batch = [self._job(initial_job_idx + i, list(overrides)) for i, overrides in enumerate(job_overrides)]
        _each_its_folder([*sweep.jobs, *batch])
        write_text(make_folder() / "multirun.yaml", OmegaConf.to_yaml(self.config))
        sweep.jobs += batch
        sweep.total = max(sweep.total, len(sweep.jobs))
        self.carry_out(batch, sweep)
        return [_returned(job) for job in batch]

    def carry_out(self, batch: Sequence[Job], sweep: Sweep) -> None:
        """Sets the status of each job."""
        raise NotImplementedError

    def _job(self, number: int, overrides: list[str]) -> Job:
        assert self.hydra_context is not None
        assert self.config is not None
        assert Sweeps.current is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with read_write(config), open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, f"{config.hydra.job.name}_{number}"
        job = Job(number, overrides, Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir))
        jobs.identify(job, Sweeps.current)
        return job


def _each_its_folder(found: Sequence[Job]) -> None:
    """Raises ConfigError where two jobs that are not the same would be written to one folder, and one would be lost."""
    first: dict[Path, Job] = {}
    for job in found:
        other = first.setdefault(job.directory, job)
        if (other.hash or other.overrides) != (job.hash or job.overrides):
            differing = ", ".join(text for text in job.overrides if text not in other.overrides)
            raise ConfigError(
                [
                    f"hydra.sweep.subdir: {job.directory} is the folder of two jobs of this sweep, as nothing in its name "
                    f"tells {differing} from the other; sweep over that in separate commands, each with a "
                    "hydra.sweep.dir=DIR of its own."
                ]
            )


class LocalLauncher(_Recorded):
    """`n_jobs` jobs at a time on this machine, spread over its GPUs: where there are as many, each has one for itself."""

    def __init__(self, n_jobs: int = 1) -> None:
        if not isinstance(n_jobs, int) or n_jobs < 1:
            raise ConfigError(
                [f"hydra.launcher.n_jobs: {n_jobs!r} is not allowed; it takes a whole number at least 1."]
            )
        self.n_jobs = n_jobs

    def carry_out(self, batch: Sequence[Job], sweep: Sweep) -> None:
        sweep.at_a_time = self.n_jobs
        if self.n_jobs > 1 and (gpus := visible_gpus()):
            sweep.gpus = gpus * math.ceil(self.n_jobs / len(gpus))
        stop = lambda signum, frame: jobs.stop(sweep, signum)  # noqa: E731
        handlers = {s: signal.signal(s, stop) for s in STOPS}
        try:
            with ThreadPoolExecutor(self.n_jobs) as pool:
                list(pool.map(lambda job: jobs.carry_out(job, sweep), batch))
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes. Without setting one up."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in named][:count] if any(named) else [str(number) for number in range(count)]


class OtherLauncher(_Recorded):
    """Any other launcher: it brings each job's task to where it is carried out (`in_worker`), here it is recorded."""

    def __init__(self, launcher: DictConfig) -> None:
        self.launcher = launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        inner = copy.deepcopy(config)
        with read_write(inner), open_dict(inner):
            inner.hydra.launcher = self.launcher
        self.inner = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=inner
        )

    def carry_out(self, batch: Sequence[Job], sweep: Sweep) -> None:
        def stop(signum: int, frame: Any) -> None:
            sweep.stopped = signum
            raise KeyboardInterrupt

        handlers = {s: signal.signal(s, stop) for s in STOPS}
        returned: list[JobReturn] = []
        try:
            with telling(batch, sweep):
                for part in jobs.in_turn(batch, sweep):  # their processes know nothing of each other
                    returned += self.inner.launch([job.overrides for job in part], part[0].number)
        except KeyboardInterrupt:
            sweep.stopped = sweep.stopped or signal.SIGINT
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        for job, result in zip(batch, [*returned, *[None] * (len(batch) - len(returned))], strict=True):
            if result is not None and result.hydra_cfg is not None:  # by a number of SLURM's, perhaps
                job.directory = from_here(result.hydra_cfg.hydra.runtime.output_dir)
            if (
                result is not None
                and result.status is JobStatus.FAILED
                and job.results.get("status") in (None, "running")
            ):
                jobs.record_failure(job, str(result._return_value), job.results)
            if job.problem is not None:
                jobs.identify(job, sweep)  # as its worker has, later than it was looked at here
            job.status = "refused" if job.problem is not None else jobs.judge(job, sweep, None)


def in_worker(job: Job, sweep: Sweep) -> float | None:
    """Carries out a job in a process that another launcher has started; the error, where it is done.

    SIGUSR2 is the notice that this process is about to be ended, by SLURM for one. The job saves and stops, and then whoever
    handled the signal before has it: submitit queues the job again, which goes on from what was saved.
    """
    jobs.identify(job, sweep)
    here = threading.current_thread() is threading.main_thread()  # the one that is given signals
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: jobs.stop(sweep, signum)) if here else None
    try:
        jobs.carry_out(job, sweep, own_session=False)
    finally:
        if here:
            signal.signal(signal.SIGUSR2, before)
    stopped, sweep.stopped = sweep.stopped, None  # the sweep is sent along with a job that is queued again
    if stopped is not None and job.status != "done" and callable(before):
        before(stopped, None)
    returned: float | None = _returned(job).return_value
    return returned


def _returned(job: Job) -> JobReturn:
    """What a sweeper that optimises looks at: the error of a job that is done; None, no figure, of one that is not.

    Of the images by which a run chooses its best weights, where there are such, and never those that it is tested on.
    """
    stages = [stage.get("accuracy") or {} for stage in job.results.get("stages") or ()]
    watched = [accuracy for accuracy in stages if accuracy.get("split") == "val"]
    accuracy = watched[-1] if watched else job.results.get("accuracy") or {}
    returned = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    returned.return_value = accuracy.get("error") if job.status == "done" else None
    return returned


def folder_of(config: DictConfig) -> Path:
    """The folder of a sweep's own report: named by what is swept, the same for the same sweep, another for another."""
    task = [str(text) for text in config.hydra.overrides.task if not str(text).startswith("overwrite=")]
    own = [f"{key}={value}" for key, value in (OmegaConf.select(config, "hydra.sweeper.params") or {}).items()]
    swept = swept_keys([*own, *task])
    kinds = ("hydra/sweeper", "hydra.sweeper.sampler")  # another search, where more trials are more of the same
    given: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    search = [text for text in given if text.lstrip("+").startswith(kinds)]
    named = sorted([config.hydra.job.config_name or "", *own, *task, *search])
    digest = sha256("\n".join(named).encode()).hexdigest()[:8]
    return Path(str(config.hydra.sweep.dir)) / "-".join(["sweep", *filter(None, [short(",".join(swept))]), digest])


def short(text: str) -> str:
    """The text as part of a file name."""
    plain = re.sub(r"[^\w.,=+-]+", "-", re.sub(r"[\[\]{}'\"\s]", "", text)).strip("-")
    return plain.encode()[:LONGEST_NAME].decode(errors="ignore")


def _print_report(
    folder: Path, directories: Sequence[Path], identifier: str | None, config_dirs: Sequence[str]
) -> None:
    """One table of all jobs, also written as report.md with its plots into the sweep's own folder.

    identifier: of the experiment, whose published numbers stand beside the measured ones where there are some.
    """
    from memexp.report import published, write_report

    paper = identifier if identifier in published.identifiers(config_dirs) else None
    there = [path for path in directories if read_json(path / "results.json") is not None]
    if there:
        try:
            print(write_report(there, output_dir=folder, paper=paper, config_dirs=config_dirs))
        except NotWritten as error:  # the jobs' own records are what counts
            print(error.told)
            print(f"warning: {visible(str(error))}", file=sys.stderr)
