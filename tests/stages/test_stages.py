"""Runs of more than training and evaluation: pruned, fused, discretised, from the command to the record and back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import memexp
from memexp import build, recorded, saved
from memexp.cli import main
from memexp.config import ConfigError
from memexp.memory import planned as planned_run
from memexp.report import collect, tables
from memexp.report.tables import changes
from memexp.stages import Run, foresee
from memexp.stages.prune import PruneError
from memexp.training import checkpoint

DATA = ["dataset=digits", "dataset.limit=96", "dataset.test_limit=40", "device=cpu", "monitor_every=0", "epochs=1"]
DATA += ["tune.epochs=1", "tune.max_steps=2"]
RESNET = ["model=resnet", "model.depth=8"]


def run(path: Path, *overrides: str) -> dict:
    return memexp.run(memexp.compose(list(overrides)), path)


def same_network(path: Path) -> None:
    """What evaluate reads from the run is what the record says of it, and nothing in the file is needed beside plain data."""
    results = json.loads((path / "results.json").read_text())
    assert saved.evaluate(path)["top1"] == results["accuracy"]["top1"]
    assert results["parameters"] == results["stages"][-2]["parameters"]  # as its accuracy, of the network that is left
    _, network, state = build.from_run(path)
    assert sum(p.numel() for p in network.parameters()) == results["stages"][-2]["parameters"]
    assert state["edits"] == torch.load(path / "checkpoints/last.pt", weights_only=True)["edits"]


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
    assert {"latency_1", "peak_1", f"latency_{large}", f"peak_{large}"} < stages["deploy"]["deploy"]["costs"][
        "block"
    ].keys()
    assert stages["prune-1"]["before"]["top1"] == stages["train"]["accuracy"]["top1"]
    figures = stages["prune-1"]  # beside the accuracy with the whole network's statistics, that with its own
    assert figures["prune"]["recalibrated"]["loss"] != figures["accuracy"]["loss"]
    assert results["before"]["key"] == "train"
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


def test_what_is_not_as_asked_for_is_said(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING", "memexp")
    run(tmp_path / "run", *RESNET, *DATA, "accumulate=50", "ema=0.5")
    assert "accumulate=50, but an epoch has 3 batches" in caplog.text
    path = tmp_path / "run/checkpoints"
    state = torch.load(path / "train.pt", weights_only=True)
    del state["checksums"], state["deployed"]
    torch.save(state | {"stages": []}, path / "last.pt")  # as if it had been stopped in training
    run(tmp_path / "next", *RESNET, *DATA, f"init_from='{tmp_path}/run'", "stages=[evaluate]")
    assert "stands in the middle of its stage train" in caplog.text


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


def test_an_integral_network_serves_every_size_that_is_asked_for(tmp_path):
    sizes = ["discretise.sizes=[1,0.6]", "prune=integral", "prune.keep=0.6"]
    results = run(tmp_path, "model=inn", "model.base=resnet8", *DATA, *sizes)
    stages = {stage["key"]: stage for stage in results["stages"]}
    native, small = stages["discretise"]["sizes"]
    assert small["parameters"] < 0.5 * native["parameters"]
    assert stages["discretise"]["parameters"] == small["parameters"]
    assert results["accuracy"]["top1"] == small["accuracy"]["top1"]
    same_network(tmp_path)


def test_an_integral_run_is_evaluated_and_exported_at_any_size_and_as_no_other_network(tmp_path, capsys):
    run(tmp_path, "model=inn", "model.base=resnet8", *DATA, "discretise.sizes=[0.6]")
    stages = {stage["key"]: stage for stage in json.loads((tmp_path / "results.json").read_text())["stages"]}
    found = saved.evaluate(tmp_path, ["prune=integral", "prune.keep=0.6"])
    assert found["loss"] == pytest.approx(stages["discretise"]["sizes"][0]["accuracy"]["loss"], rel=1e-5)
    native = saved.evaluate(tmp_path)
    assert native["loss"] == stages["evaluate"]["accuracy"]["loss"] != found["loss"]
    with pytest.raises(ConfigError, match="no continuous group is named nope"):
        saved.evaluate(tmp_path, ["prune=integral", "prune.keep={nope:0.5}"])
    exported = saved.export(tmp_path, tmp_path / "small.pt2", overrides=["prune=integral", "prune.keep=0.6"])
    loaded = torch.export.load(exported["files"][".pt2"]).module()
    small = stages["discretise"]["sizes"][0]["parameters"]
    assert (
        sum(p.numel() for p in loaded.parameters())
        <= small
        < sum(p.numel() for p in build.from_run(tmp_path)[1].parameters())
    )
    before = sorted(tmp_path.rglob("*"))
    others = ["model.quadrature=simpson", "model.groups=[stem.0]", "deploy=fuse", "discretise.sizes=[0.5]"]
    for other in others:
        for command in ("evaluate", "export"):  # the first two would load, as another function
            assert main([command, str(tmp_path), other]) == 2, other
            assert "is evaluated and exported as it is" in capsys.readouterr().err, other
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_of_the_time_when_the_size_was_a_key_of_its_own_is_read(tmp_path):
    run(tmp_path, "model=inn", "model.base=resnet8", *DATA, "prune=integral", "prune.keep=0.6")
    config = json.loads((tmp_path / "results.json").read_text())["config"]
    for keep, prune in ((0.6, {"name": "integral", "keep": 0.6, "target": None, "tune": None}), (None, None)):
        then = config | {"prune": None, "discretise": {"sizes": None, "keep": keep}}
        assert recorded.from_plain(then, (), "results.json").prune == prune


def test_where_a_smaller_size_is_sampled_can_be_trained(tmp_path):
    inn = [
        "model=inn",
        "model.base=resnet8",
        *DATA,
        "prune=integral",
        "prune.target=params:0.6",
        "prune.tune=partition",
    ]
    whole = run(tmp_path / "run", *inn, "checkpoint_every=1", "optimizer=adamw", "tune.lr=0.01")
    stages = {stage["key"]: stage for stage in whole["stages"]}
    assert list(stages) == ["train", "partition", "discretise", "evaluate"]
    counts = stages["discretise"]["prune"]["parameters"]
    assert counts["after"] / counts["before"] == pytest.approx(0.6, rel=0.02)
    same_network(tmp_path / "run")
    _, network, state = build.from_run(tmp_path / "run")
    assert not [p for p in network.parameters() if not p.requires_grad]
    nodes = state["edits"][-1]["partitions"]["stem.0"]
    assert nodes != pytest.approx([k / (len(nodes) - 1) for k in range(len(nodes))])  # they have moved
    weights = {
        key: torch.load(tmp_path / f"run/checkpoints/{key}.pt", weights_only=True)["model"] for key in list(stages)[:2]
    }
    assert torch.equal(weights["train"]["network.stem.0.weight"], weights["partition"]["network.stem.0.weight"])
    with pytest.raises(ConfigError, match="plain one already"):
        saved.evaluate(tmp_path / "run", ["prune=integral", "prune.keep=0.5"])

    state = torch.load(tmp_path / "run/checkpoints/partition.pt", weights_only=True)
    assert state["training"]["progress"]["step"] == 2
    longer = saved.resume(tmp_path / "run", ["tune.max_steps=3"])  # goes on from the middle of the stage
    assert [stage["key"] for stage in longer["stages"]] == list(stages)
    assert longer["stages"][1]["steps"] == 3


def test_nodes_that_were_trained_are_those_of_one_size(tmp_path):
    inn = ["model=inn", "model.base=resnet8", *DATA, "max_steps=1", "tune.max_steps=1", "prune=integral"]
    run(tmp_path / "run", *inn, "prune.keep=0.6", "stages=[train,partition]")
    start = [*inn, f"init_from='{tmp_path}/run'", "prune.keep=0.3"]
    left = {}
    for nodes, stages in (("uniform", "[discretise]"), ("trained", "[partition,discretise]")):
        results = run(tmp_path / nodes, *start, f"stages={stages}")
        left[nodes] = results["stages"][-1]["prune"]
        assert left[nodes]["nodes"] == nodes
        same_size = [round(0.3 * before) == after for before, after in left[nodes]["widths"].values()]
        assert all(same_size)
    assert left["uniform"]["parameters"] == left["trained"]["parameters"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.groups=[nope]", "'nope' fits no group"),
        ("model.base=torchvision/vit_b_16", "cannot take images of 32x32"),
    ],
)
def test_what_of_a_base_cannot_be_continuous_is_told_before_anything_is_made(tmp_path, setting, message):
    cfg = memexp.compose(["model=inn", "model.base=resnet8", *DATA, f"name={tmp_path}/none", setting])
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=message):
        foresee(cfg)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stages", ["null", "[train,partition]"])
def test_nodes_that_cannot_be_trained_are_refused_before_training(tmp_path, stages):
    inn = ["model=inn", "model.base=resnet8", "model.quadrature=simpson", *DATA, "prune=integral", "prune.keep=0.6"]
    with pytest.raises(ConfigError, match="quadrature simpson: its nodes cannot be trained"):
        run(tmp_path, *inn, "prune.tune=partition", f"stages={stages}")
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_network_whose_nodes_alone_are_trained_says_so(tmp_path, caplog):
    inn = ["model=inn", "model.base=resnet8", *DATA, "max_steps=1", "tune.max_steps=1", "prune=integral"]
    run(tmp_path, *inn, "prune.keep=0.6", "stages=[train,partition,train]")
    assert [record.message for record in caplog.records if "the nodes alone are trained" in record.message]


def test_a_deployed_network_grows_back_and_is_deployed_again(tmp_path):
    stages = "stages=[train,deploy,grow,train,deploy,evaluate]"
    results = run(tmp_path, "model=reducenet", "model.depth=8", *DATA, "deploy=fuse", stages, "log_every=1")
    found = {stage["key"]: stage for stage in results["stages"]}
    assert list(found) == ["train-1", "deploy-1", "grow", "train-2", "deploy-2", "evaluate"]
    assert found["grow"]["grow"]["error"] < 1e-5
    assert found["grow"]["accuracy"]["loss"] == pytest.approx(found["deploy-1"]["accuracy"]["loss"], rel=1e-4)
    assert found["deploy-1"]["parameters"] == found["deploy-2"]["parameters"] < found["grow"]["parameters"]
    macs = {key: pairs["macs"] for key, pairs in changes(collect.Run(tmp_path, results)).items()}
    assert macs["grow"][0] == macs["deploy-1"][1] < macs["deploy-1"][0]
    assert macs["train-2"] == (macs["grow"][1], macs["grow"][1])
    assert macs["deploy-2"] == (macs["grow"][1], macs["deploy-1"][1])
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    course = [entry["lambda"] for entry in entries if entry["stage"] == "train-2" and "lambda" in entry]
    assert (course[0], max(course), course[-1]) == (0.0, 1.0, 0.0)
    same_network(tmp_path)


def test_a_network_that_cannot_be_fused_yet_is_told_so_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"deploy: .* is at lambda=1"):
        run(tmp_path, "model=reducenet", "model.depth=8", *DATA, "deploy=fuse", "stages=[deploy]")


def test_an_integral_network_is_fused_once_it_has_a_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inn = ["model=inn", "model.base=resnet8", *DATA, "max_steps=1"]
    for stages in ("[train,deploy,evaluate]", "[train,deploy,discretise,evaluate]"):
        sizes = ["prune=integral", "prune.keep=1.0"] if "discretise" in stages else []
        assert main(["train", *inn, *sizes, "deploy=fuse", f"stages={stages}"]) == 2
        assert "deploy: the network is still integral" in capsys.readouterr().err
    assert main(["train", *inn, "stages=[train,grow,evaluate]"]) == 2
    assert "grow: the network is still integral" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    done = run(tmp_path / "sized", *inn, "prune=integral", "prune.keep=1.0", "deploy=fuse")
    assert next(s for s in done["stages"] if s["key"] == "deploy")["deploy"]["error"] < 1e-5
    start = memexp.compose([*inn, "deploy=fuse", "stages=[deploy,evaluate]", f"init_from='{tmp_path}/sized'"])
    foresee(start)
    for path in (tmp_path / "sized/checkpoints").glob("*.pt"):  # as it was before it had a size
        state = torch.load(path, weights_only=True)
        checkpoint.save(path, state | {"edits": []})
    with pytest.raises(ConfigError, match="still integral"):
        foresee(start)


def test_a_student_learns_from_the_run_of_its_teacher(tmp_path):
    plain = ["model=reducenet", "model.depth=8", "model.plain=true", *DATA]
    run(tmp_path / "teacher", *plain, "model.wide=1", "max_steps=2")
    taught = [*plain, f"distill.teacher='{tmp_path}/teacher'", f"model.init_from='{tmp_path}/teacher'"]
    results = run(tmp_path / "student", *taught, "distill.alpha=1")
    assert results["memory"]["estimate_ratio"] == 1
    alone = run(tmp_path / "alone", *plain, f"model.init_from='{tmp_path}/teacher'")
    assert alone["accuracy"]["loss"] != results["accuracy"]["loss"]
    # of some of its classes: images look as they did to the teacher, not as these few would have it
    some = [*plain, "dataset.classes=['3','5','1']", "max_steps=2", f"distill.teacher='{tmp_path}/teacher'"]
    subset = run(tmp_path / "subset", *some)
    assert (subset["mean"], subset["std"]) == (results["mean"], results["std"])
    with pytest.raises(ConfigError, match=r"trained on images of dataset\.mean=.*and these have \[0\.5"):
        run(tmp_path / "other", *some, "dataset.mean=[.5,.5,.5]", "dataset.std=[1,1,1]")
    shutil.move(tmp_path / "teacher", tmp_path / "moved")
    assert saved.evaluate(tmp_path / "student")["loss"] == results["accuracy"]["loss"]  # needs no teacher
    with pytest.raises(ConfigError, match=r"distill\.teacher: there is no run in"):
        run(tmp_path / "next", *plain, taught[-2])
    with pytest.raises(ConfigError, match="images of 3x32x32, and these are 3x40x40"):
        run(tmp_path / "next", *plain, "dataset.image_size=40", f"distill.teacher='{tmp_path}/moved'")


def test_lambda_falls_to_zero_before_a_reducenet_is_deployed(tmp_path):
    results = run(tmp_path, "model=reducenet", "model.depth=8", *DATA, "deploy=fuse", "log_every=1", "ema=0.5")
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    course = [entry["lambda"] for entry in entries if "lambda" in entry]
    assert course == sorted(course, reverse=True)
    assert (course[0], course[-1]) == (1.0, 0.0)
    assert results["stages"][1]["parameters"] < results["stages"][0]["parameters"]
    same_network(tmp_path)


def test_what_cannot_be_exported_or_takes_no_other_images_is_told_in_a_sentence(tmp_path, capsys):
    reducenet = ["model=reducenet", "model.depth=8", *DATA, "max_steps=1"]
    run(tmp_path / "artefact", *reducenet, "model.inplace_relu=true")
    assert main(["export", str(tmp_path / "artefact")]) == 2
    assert "export: body.0.f.2 is the ReLU of inplace_relu=true" in capsys.readouterr().err
    linear = [*reducenet, "model.vanish=all", "deploy=fuse", "deploy.merge=all"]
    run(tmp_path / "linear", *linear)
    for command in ("evaluate", "export"):
        assert main([command, str(tmp_path / "linear"), "dataset.image_size=20"]) == 2
        told = capsys.readouterr().err
        assert "images are 3x20x20, and the network takes none but those of its training, 3x32x32" in told


@pytest.mark.parametrize("name", ["pruned", "integral"])
def test_a_run_is_exported(tmp_path, name, capsys):
    kinds = {
        "pruned": [*RESNET, "prune=l1_norm", "prune.ratio=0.5"],
        "integral": ["model=inn", "model.base=resnet8"],
    }
    run(tmp_path / "run", *kinds[name], *DATA)
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "network.onnx")]) == 0
    assert "at batches of 1, 3 and 64" in capsys.readouterr().out
    import onnx

    found = {entry.key: entry.value for entry in onnx.load(tmp_path / "network.onnx").metadata_props}
    assert json.loads(found["classes"]) == [str(i) for i in range(10)]
    assert len(json.loads(found["preprocessing"])["mean"]) == 3


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


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=revnet", "model.depth=20"], "model: backprop=reversible: no step has an exact inverse"),
        (["model=torchvision", "model.arch=resnet19"], "nearest: resnet18"),
        (["model=torchvision", "model.arch=alexnet"], "cannot take images of 32x32"),
        (["device=gpu"], "device: 'gpu' is not to be had here"),
    ],
)
def test_what_cannot_be_built_is_foreseen(overrides, said):
    """It was refused once the run had its directory."""
    with pytest.raises(ConfigError, match=said):
        foresee(memexp.compose(["dataset=digits", *overrides]))
