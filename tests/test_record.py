import errno
import fcntl
import json
import os
import socket

import pytest

from memexp import recorded
from memexp.config import ConfigError
from memexp.lock import in_use
from memexp.paths import from_here
from memexp.record import RunDirectory, RunDirectoryError, read_json, summary, write_json


def test_json_is_replaced_whole_and_numbers_that_json_lacks_become_null(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"loss": float("nan"), "list": [1, float("inf")]})
    assert json.loads(path.read_text()) == {"loss": None, "list": [1, None]}
    write_json(path, {"loss": 1.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_damaged_json_file_reads_as_none(tmp_path):
    (tmp_path / "results.json").write_text('{"status": "do')
    assert read_json(tmp_path / "results.json") is None
    assert read_json(tmp_path / "absent.json") is None


def test_a_directory_in_use_is_refused_and_free_again_afterwards(tmp_path):
    with RunDirectory(tmp_path), pytest.raises(RunDirectoryError, match="in use"), RunDirectory(tmp_path):
        pass
    with RunDirectory(tmp_path):
        pass


def test_a_directory_is_free_once_its_process_has_ended_whatever_it_had_forked(tmp_path):
    """Those that decode images outlive a process that is killed, and a run that was gone on with at once was refused."""
    here, there = socket.socketpair()
    with here, there:
        with RunDirectory(tmp_path):
            if (child := os.fork()) == 0:
                there.send(b"begun")
                there.recv(1)
                os._exit(0)
            here.recv(5)
            assert in_use(tmp_path)
        free = not in_use(tmp_path)
        here.send(b".")
        os.waitpid(child, 0)
    assert free


def test_another_persons_run_is_in_use_and_who_looks_at_it_is_no_run(tmp_path, monkeypatch):
    opened = os.open

    def to_be_read(path, flags, *mode):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *mode)

    with RunDirectory(tmp_path):
        monkeypatch.setattr(os, "open", to_be_read)
        assert in_use(tmp_path)
    with open(tmp_path / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not in_use(tmp_path)


def test_where_there_are_no_locks_a_directory_is_refused_for_that_and_not_in_use(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(RunDirectoryError, match="cannot be written: No locks available"), RunDirectory(tmp_path):
        pass
    assert not in_use(tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"file/run.*hydra\.run\.dir"), RunDirectory(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(
    "name", [".lock", "train.log", "metrics.jsonl", "events.out.tfevents.1.2", ".hydra", "checkpoints", "plots"]
)
@pytest.mark.parametrize("there", [True, False])
def test_a_run_is_not_written_through_links(tmp_path, name, there):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    if there:
        victim.write_text("mine")
    (run / name).symlink_to(victim)
    with pytest.raises(RunDirectoryError, match=f"{name} is a symbolic link.*remove it"), RunDirectory(run):
        pass
    assert victim.read_text() == "mine" if there else not victim.exists()
    assert [path.name for path in run.iterdir()] == [name]


def test_metrics_after_the_checkpoint_and_a_cut_line_are_dropped(tmp_path):
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.append_metrics(split="train", step=step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"split": "tra')
    directory.rewind(None, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_what_was_appended_after_a_checkpoint_is_taken_back_to_the_byte(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.append_metrics(split="train", step=1)
    (tmp_path / "events.out.tfevents.1").write_bytes(b"before")
    then = directory.appended()
    held = (tmp_path / "metrics.jsonl").read_bytes()
    directory.append_metrics(split="test", step=1)  # an evaluation at the very step of the checkpoint
    with open(tmp_path / "events.out.tfevents.1", "ab") as file:
        file.write(b", after")
    (tmp_path / "events.out.tfevents.2").write_bytes(b"of a process that was killed")
    directory.rewind(then, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == held
    assert (tmp_path / "events.out.tfevents.1").read_bytes() == b"before"
    assert not (tmp_path / "events.out.tfevents.2").exists()


def test_a_path_is_shown_as_a_person_would_write_it(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert str(from_here(tmp_path / "here" / "run")) == "run"
    assert str(from_here("run")) == "run"
    assert from_here(tmp_path / "other") == tmp_path / "other"  # and not ../other


def test_of_the_runs_below_a_folder_the_newest_is_named(tmp_path):
    for name, written in (("b", 3), ("a/2", 9), ("c", 1)):
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "results.json", {})
        os.utime(tmp_path / name / "results.json", (written, written))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "results.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"Below it are 3 runs, the last \S+a/2\."):
        recorded.of_run(tmp_path)


def test_a_summary_never_says_that_a_small_network_takes_nothing(tmp_path):
    results = {
        "status": "done",
        "memory": {"peak": 90_000, "activations": 512, "how": "tracked"},
        "time": {"wall": 1.0},
    }
    assert "peak memory        0.086 MiB (tracked), activations 0.00049 MiB" in summary(results, tmp_path)
