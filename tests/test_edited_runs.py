"""A network whose shapes were changed comes back from its run: narrowed, folded, bit for bit, with nothing executed."""

import json
from pathlib import Path

import pytest
import torch

import memexp
from memexp import build, channels, fusing, saved
from memexp.bench import case
from memexp.cli import main
from memexp.config import ConfigError
from memexp.memory.advice import after_out_of_memory
from memexp.memory.estimate import estimate
from memexp.memory.limit import answer
from memexp.prepared import prepare
from memexp.record import RunDirectory
from memexp.training.distribution import World
from memexp.training.signals import StopRequest
from memexp.units import shown_bytes

DATA = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=20", "device=cpu", "batch_size=16", "monitor_every=0"]
STAGES = ["stages=[train,tune,evaluate]", "max_steps=1", "tune.max_steps=1"]
NETWORKS = {
    "vgg16": ["model=vgg16"],
    "resnet-20": ["model=resnet", "model.depth=20"],
    "revnet-38": ["model=revnet", "backprop.exact=true"],
}


@pytest.fixture(scope="module", params=NETWORKS)
def edited(request, tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A run that stands after its stage `train`, half of its channels removed and what can be folded folded; its network."""
    path = tmp_path_factory.mktemp("edited") / "run"
    cfg = memexp.compose([*NETWORKS[request.param], *DATA, *STAGES])
    memexp.run(memexp.compose([*NETWORKS[request.param], *DATA, *STAGES, "stages=[train]"]), path)
    with StopRequest() as stop:
        run = prepare(cfg, RunDirectory(path), World(), stop, start="train", to_train=False)
        run.finished, run.key, run.unfinished = [], "train", None
        example = torch.randn(2, *run.splits.shape)
        graph = channels.trace(run.network.eval(), example)
        half = {i: list(range(0, group.size, 2)) for i, group in enumerate(graph.groups)}
        run.edit(channels.narrow_edit(graph, half))
        run.edit({"kind": "fold", "pairs": [list(pair) for pair in fusing.folds(run.network, example)]})
        run.finish({"steps": 1, "epochs": 0.25})
    record = json.loads((path / "results.json").read_text())
    record |= {"status": "interrupted", "config": record["config"] | {"stages": ["train", "tune", "evaluate"]}}
    (path / "results.json").write_text(json.dumps(record))
    return path, run.network


def test_it_comes_back_bit_for_bit(edited):
    path, network = edited
    _, again, state = build.from_run(path)
    x = torch.randn(4, 3, 32, 32)
    assert len(state["edits"]) == 2
    assert torch.equal(network.eval()(x), again.eval()(x))
    fresh = memexp.build_model(memexp.compose([f"model={json.loads((path / 'results.json').read_text())['model']}"]))
    assert sum(p.numel() for p in again.parameters()) < 0.5 * sum(p.numel() for p in fresh.parameters())


def test_it_is_evaluated_and_estimated_without_data(edited):
    path, network = edited
    assert saved.evaluate(path)["images"] == 20
    cfg, edits = saved.changed(path)
    assert estimate(cfg, edits)["parameters"] == sum(p.numel() for p in network.parameters())


def test_it_is_the_start_of_another_run(edited, tmp_path):
    path, network = edited
    record = json.loads((path / "results.json").read_text())
    depth = [f"model.depth={record['config']['model']['depth']}"] if "depth" in record["config"]["model"] else []
    overrides = [f"model={record['model']}", *depth, *DATA, f"init_from='{path}'", "stages=[evaluate]"]
    results = memexp.run(memexp.compose(overrides), tmp_path / "another")
    assert results["parameters"] == sum(p.numel() for p in network.parameters())
    assert results["accuracy"]["top1"] == saved.evaluate(path)["top1"]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of a small network, half of whose channels were removed; the overrides of another that starts from it."""
    path = tmp_path_factory.mktemp("pruned") / "run"
    small = ["model=resnet", "model.units=[1,1]", "model.channels=[8,8,16]", *DATA, "epochs=1"]
    memexp.run(memexp.compose([*small, "prune=l1_norm", "prune.ratio=0.5", "stages=[train,prune]"]), path)
    return path, [*small, f"init_from='{path}'"]


def test_what_is_estimated_of_a_start_from_a_run_is_of_its_network(pruned, capsys):
    path, start = pruned
    cfg, edits = saved.changed(path)
    own = estimate(cfg, edits)
    assert own["parameters"] < 0.5 * estimate(cfg, ())["parameters"]
    assert memexp.estimate(memexp.compose(start)) == own
    for command in (["estimate", *start], ["estimate", *start, "--summary"]):
        assert main(command) == 0
        assert f"{own['parameters']:,}" in capsys.readouterr().out, command
    assert case.carry_out(memexp.compose(start), 1)["memory"]["peak"] == own["peak"]


def test_what_fits_and_what_is_told_out_of_memory_are_of_the_edited_network(pruned):
    path, start = pruned
    cfg, edits = saved.changed(path)
    peak = estimate(cfg, edits)["peak"]
    found = answer(cfg, peak, edits)
    assert (found.peak, found.batch) == (peak, 16)
    assert found.depth is None  # what has been removed is of this depth
    told = after_out_of_memory(memexp.compose([*start, f"memory.limit={peak - 1}B"]), torch.device("cpu"), edits)
    assert f"estimate: {shown_bytes(peak)} at the peak" in told
    assert "batch_size=15" in told


@pytest.mark.parametrize(
    ("override", "message"),
    [("model.units=[1,2]", r"model\.units=\[1, 1\], not \[1, 2\]"), ("dataset.classes=[1,2]", "has 2; choose those")],
)
def test_an_estimate_of_a_start_that_cannot_be_is_refused_as_the_run_is(pruned, override, message):
    with pytest.raises(ConfigError, match=message):
        memexp.estimate(memexp.compose([*pruned[1], override]))


def test_it_is_gone_on_with(edited):  # the last of the tests, as it changes the run
    path, network = edited
    results = saved.resume(path)
    assert [stage["key"] for stage in results["stages"]] == ["train", "tune", "evaluate"]
    assert results["steps"] == 2
    assert results["parameters"] == sum(p.numel() for p in network.parameters())
    assert len(build.from_run(path)[2]["edits"]) == 2
