"""Cases that have no better place: what is refused before anything is made, messages of last resort, places that cannot be
written, a clock that goes back, advice that is never wrong."""

import errno
import importlib
import os
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import memexp
from memexp.cli import main
from memexp.config import ConfigError
from memexp.memory.limit import answer
from memexp.models import families
from memexp.record import RunDirectory, RunDirectoryError
from memexp.training.board import Board

TINY = ["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", "dataset=digits", "device=cpu", "max_steps=1"]
TINY += ["dataset.limit=40", "dataset.test_limit=20", "batch_size=8"]
NOWHERE = "/proc/memexp"  # where nobody can make a folder


@pytest.mark.parametrize("more", [[], ["--cfg", "job"]])
def test_b8_rules_of_a_family_are_told_with_all_other_mistakes_before_anything_is_made(
    tmp_path, monkeypatch, capsys, more
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "model.depth=33", "epochs=0", *more]) == 2
    told = capsys.readouterr().err
    assert "depth=33" in told
    assert "epochs: 0" in told
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="depth=33"):
        memexp.compose("model.depth=33")


def test_b11_a_place_that_cannot_be_written_is_named_and_no_log_is_promised(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, f"hydra.run.dir={NOWHERE}/run"]) in (1, 2)
    told = capsys.readouterr().err
    assert NOWHERE in told
    assert "cannot be written" in told
    assert "train.log" not in told
    assert len(told.splitlines()) == 1


def test_b15_a_strategy_that_training_calls_wrong_is_never_proposed():
    for name in families.FAMILIES:
        if not families.of({"name": name}).images:
            continue
        image = ["dataset=cifar10"] if name in ("vgg16", "torchvision") else []
        model = memexp.compose([f"model={name}", *image]).model
        proposed = families.proposed(model, otherwise=("stored",))
        assert proposed
        assert [strategy for strategy in proposed if families.caution(model, strategy) is not None] == [], name
    deep = memexp.compose(["model=resnet", "model.depth=110"]).model  # scale 1: its steps have no inverse
    assert families.caution(deep, "adjoint") is not None
    assert "adjoint" not in families.proposed(deep, otherwise=())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "run"
    memexp.run(memexp.compose(TINY), path)
    return path


def test_b22_the_table_is_printed_though_its_files_cannot_be_written(finished, capsys):
    assert main(["report", str(finished), "--output", NOWHERE]) == 2
    shown = capsys.readouterr()
    assert "top-1" in shown.out
    assert (
        shown.err == f"memexp: {NOWHERE} cannot be written: No such file or directory; choose another with --output\n"
    )


FILE, FULL = "a file", "a full disk"
COMMANDS = {
    "report": ["report", "RUN"],
    "csv": ["report", "RUN", "--format", "csv", "--no-plots"],
    "onnx": ["export", "RUN"],
    "pt2": ["export", "RUN"],
    "bench": ["bench", *TINY, "--strategies", "stored", "--steps", "1"],
}


def _unmeasured(cases, *_: object) -> None:
    for case in cases:
        case.error = "not measured"


@pytest.mark.parametrize("place", [NOWHERE, FILE, FULL])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_one_message_and_status_2(
    finished, tmp_path, monkeypatch, capfd, command, place
):
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = tmp_path / "kept"
    kept.write_text("mine")
    output = kept if place == FILE else tmp_path / "out" if place == FULL else Path(place)
    for module in ("report", "report.exports", "bench") if place == FULL else ():
        monkeypatch.setattr(importlib.import_module(f"memexp.{module}"), "write_text", full)
    if place == FULL:
        monkeypatch.setattr(Path, "write_bytes", full)
        monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(importlib.import_module("memexp.bench"), "measure", _unmeasured)
    target = output / f"n.{command}" if command in ("onnx", "pt2") else output
    arguments = [str(finished) if word == "RUN" else word for word in COMMANDS[command]]
    assert main([*arguments, "--output", str(target)]) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith(f"memexp: {target} cannot be written: ")
    assert shown.err.count("\n") == 1
    assert ("top-1" in shown.out or "accuracy" in shown.out) == ("report" in arguments)
    assert kept.read_text() == "mine"
    assert not list(tmp_path.glob("out/*"))


def test_a_report_of_runs_that_are_anothers_is_printed(finished, capsys, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(importlib.import_module("memexp.report"), "write_text", refused)
    assert main(["report", str(finished), "--no-plots"]) == 0
    shown = capsys.readouterr()
    assert "top-1" in shown.out
    assert f"{finished} cannot be written: Permission denied" in shown.err


def test_b22_a_sweep_that_cannot_be_written_is_refused_before_its_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *TINY, "seed=0,1", f"hydra.sweep.dir={NOWHERE}"]) == 1
    assert f"{NOWHERE}/sweep-seed" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
@pytest.mark.parametrize("write", [(RunDirectory, "append_metrics"), (Board, "scalars")])
def test_a_disk_that_is_full_ends_the_run_in_one_sentence_and_what_was_saved_goes_on(
    tmp_path, monkeypatch, capsys, write, code
):
    def full(*given, **values):
        if values.get("step", given[1] if len(given) > 1 else 0) > 5:
            raise OSError(code, os.strerror(code))
        return whole(*given, **values)

    whole = getattr(*write)
    monkeypatch.chdir(tmp_path)
    overrides = [*TINY, "max_steps=8", "log_every=1", "epochs=2", "hydra.run.dir=run"]
    with monkeypatch.context() as patch:
        patch.setattr(*write, full)
        assert main(["train", *overrides]) == 1
    told = capsys.readouterr().err
    assert f"/run cannot be written any more: {os.strerror(code)}" in told
    assert "Error:" not in told
    assert main(["resume", "run"]) == 0
    assert "going on from step 5 of 8" in capsys.readouterr().out


def test_b24_curves_are_in_order_though_the_clock_goes_back(tmp_path, monkeypatch):
    for now, first in ((2e9, 1), (1e9, 3)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        shown = Board(tmp_path, first - 1)
        for step in (first, first + 1):
            shown.scalars(step, {"loss/train": 1.0})
        shown.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3, 4]


def network(classes: int, shape: tuple[int, int, int], chain, depth: int = 2) -> nn.Module:
    steps = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4), chain(steps), nn.Linear(4, classes))


@pytest.mark.parametrize("depth", ["", "depth: 3\n"])
def test_e7_an_own_depth_in_an_own_model_has_an_answer_without_depth(tmp_path, depth):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text(f"_target_: {__name__}.network\n{depth}")
    cfg = memexp.compose(["model=mine", *TINY[3:], "memory.limit=1GB"], config_dir=tmp_path)
    found = answer(cfg, 10**9)
    assert (found.depth, found.fits) == (None, True)
    assert found.batch > 8
    assert torch.is_tensor(memexp.build_model(cfg)(torch.zeros(2, 3, 32, 32)))


@pytest.mark.parametrize("more", [["hydra.run.dir=run"], ["hydra.run.dir=run", "hydra.mode=RUN"], None])
def test_what_a_run_would_refuse_is_looked_at_once(tmp_path, monkeypatch, more):
    seen = []
    monkeypatch.setattr("memexp.stages.foresee", lambda cfg: seen.append(Path("run").exists()))
    monkeypatch.chdir(tmp_path)
    if more is None:
        memexp.run(memexp.compose(TINY), "run")
    else:
        assert main(["train", *TINY, *more]) == 0
    assert seen == [more is None or len(more) == 2]  # from the command line before anything is made


@pytest.mark.parametrize("key", ["init_from", "model.init_from", "distill.teacher"])
def test_a_run_that_is_named_and_not_there_is_told_before_anything_is_made(tmp_path, monkeypatch, capsys, key):
    monkeypatch.chdir(tmp_path)
    for text in ("nowhere", ""):
        assert main(["train", *TINY, f"{key}='{text}'"]) == 2
        assert f"{key}: there is no run in '{text}'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("dataset.classes=[0,11]", "dataset.classes: 11 is no class; there are 0, 1, "),
        ("dataset.limit=3", "dataset.limit: 3 images cannot cover 10 classes"),
        ("dataset=cifar10", "dataset=cifar10: nothing at data/cifar10"),
        ("dataset=cifar10 dataset.root=.", "dataset.root: . holds no train/ folder"),
        ("model=inn model.base=torchvision/resnte18", "'resnte18' is not a torchvision classifier"),
        ("model=inn model.weights=/etc/passwd", "weights are for a base torchvision/NAME"),
        ("device=meta", "device: 'meta' is not to be had here"),
        ("name=a/../../b", "name: 'a/../../b' leads out of outputs/"),
        ("hydra.run.dir=", "hydra.run.dir: '' is not allowed"),
        ("hydra.run.dir='${nowhere}'", "hydra.run.dir: Interpolation key 'nowhere' not found"),
        ("prune=null", "prune: null is no option; leave prune out"),
        ("-cp conf", "-cp: conf is not taken"),
        ("--resolve", "--resolve: goes with --cfg"),
    ],
)
def test_what_can_be_told_without_data_is_told_before_anything_is_made(tmp_path, monkeypatch, capsys, typed, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *typed.split(" ")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoints/notes.pt", "metrics.jsonl", "events.out.tfevents.1.host"])
def test_files_that_are_no_runs_are_not_removed_unasked(tmp_path, name):
    """A run directory that is somebody's own folder, with files of such names."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    (tmp_path / "checkpoints/folder").mkdir(parents=True)
    cfg = memexp.compose([*TINY, "max_steps=1"])
    with pytest.raises(RunDirectoryError, match=f"has no results.json to read, and {name} in it"):
        memexp.run(cfg, tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "results.json").exists()
    cfg.overwrite = True
    if name == "metrics.jsonl":
        assert memexp.run(cfg, tmp_path)["status"] == "done"


def test_a_run_of_schema_1_teaches(tmp_path):
    teacher = Path(__file__).parent / "runs/schema-1"
    results = memexp.run(memexp.compose([*TINY, f"distill.teacher='{teacher}'", "distill.alpha=1"]), tmp_path)
    assert results["status"] == "done"
