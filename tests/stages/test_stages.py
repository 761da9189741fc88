"""What a run of stages records and says, and what is refused before anything is made."""

import json
import re

import pytest
import torch
from stage_runs import DATA, RESNET, run

import memexp
from memexp.cli import main
from memexp.config import ConfigError
from memexp.report import collect, tables
from memexp.stages import foresee

pytestmark = pytest.mark.usefixtures("unrendered", "untimed")


@pytest.mark.parametrize(("asked", "effective", "left"), [((200, 1), 96, None), ((32, 2), 64, 32), ((40, 1), 40, 16)])
def test_the_batch_that_steps_take_is_recorded_and_what_they_leave_out_is_said(
    tmp_path, caplog, asked, effective, left
):
    """Record, log and estimate had the batch as it was asked for, and nothing was said of what filled no step."""
    caplog.set_level("INFO", "memexp")
    small = ["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", "max_steps=1"]
    results = run(tmp_path, *small, *DATA, f"batch_size={asked[0]}", f"accumulate={asked[1]}")
    assert (results["batch_size"], results["effective_batch_size"]) == (asked[0], effective)
    assert f"= {effective}; lr as given" in caplog.text
    assert ("each epoch leaves out" in caplog.text) == (left is not None)
    assert left is None or f"each epoch leaves out {left} of the 96 training images" in caplog.text
    assert results["memory"]["estimate"] == pytest.approx(results["memory"]["peak"], rel=0.01)
    noted = tables.of_groups(collect.group(collect.find([tmp_path])[0])).notes
    assert ("batch_size=200: there were 96 training images, and each step took all of them." in noted) == (
        asked[0] == 200
    )


def test_a_budget_is_planned_for_the_batch_that_steps_take_and_advice_is_of_it(tmp_path, monkeypatch):
    """Both were for the one that was asked for: every plan that was looked at had 50 batches of 200 images in a step."""
    seen = []

    def planned_for(cfg, *_):
        seen.append((cfg.batch_size, cfg.accumulate))
        raise MemoryError

    monkeypatch.setattr("memexp.memory.planned.set_up", planned_for)
    monkeypatch.setattr(
        "memexp.memory.advice.after_out_of_memory", lambda cfg, *_: seen.append((cfg.batch_size, cfg.accumulate)) or ""
    )
    with pytest.raises(MemoryError):
        run(tmp_path, *RESNET, *DATA, "backprop=budget", "batch_size=200", "accumulate=50")
    assert seen == [(96, 1), (96, 1)]


def test_what_is_not_as_asked_for_is_said(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING", "memexp")
    run(tmp_path / "run", *RESNET, *DATA, "accumulate=50", "ema=0.5", "max_steps=500")
    assert "accumulate=50, but an epoch has 3 batches" in caplog.text
    assert re.search(r"stage train ends with epoch \d+, after \d+ steps: not max_steps=500", caplog.text)
    path = tmp_path / "run/checkpoints"
    state = torch.load(path / "train.pt", weights_only=True)
    del state["checksums"], state["deployed"]
    torch.save(state | {"stages": []}, path / "last.pt")  # as if it had been stopped in training
    run(tmp_path / "next", *RESNET, *DATA, f"init_from='{tmp_path}/run'", "stages=[evaluate]")
    assert "stands in the middle of its stage train" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune=l1_norm"], "give one of the two"),
        (["prune=l1_norm", "prune.ratio=1"], "ratio=1 is not allowed"),
        (["prune=l1_norm", "prune.target=macs:2"], "target='macs:2' is not allowed"),
        (["prune=fpgm", "prune.ratio=0.5", "prune.unstructured=true"], "fpgm scores filters"),
        (["prune=l1_nrm", "prune.ratio=0.5"], "Did you mean 'l1_norm'?"),
        (["stages=[train,prune]"], "prune needs to know how; set prune=OPTION"),
        (
            ["stages=[train,prune,tune]", "prune=l1_norm", "prune.ratio=0.5", "prune.rounds=2"],
            "prune.rounds: 2, but stages has 1 prune",
        ),
        (["stages=[deploy]"], "deploy needs to know how; set deploy=OPTION"),
        (["stages=[train,discretise]"], "discretise needs to know the sizes"),
        (["discretise.sizes=[0.5]"], "is not integral; use model=inn"),
        (["discretise.sizes=[0]", "model=inn"], "discretise.sizes"),
        (["deploy=fuse", "deploy.merge=most"], "deploy.merge: 'most' is not allowed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(overrides, message):
    with pytest.raises(ConfigError) as caught:
        memexp.compose([*RESNET, *DATA[:-1], *overrides])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune.scope={stem.9:0.5}"], "prune.scope: there is no layer 'stem.9'; nearest: stem.0"),
        (["prune.scope={head:0.5}"], "prune.scope: "),
        (["prune.scope={stem.9:0.5}", "prune.unstructured=true"], "there is no convolution or linear layer 'stem.9'"),
        (["prune.target=macs:0.0001"], "prune.target=macs:0.0001 cannot be met: with every layer at its least width"),
        (["prune.target=params:0.001", "prune.rounds=3"], "prune.target=params:0.001 cannot be met"),
        (["prune.target=macs:0.05", "prune.scope=global", "prune.floor=0.5"], "prune.target=macs:0.05 cannot be met"),
        (["prune.target=macs:0.05", "prune.order=energy", "prune.floor=0.5"], "prune.target=macs:0.05 cannot be met"),
        (["prune.ratio=0.6", "prune.scope=global", "prune.floor=0.39"], "with every layer at its floor"),
        (["prune=obs", "prune.ratio=0.5", "prune.largest=10"], "computed up to 10^2: name smaller layers"),
        (["prune.ratio=1"], "prune.ratio=1 is not allowed"),
    ],
)
def test_what_no_training_could_change_of_a_pruning_is_refused_before_it(
    tmp_path, monkeypatch, capsys, overrides, message
):
    monkeypatch.chdir(tmp_path)
    prune = [] if overrides[0].startswith("prune=") else ["prune=l1_norm"]
    assert main(["train", *RESNET, *DATA, *prune, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_job_of_a_sweep_that_is_refused_so_keeps_a_record_of_it(tmp_path):
    with pytest.raises(ConfigError, match="no layer 'stem"):
        run(tmp_path, *RESNET, *DATA, "prune=l1_norm", "prune.scope={stem.9:0.5}")
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "failed"
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=revnet", "model.depth=20"], "is not for model.depth=20, which has no step that can be undone"),
        (["model=torchvision", "model.arch=resnet19"], "nearest: resnet18"),
        (["model=torchvision", "model.arch=alexnet"], "cannot take images of 32x32"),
        (["device=gpu"], "device: 'gpu' is not to be had here"),
        (["precision=tf32", "device=cpu"], "precision: 'tf32' needs an NVIDIA GPU of Ampere or later, not cpu"),
    ],
)
def test_what_cannot_be_built_is_foreseen(overrides, said):
    """It was refused once the run had its directory."""
    with pytest.raises(ConfigError, match=said):
        foresee(memexp.compose(["dataset=digits", *overrides]))
