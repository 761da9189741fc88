"""Runs the jobs of a sweep, each in a process of its own, so that each measures its own memory and none takes the others
down. A sweep started again runs only what is not done.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from memexp.config import ConfigError, compose, config_hash
from memexp.record import SCHEMA, read_json, write_json

DISCARDED = ("nan", "oom")  # statuses after which going on from the checkpoint would end the same way


@dataclass
class Sweep:
    """What all jobs of one sweep share."""

    config_name: str
    config_dirs: list[str]
    statuses: list[str] = field(default_factory=list)
    children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: int | None = None


@dataclass
class Job:
    """One point of the sweep."""

    number: int
    overrides: list[str]
    directory: Path
    hash: str | None = None
    problem: str | None = None


_SWEEP: Sweep | None = None
# A process is asked to stop once, as the second signal would end it before it has saved; so none is started while all are
# being asked. Reentrant, for a signal that comes while another is dealt with.
_STARTING = threading.RLock()


def start_sweep(config_name: str, config_dirs: Sequence[str]) -> None:
    global _SWEEP
    _SWEEP = Sweep(config_name, [str(Path(path).absolute()) for path in config_dirs])


def sweep_status() -> int:
    """0 when every job is done, 2 when all were refused for their configuration, 128+n when stopped, else 1."""
    if _SWEEP is None or not _SWEEP.statuses:
        return 0
    if _SWEEP.stopped is not None:
        return 128 + _SWEEP.stopped
    if all(status == "refused" for status in _SWEEP.statuses):
        return 2
    return int(any(status != "done" for status in _SWEEP.statuses))


class LocalLauncher(Launcher):
    """`n_jobs` jobs at a time on this machine."""

    def __init__(self, n_jobs: int = 1) -> None:
        if not isinstance(n_jobs, int) or n_jobs < 1:
            raise ConfigError(
                [f"hydra.launcher.n_jobs: {n_jobs!r} is not allowed; it takes a whole number at least 1."]
            )
        self.n_jobs = n_jobs
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert _SWEEP is not None
        assert self.config is not None
        jobs = [self._job(initial_job_idx + i, list(overrides)) for i, overrides in enumerate(job_overrides)]
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(self.n_jobs) as pool:
                statuses = list(pool.map(lambda job: _carry_out(job, _SWEEP, self.n_jobs, len(jobs)), jobs))
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        _SWEEP.statuses += statuses
        identifier = self.config.case.id if self.config.case else None
        _print_report(Path(str(self.config.hydra.sweep.dir)), jobs, identifier)
        return [self._returned(job) for job in jobs]

    def _stop(self, signum: int, frame: Any) -> None:
        assert _SWEEP is not None
        with _STARTING:
            _SWEEP.stopped = signum
            for child in list(_SWEEP.children):
                child.send_signal(signal.SIGTERM)

    def _job(self, number: int, overrides: list[str]) -> Job:
        assert self.hydra_context is not None
        assert self.config is not None
        assert _SWEEP is not None
        sweep = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        job = Job(number, overrides, Path(str(sweep.hydra.sweep.dir)) / str(sweep.hydra.sweep.subdir))
        try:
            job.hash = config_hash(compose(overrides, _SWEEP.config_name, _SWEEP.config_dirs))
        except ConfigError as error:
            job.problem = str(error)
        return job

    def _returned(self, job: Job) -> JobReturn:
        """What a sweeper that optimises looks at: the error of a job that is done."""
        results = read_json(job.directory / "results.json") or {}
        accuracy = results.get("accuracy") or {}
        returned = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
        returned.return_value = accuracy.get("error", float("nan"))
        return returned


def _carry_out(job: Job, sweep: Sweep, n_jobs: int, total: int) -> str:
    """Runs one job to its end and returns its status."""
    title = f"job {job.number + 1}/{total}: {' '.join(job.overrides)}"
    before = read_json(job.directory / "results.json")
    if sweep.stopped is not None:
        return "interrupted"
    if job.problem is not None:
        _say(f"{title}\n  refused: {job.problem}")
        if before is None or before.get("status") != "done":
            _record_failure(job, job.problem)
        return "refused"
    same = before is not None and before.get("config_hash") == job.hash
    if before is not None and same and before.get("status") == "done":
        _say(f"{title}\n  done before, in {job.directory}")
        return "done"
    go_on = (
        before is not None
        and same
        and before.get("status") not in DISCARDED
        and (job.directory / "checkpoints" / "last.pt").exists()
    )
    _say(f"{title}{' (resumed)' if go_on else ''}")
    code = _run_process(job, sweep, n_jobs, go_on)
    results = read_json(job.directory / "results.json") or {}
    status = str(results.get("status", "running"))
    if code is None or (status == "running" and sweep.stopped is not None):
        return "interrupted"
    if status == "running":  # it had no time to write its own record, or none at all
        reason = f"the process ended with exit status {code}"
        if code < 0:
            reason = f"the process was ended by {signal.Signals(-code).name}"
            reason += " (by the system for want of memory?)" if -code == signal.SIGKILL else ""
        _record_failure(job, reason, results)
        return "failed"
    return "failed" if code != 0 and status == "done" else status


def _run_process(job: Job, sweep: Sweep, n_jobs: int, go_on: bool) -> int | None:
    """The exit code of the job's process; negative when a signal ended it; None if the sweep was stopped before it began."""
    directories = [flag for path in sweep.config_dirs for flag in ("--config-dir", path)]
    if go_on:
        command = ["resume", *directories, str(job.directory)]
    else:
        directory = str(job.directory).replace("\\", "\\\\").replace("'", "\\'")
        flags = ["--config-name", sweep.config_name, *directories]
        command = ["train", *flags, *job.overrides, f"hydra.run.dir='{directory}'", "hydra.mode=RUN"]
        before = read_json(job.directory / "results.json")
        if before is not None and before.get("status") != "done":  # what of it can be gone on with has been looked at
            command.append("overwrite=true")
    environment = dict(os.environ)
    if n_jobs > 1:  # jobs side by side share the cores instead of fighting for them
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_jobs)))
    # its own session: Ctrl-C reaches this process, which asks each job to stop
    output = None if n_jobs == 1 else subprocess.DEVNULL
    with _STARTING:
        if sweep.stopped is not None:
            return None
        child = subprocess.Popen(
            [sys.executable, "-m", "memexp", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            start_new_session=True,
        )
        sweep.children.add(child)
    try:
        return child.wait()
    finally:
        sweep.children.discard(child)


def _record_failure(job: Job, error: str, results: dict[str, Any] | None = None) -> None:
    job.directory.mkdir(parents=True, exist_ok=True)
    base: dict[str, Any] = {"schema": SCHEMA, "overrides": job.overrides, "config_hash": job.hash}
    write_json(job.directory / "results.json", {**base, **(results or {}), "status": "failed", "error": error})


_PRINTING = threading.Lock()


def _say(text: str) -> None:
    with _PRINTING:
        print(text, flush=True)


def _print_report(directory: Path, jobs: Sequence[Job], identifier: str | None) -> None:
    """One table of all jobs, also written as report.md with its plots into the sweep's directory.

    identifier: of the experiment, whose published numbers stand beside the measured ones where there are some.
    """
    from memexp.report import published, write_report

    paper = identifier if identifier in published.identifiers() else None
    print(write_report([job.directory for job in jobs], output_dir=directory, paper=paper))
