"""Jobs that start from what others have left, and which wait for them."""

import pytest
from launcher_jobs import Processes, record, results

from memexp import jobs, launcher
from memexp.jobs import Job, Sweep
from memexp.launcher import LocalLauncher
from memexp.record import SCHEMA, write_json


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
