"""What the launcher makes of a job's process: records, resuming, refusals, signals. Whole sweeps are in test_cli."""

import os
import re
import signal
import threading
from unittest.mock import Mock

import pytest
from launcher_jobs import Processes, record, results

from memexp import jobs, launcher
from memexp.config import ConfigError
from memexp.jobs import Job, Sweep
from memexp.launcher import LocalLauncher
from memexp.onlooker import Onlooker
from memexp.record import SCHEMA, RunDirectory


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
