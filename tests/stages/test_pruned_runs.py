"""Runs that are pruned: in rounds, by any criterion, killed and made longer, from the command to the record and back."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from stage_runs import DATA, RESNET, run, same_network

from memexp import build, saved
from memexp.memory import planned as planned_run
from memexp.stages import Run
from memexp.stages.prune import PruneError

pytestmark = pytest.mark.usefixtures("unrendered", "unestimated", "untimed")


def test_pruned_in_rounds_to_a_target_tuned_and_fused(tmp_path):
    results = run(tmp_path, *RESNET, *DATA, "prune=l1_norm", "prune.target=macs:0.5", "prune.rounds=2", "deploy=fuse")
    keys = [stage["key"] for stage in results["stages"]]
    assert keys == ["train", "prune-1", "tune-1", "prune-2", "tune-2", "deploy", "evaluate"]
    stages = {stage["key"]: stage for stage in results["stages"]}
    first, last = stages["prune-1"]["prune"]["macs"], stages["prune-2"]["prune"]["macs"]
    assert last["after"] / first["before"] == pytest.approx(0.5, rel=0.02)
    assert stages["prune-2"]["prune"]["check"]["error"] < 1e-5
    assert stages["deploy"]["deploy"]["error"] < 1e-5
    large = min(256, 3 * results["batch_size"], results["accuracy"]["images"])  # of the batches that were compared
    assert {"latency_1", f"latency_{large}", f"peak_{large}"} < stages["deploy"]["deploy"]["costs"]["block"].keys()
    assert stages["prune-1"]["before"]["top1"] == stages["train"]["accuracy"]["top1"]
    figures = stages["prune-1"]  # beside the accuracy with the whole network's statistics, that with its own
    assert figures["prune"]["recalibrated"]["loss"] != figures["accuracy"]["loss"]
    assert results["before"]["key"] == "train"
    assert all(stage["parameters"] and stage["macs"] for stage in results["stages"])
    assert [stages[key]["macs"] for key in ("train", "tune-2")] == [first["before"], last["after"]]
    assert stages["evaluate"]["macs"] == results["macs"]
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == "cpu"
    assert (tmp_path / "plots/prune-1-scores.png").is_file()
    assert (tmp_path / "plots/prune-2-weights.png").is_file()
    costs = stages["prune-1"]["prune"]["costs"]
    assert costs["after"]["bytes"] < 0.8 * costs["before"]["bytes"]
    same_network(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["prune=snip", "prune.ratio=0.5", "prune.rounds=2"], ["prune-1", "prune-2", "train", "evaluate"]),
        (["prune=fisher", "prune.ratio=0.3", "prune.scope=global"], ["train", "prune", "tune", "evaluate"]),
        (["prune=random", "prune.ratio=0.5", "prune.draws=3"], ["train", "prune", "tune", "evaluate"]),
        (["prune=std", "prune.scope={stem.0:0.5}"], ["train", "prune", "tune", "evaluate"]),
        (["prune=l2_norm", "prune.target=params:0.6", "prune.order=energy"], ["train", "prune", "tune", "evaluate"]),
    ],
)
def test_every_way_to_prune_is_a_list_of_stages(tmp_path, overrides, keys):
    results = run(tmp_path, *RESNET, *DATA, *overrides)
    assert [stage["key"] for stage in results["stages"]] == keys
    same_network(tmp_path)
    if "prune.ratio=0.5" in overrides:
        kept = [stage["prune"]["channels"] for stage in results["stages"] if "prune" in stage]
        assert kept[-1]["after"] == pytest.approx(kept[0]["before"] / 2, abs=1)
    if "prune.draws=3" in overrides:
        draws = results["stages"][1]["prune"]["draws"]
        assert [draw["seed"] for draw in draws] == [1, 2]


def test_single_weights_that_are_zero_stay_zero_while_tuning(tmp_path):
    results = run(tmp_path, *RESNET, *DATA, "prune=l1_norm", "prune.ratio=0.9", "prune.unstructured=true")
    _, network, _ = build.from_run(tmp_path)
    weights = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert zeros == pytest.approx(0.9, abs=0.01)
    assert results["stages"][1]["parameters"] == results["parameters"]  # no tensor is smaller
    more = [*RESNET, *DATA, f"init_from='{tmp_path}'", "max_steps=2"]  # a run that knows nothing of pruning
    run(tmp_path / "more", *more)
    _, network, _ = build.from_run(tmp_path / "more")
    weights = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights) >= zeros


@pytest.mark.long
def test_a_stage_made_longer_keeps_its_own_plan_and_writes_best_weights_of_its_own(tmp_path, monkeypatch):
    """After tune, whose best.pt and whose plan of memory are of another network than train's."""
    small = ["model=revnet", "model.units=[1,1]", "model.channels=[8,8,16]", *DATA, "evaluate_every=1"]
    budget = ["backprop=budget", "backprop.limit=0.9", "prune=l1_norm", "prune.ratio=0.5", "schedule=constant"]
    before = run(tmp_path, *small, *budget)
    best = tmp_path / "checkpoints/best.pt"
    assert torch.load(best, weights_only=True)["stage"] == "tune"
    planned = next(stage["strategy"] for stage in before["stages"] if stage["key"] == "train")
    assert planned["stage"] == "train"
    seen = []

    def keep(self, weights, top1):
        save_best(self, weights, top1)
        state = torch.load(best, weights_only=True)
        seen.append((state["stage"], len(state["edits"])))

    save_best = Run.save_best
    monkeypatch.setattr(Run, "save_best", keep)
    edited = []

    def plan(cfg, times, edits, *room):
        edited.append(len(edits))
        return make_plan(cfg, times, edits, *room)

    make_plan = planned_run.plan
    monkeypatch.setattr(planned_run, "plan", plan)
    after = saved.resume(tmp_path, ["epochs=2"])
    assert seen[0] == ("train", 0)
    assert edited == [1]  # tune's alone
    followed = next(stage["strategy"] for stage in after["stages"] if stage["key"] == "train")
    assert followed | {"measured": None} == planned | {"measured": None}  # steps take other times


def test_a_share_in_rounds_is_that_of_one_round(tmp_path):
    """A quarter of 16 channels leaves 12, and rounded in each of two rounds it would leave 11."""
    results = run(tmp_path, *RESNET, *DATA, "max_steps=1", "prune=l1_norm", "prune.ratio=0.25", "prune.rounds=2")
    rounds = [stage["prune"]["widths"]["stem.0"] for stage in results["stages"] if "prune" in stage]
    assert (rounds[0][0], rounds[1][1]) == (16, 12)


def test_single_weights_go_round_by_round(tmp_path):
    prune = ["prune=l1_norm", "prune.ratio=0.9", "prune.unstructured=true", "prune.rounds=2"]
    results = run(tmp_path, *RESNET, *DATA, "max_steps=1", *prune)
    gone = [stage["prune"]["sparsity"]["masked"] for stage in results["stages"] if "prune" in stage]
    assert gone == pytest.approx([1 - 0.1**0.5, 0.9], abs=0.01)


def test_a_pruned_run_is_gone_on_with_at_every_boundary(tmp_path):
    overrides = [*RESNET, *DATA, "prune=taylor_weight", "prune.ratio=0.4", "deploy=fuse", "optimizer=ranger"]
    whole = run(tmp_path / "whole", *overrides)
    expected = torch.load(tmp_path / "whole/checkpoints/last.pt", weights_only=True)["model"]
    for key in ("train", "prune", "tune", "deploy"):
        path = shutil.copytree(tmp_path / "whole", tmp_path / key)
        state = torch.load(path / f"checkpoints/{key}.pt", weights_only=True) | {"training": None}
        del state["checksums"]
        torch.save(state, path / "checkpoints/last.pt")  # as if it had been killed right behind this stage
        record = json.loads((path / "results.json").read_text()) | {"status": "running"}
        (path / "results.json").write_text(json.dumps(record))
        again = saved.resume(path)
        assert [stage["key"] for stage in again["stages"]] == [stage["key"] for stage in whole["stages"]]
        found = torch.load(path / "checkpoints/last.pt", weights_only=True)["model"]
        assert all(torch.equal(found[name], expected[name]) for name in expected), key


def test_what_only_the_trained_network_shows_is_told_with_the_file_that_keeps_it(tmp_path):
    with pytest.raises(PruneError, match=r"target=latency:0.001 cannot be met.* is kept in .*last\.pt: init_from="):
        run(tmp_path / "a", *RESNET, *DATA, "max_steps=1", "prune=l1_norm", "prune.target=latency:0.001")
    more = ["prune=l1_norm", "prune.ratio=0.5", "stages=[prune,tune,evaluate]", f"init_from='{tmp_path}/a'"]
    assert run(tmp_path / "b", *RESNET, *DATA, *more)["status"] == "done"


@pytest.mark.long
def test_two_processes_prune_and_fuse_the_same(tmp_path):
    """Scores come from each process's images and latency from its clock: the first one's choice is that of both."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "memexp",
        "train",
    ]
    overrides = [*RESNET, *DATA, "batch_size=16", "prune=fisher", "prune.ratio=0.4", "deploy=fuse", "deploy.merge=auto"]
    subprocess.run([*command, *overrides, f"hydra.run.dir='{tmp_path}/run'"], check=True, cwd=tmp_path)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert [stage["key"] for stage in results["stages"]] == ["train", "prune", "tune", "deploy", "evaluate"]
    assert saved.evaluate(tmp_path / "run")["top1"] == results["accuracy"]["top1"]


@pytest.mark.parametrize("unstructured", [False, True])
def test_the_scratch_control_has_the_shapes_of_the_pruned_network_and_none_of_its_weights(tmp_path, unstructured):
    how = [*RESNET, *DATA, "prune=l1_norm", "prune.ratio=0.5", f"prune.unstructured={unstructured}", "tune.lr=1e-9"]
    told = run(tmp_path / "own", *how), run(tmp_path / "new", *how, "tune.scratch=true")
    assert told[0]["parameters"] == told[1]["parameters"]
    own, new = (build.from_run(tmp_path / name)[1].state_dict() for name in ("own", "new"))
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in new.items()}
    key = "body.0.f.0.weight"
    assert not torch.allclose(own[key], new[key], atol=1e-3)
    if unstructured:
        assert torch.equal(own[key] == 0, new[key] == 0)
        assert (new[key] == 0).float().mean() == pytest.approx(0.5, abs=0.05)
