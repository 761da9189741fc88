"""Checkpoints that are cut short, damaged or gone: nothing that was trained is thrown away."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from saved_runs import TINY, contents, edit, flipped_bit

import memexp
from memexp import build, saved
from memexp.cli import main
from memexp.config import ConfigError
from memexp.record import RunDirectory, RunDirectoryError
from memexp.stages.handed import Run
from memexp.training.checkpoint import CheckpointError


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_b4_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, value):
    from memexp.training import loop

    step = loop.Recipe.step

    def spoiled(recipe, model, batches):
        loss = step(recipe, model, batches)
        if len(spoiled.losses) == 3:
            next(iter(recipe.network.parameters())).data.fill_(value)
        spoiled.losses.append(loss)
        return loss

    spoiled.losses = []
    monkeypatch.setattr(loop.Recipe, "step", spoiled)
    with pytest.raises(loop.NotFinite, match=r"stem\.0\.weight is not finite after step 4|loss"):
        memexp.run(memexp.compose([*TINY, "epochs=2", "max_steps=4"]), tmp_path / "run")
    assert json.loads((tmp_path / "run/results.json").read_text())["status"] == "nan"
    for path in (tmp_path / "run/checkpoints").glob("*.pt"):
        assert all(bool(torch.isfinite(w.float()).all()) for w in torch.load(path, weights_only=True)["model"].values())


def test_b17_b21_nothing_trained_is_thrown_away_unasked(run):
    before = contents(run)
    cfg = memexp.compose([*TINY, "seed=1", "max_steps=1"])
    with pytest.raises(RunDirectoryError, match=r"already holds a finished run.*overwrite=true"):
        memexp.run(cfg, run)
    assert contents(run) == before
    edit(run / "results.json", status="interrupted")
    with pytest.raises(RunDirectoryError, match=r"memexp resume .*overwrite=true"):
        memexp.run(cfg, run)
    cfg.overwrite = True
    assert memexp.run(cfg, run)["seed"] == 1


def test_a_run_that_is_thrown_away_leaves_no_picture_and_no_trace_and_a_persons_own_files_stay(tmp_path):
    """Pictures of the old run stood beside the new one's figures; and whatever lay in checkpoints/ went."""
    made = ["timeline.png", "tune-1-timeline.svg", "tsne-12.pdf", "tune-tsne-3.png", "prune-2-scores.png"]
    made = [f"plots/{name}" for name in [*made, "prune-weights.pdf", "fig3c.svg"]]
    made += ["checkpoints/last.pt", "checkpoints/train.pt.aside", "metrics.jsonl", "results.finished.json"]
    made += ["train-0.pt.trace.json", "tune-1-0.pt.trace.json", "memory-snapshot-0.pickle", "oom-snapshot-1.pickle"]
    made += ["tune-memory-snapshot-0.pickle", "events.out.tfevents.0000000001.7"]
    own = ["plots/mine.png", "plots/fig1.png", "plots/my-weights.png", "plots/timeline.txt", "checkpoints/notes.txt"]
    own += ["network.onnx", "report.md", "plots/curves.png", "plots/train-0.pt.trace.json", "mine.pickle", "train.log"]
    for name in (*made, *own):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "plots/timeline.pdf").mkdir()
    RunDirectory(tmp_path).clear()
    assert sorted(contents(tmp_path)) == sorted(own)


def test_a_cut_off_last_checkpoint_falls_back_and_a_damaged_one_names_the_others(run, caplog):
    last = run / "checkpoints/last.pt"
    whole, top1 = last.read_bytes(), saved.evaluate(run)["top1"]
    last.write_bytes(whole[:500])
    caplog.set_level("WARNING", "memexp")
    assert saved.evaluate(run)["top1"] == top1
    assert "taking evaluate.pt instead" in caplog.text
    edit(run / "results.json", status="interrupted")
    assert saved.resume(run)["status"] == "done"
    last.write_bytes(whole)
    flipped_bit(run)
    with pytest.raises(CheckpointError, match=r"is damaged: model\.stem\.0\.weight.*evaluate\.pt, train\.pt, best\.pt"):
        saved.evaluate(run)


@pytest.mark.parametrize("kept", [[], ["best.pt"]])
@pytest.mark.parametrize("status", ["done", "running"])
def test_a_finished_run_whose_checkpoints_are_gone_is_not_trained_anew(run, kept, status, capsys):
    """It was, without a word: what it had ended with was thrown away."""
    for file in (run / "checkpoints").glob("*.pt"):
        if file.name not in kept:
            file.unlink()
    if status == "running":  # killed while it was made longer
        (run / "results.json").rename(run / "results.finished.json")
        shutil.copy(run / "results.finished.json", run / "results.json")
        edit(run / "results.json", status=status)
    there = contents(run)
    assert main(["resume", str(run), "epochs=9"]) == 2
    assert "was trained to its end, and what it ended with is gone" in capsys.readouterr().err
    assert contents(run) == there
    assert saved.changed(run)[1] == []
    fused = json.loads((run / "results.json").read_text())["config"] | {"deploy": {"name": "fuse"}}
    edit(run / "results.json", config=fused)
    if not kept:  # the estimate was that of a network which had not been fused
        with pytest.raises(ConfigError, match="what it ended with is gone"):
            saved.changed(run)


def test_a_run_in_place_of_one_that_was_made_longer_is_resumed_though_it_was_killed_at_once(run, monkeypatch):
    """The record of the finished run stayed, and the new one was taken for that, whose checkpoints are gone."""
    shutil.copy(run / "results.json", run / "results.finished.json")  # as `resume RUN epochs=3` leaves it

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_best", killed)
        with pytest.raises(KeyboardInterrupt):
            memexp.run(memexp.compose([*TINY, "epochs=1", "seed=1", "overwrite=true"]), run)
    results = saved.resume(run)
    assert (results["status"], results["seed"], results["epochs"]) == ("done", 1, 1)


def cut_off(last: Path) -> None:
    last.write_bytes(last.read_bytes()[:500])


def emptied(last: Path) -> None:
    last.write_bytes(b"")


SPOILT = {cut_off: "it was cut short", emptied: "it was cut short", Path.unlink: "there is no checkpoint"}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_run_is_made_longer_reported_and_estimated_though_its_last_checkpoint_is_lost(
    run, spoil, caplog, capsys, tmp_path
):
    steps = json.loads((run / "results.json").read_text())["steps"]
    spoil(run / "checkpoints/last.pt")
    caplog.set_level("WARNING", "memexp")
    assert main(["estimate", str(run)]) == 0
    assert saved.evaluate(run)["checkpoint"].endswith("evaluate.pt")
    caplog.clear()
    assert saved.resume(run, ["epochs=3"])["steps"] == steps + 3
    (told,) = [record.getMessage() for record in caplog.records if "instead" in record.getMessage()]
    assert SPOILT[spoil] in told
    assert told.endswith("taking evaluate.pt instead")


def test_what_is_left_of_a_run_is_not_thrown_away_though_its_last_checkpoint_is_lost(run):
    (run / "checkpoints/last.pt").unlink()
    edit(run / "results.json", status="interrupted")
    with pytest.raises(RunDirectoryError, match="go on with `memexp resume"):
        memexp.run(memexp.compose([*TINY, "epochs=2"]), run)
    assert saved.resume(run)["status"] == "done"


@pytest.mark.parametrize("left", ["best", "train", "evaluate"])
def test_whichever_checkpoint_is_left_is_evaluated_and_stays(run, left, caplog):
    """Of best.pt alone a new network was, and the run's directory was cleared for it."""
    caplog.set_level("WARNING", "memexp")
    measured = saved.evaluate(run, name=left)
    for path in (run / "checkpoints").iterdir():
        if path.stem != left:
            path.unlink()
    there = contents(run)
    assert saved.evaluate(run) == measured
    assert f"taking {left}.pt instead" in caplog.text
    assert contents(run) == there


def test_nothing_is_evaluated_or_exported_of_a_run_without_a_checkpoint(run, capsys):
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    for command in ("evaluate", "export"):
        assert main([command, str(run)]) == 2
        assert "there is no checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_told_with_those_that_are(run):
    with pytest.raises(ConfigError, match=r"there are best\.pt, evaluate\.pt, last\.pt, train\.pt"):
        saved.evaluate(run, name="tune")
    with pytest.raises(ConfigError, match=r"there is no checkpoint .*\.\./checkpoints/last\.pt"):
        saved.evaluate(run, name="../checkpoints/last")  # what lies elsewhere is none of this run
    with pytest.raises(CheckpointError, match=r"there is no checkpoint"):
        build.from_run(run, "tune")


@pytest.mark.parametrize("other", [["seed=5"], ["optimizer=adamw"], ["schedule=constant"]], ids=lambda other: other[0])
def test_a_checkpoint_of_another_run_is_not_gone_on_with(run, tmp_path, unestimated, other):
    memexp.run(memexp.compose([*TINY, "max_steps=1", *other]), tmp_path / "other")
    for name in ("train.pt", "last.pt"):
        shutil.copy(tmp_path / "other" / "checkpoints" / name, run / "checkpoints")
    before = contents(run)
    with pytest.raises(
        ConfigError, match=r"last\.pt is of another run: it has (seed|optimizer|schedule)\S*=.*, and this run"
    ):
        saved.resume(run, ["epochs=3"])
    assert contents(run) == before
