"""Signals to a sweep, to its processes and to workers that are preempted."""

import os
import pickle
import signal
import threading
from unittest.mock import Mock

import pytest
from launcher_jobs import Processes, record, results

from memexp import jobs, launcher
from memexp.jobs import Sweep


def test_a_process_that_is_killed_as_its_sweep_is_stopped_is_recorded_as_stopped(job, run):
    """By a second Ctrl-C; the sweep's table would have it running for good."""
    sweep = Sweep("config", [])

    def killed(*arguments) -> int:
        sweep.stopped = signal.SIGINT
        return Processes(-signal.SIGKILL, "running")(*arguments)

    assert run(killed, sweep) == "interrupted"
    assert (results(job)["status"], results(job)["steps"]) == ("interrupted", 7)
    assert results(job)["error"] == "stopped by SIGINT, without saving"


def test_after_a_signal_no_job_is_started(job, run):
    processes = Processes()
    assert run(processes, Sweep("config", [], stopped=signal.SIGTERM)) == "interrupted"
    assert processes.resumed == []
    assert not job.directory.exists()


def test_no_process_is_started_once_the_sweep_is_stopped(job, started):
    assert jobs.run_process(job, Sweep("config", [], stopped=signal.SIGTERM), go_on=False) is None
    assert started == []


def test_a_signal_reaches_each_process_once_even_one_that_is_being_started(job, monkeypatch):
    """The signal comes between the start of a process and its entry in the list, where one could miss it."""
    sweep = Sweep("config", [])
    asker = threading.Thread(target=jobs.stop, args=(sweep, signal.SIGTERM))
    signals: list[int] = []

    class Child:
        def __init__(self, *_: object, **__: object) -> None:
            asker.start()
            asker.join(0.1)  # it must not get through yet

        def send_signal(self, signum: int) -> None:
            signals.append(signum)

        def wait(self) -> int:
            asker.join()
            return -signal.SIGTERM

    monkeypatch.setattr(jobs.subprocess, "Popen", Child)
    jobs.carry_out(job, sweep)
    assert job.status == "interrupted"
    assert signals == [signal.SIGUSR2]
    assert not job.directory.exists()  # stopped, not failed: the next start of the sweep runs it


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([signal.SIGTERM], [signal.SIGUSR2]),
        ([signal.SIGUSR2, signal.SIGTERM], [signal.SIGUSR2, signal.SIGUSR2]),  # SLURM's notice, then its end
        ([signal.SIGINT, signal.SIGINT], [signal.SIGUSR2, signal.SIGKILL]),
    ],
)
def test_jobs_are_asked_to_stop_and_ended_when_asked_again(asked, told):
    signals: list[int] = []
    sweep = Sweep("config", [], children={Mock(send_signal=signals.append)})
    for signum in asked:
        jobs.stop(sweep, signum)
    assert (signals, sweep.stopped) == (told, asked[-1])


@pytest.mark.parametrize("end", ["interrupted", "done"])
def test_a_worker_that_is_preempted_waits_for_its_job_and_then_queues_it_again(job, started, monkeypatch, end):
    """As submitit does it: its handler sends all of the task along, which must be as it was before."""
    sweep, queued, job.overrides = Sweep("config", []), [], ["model=resnet", "model.depth=8"]

    class Child:
        def __init__(self, *_: object, **__: object) -> None: ...

        def send_signal(self, signum: int) -> None:
            assert signum == signal.SIGUSR2
            record(job, end)

        def wait(self) -> int:
            os.kill(os.getpid(), signal.SIGUSR2)
            return 0 if end == "done" else 140

    monkeypatch.setattr(jobs.subprocess, "Popen", Child)
    before = signal.signal(signal.SIGUSR2, lambda *_: queued.append((job.status, pickle.dumps(sweep))))
    try:
        launcher.in_worker(job, sweep)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert [status for status, _ in queued] == ([] if end == "done" else ["interrupted"])
    assert all(pickle.loads(sent) == Sweep("config", []) for _, sent in queued)
