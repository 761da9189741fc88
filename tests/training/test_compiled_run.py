"""compile=true in a run: timed apart, left behind at the end of a stage, and exact stays exact."""

import pytest
import torch

import memexp
from memexp.backprop import compiled

SMALL = [
    *("model=revnet", "model.units=[2,1,1]", "model.channels=[8,8,16,16]", "dataset=digits", "dataset.limit=96"),
    *("dataset.test_limit=32", "batch_size=16", "max_steps=4", "memory.steps=1", "compile=true"),
]


@pytest.fixture
def partitioned(monkeypatch):
    monkeypatch.setattr(compiled, "COMPILER", "aot_eager_decomp_partition")
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("partitioned")
def test_reversible_and_stored_end_with_the_same_bits(tmp_path):
    weights = {}
    for strategy in ("stored", "reversible"):
        cfg = memexp.compose([*SMALL, f"backprop={strategy}", "backprop.exact=true"])
        results = memexp.run(cfg, tmp_path / strategy)
        assert results["time"]["compile_seconds"] > 0
        assert results["memory"]["how"] == "tracked over uncompiled steps"
        saved = torch.load(tmp_path / strategy / "checkpoints" / "last.pt", weights_only=True)
        weights[strategy] = saved["model"]
    assert all(torch.equal(weights["stored"][name], value) for name, value in weights["reversible"].items())


@pytest.mark.usefixtures("partitioned")
def test_stages_after_it_see_the_network_as_it_is_written(tmp_path):
    cfg = memexp.compose([*SMALL, "backprop=light", "prune=l1_norm", "prune.target=macs:0.6", "tune.max_steps=2"])
    results = memexp.run(cfg, tmp_path / "pruned")
    assert [stage["key"] for stage in results["stages"]] == ["train", "prune", "tune", "evaluate"]
    assert memexp.evaluate(tmp_path / "pruned", split="test")["top1"] == results["accuracy"]["top1"]


@pytest.mark.long
@pytest.mark.parametrize(
    "line",
    [
        "model=revnet model.depth=38 backprop=reversible backprop.exact=true",
        "model=revnet model.depth=38 backprop=budget backprop.limit=0.4 precision=bf16",
        "model=resnet model.depth=20 backprop=checkpointed backprop.every=3",
        "model=heunnet backprop=adjoint",
        "model=reducenet vanish=all",
        "model=torchvision model.arch=resnet18 backprop=light",
        "model=vgg16 model.width=0.25",
    ],
)
def test_every_family_through_the_real_compiler(line, tmp_path):
    line = line.replace("vanish=", "model.vanish=")
    data = "dataset=digits dataset.limit=96 dataset.test_limit=32 batch_size=16 max_steps=4 compile=true"
    results = memexp.run(memexp.compose(f"{line} {data}"), tmp_path / "run")
    assert results["status"] == "done"
    assert results["time"]["compile_seconds"] > 0
