"""`memexp estimate` as a person or a program calls it."""

import json
import resource
import subprocess
import sys

import pytest

from memexp.cli import main

SMALL = ["dataset=digits", "model=resnet", "model.depth=8", "batch_size=8"]


def test_json_holds_what_the_table_says(capsys):
    assert main(["estimate", *SMALL, "--json", "memory.limit=10MB"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["peak"] == sum(found["at_peak"].values())
    assert found["limit"]["fits"] is True
    assert found["limit"]["batch"] > 8
    assert found["limit"]["fastest"] == "stored"
    stored = ["stored", found["peak"], found["macs_forward"] + found["macs_backward"]]  # of one step, both
    assert found["limit"]["strategies"][0] == stored
    assert main(["estimate", *SMALL]) == 0
    table = capsys.readouterr().out
    assert f"{found['peak'] / 2**20:,.1f} MiB" in table
    assert f"{found['parameters']:,}" in table
    assert "not in it: scratch space inside kernels" in table


def test_a_sweep_heeds_what_one_configuration_does(tmp_path, monkeypatch, capsys):
    """--json, --summary and memory.limit were left out without a word."""
    monkeypatch.chdir(tmp_path)
    both = ["estimate", "-m", *SMALL[:-1], "batch_size=4,8"]
    assert main([*both, "--json", "model.depth=8,9"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [("batch_size=4" in one["overrides"], "problems" in one) for one in found] == [
        (True, False),
        (True, True),
        (False, False),
        (False, True),
    ]
    assert main([*both, "--summary"]) == 0
    assert capsys.readouterr().out.count("total parameters") == 2
    assert main([*both, "memory.limit=5MB"]) == 0
    assert capsys.readouterr().out.count("is more than memory.limit=5MB") == 1
    assert main(["estimate", "-m", str(tmp_path), "backprop=stored,light"]) == 2
    assert "is one run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "swept", "refused", "why"),
    [
        ([], "model.depth=8,9", "model.depth=9", "depth=9 is not a ResNet for small images"),
        (
            ["model.units=[1]", "model.channels=[4,8]"],
            "dataset=digits,imagefolder",
            "dataset=imagefolder",
            "nothing at data/imagefolder",
        ),
    ],
)
@pytest.mark.parametrize("form", ["--json", "--summary", "table"])
def test_a_sweep_of_which_some_are_refused_tells_the_others_and_ends_with_1(
    tmp_path, monkeypatch, capsys, more, swept, refused, why, form
):
    """It ended with 0; and a data set that is not there ended the command at its job."""
    monkeypatch.chdir(tmp_path)
    kept = [text for text in SMALL if text.partition("=")[0] != swept.partition("=")[0]]
    assert main(["estimate", "-m", *kept, *more, swept, *([form] if form != "table" else [])]) == 1
    said = capsys.readouterr().out
    assert refused in said
    assert why in said
    assert {"--json": '"peak"', "--summary": "total parameters", "table": "parameters"}[form] in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.dept=8"], "model.dept: unknown key"),
        (["model.depth=9"], "depth=9 is not a ResNet for small images"),
        (["memory.limit=10kB"], "is below the least that this network takes"),
        (["backprop=reversible"], "'reversible' is not valid for model=resnet"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(capsys, arguments, message):
    assert main(["estimate", *SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_study_of_a_network_of_no_images_is_not_called_unknown(capsys):
    assert main(["estimate", "experiment=node/fig2"]) == 2
    assert "'linear' is a network of no images, which a study trains in its own way" in capsys.readouterr().err


def test_the_layer_table_of_a_network(capsys):
    assert main(["estimate", "model=vgg16", "dataset=imagenet", "--summary"]) == 0
    table = capsys.readouterr().out
    for figure in ("138,357,544", "0.57", "218.59", "527.79", "746.96"):
        assert figure in table


@pytest.mark.long
def test_an_imagenet_network_takes_seconds_and_no_memory():
    """Seconds of the processor, which on a machine of its own are those on the clock."""
    command = [sys.executable, "-m", "memexp", "estimate", "model=revnet", "model.depth=104", "dataset=imagenet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "batch_size=256"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert after.ru_maxrss * 1024 < 2e9


@pytest.mark.long
def test_a_revnet_fits_three_times_the_images_of_a_resnet(capsys):
    batches = []
    for model in (["model=resnet", "model.depth=101"], ["model=revnet", "model.depth=104"]):
        assert main(["estimate", *model, "dataset=imagenet", "memory.limit=11GB", "--json"]) == 0
        batches.append(json.loads(capsys.readouterr().out)["limit"]["batch"])
    assert batches[1] >= 3 * batches[0] > 0
