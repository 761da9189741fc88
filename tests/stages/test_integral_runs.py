"""Runs of integral networks: given a size, their nodes trained, evaluated, exported and fused."""

import json

import pytest
import torch
from stage_runs import DATA, run, same_network

import memexp
from memexp import build, recorded, saved
from memexp.cli import main
from memexp.config import ConfigError
from memexp.stages import foresee
from memexp.training import checkpoint

pytestmark = pytest.mark.usefixtures("unrendered", "unestimated", "untimed")


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
    for command in ("evaluate", "export"):
        assert main([command, str(tmp_path), "prune=integral", "prune.keep=0.6", "prune.tune=partition"]) == 2
        assert "'prune.tune=partition' is not allowed" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_permutation_did_stands_in_the_record_of_a_run_that_goes_on_too(tmp_path):
    run(tmp_path / "discrete", "model=discrete", "model.base=resnet8", *DATA, "max_steps=1")
    inn = ["model=inn", "model.base=resnet8", f"model.init_from='{tmp_path}/discrete'", *DATA, "max_steps=1"]
    found = run(tmp_path / "inn", *inn)["permutation"]
    assert found["ratio"] == pytest.approx(sum(found["after"].values()) / sum(found["before"].values()))
    assert found["ratio"] < 1
    assert saved.resume(tmp_path / "inn", ["max_steps=2"])["permutation"] == found


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
