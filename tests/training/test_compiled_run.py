"""compile=true in a run: timed apart, left behind at the end of a stage, and exact stays exact."""

import contextlib

import pytest
import torch
import torch._inductor.config
from torch import nn

import memexp
from memexp import stages
from memexp.backprop import compiled
from memexp.config import ConfigError
from memexp.report import tsne
from memexp.training.loop import Trainer

SMALL = [
    *("model=revnet", "model.units=[2,1,1]", "model.channels=[8,8,16,16]", "dataset=digits", "dataset.limit=96"),
    *("dataset.test_limit=32", "batch_size=16", "max_steps=4", "memory.steps=1", "compile=true", "device=cpu"),
]


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


@pytest.mark.long
@pytest.mark.usefixtures("partitioned")
def test_stages_after_it_see_the_network_as_it_is_written(tmp_path):
    cfg = memexp.compose([*SMALL, "backprop=light", "prune=l1_norm", "prune.target=macs:0.6", "tune.max_steps=2"])
    results = memexp.run(cfg, tmp_path / "pruned")
    assert [stage["key"] for stage in results["stages"]] == ["train", "prune", "tune", "evaluate"]
    assert memexp.evaluate(tmp_path / "pruned", split="test")["top1"] == results["accuracy"]["top1"]


@pytest.mark.long
@pytest.mark.usefixtures("partitioned")
def test_a_run_that_was_stopped_ends_with_the_bits_and_the_memory_of_one_that_was_not(tmp_path, monkeypatch):
    cfg = memexp.compose([*SMALL, "backprop=stored", "checkpoint_every=1"])  # the tracker's steps are not compiled
    whole = memexp.run(cfg, tmp_path / "whole")
    step = Trainer._step

    def stopped(self, batches):
        if self.progress.step == 2:
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(Trainer, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        memexp.run(cfg, tmp_path / "stopped")
    monkeypatch.setattr(Trainer, "_step", step)
    resumed = memexp.resume(tmp_path / "stopped")
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"]
        for name in ("whole", "stopped")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert resumed["memory"]["peak"] == whole["memory"]["peak"] > 0


class Pictures:
    """A split of random images."""

    images = 12

    def epoch(self, _):
        yield torch.randn(12, 3, 2, 2), torch.arange(12) % 10


@pytest.mark.usefixtures("partitioned")
def test_layers_are_listened_to_in_a_network_that_is_compiled_as_a_whole():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).eval()
    with compiled.compiled(network):
        with torch.no_grad():
            network(torch.randn(12, 3, 2, 2))  # hooks that come later are not seen by what is compiled
        points, labels = tsne.features(network, Pictures())
    assert len(points) == len(labels) == 12


def test_a_machine_without_a_compiler_is_told_before_anything_is_made():
    cfg = memexp.compose([*SMALL, "backprop=light", "device=cpu"])
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent")}),
        pytest.raises(ConfigError, match=r"needs a C\+\+ compiler .*tried /nonexistent.*or use compile=false"),
    ):
        stages.foresee(cfg)


@pytest.mark.parametrize(
    ("triton", "environment", "found", "said"),
    [
        (False, {"CC": "gcc"}, ["gcc"], "needs Triton on a GPU"),
        (True, {}, [], "needs a C compiler for Triton .*tried gcc, clang.*CC, or use compile=false"),
        (True, {"CC": "/opt/cc"}, [], None),
        (True, {}, ["clang"], None),
    ],
)
def test_a_gpu_without_what_triton_needs_is_told_before_anything_is_made(monkeypatch, triton, environment, found, said):
    monkeypatch.setattr(compiled, "has_triton_package", lambda: triton)
    monkeypatch.setattr(compiled.os, "environ", environment)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name if name in found else None)
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        compiled.check_compiler("cuda")


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
