"""Going on with a run that is on disk: what may be asked of it, and what it remembers."""

import json
import shutil
import signal

import pytest
import torch
from saved_runs import OLD, TINY, contents, edit

import memexp
from memexp import config, longer, recorded, saved
from memexp.cli import main
from memexp.config import ConfigError
from memexp.training.signals import Interrupted


def test_a_run_that_drew_its_images_by_its_seed_goes_on_with_them(run):
    config = json.loads((run / "results.json").read_text())["config"]
    del config["dataset"]["draw"]
    edit(run / "results.json", config=config | {"seed": 3})
    assert recorded.of_run(run).dataset.draw == 3
    assert recorded.of_run(OLD).dataset.draw == json.loads((OLD / "results.json").read_text())["config"]["seed"]


def test_a_run_of_the_version_before_is_reported_evaluated_and_gone_on_with(tmp_path, capsys):
    run = shutil.copytree(OLD, tmp_path / "run")
    assert main(["report", str(run), "--no-plots"]) == 0
    assert "10.00" in capsys.readouterr().out
    recorded = json.loads((run / "results.json").read_text())
    assert saved.evaluate(run)["top1"] == recorded["accuracy"]["top1"]
    results = saved.resume(run, ["max_steps=6"])
    assert (results["status"], results["steps"], results["schema"]) == ("done", 6, 2)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=7", "seed: the run has 0, and 7 would make it another run"),
        ("optimizer=ranger", "optimizer.name: the run has 'sgd', and 'ranger' would"),
        ("optimizer.lr=0.5", "optimizer.lr: the run has 0.1, and 0.5 would"),
        ("dataset=synthetic", "dataset.name: the run has 'digits', and 'synthetic' would"),
        ("dataset.classes=[1,2]", "dataset.classes: the run has None"),
        ("batch_size=10", "batch_size: the run has 32, and 10 would"),
        ("model.depth=20", "model.depth: the run has 32"),
        ("epochs=1", "epochs: 1 is less than the 2 of this run"),
        ("max_steps=5", "max_steps: 5 would only end this run, which has none, sooner; it can only be made longer"),
        ("tune.epochs=9", "tune.epochs: no stage of this run is made longer by it; its stages: train"),
        ("backprop=checkpointed", "backprop.name: the run has 'stored'"),
        ("model.dpeth=3", "Did you mean 'model.depth'?"),
        ("+model.more=3", "is not allowed for a run that is there"),
        ("seed=1,2", "is not allowed for a run that is there"),
    ],
)
def test_b2_b3_what_would_make_it_another_run_is_refused_by_name_and_changes_nothing(run, override, message):
    before = contents(run)
    with pytest.raises(ConfigError) as caught:
        saved.resume(run, [override])
    assert message in str(caught.value)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("stages", "key"),
    [
        ("[train,evaluate]", "epochs"),
        ("[prune,tune,evaluate]", "tune.epochs"),
        ("[partition,discretise]", "tune.epochs"),
    ],
)
def test_each_stage_that_trains_may_be_made_longer_by_the_keys_of_its_recipe(stages, key):
    chosen = ["model=inn", "prune=integral", "prune.keep=0.6"] if "partition" in stages else ["prune=l1_norm"]
    start = [] if stages.startswith("[train") else ["init_from=somewhere"]
    before = config.compose_unchecked([*chosen, *start, f"stages={stages}", f"{key}=2"])
    after = config.compose_unchecked([*chosen, *start, f"stages={stages}", f"{key}=3"])
    assert longer.made_longer(before, after)


def test_a_run_whose_steps_were_recorded_goes_on_elsewhere_only_without(run, caplog):
    caplog.set_level("WARNING", "memexp")  # from the command line, train.log has the two lines that a run begins with
    edit(run / "results.json", config=json.loads((run / "results.json").read_text())["config"] | {"cuda_graph": True})
    before = contents(run)
    with pytest.raises(ConfigError, match=r"cuda_graph: true needs one process on a GPU.*use cuda_graph=false"):
        saved.resume(run, ["epochs=3"])
    assert contents(run) == before
    assert saved.resume(run, ["epochs=3", "cuda_graph=false"])["epochs"] == 3


def test_a_run_made_longer_remembers_it_and_goes_on_from_the_stage_that_is_longer(run):
    steps = json.loads((run / "results.json").read_text())["steps"]
    assert saved.resume(run, ["epochs=3", "log_every=2"])["steps"] == steps + 3
    assert json.loads((run / "results.json").read_text())["config"]["epochs"] == 3
    before = contents(run)
    assert saved.resume(run, [])["epochs"] == 3  # nothing to do
    assert contents(run) == before


def test_b2_a_resume_that_fails_before_it_begins_leaves_a_finished_record_as_it_was(run, monkeypatch):
    from memexp import data
    from memexp.data import DataError

    def gone(*_, **__):
        raise DataError("the images have gone")

    before = (run / "results.json").read_bytes()
    monkeypatch.setattr(data, "load", gone)
    with pytest.raises(DataError):
        saved.resume(run, ["epochs=3"])
    assert (run / "results.json").read_bytes() == before


def test_the_record_of_a_finished_run_that_is_made_longer_is_kept(run):
    before = json.loads((run / "results.json").read_text())
    saved.resume(run, ["epochs=3"])
    assert json.loads((run / "results.finished.json").read_text()) == before


def test_b5_killed_before_the_first_checkpoint_each_step_stands_once(tmp_path, monkeypatch):
    from memexp.stages.handed import Run

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_best", killed)
        with pytest.raises(Killed):
            memexp.run(memexp.compose([*TINY, "epochs=2"]), tmp_path)
    edit(tmp_path / "results.json", status="running")  # as a process that was killed leaves it
    assert (tmp_path / "metrics.jsonl").read_text()
    saved.resume(tmp_path)
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["split"] == "train"] == list(range(1, 7))
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_longer_in_two_parts_is_the_same_as_in_one(run, tmp_path):
    # a constant rate: a cosine over three epochs is another one than over two
    short = [*TINY, "schedule=constant", "optimizer=ranger", "ema=0.5"]
    memexp.run(memexp.compose([*short, "epochs=3"]), tmp_path / "whole")
    memexp.run(memexp.compose([*short, "epochs=2"]), tmp_path / "parts")
    saved.resume(tmp_path / "parts", ["epochs=3"])
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["model"] for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_an_extension_that_was_killed_before_it_had_saved_anything_is_not_forgotten(run):
    longer = json.loads((run / "results.json").read_text())["config"] | {"epochs": 3}
    edit(
        run / "results.json", config=longer, status="running"
    )  # as `resume RUN epochs=3` leaves it when killed at once
    assert saved.resume(run)["epochs"] == 3


def test_what_was_measured_before_a_kill_stays_in_the_record(run):
    before = json.loads((run / "results.json").read_text())
    before["strategy"] = {"inverse_error": 1e-6}
    state = torch.load(run / "checkpoints/train.pt", weights_only=True) | {"training": None}
    del state["checksums"]
    state["stages"][0]["strategy"] = before["strategy"]
    torch.save(state, run / "checkpoints/last.pt")  # as if it had been killed right behind its training
    edit(run / "results.json", status="running", strategy={}, effective_batch_size=None)
    after = saved.resume(run)
    for key in ("steps", "epochs", "parameters", "macs", "accuracy", "memory", "strategy", "effective_batch_size"):
        assert after[key] == before[key], key
    assert after["time"]["step_median"] == before["time"]["step_median"]
    assert after["time"]["stages"]["train"] == before["time"]["stages"]["train"]


@pytest.mark.parametrize("place", ["memexp.training.loop.evaluate", "memexp.stages.handed.Run.finish"])
def test_a_training_that_was_stopped_behind_its_last_step_keeps_what_it_had_measured(tmp_path, monkeypatch, place):
    """The process that went on took no step, and the record said that training takes no memory and no time."""

    def stopped(*_):
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(place, stopped)
        with pytest.raises(Interrupted):
            memexp.run(memexp.compose([*TINY, "epochs=1"]), tmp_path)
    before = json.loads((tmp_path / "results.json").read_text())
    after = saved.resume(tmp_path)
    assert before["memory"]["peak"] > 0
    for key in ("peak", "how", "parameters", "gradients", "optimizer", "activations", "kept_for_backward"):
        assert after["memory"][key] == after["stages"][0]["memory"][key] == before["memory"][key], key
    for key in ("step_median", "steps_measured", "images_per_second", "warm_up_excluded"):
        assert after["time"][key] == after["stages"][0]["time"][key] == before["time"][key], key


def test_a_sweep_knows_a_job_that_was_gone_on_with_elsewhere_until_it_is_made_longer(run):
    known = json.loads((run / "results.json").read_text())["config_hash"]
    edit(run / "results.json", status="interrupted")
    results = saved.resume(run, ["log_every=2", "memory.steps=5"])
    assert (results["status"], results["config"]["log_every"], results["config_hash"]) == ("done", 2, known)
    longer_by_one = saved.resume(run, ["epochs=3"])
    assert longer_by_one["config_hash"] not in (None, known)


def test_only_what_has_trained_is_said_to_be_gone_on_with(run, monkeypatch, capsys):
    def stopped(*_):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("memexp.training.evaluation.evaluate", stopped)
    monkeypatch.setattr("memexp.training.loop.evaluate", stopped)
    for command, told in (["evaluate"], ""), (["resume", "epochs=3"], "; `memexp resume` goes on from the checkpoint"):
        assert main([command[0], str(run), *command[1:]]) == 143
        assert capsys.readouterr().err == f"memexp: stopped by SIGTERM{told}\n"
