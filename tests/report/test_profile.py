"""Traces of training steps, and model FLOPs utilisation."""

import json

import pytest
import torch

import memexp
from memexp.training import utilisation
from memexp.training.profile import Trace


def steps_in(path):
    events = json.loads(path.read_text())["traceEvents"]
    return sorted({event["name"] for event in events if str(event.get("name")).startswith("training step")}), events


@pytest.mark.parametrize(("steps", "followed", "told"), [(5, 1, [4]), (5, 9, [4, 5]), (3, 1, [])])
def test_e9_a_run_writes_a_trace_of_the_steps_asked_for(tmp_path, steps, followed, told):
    cfg = {"model": "resnet", "model.units": [1, 1], "model.channels": [4, 4, 8], "dataset": "digits", "device": "cpu"}
    cfg |= {
        "dataset.limit": 96,
        "dataset.test_limit": 16,
        "batch_size": 16,
        "max_steps": steps,
        "profile.steps": followed,
    }
    results = memexp.run(cfg, tmp_path)
    said = "no trace, as the stage train took no step after the first 3" in (tmp_path / "train.log").read_text()
    assert said is not bool(told)
    if not told:
        return
    found, events = steps_in(tmp_path / "train-0.pt.trace.json")
    assert found == [f"training step {number}" for number in told]  # the first three are the tracker's
    assert any("conv" in str(event.get("name")) for event in events)
    assert "utilisation" not in results["time"]  # of a processor nobody has said what it can do


def test_e9_a_trace_takes_the_place_of_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("t.json", "t.json.aside"):
        (tmp_path / name).symlink_to(victim)
    trace = Trace(tmp_path / "t.json", 0, 1, torch.device("cpu"))
    for number in range(2):
        with trace.step(number):
            torch.ones(3) + 1
    trace.close()
    assert victim.read_text() == "mine"
    assert steps_in(tmp_path / "t.json")[0] == ["training step 1"]


def test_a_gpu_that_hardly_computes_is_told_of():
    assert "did 3.0 % of the arithmetic" in str(utilisation.advice(0.03, True))
    assert "cuda_graph=true" in str(utilisation.advice(0.03, True))
    assert [utilisation.advice(*case) for case in ((0.03, False), (0.3, True), (None, True))] == [None] * 3


def test_e9_utilisation_is_of_the_models_own_flops_and_only_where_the_peak_is_known():
    # PaLM's definition by hand: 10^12 MACs forward are 6 * 10^12 FLOPs a step and image
    assert utilisation.utilisation(1e12, 10.0, 312e12) == pytest.approx(60 / 312)
    assert utilisation.peak("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert utilisation.peak("NVIDIA H100 PCIe", "tf32") == 378e12
    assert utilisation.peak("NVIDIA H100 80GB HBM3", "fp32") == 67e12
    for name, precision in (("NVIDIA GeForce GTX 1080", "fp32"), ("Tesla V100-SXM2-16GB", "bf16"), ("V100", "tf32")):
        assert utilisation.utilisation(1e12, 10.0, utilisation.peak(name, precision)) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_the_peak_is_that_of_the_device_and_of_a_part_of_one_not_known(name, expected):
    assert utilisation.peak(name, "bf16") == expected
