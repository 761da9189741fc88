"""What is evaluated, and what starts, from a run that is on disk."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from saved_runs import SHORT, TINY

import memexp
from memexp import config, contradictions, saved, unread
from memexp.cli import main
from memexp.config import ConfigError
from memexp.training import checkpoint, evaluation
from memexp.training.evaluation import Evaluation


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


@pytest.mark.parametrize("override", ["dataset.limit=5", "dataset.test_limit=5", "dataset.classes=[zebra,'0']"])
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_images_that_there_cannot_be_are_wrong_input(run, command, override):
    assert main([command, str(run), override]) == 2


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


def test_a_start_from_a_runs_network_takes_its_weights(run, tmp_path):
    results = memexp.run(memexp.compose([*TINY, "stages=[evaluate]", f"init_from='{run}'"]), tmp_path / "again")
    assert results["accuracy"] == json.loads((run / "results.json").read_text())["accuracy"]


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


@pytest.mark.parametrize(("classes", "said"), [("['3','5','1']", True), ("null", False)])
def test_classes_that_are_matched_by_name_are_said_to_be(run, capsys, classes, said):
    assert main(["evaluate", str(run), f"dataset.classes={classes}"]) == 0
    assert ("; classes matched by name with those of its training)" in capsys.readouterr().out) is said


@pytest.mark.parametrize("stage", ["in", "behind"])
def test_classes_of_a_run_that_was_killed_are_matched_by_name(run, tmp_path, stage, monkeypatch):
    """Its record does not say which they are before the first stage is over; its checkpoint does."""
    turned = "dataset.classes=['9','8','7','6','5','4','3','2','1','0']"
    before = saved.evaluate(run)
    record = json.loads((run / "results.json").read_text())
    for key in ("classes", "fingerprint"):
        del record[key]
    (run / "results.json").write_text(json.dumps(record | {"status": "running", "stages": []}))
    if stage == "in":  # a training of which there is more to do
        state = torch.load(run / "checkpoints/train.pt", weights_only=True) | {"stages": []}
        torch.save(state, run / "checkpoints/last.pt")
    after = saved.evaluate(run, [turned])
    assert (after["top1"], after["classes_matched_by_name"]) == (before["top1"], True)
    exported = {}
    monkeypatch.setattr("memexp.fusing.export", lambda *_, **given: exported.update(given))
    saved.export(run, tmp_path / "network", overrides=[turned])
    assert exported["classes"] == list("0123456789")


def test_statistics_are_estimated_or_not_as_in_the_stage_that_is_under_way_whatever_images_are_read(run, monkeypatch):
    """How many steps the images of the evaluation would have been decided it."""
    monkeypatch.setattr(
        "memexp.training.statistics.SETTLED", 0.06
    )  # of the 6 steps that this run has, at a momentum of 0.01
    state = torch.load(run / "checkpoints/train.pt", weights_only=True)
    state["training"]["progress"]["step"] = 5
    torch.save(state | {"stages": [], "checksums": None}, run / "checkpoints/last.pt")
    measured = [saved.evaluate(run, [text])["loss"] for text in ("epochs=2", "batch_size=96", "dataset.limit=32")]
    assert measured == pytest.approx([measured[0]] * 3, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "size"),
    [([], None), (["dataset=imagenet"], 256), (["dataset=imagefolder", "dataset.image_size=64"], 73)]
    + [(["dataset=imagenet", "dataset.resize_size=232"], 232)],
)
def test_an_exported_network_knows_to_what_size_images_are_resized(settings, size):
    """It was told none where it follows from the size of the crop."""
    splits = SimpleNamespace(shape=(3, 8, 8), mean=[0.5] * 3, std=[0.5] * 3)
    told = saved._preprocessing(SimpleNamespace(cfg=config.compose_unchecked(settings), splits=splits))
    assert told["resize_size"] == size
    assert ("torchvision's Resize" in (told["resize"] or "")) == (size is not None)  # how, or other pixels come of it


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
