"""The estimate is what the tracker finds in a real run, to the byte; the layer table; what fits a limit."""

import pytest
import torch
import torchvision

import memexp
from memexp import models
from memexp.backprop import Chain
from memexp.cli import main
from memexp.config import ConfigError
from memexp.memory.limit import answer, largest
from memexp.report import estimates
from memexp.report.collect import find, group
from memexp.report.layers import summarise
from memexp.report.published import compare
from memexp.sweeper import planned
from memexp.units import parse_bytes

SMALL = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=10", "batch_size=8", "device=cpu", "monitor_every=0"]
RESNET = ["model=resnet", "model.depth=14"]
REVNET = ["model=revnet", "model.units=[3,3]", "model.channels=[8,8,16]"]


@pytest.mark.parametrize(
    "overrides",
    [
        RESNET,
        [*RESNET, "backprop=checkpointed", "backprop.every=2", "precision=bf16"],
        [*RESNET, "backprop=adjoint"],
        [*REVNET, "optimizer=ranger"],
        [*REVNET, "precision=bf16", "accumulate=2"],
        [*REVNET, "backprop.exact=true", "optimizer=adamw", "clip_grad=1"],
        [*REVNET, "backprop=stored", "mixup=0.2", "label_smoothing=0.1"],
        [*REVNET, "backprop=checkpointed", "channels_last=false"],
        ["model=heunnet", "model.depth=5", "backprop=adjoint", "backprop.refine=1"],
        ["model=resnet", "model.kind=ode", "model.tied=true", "model.units=[2,3]", "model.channels=[8,4,8]"],
        ["model=torchvision", "model.arch=squeezenet1_1", "dataset.image_size=64"],
    ],
    ids=" ".join,
)
def test_the_estimate_is_what_a_run_takes_to_the_byte(tmp_path, overrides):
    cfg = memexp.compose([*SMALL, *overrides, "max_steps=2", "memory.steps=2"])
    measured = memexp.run(cfg, tmp_path)["memory"]
    found = memexp.estimate(cfg)
    assert found["peak"] == measured["peak"]
    for category in ("parameters", "gradients", "optimizer"):
        assert found["at_peak"][category] == measured[category]
    assert found["at_peak"]["activations"] + found["at_peak"]["temporary"] == measured["activations"]
    assert found["kept_for_backward"] == measured["kept_for_backward"]


def test_it_allocates_nothing_of_the_network():
    cfg = memexp.compose(["model=revnet", "model.depth=56", "dataset=imagenet", "batch_size=4096"])
    found = memexp.estimate(cfg)
    assert found["peak"] > 100e9  # no machine of ours has that
    assert found["parameters"] == 27_553_128
    assert 0 < found["boundaries"] <= found["kept_for_backward"]


def test_memory_is_flat_in_depth_reversible_and_rises_stored():
    def peak(units: int, backprop: str) -> int:
        network = ["model=revnet", f"model.units=[{units},{units}]", "model.channels=[32,32,64]"]
        cfg = memexp.compose([*network, f"backprop={backprop}", "dataset=cifar10"])
        found = memexp.estimate(cfg)["at_peak"]
        return found["activations"] + found["temporary"]

    assert peak(1, "reversible") == peak(2, "reversible")
    assert peak(2, "stored") > 1.4 * peak(1, "stored")


# the published tables of torchsummary
@pytest.mark.parametrize(
    ("arch", "parameters", "forward_backward", "total"),
    [("vgg16", 138_357_544, 218.59, 746.96), ("resnet152", 60_192_808, 606.59, 836.78)],
)
def test_the_layer_table_is_torchsummarys(arch, parameters, forward_backward, total):
    with torch.device("meta"):
        network = torchvision.models.get_model(arch, weights=None)
    if arch == "vgg16":
        with torch.device("meta"):
            network = models.create("vgg16", classes=1000, shape=(3, 224, 224), chain=Chain)
    network.to_empty(device="cpu")
    found = summarise(network, (3, 224, 224))
    assert found.parameters == parameters == sum(layer.parameters for layer in found.layers)
    assert found.input_mb == pytest.approx(0.574, abs=1e-3)
    assert found.forward_backward_mb == pytest.approx(forward_backward, abs=0.005)
    assert found.total_mb == pytest.approx(total, abs=0.005)


@pytest.mark.parametrize("limit", [0, 99, 100, 101, 160, 5000])
def test_the_largest_that_fits_is_exact_where_the_peak_is_not_quite_linear(limit):
    def peak(n: int) -> int:
        return 90 + 10 * n + (n % 7)

    expected = max((n for n in range(1, 1000) if peak(n) <= limit), default=0)
    found, at = largest(peak, limit, 16)
    assert abs(found - expected) <= 1  # where the peak falls from n to n + 1 there are two answers
    assert at == peak(max(1, found))


def test_what_fits_a_limit():
    cfg = memexp.compose([*SMALL, "model=resnet", "model.depth=8", "backprop=stored"])
    peak = memexp.estimate(cfg)["peak"]
    found = answer(cfg, peak)
    assert found.fits
    assert (found.batch, found.batch_peak) == (8, peak)
    assert found.depth == 8
    assert found.fastest == "stored"
    tight = answer(cfg, int(0.8 * peak))
    assert not tight.fits
    assert tight.batch < 8
    assert tight.fastest != "stored"


def test_a_limit_below_the_parameters_says_what_the_least_is():
    cfg = memexp.compose(["model=resnet", "model.depth=8", "dataset=cifar10"])
    with pytest.raises(
        ConfigError, match=r"0\.95 MiB is below the least that this network takes, [\d.]+ MiB at batch_size=1"
    ):
        answer(cfg, 10**6)


def test_bytes_as_people_write_them():
    assert [parse_bytes(t) for t in ("11GB", "900 MiB", 512, "1e3", "1.5kB")] == [
        11 * 10**9,
        900 * 2**20,
        512,
        1000,
        1500,
    ]
    for wrong in ("11 gigs", "", "-1GB", "GB"):
        with pytest.raises(ValueError, match="is not a number of bytes"):
            parse_bytes(wrong)
    with pytest.raises(ConfigError, match=r"memory\.limit: '11 gigs' is not allowed"):
        memexp.compose(["memory.limit='11 gigs'"])


def test_a_sweep_becomes_a_table_and_plots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [*SMALL[:-1], "model=resnet", "model.depth=8,14", "batch_size=4,8"]
    text, status = estimates.sweep(planned(overrides, "config", []), "config", [])
    assert status == 0
    assert text.count("estimated") == 1
    assert len(list(tmp_path.glob("outputs/estimate/*/memory-depth.png"))) == 1
    assert len(list(tmp_path.glob("outputs/estimate/*/memory-batch.png"))) == 1


def test_an_experiment_is_estimated_by_its_own_jobs(tmp_path, monkeypatch, capsys):
    """Its settings alone are another network, if they are one."""
    monkeypatch.chdir(tmp_path)
    assert (
        main(["estimate", "-m", "experiment=revnet/imagenet", "scale=laptop", "dataset.image_size=32", "batch_size=1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "resnet │ 50" in said
    assert "revnet │ 56" in said


def test_the_experiment_of_layer_tables_stands_beside_what_torchsummary_prints(tmp_path):
    for name, more in (("vgg16", ["model=vgg16"]), ("resnet", ["model=torchvision", "model.arch=resnet152"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.txt").symlink_to(tmp_path / "elsewhere")
        memexp.run(memexp.compose(["experiment=vgg16/summary", *more]), tmp_path / name)
        assert not (tmp_path / "elsewhere").exists()
        assert "estimated total (MB)" in (tmp_path / name / "summary.txt").read_text()
    rows = compare("vgg16/summary", group(find([tmp_path])[0])).rows
    assert len(rows) == 10
    assert all(float(difference) == 0 for *_, difference in rows), rows
