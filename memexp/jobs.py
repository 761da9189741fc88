"""One job of a sweep: a process of its own, so that it measures its own memory and takes no other down, and what came of it.

Whatever launches jobs, here or in another process or on another machine, carries them out through here.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from memexp.choices import STARTS
from memexp.config import ConfigError, compose, compose_unchecked, config_hash
from memexp.lock import in_use
from memexp.overriding import quoted
from memexp.record import SCHEMA, read_json, write_json

DISCARDED = ("nan", "oom")  # statuses after which going on from the checkpoint would end the same way


@dataclass
class Job:
    """One point of the sweep. seconds: that its process took, if there was one. any_gpu: no device is named for it."""

    number: int
    overrides: list[str]
    directory: Path
    hash: str | None = None
    problem: str | None = None
    any_gpu: bool = True
    status: str | None = None
    seconds: float | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def results(self) -> dict[str, Any]:
        return read_json(self.directory / "results.json") or {}


@dataclass
class Sweep:
    """What all jobs of one sweep share. total: how many there will be, where that is known before the last. gpus: by name, as
    often as jobs may have each at a time; a job that begins takes one, and gives it back when it ends.
    """

    config_name: str
    config_dirs: list[str]
    jobs: list[Job] = field(default_factory=list)
    total: int = 0
    at_a_time: int = 1
    gpus: list[str] = field(default_factory=list)
    children: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    stopped: int | None = None


# None is started while all are being asked to stop. Reentrant, for a signal that comes while another is dealt with.
_starting = threading.RLock()
_printing = threading.Lock()
_composing = threading.Lock()  # Hydra's state is global


def stop(sweep: Sweep, signum: int) -> None:
    """No further job begins, and each that runs is asked to stop; asked again by a signal that is no notice, it is ended."""
    with _starting:
        again = sweep.stopped not in (None, signal.SIGUSR2) and signum != signal.SIGUSR2
        sweep.stopped = signum
        # a notice, as whoever stops a sweep may have sent each of its processes a signal
        asks = signal.SIGKILL if again else signal.SIGUSR2
        for child in list(sweep.children):
            child.send_signal(asks)


def identify(job: Job, sweep: Sweep) -> None:
    """Composes the job's configuration: its hash, or the problem that it has."""
    with _composing:
        try:
            cfg = compose(job.overrides, sweep.config_name, sweep.config_dirs)
            job.hash, job.problem, job.any_gpu = config_hash(cfg), None, cfg.device in ("auto", "cuda")
        except ConfigError as error:
            job.problem = str(error)


def carry_out(job: Job, sweep: Sweep, own_session: bool = True) -> None:
    """Runs one job to its end, or finds it done, and sets its status. own_session: Ctrl-C reaches this process alone, which
    asks the job to stop.
    """
    try:
        before = [other for other in sweep.jobs if other.number < job.number]
        begun = starts_from(job, before, sweep)
        for other in (*begun, *_the_same(job, before)):  # jobs begin in their order: what is waited for has begun
            other.ended.wait()
        if job.problem is not None:  # the run that it starts from may be there by now
            identify(job, sweep)
        job.status = _status(job, sweep, own_session, begun)
        _tell_the_end(job, sweep)
    finally:
        job.ended.set()


def starts_from(job: Job, others: Sequence[Job], sweep: Sweep) -> list[Job]:
    """Those of the others whose runs the job starts from."""
    if not any(text.partition("=")[0].lstrip("+") in STARTS for text in job.overrides):
        return []
    with _composing:
        try:
            cfg = compose_unchecked(job.overrides, sweep.config_name, sweep.config_dirs)
        except ConfigError:  # which is told when its turn comes
            return []
    named = {os.path.abspath(path) for path in (OmegaConf.select(cfg, key) for key in STARTS) if isinstance(path, str)}
    return [other for other in others if os.path.abspath(other.directory) in named]


def _the_same(job: Job, others: Sequence[Job]) -> list[Job]:
    """Those of the others that are this very job once more: a search may draw the same settings twice."""
    return [other for other in others if other.directory == job.directory]


def in_turn(batch: Sequence[Job], sweep: Sweep) -> list[list[Job]]:
    """The batch in parts, in order, none of which has a job that starts from another one of it, or is the same."""
    parts: list[list[Job]] = [[]]
    for job in batch:
        if starts_from(job, parts[-1], sweep) or _the_same(job, parts[-1]):
            parts.append([])
        parts[-1].append(job)
    return parts


def judge(job: Job, sweep: Sweep, code: int | None, before: dict[str, Any] | None = None) -> str:
    """The status of a job whose process has ended with `code` (None: not known), from its record; it is given one if it left
    none. before: its record as the process found it; of one that was refused before it wrote any it stays as it was.
    """
    results = job.results
    status = str(results.get("status", "running"))
    if status != "running":
        if code and results == before and sweep.stopped is None:
            return "failed"
        return "failed" if code != 0 and code is not None and status == "done" else status
    if in_use(job.directory):
        return "running"
    if sweep.stopped is not None:
        if results and code is not None:  # ended before it could say so
            record_end(job, "interrupted", f"stopped by {signal.Signals(sweep.stopped).name}, without saving", results)
        return "interrupted"
    reason = "it left no record of its end" if code is None else f"the process ended with exit status {code}"
    if code is not None and code < 0:
        reason = f"the process was ended by {signal.Signals(-code).name}"
        reason += " (by the system for want of memory?)" if -code == signal.SIGKILL else ""
    record_failure(job, reason, results)
    return "failed"


def record_failure(job: Job, error: str, results: dict[str, Any] | None = None) -> None:
    record_end(job, "failed", error, results)


def record_end(job: Job, status: str, error: str, results: dict[str, Any] | None) -> None:
    job.directory.mkdir(parents=True, exist_ok=True)
    base: dict[str, Any] = {"schema": SCHEMA, "overrides": job.overrides, "config_hash": job.hash}
    write_json(job.directory / "results.json", {**base, **(results or {}), "status": status, "error": error})


def _status(job: Job, sweep: Sweep, own_session: bool, begun: Sequence[Job]) -> str:
    title = f"{_title(job, sweep)}: {' '.join(job.overrides)}"
    before = read_json(job.directory / "results.json")
    if sweep.stopped is not None:
        return "interrupted"
    kept = before is not None and before.get("status") == "done"  # and no failure takes its place
    if job.problem is not None:
        say(f"{title}\n  refused: {job.problem}")
        if not kept:
            record_failure(job, job.problem)
        return "refused"
    same = before is not None and before.get("config_hash") == job.hash
    if same and kept:
        asked = any(text.lstrip("+") == "overwrite=true" for text in job.overrides)
        told = "; overwrite=true does no job of a sweep again: remove its folder for that" if asked else ""
        say(f"{title}\n  done before, in {job.directory}{told}")
        return "done"
    if in_use(job.directory):  # of another sweep perhaps, whose record this is
        say(f"{title}\n  not run: {job.directory} is in use by another run")
        return "running"
    if (start := next((other for other in begun if other.status != "done"), None)) is not None:
        reason = f"it starts from {start.directory}, and that job of the sweep is {start.status}, not done"
        say(f"{title}\n  not run: {reason}")
        if not kept:
            record_failure(job, reason, before if same else None)
        return "failed"
    go_on = (
        before is not None
        and same
        and before.get("status") not in DISCARDED
        and any((job.directory / "checkpoints").glob("*.pt"))
    )
    anew = (
        same and before is not None and before.get("steps") and not go_on
    )  # what has been trained is not gone on with
    why = (
        f"it ended as {before.get('status')}"
        if before and before.get("status") in DISCARDED
        else "its checkpoints are gone"
    )
    gpu = sweep.gpus.pop(0) if sweep.gpus and job.any_gpu else None
    place = "" if gpu is None else f" on GPU {gpu}"
    say(f"{title}{' (resumed)' if go_on else f' (begun anew, as {why})' if anew else ''}{place}")
    started = time.monotonic()
    try:
        code = run_process(job, sweep, go_on, own_session, gpu)
    finally:
        if gpu is not None:
            sweep.gpus.append(gpu)
    job.seconds = time.monotonic() - started
    return "interrupted" if code is None else judge(job, sweep, code, before)


def run_process(job: Job, sweep: Sweep, go_on: bool, own_session: bool = True, gpu: str | None = None) -> int | None:
    """The exit code of the job's process; negative when a signal ended it; None if the sweep was stopped before it began."""
    directories = [flag for path in sweep.config_dirs for flag in ("--config-dir", path)]
    if go_on:
        command = ["resume", *directories, str(job.directory)]
    else:
        flags = ["--config-name", sweep.config_name, *directories]
        command = ["train", *flags, *job.overrides, f"hydra.run.dir={quoted(str(job.directory))}", "hydra.mode=RUN"]
        before = read_json(job.directory / "results.json") or {}
        # what of it can be gone on with has been looked at; what was trained by other settings is not thrown away
        if before.get("status", "done") != "done" and before.get("config_hash") == job.hash:
            command.append("overwrite=true")
    environment = dict(os.environ)
    if sweep.at_a_time > 1:  # jobs side by side share the cores instead of fighting for them
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sweep.at_a_time)))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    output = None if sweep.at_a_time == 1 else subprocess.DEVNULL
    with _starting:
        if sweep.stopped is not None:
            return None
        child = subprocess.Popen(
            [sys.executable, "-m", "memexp", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            start_new_session=own_session,
        )
        sweep.children.add(child)
    try:
        return child.wait()
    finally:
        sweep.children.discard(child)


def _title(job: Job, sweep: Sweep) -> str:
    return f"job {job.number + 1}/{sweep.total}" if sweep.total else f"job {job.number + 1}"


def _tell_the_end(job: Job, sweep: Sweep) -> None:
    """One line: how it ended, how far the sweep has come, and how long it will take, by the jobs so far."""
    if job.seconds is None or job.status == "running":  # it never began, or another run was quicker
        return
    top1 = (job.results.get("accuracy") or {}).get("top1")
    figure = f", top-1 {top1:.2f} %" if job.status == "done" and isinstance(top1, int | float) else ""
    text = f"{_title(job, sweep)} {job.status} in {duration(job.seconds)}{figure}"
    ended = [other.status for other in sweep.jobs if other.status is not None]
    left = sweep.total - len(ended)
    if left > 0 and sweep.stopped is None and job in sweep.jobs:
        spent = [other.seconds for other in sweep.jobs if other.seconds is not None]
        seconds = left * sum(spent) / len(spent) / sweep.at_a_time
        text += f"; {progress([*ended, *['running'] * len(sweep.children)], sweep.total, seconds)}"
    say(text)


def progress(statuses: Iterable[str], total: int, seconds: float | None) -> str:
    """How far a whole sweep has come: 3 done, 1 failed, 2 running, 18 to go, about 12 min. seconds: that are left, if known."""
    counts = Counter(statuses)
    counts["running"] = counts.pop("running", 0)  # behind those that have ended
    counts["to go"] = total - counts.total()
    told = [f"{count} {status}" for status, count in counts.items() if count > 0]
    return ", ".join([*told, *([] if seconds is None else [f"about {duration(seconds)}"])])


def duration(seconds: float) -> str:
    """A time as people say it: 9.5 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """One line, whole, whoever else has one to tell."""
    with _printing:
        print(text, flush=True)
