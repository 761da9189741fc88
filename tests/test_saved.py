"""Going back to a run that is on disk: what may be asked of it, and what of a run that somebody else has made."""

import json
import math
import os
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import memexp
from memexp import build, config, contradictions, recorded, saved, unread
from memexp.cli import main
from memexp.config import ConfigError
from memexp.record import RunDirectoryError
from memexp.training import checkpoint, evaluation, form
from memexp.training.checkpoint import CheckpointError
from memexp.training.evaluation import Evaluation

TINY = ["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", "dataset=digits", "device=cpu", "log_every=1"]
TINY += ["dataset.limit=96", "dataset.test_limit=40"]
SHORT = ["model=resnet", "model.depth=8", "dataset=digits", "dataset.limit=32", "dataset.test_limit=16", "max_steps=1"]
OLD = Path(__file__).parent / "runs" / "schema-1"  # written by the version before stages


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    memexp.run(memexp.compose([*TINY, "epochs=2"]), path)
    return path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


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


def test_a_run_of_when_a_models_first_weights_might_stand_beside_init_from_is_read_as_it_ran(
    run, tmp_path, monkeypatch
):
    """A run that begins is refused for it."""
    both = [*TINY, "epochs=1", f"init_from={run}", f"model.init_from={run}"]
    with pytest.raises(ConfigError, match=r"model\.init_from: .* would not be read"):
        memexp.run(OmegaConf.to_container(config.compose_unchecked(both), resolve=True), tmp_path / "new")
    rules = [rule for rule in contradictions.RULES if rule is not contradictions._start]
    with monkeypatch.context() as before:
        before.setattr(contradictions, "RULES", rules)
        memexp.run(memexp.compose(both), tmp_path / "old")
    old = json.loads((tmp_path / "old" / "results.json").read_text())
    assert old["config"]["model"]["init_from"] == str(run)
    assert saved.evaluate(tmp_path / "old")["top1"] == old["accuracy"]["top1"]
    assert saved.resume(tmp_path / "old", ["epochs=2"])["epochs"] == 2
    assert (
        memexp.run(memexp.compose([*TINY, "epochs=1", f"init_from={tmp_path}/old"]), tmp_path / "after")["status"]
        == "done"
    )


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
    assert saved._made_longer(before, after)


def test_a_run_whose_steps_were_recorded_goes_on_elsewhere_only_without(run):
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


OTHER = [["dataset.limit=10"], ["dataset.classes=['3','5','1']"], ["dataset=synthetic", "dataset.image_size=32"]]


def moments(run: Path, overrides: list[str]) -> list[list[float]]:
    """By which images are normalised when the run is evaluated."""
    seen = []

    def remember(model, batches, *_):
        seen.append([batches._normalise._scale[:3].tolist(), batches._normalise._shift[:3].tolist()])
        return Evaluation(0.0, 0.0, 0.0, 1, torch.zeros(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "evaluate", remember)
        saved.evaluate(run, overrides)
    return seen[0]


@pytest.mark.parametrize("other", OTHER)
def test_other_data_are_normalised_as_the_training_had_them(run, other):
    if other[0] == "dataset=synthetic":
        other = [*other, "dataset.num_classes=10"]
    assert moments(run, other) == moments(run, [])
    assert moments(run, [*other, "dataset.mean=[.5,.5,.5]", "dataset.std=[1,1,1]"])[0] == pytest.approx([1 / 255] * 3)


def test_the_record_the_checkpoint_and_a_start_from_it_have_the_mean_and_std_that_were_measured(run, tmp_path, caplog):
    recorded = json.loads((run / "results.json").read_text())
    state = torch.load(run / "checkpoints/best.pt", weights_only=True)
    assert (state["mean"], state["std"]) == (recorded["mean"], recorded["std"])
    assert 0.2 < recorded["mean"][0] < 0.4
    given = [*TINY, f"init_from='{run}'", "dataset.limit=20", "max_steps=1"]
    assert memexp.run(memexp.compose(given), tmp_path / "again")["mean"] == recorded["mean"]
    caplog.set_level("WARNING", "memexp")
    own = memexp.run(memexp.compose([*given, "dataset.mean=[.5,.5,.5]", "dataset.std=[1,1,1]"]), tmp_path / "own")
    assert own["mean"] == [0.5, 0.5, 0.5]
    assert "normalised by dataset.mean=[0.5, 0.5, 0.5], and init_from's network was trained with [0.29" in caplog.text


def test_what_an_evaluation_does_not_read_is_told(run, caplog):
    caplog.set_level("WARNING", "memexp")
    saved.evaluate(run, ["optimizer.lr=3", "batch_size=20", "dataset.test_limit=20"])
    assert caplog.messages == [
        "warning: optimizer.lr has no effect: only training reads it, and nothing is trained here"
    ]


@pytest.mark.parametrize(
    ("override", "ended", "middle"),
    [
        ("optimizer=ranger", True, False),
        ("optimizer.lookahead.k=5", True, False),
        ("schedule.warmup=3", True, True),
        ("+memory.limit=1GB", True, True),
        ("dataset.limit=10", False, False),
        ("prune.keep=0.5", False, False),
        ("precision=bf16", False, False),
    ],
)
def test_what_an_average_has_part_in_is_read_in_the_middle_of_a_stage(override, ended, middle):
    assert [bool(unread.evaluated([override], flag)) for flag in (True, False)] == [ended, middle]


def test_a_checkpoint_has_no_table_of_all_classes_by_all_classes(finished):
    progress = checkpoint.load(finished / "checkpoints" / "train.pt")["training"]["progress"]
    assert progress["evaluation"]["images"] == 40
    assert not any(isinstance(value, torch.Tensor) for value in progress["evaluation"].values())


def test_a_checkpoint_that_does_not_have_them_is_evaluated_and_gone_on_with(run):
    before = saved.evaluate(run)
    for path in (run / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in state.items() if key not in ("mean", "std")}, path)
    assert saved.evaluate(run) == before
    assert saved.resume(run, ["epochs=3"])["status"] == "done"


class Intruder:
    def __reduce__(self):
        return os.mkdir, (f"{os.environ['MEMEXP_TEST_TRAP']}/executed",)


def intrusion() -> dict[str, str]:
    return {"_target_": "os.mkdir", "path": f"{os.environ['MEMEXP_TEST_TRAP']}/executed"}


def bad_target(run: Path) -> None:
    config = json.loads((run / "results.json").read_text())["config"]
    edit(
        run / "results.json",
        config=config | {"model": {"_target_": "os.mkdir", "path": os.environ["MEMEXP_TEST_TRAP"]}},
    )


def bad_target_in_checkpoint(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    state["config"]["model"] = intrusion()
    torch.save(state, run / "checkpoints/last.pt")


def nested_target(run: Path) -> None:
    config = json.loads((run / "results.json").read_text())["config"]
    config["schedule"]["more"] = [intrusion()]
    edit(run / "results.json", config=config)


def interpolation(run: Path) -> None:
    config = json.loads((run / "results.json").read_text())["config"]
    edit(run / "results.json", config=config | {"name": "${oc.env:HOME}"})


def pickled_checkpoint(run: Path) -> None:
    (run / "checkpoints/last.pt").write_bytes(pickle.dumps({"model": Intruder()}))


def zipped_checkpoint(run: Path) -> None:
    torch.save({"schema": 2, "model": Intruder()}, run / "checkpoints/last.pt")


def hydra_overrides(run: Path) -> None:
    folder = run / ".hydra"
    (folder / "overrides.yaml").write_text("- +model._target_=os.mkdir\n- !!python/object/apply:os.mkdir [x]\n")
    edit(run / "results.json", config=None)


def number_for_a_list(run: Path) -> None:
    edit(run / "results.json", config=7)


def not_json(run: Path) -> None:
    (run / "results.json").write_text("{")


def unknown_schema(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    torch.save(state | {"schema": 99}, run / "checkpoints/last.pt")


def foreign_edit(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    del state["checksums"]
    torch.save(state | {"edits": [{"kind": "os.system", "command": "x"}]}, run / "checkpoints/last.pt")


def flipped_bit(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    state["model"]["stem.0.weight"].view(torch.int32)[0] ^= 1
    torch.save(state, run / "checkpoints/last.pt")


STRANGERS = {
    bad_target: "names 'os.mkdir', which would be imported",
    bad_target_in_checkpoint: "names 'os.mkdir', which would be imported",
    nested_target: "names 'os.mkdir', which would be imported",
    interpolation: "the configuration of a run has values only",
    pickled_checkpoint: "last.pt cannot be read: ",
    zipped_checkpoint: "last.pt cannot be read: ",
    hydra_overrides: "it holds no configuration",
    number_for_a_list: "it holds no configuration",
    not_json: "results.json cannot be read",
    unknown_schema: "has schema 99",
    foreign_edit: "kind 'os.system' is not one of",
    flipped_bit: "is damaged: model.stem.0.weight",
}


@pytest.mark.parametrize("spoil", STRANGERS)
def test_b1_b6_a_strangers_run_executes_nothing_and_gets_one_message(run, tmp_path, monkeypatch, capsys, spoil):
    trap = tmp_path / "trap"
    trap.mkdir()
    monkeypatch.setenv("MEMEXP_TEST_TRAP", str(trap))
    monkeypatch.chdir(tmp_path)
    for other in ("train", "evaluate", "best"):
        (run / f"checkpoints/{other}.pt").unlink()
    spoil(run)
    refused: list[bool] = []
    edit(run / "results.json", status="interrupted") if spoil is not not_json else None
    for command in (
        ["evaluate", str(run)],
        ["resume", str(shutil.copytree(run, tmp_path / "again")), "epochs=3"],
        ["train", *TINY, f"init_from='{run}'", f"hydra.run.dir='{tmp_path}/new'", "overwrite=true", "max_steps=1"],
    ):
        status, told = main(command), capsys.readouterr()
        refused.append(status != 0)
        assert STRANGERS[spoil] in told.err or "where it ended, is not there any more" in told.err or not refused[-1]
        assert "Traceback" not in told.err + told.out
        assert "weights_only" not in told.err  # torch's advice is to load it unsafely
    assert refused[-1]
    assert all(refused) or spoil in (
        bad_target_in_checkpoint,
        foreign_edit,
    )  # the record, or train.pt, is asked instead
    assert list(trap.iterdir()) == []


def test_b1_what_the_user_names_again_is_imported(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\ndef network(classes, shape, chain, width=4):\n"
        "    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))\n"
    )
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("_target_: own_net.network\nwidth: 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = ["dataset=digits", "dataset.limit=96", "dataset.test_limit=40", "device=cpu", "max_steps=2"]
    cfg = config.compose(["model=own", *data], config_dirs=[tmp_path / "conf"])
    memexp.run(cfg, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"'own_net\.network', which would be imported.*--config-dir DIR"):
        saved.evaluate(tmp_path / "run")
    named = saved.evaluate(tmp_path / "run", own=saved.Own([str(tmp_path / "conf")]))
    assert named == saved.evaluate(tmp_path / "run", own=saved.Own(trust=True))


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


def test_a_start_from_a_runs_network_takes_its_weights(run, tmp_path):
    results = memexp.run(memexp.compose([*TINY, "stages=[evaluate]", f"init_from='{run}'"]), tmp_path / "again")
    assert results["accuracy"] == json.loads((run / "results.json").read_text())["accuracy"]


def test_an_extension_that_was_killed_before_it_had_saved_anything_is_not_forgotten(run):
    longer = json.loads((run / "results.json").read_text())["config"] | {"epochs": 3}
    edit(
        run / "results.json", config=longer, status="running"
    )  # as `resume RUN epochs=3` leaves it when killed at once
    assert saved.resume(run)["epochs"] == 3


def test_what_was_measured_before_a_kill_stays_in_the_record(run):
    before = json.loads((run / "results.json").read_text())
    state = torch.load(run / "checkpoints/train.pt", weights_only=True) | {"training": None}
    del state["checksums"]
    torch.save(state, run / "checkpoints/last.pt")  # as if it had been killed right behind its training
    edit(run / "results.json", status="running")
    after = saved.resume(run)
    for key in ("steps", "epochs", "parameters", "macs", "accuracy", "memory"):
        assert after[key] == before[key], key
    assert after["time"]["step_median"] == before["time"]["step_median"]
    assert after["time"]["stages"]["train"] == before["time"]["stages"]["train"]


def test_a_run_outlives_the_one_that_it_started_from(run, tmp_path):
    given = [*TINY, "stages=[evaluate]", f"init_from='{run}'", "backprop=checkpointed"]
    results = memexp.run(memexp.compose(given), tmp_path / "again")
    run.rename(tmp_path / "elsewhere")
    assert saved.evaluate(tmp_path / "again")["top1"] == results["accuracy"]["top1"]


def test_a_start_from_another_network_is_refused_and_the_strategy_is_the_runs_own(run):
    from memexp.backprop import Chain
    from memexp.prepared import _network

    cfg = memexp.compose([*TINY, f"init_from='{run}'", "backprop=checkpointed"])
    network, _ = _network(cfg, run, None, True)
    assert [module.backprop for module in network.modules() if isinstance(module, Chain)] == ["checkpointed"]
    cfg = memexp.compose(["model=revnet", "dataset=digits", "device=cpu", f"init_from='{run}'"])
    with pytest.raises(ConfigError, match=r"model\.name=resnet, not revnet"):
        _network(cfg, run, None, True)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[tune]", "tune comes first, but it needs a trained network"),
        ("[train,tnue]", "'tnue' is not one of"),
        ("[]", "at least one of"),
        ("[study]", "is asked for by an experiment"),
    ],
)
def test_stages_that_cannot_work_are_refused_with_all_other_mistakes(stages, message):
    with pytest.raises(ConfigError) as caught:
        memexp.compose([*TINY, f"stages={stages}", "epochs=0"])
    assert message in str(caught.value)
    assert "epochs: 0" in str(caught.value)


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


@pytest.mark.parametrize(("classes", "said"), [("['3','5','1']", True), ("null", False)])
def test_classes_that_are_matched_by_name_are_said_to_be(run, capsys, classes, said):
    assert main(["evaluate", str(run), f"dataset.classes={classes}"]) == 0
    assert ("; classes matched by name with those of its training)" in capsys.readouterr().out) is said


FOREIGN = {
    "model": [None, 5, {"stem.0.weight": 3}],
    "deployed": [5, {"stem.0.weight": "x"}],
    "config": [5, "x"],
    "classes": [5, "abc", [1, 2], [None]],
    "shape": ["x", [3], [3, -1, 32], [3.5, 32, 32]],
    "mean": ["x", [math.nan], [[0.1]]],
    "std": [[0.0], [-1.0], 5],
    "edits": [5, "x", [5]],
    "stage": [5, None],
    "stages": [5, [{}], [{"key": 3}], [{"key": "train", "steps": "x"}], [{"key": "train", "strategy": 5}]],
    "training": [5, {}, {"progress": 5}, {"progress": {"step": "x", "epoch": 0, "position": 0}}],
    "random": [5, [], [{}], [{"cpu": torch.zeros(3)}], [5]],
    "appended": [5, {"metrics.jsonl": -5}, {"metrics.jsonl": "x"}],
    "checksums": [5, {"model": "x"}],
}


@pytest.mark.parametrize("field", FOREIGN)
def test_a_field_that_memexp_does_not_write_is_told_by_name_as_is_one_that_is_missing(finished, tmp_path, field):
    path = tmp_path / "last.pt"
    state = torch.load(finished / "checkpoints/last.pt", weights_only=True)
    del state["checksums"]
    for value in FOREIGN[field]:
        torch.save(state | {field: value}, path)
        with pytest.raises(CheckpointError, match=f"field '{field}' is not one that memexp writes") as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)
    if field in form.REQUIRED and field != "model":
        torch.save({key: value for key, value in state.items() if key != field}, path)
        with pytest.raises(CheckpointError, match=f"field '{field}' is not one that memexp writes"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("edits", [{"kind": "narrow", "kept": 5}], "edit narrow: what it holds is no such edit"),
        ("edits", [{"kind": "fold", "pairs": [5]}], r"edit fold: pairs=\[5\] is not a list"),
        ("edits", [{"kind": "discretise"}], "edit discretise: "),
        ("dtype", torch.complex64, r"is torch\.complex64, not torch\.float32"),
        ("dtype", torch.float16, r"is torch\.float16, not torch\.float32"),
    ],
)
def test_a_checkpoint_whose_network_cannot_be_is_told_with_its_name(run, field, value, message):
    path = run / "checkpoints/best.pt"
    state = torch.load(path, weights_only=True)
    del state["checksums"]
    if field == "dtype":
        field, value = "model", {k: w.to(value) if w.is_floating_point() else w for k, w in state["model"].items()}
    torch.save(state | {field: value}, path)
    with pytest.raises(CheckpointError, match=rf"checkpoint \S*best\.pt.*{message}"):
        build.from_run(run, "best")


def test_progress_of_another_program_is_told_with_the_checkpoints_name(run):
    path = run / "checkpoints/train.pt"
    state = torch.load(path, weights_only=True)
    del state["checksums"]
    state["training"]["progress"]["steps_done"] = 3
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"train\.pt is of another optimizer: .*steps_done"):
        saved.resume(run, ["epochs=3"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_a_record_nested_without_end_is_one_that_cannot_be_read(run, capsys, text):
    (run / "results.json").write_text(text)
    for command in ("evaluate", "report"):
        assert main([command, str(run)]) == 2
        assert "recursion" in capsys.readouterr().err or command == "report"


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


def test_a_start_from_a_run_that_knows_the_classes_in_another_order_is_refused(tmp_path, caplog):
    memexp.run(memexp.compose([*SHORT, "dataset.classes=['3','5']"]), tmp_path / "run")
    start = [*SHORT, f"init_from='{tmp_path}/run'", "stages=[evaluate]"]
    with pytest.raises(ConfigError, match=r"knows these classes in another order; give dataset\.classes=\['3','5'\]"):
        memexp.run(memexp.compose([*start, "dataset.classes=['5','3']"]), tmp_path / "turned")
    memexp.run(memexp.compose([*start, "dataset.classes=['3','8']"]), tmp_path / "others")
    assert "are taken for other classes: 5 -> 8" in caplog.text


def test_a_run_in_a_thread_is_one(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(memexp.run(memexp.compose(SHORT), tmp_path)["status"]))
    thread.start()
    thread.join()
    assert found == ["done"]


@pytest.mark.parametrize(
    "overrides", [["dataset=digits", "dataset.test_limit=12"], ["dataset.test_limit=12", "dataset=digits"]]
)
def test_the_order_of_a_group_and_its_keys_does_not_matter(tmp_path, overrides):
    memexp.run(memexp.compose(SHORT), tmp_path)
    assert saved.evaluate(tmp_path, overrides)["images"] == 12


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_a_whole_number_is_an_alpha(tmp_path, key):
    assert memexp.run(memexp.compose([*SHORT, f"{key}=1"]), tmp_path)["status"] == "done"
