"""What the launcher makes of a job's process: records, resuming, refusals, signals. Whole sweeps are in test_cli."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from unittest.mock import Mock

import pytest

from memexp import jobs, launcher
from memexp.config import ConfigError
from memexp.jobs import Job, Sweep
from memexp.launcher import LocalLauncher
from memexp.onlooker import Onlooker
from memexp.record import SCHEMA, RunDirectory, read_json, write_json


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(0, ["model.depth=8"], tmp_path / "job", hash="abc")


def results(job: Job) -> dict:
    return read_json(job.directory / "results.json") or {}


def record(job: Job, status: str, **more) -> None:
    job.directory.mkdir(exist_ok=True)
    write_json(job.directory / "results.json", {"schema": SCHEMA, "status": status, "config_hash": "abc"} | more)


class Processes:
    """In place of real ones: notes whether each was to go on, writes what it is told to, ends with `code`."""

    def __init__(self, code: int = 0, status: str | None = "done") -> None:
        self.code, self.status = code, status
        self.resumed: list[bool] = []

    def __call__(self, job: Job, sweep: Sweep, go_on: bool, own: bool, gpu: str | None) -> int:
        self.resumed.append(go_on)
        if self.status is not None:
            record(job, self.status, steps=7)
        return self.code


@pytest.fixture
def run(job, monkeypatch):
    def carry_out(processes, sweep: Sweep | None = None) -> str:
        monkeypatch.setattr(jobs, "run_process", processes)
        jobs.carry_out(job, sweep or Sweep("config", []))
        return str(job.status)

    return carry_out


def test_a_job_may_start_from_what_an_earlier_one_has_left(job, run, tmp_path):
    first, sweep = tmp_path / "first", Sweep("config", [])
    job.overrides = [f"init_from='{first}'", "model=resnet", "model.depth=8"]
    jobs.identify(job, sweep)  # as all jobs are before the first one begins
    assert "there is no run in" in str(job.problem)
    assert run(Processes(), sweep) == "refused"
    first.mkdir()
    write_json(first / "results.json", {"schema": SCHEMA, "status": "done"})
    assert run(Processes(), sweep) == "done"
    assert job.problem is None


@pytest.mark.parametrize(
    ("code", "before", "error"),
    [
        (-signal.SIGKILL, "running", "ended by SIGKILL (by the system for want of memory?)"),
        (-signal.SIGSEGV, "running", "ended by SIGSEGV"),
        (3, "running", "ended with exit status 3"),
        (-signal.SIGKILL, None, "ended by SIGKILL"),  # while it was still importing
        (1, None, "ended with exit status 1"),
        (0, None, "ended with exit status 0"),
    ],
)
def test_a_process_that_left_no_record_of_its_end_gets_one(job, run, code, before, error):
    assert run(Processes(code, before)) == "failed"
    assert results(job)["status"] == "failed"
    assert error in results(job)["error"]
    assert results(job)["schema"] == SCHEMA
    assert results(job).get("steps") == (7 if before else None)  # what it had written stays


def test_a_process_that_is_killed_as_its_sweep_is_stopped_is_recorded_as_stopped(job, run):
    """By a second Ctrl-C; the sweep's table would have it running for good."""
    sweep = Sweep("config", [])

    def killed(*arguments) -> int:
        sweep.stopped = signal.SIGINT
        return Processes(-signal.SIGKILL, "running")(*arguments)

    assert run(killed, sweep) == "interrupted"
    assert (results(job)["status"], results(job)["steps"]) == ("interrupted", 7)
    assert results(job)["error"] == "stopped by SIGINT, without saving"


@pytest.mark.parametrize("status", ["oom", "nan", "interrupted", "failed"])
def test_a_processs_own_record_of_its_end_stands(job, run, status):
    assert run(Processes(1, status)) == status
    assert results(job)["status"] == status


def test_a_job_that_ends_badly_after_it_was_done_fails_but_keeps_its_results(job, run):
    assert run(Processes(1, "done")) == "failed"
    assert results(job)["status"] == "done"


@pytest.mark.parametrize("status", ["interrupted", "nan", "oom", "failed"])
def test_a_process_that_was_refused_before_it_wrote_anything_has_failed_and_leaves_the_record(job, run, status):
    """Whatever an earlier one ended with: it was told as how this one had ended."""
    record(job, status, steps=7)
    before = results(job)
    assert run(Processes(2, None)) == "failed"
    assert results(job) == before


def test_a_job_that_another_sweep_is_running_is_let_alone_with_its_record(job, run, capsys):
    """It was called failed, there too."""
    processes = Processes(1, "running")
    with RunDirectory(job.directory):
        record(job, "running")
        assert run(processes) == "running"
        assert jobs.judge(job, Sweep("config", []), None) == "running"
    assert (processes.resumed, results(job)["status"]) == ([], "running")
    assert "is in use by another run" in capsys.readouterr().out
    assert run(processes) == "failed"


def test_a_job_that_is_drawn_twice_is_run_once(tmp_path, monkeypatch):
    """By a search with few choices; side by side, the second was refused, and its record stood over the first one's."""
    batch = [Job(n, ["model.depth=8"], tmp_path / "job", hash="abc") for n in (0, 1)]
    processes, sweep = Processes(), Sweep("config", [], batch, total=2)
    monkeypatch.setattr(jobs, "run_process", processes)
    LocalLauncher(2).carry_out(batch, sweep)
    assert (len(processes.resumed), [job.status for job in batch]) == (1, ["done", "done"])
    assert jobs.in_turn(batch, sweep) == [batch[:1], batch[1:]]


@pytest.mark.parametrize(
    ("status", "settings", "thrown"),
    [("interrupted", "abc", True), ("nan", "abc", True), ("interrupted", "other", False), ("done", "other", False)],
)
def test_what_was_trained_by_other_settings_is_not_thrown_away_unasked(job, started, status, settings, thrown):
    """Where a job's folder has the same name for both, as those of experiments have."""
    record(job, status, config_hash=settings)
    jobs.run_process(job, Sweep("config", []), go_on=False)
    assert ("overwrite=true" in started[0][0]) == thrown


def test_a_job_that_is_done_is_not_run_again_unless_its_settings_changed(job, run):
    record(job, "done")
    processes = Processes()
    assert run(processes) == "done"
    assert processes.resumed == []
    job.hash = "other"
    assert run(processes) == "done"
    assert processes.resumed == [False]


@pytest.mark.parametrize(
    ("status", "checkpoint", "resumed"),
    [
        ("running", True, True),
        ("interrupted", True, True),
        ("failed", True, True),
        ("running", False, False),
        ("oom", True, False),
        ("nan", True, False),
    ],
)
def test_a_job_goes_on_from_its_checkpoint_where_that_can_help(job, run, status, checkpoint, resumed, capsys):
    record(job, status, steps=7)
    if checkpoint:
        (job.directory / "checkpoints").mkdir()
        (job.directory / "checkpoints" / "last.pt").touch()
    processes = Processes()
    assert run(processes) == "done"
    assert processes.resumed == [resumed]
    anew = "its checkpoints are gone" if not checkpoint else f"it ended as {status}"
    assert ("(resumed)" if resumed else f"(begun anew, as {anew})") in capsys.readouterr().out


def test_a_refused_job_is_recorded_but_never_over_a_result(job, run):
    job.problem = "model.depth: 9 is not allowed"
    processes = Processes()
    assert run(processes) == "refused"
    assert results(job)["error"] == job.problem
    record(job, "done")
    assert run(processes) == "refused"
    assert results(job)["status"] == "done"
    assert processes.resumed == []


def test_after_a_signal_no_job_is_started(job, run):
    processes = Processes()
    assert run(processes, Sweep("config", [], stopped=signal.SIGTERM)) == "interrupted"
    assert processes.resumed == []
    assert not job.directory.exists()


@pytest.mark.parametrize(
    ("statuses", "stopped", "status"),
    [
        (["done", "done"], None, 0),
        (["done", "oom"], None, 1),
        (["refused", "done"], None, 1),
        (["refused", "refused"], None, 2),
        (["done", "interrupted"], signal.SIGTERM, 143),
        (["interrupted"], signal.SIGINT, 130),
    ],
)
def test_the_exit_status_of_a_sweep(tmp_path, statuses, stopped, status):
    found = [Job(i, [], tmp_path, status=text) for i, text in enumerate(statuses)]
    assert launcher.sweep_status(Sweep("config", [], found, stopped=stopped)) == status


@pytest.fixture
def started(monkeypatch) -> list[tuple[list[str], dict]]:
    """Commands and options of the processes that are started; in their place, one that does nothing."""
    calls: list[tuple[list[str], dict]] = []
    original = subprocess.Popen

    def popen(command, **options):
        calls.append((command[3:], options))
        return original([sys.executable, "-c", "pass"])

    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    return calls


def test_the_command_of_a_job_and_of_one_that_goes_on(tmp_path, started, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 8)
    job = Job(0, ["model.depth=8"], tmp_path / "it's")
    sweep = Sweep("mine", ["/conf"])
    jobs.run_process(job, sweep, go_on=False)
    command, options = started[0]
    assert command[:6] == ["train", "--config-name", "mine", "--config-dir", "/conf", "model.depth=8"]
    assert command[6] == "hydra.run.dir='" + str(tmp_path / "it") + "\\'s'"
    assert options["start_new_session"]
    assert "OMP_NUM_THREADS" not in options["env"]
    assert sweep.children == set()


def test_a_job_that_goes_on_is_resumed_and_shares_the_cores(tmp_path, started, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 8)
    job = Job(0, [], tmp_path / "job")
    assert jobs.run_process(job, Sweep("config", [], at_a_time=2), go_on=True) == 0
    command, options = started[0]
    assert command == ["resume", str(job.directory)]
    assert options["env"]["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("key", ["init_from", "model.init_from", "distill.teacher", "++init_from"])
def test_a_job_waits_for_the_one_that_it_starts_from_and_no_other(tmp_path, monkeypatch, key):
    first = Job(0, [], tmp_path / "first", hash="0")
    resnet = ["model=resnet", "name=first"]
    second = Job(1, [*resnet, f"{key}='{tmp_path}/x/../${{name}}'"], tmp_path / "second", hash="1")
    third = Job(2, [*resnet, f"{key}={tmp_path}/elsewhere"], tmp_path / "third", hash="2")
    order: list[str] = []

    def carried_out(job, *_):
        if job is first:  # it ends after the third
            assert third.ended.wait(20)
        order.append(job.directory.name)
        return "done"

    monkeypatch.setattr(jobs, "_status", carried_out)
    sweep = Sweep("config", [], [first, second, third], total=3)
    LocalLauncher(3).carry_out(sweep.jobs, sweep)
    assert order == ["third", "first", "second"]


@pytest.mark.parametrize(
    ("left", "status"),
    [
        ("failed", "failed"),
        ("nan", "nan"),
        ("oom", "oom"),
        ("done", "failed"),
    ],  # at last: of other settings, in its place
)
def test_a_job_does_not_start_from_one_that_has_not_come_to_its_end(tmp_path, monkeypatch, left, status):
    first = Job(0, ["model.depth=8"], tmp_path / "first", hash="abc")
    second = Job(1, ["model=resnet", f"init_from={tmp_path}/first"], tmp_path / "second", hash="abc")
    sweep = Sweep("config", [], [first, second], total=2)
    processes = Processes(1, left)
    monkeypatch.setattr(jobs, "run_process", processes)
    LocalLauncher(1).carry_out(sweep.jobs, sweep)
    assert [job.status for job in sweep.jobs] == [status, "failed"]
    assert f"starts from {first.directory}, and that job of the sweep is {status}" in results(second)["error"]
    assert len(processes.resumed) == 1
    processes.code, processes.status = 0, "done"
    for job in sweep.jobs:
        job.ended.clear()
    LocalLauncher(1).carry_out(sweep.jobs, sweep)
    assert [job.status for job in sweep.jobs] == ["done", "done"]


def test_a_job_that_is_not_run_for_want_of_its_start_leaves_a_result_of_other_settings(tmp_path, monkeypatch):
    first = Job(0, ["model.depth=8"], tmp_path / "first", hash="abc")
    second = Job(1, ["model=resnet", f"init_from={tmp_path}/first"], tmp_path / "second", hash="abc")
    record(second, "done", config_hash="other")
    monkeypatch.setattr(jobs, "run_process", Processes(1, "nan"))
    sweep = Sweep("config", [], [first, second], total=2)
    LocalLauncher(1).carry_out(sweep.jobs, sweep)
    assert second.status == "failed"
    assert results(second)["status"] == "done"


def test_another_launcher_is_given_a_job_when_what_it_starts_from_has_ended(tmp_path):
    names = ["first", "other", "from first", "from first, too", "from the third"]
    starts = [None, None, "first", "first", "from first"]
    batch = [
        Job(n, ["model=resnet", *([] if start is None else [f"init_from='{tmp_path}/{start}'"])], tmp_path / name)
        for n, (name, start) in enumerate(zip(names, starts, strict=True))
    ]
    launched = []

    class Inner:
        def launch(self, overrides, number):
            launched.append((number, len(overrides)))
            return [None] * len(overrides)

    other = launcher.OtherLauncher(None)
    other.inner = Inner()
    other.carry_out(batch, Sweep("config", []))
    assert launched == [(0, 2), (2, 2), (4, 1)]
    assert all(job.status == "failed" for job in batch)


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


@pytest.mark.parametrize(
    ("device", "visible", "held"),
    [
        (None, ["3", "GPU-5"], {"3", "GPU-5"}),
        ("cuda", ["0", "1"], {"0", "1"}),
        (None, ["7"], {"7"}),  # which both have
        ("cuda:1", ["0", "1"], {"as it was"}),
        ("cpu", ["0", "1"], {"as it was"}),
        (None, [], {"as it was"}),
    ],
)
def test_jobs_side_by_side_are_spread_over_the_gpus(tmp_path, monkeypatch, device, visible, held):
    own = [] if device is None else [f"device={device}"]
    batch = [Job(n, ["model=resnet", "model.depth=8", *own], tmp_path / str(n)) for n in range(4)]
    two, running, at_once = threading.Barrier(2), [], []

    class Child:
        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            running.append(env["CUDA_VISIBLE_DEVICES"])

        def wait(self) -> int:
            if two.wait(20) == 0:  # both have begun
                at_once.append({*running})
                running.clear()
            two.wait(20)
            return 0

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as it was")
    monkeypatch.setattr(jobs.subprocess, "Popen", Child)
    monkeypatch.setattr(launcher, "visible_gpus", lambda: visible)
    sweep = Sweep("config", [], batch)
    for job in batch:
        jobs.identify(job, sweep)
    LocalLauncher(2).carry_out(batch, sweep)
    assert at_once == [held, held]
    assert {*sweep.gpus} == {*visible}  # given back


@pytest.mark.parametrize("n_jobs", [0, -1, "two", 1.5])
def test_jobs_at_a_time_are_a_whole_number(n_jobs):
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.n_jobs: .* whole number at least 1"):
        LocalLauncher(n_jobs)


def test_b23_a_sweeper_that_optimises_sees_the_error_and_none_of_a_job_that_failed(job):
    record(job, "done", accuracy={"error": 3.5})
    job.status = "done"
    assert launcher._returned(job).return_value == 3.5
    job.status = "failed"
    assert launcher._returned(job).return_value is None


def test_a_job_that_ends_is_told_with_how_many_are_left_and_for_how_long(job, run, capsys):
    sweep = Sweep("config", [], [job], total=6, children={Mock()})
    sweep.jobs += [Job(n, [], job.directory, status="failed", seconds=60.0) for n in (1, 2)]
    sweep.jobs += [Job(3, [], job.directory), Job(4, [], job.directory)]
    assert run(Processes(), sweep) == "done"
    told = capsys.readouterr().out.splitlines()[-1]  # on a machine however busy
    assert re.fullmatch(r"job 1/6 done in \d+\.\d s; 1 done, 2 failed, 1 running, 2 to go, about \d+ (s|min)", told), (
        told
    )


def test_how_far_another_launcher_has_come_is_seen_in_the_records_of_its_jobs(tmp_path):
    names = ("done before", "begun anew", "failed before", "new", "later")
    batch = [Job(number, [], tmp_path / name, hash="abc") for number, name in enumerate(names)]
    for job, status in zip(batch, ("done", "failed", "failed"), strict=False):
        record(job, status)
        os.utime(job.directory / "results.json", (1, 1))
    onlooker = Onlooker(batch, Sweep("config", [], [Job(5, [], tmp_path, status="nan"), *batch], total=6))
    assert onlooker.news() is None
    record(batch[1], "running")
    assert onlooker.news() == "1 nan, 1 done, 1 running, 3 to go"
    assert onlooker.news() is None
    record(batch[1], "done")
    record(batch[3], "failed")
    told = onlooker.news()
    assert told is not None
    assert told.startswith("1 nan, 2 done, 1 failed, 2 to go, about ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.54, "9.5 s"), (75, "75 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text):
    assert jobs.duration(seconds) == text
