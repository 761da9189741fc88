"""The command as a person uses it, in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memexp import cli, commands
from memexp.choices import GROUPS
from memexp.train_help import train_help

TINY = ["model=resnet", "model.depth=8", "dataset=digits", "dataset.limit=96", "dataset.test_limit=40", "device=cpu"]
FIELDS = [
    *("schema", "status", "error", "name", "experiment", "scale", "config_hash", "seed", "overrides", "config"),
    *("model", "dataset", "backprop", "optimizer", "precision", "prune", "parameters", "macs", "steps", "epochs"),
    *("batch_size", "accuracy", "stages", "memory", "time", "strategy"),
]


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    """One thread for each process, this one too: sums are in the same order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MEMEXP_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "memexp", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def memexp(*arguments: str, status: int = 0) -> tuple[str, str]:
    child = start(*arguments)
    out, err = child.communicate()
    assert child.returncode == status, out + err
    return out, err


def results(path: str) -> dict:
    return json.loads((Path(path) / "results.json").read_text())


def weights(path: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(path) / "checkpoints" / "last.pt", weights_only=True)["model"]


def same(left: str, right: str) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def wait_for(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if text in line:
            return
    raise AssertionError(f"the run ended without printing {text!r}: {child.communicate()}")


def test_a_run_records_everything_and_prints_plain_lines():
    out, _ = memexp("train", *TINY, "epochs=2", "hydra.run.dir=run")
    found = results("run")
    assert [field for field in FIELDS if field not in found] == []
    assert found["status"] == "done"
    assert found["steps"] == 6
    assert found["accuracy"]["images"] == 40
    memory = found["memory"]
    assert memory["how"] == "tracked"
    split = [memory[key] for key in ("parameters", "gradients", "optimizer", "activations", "other")]
    assert sum(split) == memory["peak"] > memory["parameters"] >= 4 * found["parameters"]
    assert found["time"]["step_median"] > 0
    for name in ("metrics.jsonl", "train.log", "environment.json", ".hydra/config.yaml", "checkpoints/best.pt"):
        assert (Path("run") / name).is_file()
    assert list(Path("run").glob("events.out.tfevents.*"))
    assert "\x1b" not in out
    assert re.search(r"step 6/6  loss \S+  test top-1 \S+ %  epoch 2\.00  \S+ images/s  peak \S+ MiB  lr ", out), out


def test_killed_and_stopped_it_ends_with_the_same_weights_as_undisturbed():
    arguments = ["train", *TINY, "epochs=3", "checkpoint_every=2", "log_every=1", "ema=0.9", "mixup=0.2", "seed=3"]
    assert cli.main([*arguments, "hydra.run.dir=whole"]) == 0
    child = start(*arguments, "hydra.run.dir=killed")
    wait_for(child, "step 3/9")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    child = start("resume", "killed")
    wait_for(child, "step 6/9")
    assert results("killed")["status"] == "running"
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == 143
    assert results("killed")["status"] == "interrupted"
    assert cli.main(["resume", "killed"]) == 0
    assert same("whole", "killed")
    steps = [json.loads(line)["step"] for line in Path("killed/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert results("killed")["accuracy"] == results("whole")["accuracy"]


@pytest.mark.long
@pytest.mark.parametrize("moment", ["step 3/6", "step 2/6"])  # just before the first evaluation; in training
def test_asked_to_stop_it_saves_and_goes_on_later(moment):
    arguments = ["train", *TINY, "epochs=2", "log_every=1"]
    memexp(*arguments, "hydra.run.dir=whole")
    child = start(*arguments, "hydra.run.dir=stopped")
    wait_for(child, moment)
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == 143
    assert results("stopped")["status"] == "interrupted"
    memexp("resume", "stopped")
    assert same("whole", "stopped")


@pytest.mark.long  # tests/test_sweeps.py has it in one process
def test_a_sweep_goes_on_past_a_failing_job_and_runs_only_that_one_again():
    arguments = ["train", "-m", *TINY, "max_steps=2", "name=s", "model.depth=8,9", "seed=0,1"]
    out, _ = memexp(*arguments, status=1)
    found = {path.parent.name: json.loads(path.read_text()) for path in Path("outputs/s").glob("*/results.json")}
    assert sorted(run["status"] for run in found.values()) == ["done", "done", "failed", "failed"]
    assert "depth=9 is not a ResNet" in out
    before = {path: path.stat().st_mtime_ns for path in Path("outputs/s").glob("*depth=8*/results.json")}
    out, _ = memexp(*arguments, status=1)
    assert out.count("done before") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "2 failed" in out
    assert list(Path("outputs/s").glob("sweep-*/report.md"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(capsys):
    assert cli.main(["train", *TINY, "optimizer.lr=1e30", "hydra.run.dir=run"]) == 1
    assert "the loss of step 2 is" in capsys.readouterr().err
    assert results("run")["status"] == "nan"


def test_a_finished_run_and_one_in_use_are_not_overwritten(capsys):
    assert cli.main(["train", *TINY, "max_steps=1", "hydra.run.dir=run"]) == 0
    before = Path("run/results.json").read_bytes()
    assert cli.main(["train", *TINY, "max_steps=1", "hydra.run.dir=run"]) == 1
    assert "already holds a finished run" in capsys.readouterr().err
    assert Path("run/results.json").read_bytes() == before
    assert cli.main(["resume", "run"]) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_a_checkpoint_is_evaluated_on_any_split(capsys):
    more = ["max_steps=2", "dataset.val_fraction=0.25", "ema=0.9", "hydra.run.dir=run"]
    assert cli.main(["train", *TINY, *more]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "run"]) == 0
    assert f"top-1 {results('run')['accuracy']['top1']:.2f} %" in capsys.readouterr().out
    assert cli.main(["evaluate", "run", "--split", "val", "--checkpoint", "best"]) == 0
    out = capsys.readouterr().out
    assert "on 24 images" in out
    watched = results("run")["stages"][0]["accuracy"]
    assert f"top-1 {watched['top1']:.2f} %, " in out
    assert f"loss {watched['loss']:.4f} " in out  # of the averaged weights, as best.pt has them


def test_two_processes_end_with_the_weights_of_one_on_the_whole_batch():
    common = ["train", *TINY, "dataset.padding=0", "max_steps=2", "deterministic=true"]
    common += ["model.units=[1]", "model.channels=[8,8]"]
    assert cli.main([*common, "batch_size=32", "hydra.run.dir=one"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, "-m", "memexp", *common, "batch_size=16", "hydra.run.dir=two"], check=True)
    one, two = weights("one"), weights("two")
    # BN sees half of the batch in each process, so only the data and the averaging are compared: close, not equal
    assert results("two")["accuracy"]["images"] == 40
    torch.testing.assert_close(one["stem.0.weight"], two["stem.0.weight"], rtol=0.2, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["trian"], 2, "Did you mean 'train'?"),
        (["train", "model.depht=3", "seed=x"], 2, "has 2 problems"),
        (
            ["train", "--epochs=3", "seed=1"],
            2,
            "--epochs=3: there is no such flag of train; settings are written without",
        ),
        (["train", "model=resnet", "model.depth=21"], 2, "nearest: 14, 20"),
        (["train", "dataset=cifar10", "dataset.root=nowhere"], 2, "there is no folder 'nowhere'"),
        (["train", "dataset=cifar10"], 2, "set dataset.root=DIR"),
        (["train", "--config-dir", "nowhere"], 2, "there is no directory nowhere"),
        (["resume", "nowhere"], 2, "there is no such run directory"),
        (["evaluate", "."], 2, "no run was started here"),
        (["report", "nowhere"], 2, "there is no such path"),
        (["report", ".", "--paper", "revnet/tabel3"], 2, "Did you mean 'revnet/table3'?"),
        (["train", "device=cuda", "max_steps=1"], 2, "device: 'cuda' is not to be had here"),
        (["train", "hydra.run.dir=/proc/memexp"], 1, "/proc/memexp"),
        (["train", "hydra.job.chdir=true"], 2, "paths of its settings are those of where it is started"),
    ],
)
def test_wrong_input_gets_one_clear_message(arguments, status, message, capfd):
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert cli.main(arguments) == status
    captured = capfd.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err + captured.out


def test_a_directory_that_was_removed_is_told_as_such(tmp_path, monkeypatch, capfd):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["train", f"hydra.run.dir={tmp_path}/run"]) == 2
    assert "started in is not there any more" in capfd.readouterr().err


def test_help_and_configuration_need_no_torch():
    code = (
        "import sys; from memexp import cli; "
        "cli.main(['--help']); cli.main(['train', '--help']); cli.main(['train', '--cfg', 'job']); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))


def test_the_help_names_the_options_that_there_are():
    lines = train_help().splitlines()
    for group, options in GROUPS.items():
        assert f"  {group:<10} {', '.join(sorted(options))}" in lines


@pytest.mark.parametrize(
    ("arguments", "joins"),
    [
        (["train", "model=resnet"], True),
        (["train", "--config-dir", "mine", "model=mine"], True),
        (["resume", "run", "epochs=3"], True),
        *(
            (["train", *more], False)
            for more in (["-h"], ["--cfg", "job"], ["--cfg=job"], ["--info"], ["-m", "seed=0,1"])
        ),
        (["train", "experiment=list"], False),
        (["resume", "--help"], False),
        *(
            ([command], False)
            for command in ("evaluate", "report", "export", "bench", "estimate", "experiments", "trian")
        ),
        ([], False),
    ],
)
def test_only_runs_are_joined_by_torchruns_other_processes(monkeypatch, capfd, arguments, joins):
    """They would wait for the first one, which has ended, or do and print the same once more."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(commands, "_join", lambda: 77)
    assert cli.main(arguments) == (77 if joins else 0)
    assert capfd.readouterr() == ("", "")


def test_a_sweep_is_not_begun_by_torchrun(monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "-m", "seed=0,1"]) == 2
    assert "torchrun's 2 processes train one run together" in capfd.readouterr().err
    assert not Path("outputs").exists()
