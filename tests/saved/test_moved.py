"""A run whose images, or whose teacher, lie elsewhere since: moved, or copied to another machine."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_runs import TINY

import memexp
from memexp import saved
from memexp.cli import main
from memexp.config import ConfigError

SMALL = ["model=resnet", "model.units=[1]", "model.channels=[4,4]", "dataset=imagefolder", "dataset.image_size=16"]
SMALL += ["dataset.workers=0", "device=cpu", "batch_size=4", "max_steps=1"]


@pytest.fixture
def moved(tmp_path, monkeypatch, unestimated) -> Path:
    """The folder where the images of `tmp_path`/run lie now."""
    monkeypatch.setenv("MEMEXP_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for place in ("train/ant", "train/bee", "train/cat", "val/ant", "val/bee", "val/cat"):
        (tmp_path / "set" / place).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set" / place / "0.png")
    memexp.run(memexp.compose([*SMALL, f"dataset.root={tmp_path}/set"]), tmp_path / "run")
    shutil.move(tmp_path / "set", tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_images_that_lie_elsewhere_are_named_and_not_looked_for_where_they_were(moved, tmp_path):
    run, root = tmp_path / "run", f"dataset.root={moved}"
    assert saved.evaluate(run, [root])["images"] == 3
    assert saved.resume(run, [root, "max_steps=2"])["steps"] == 2
    assert saved.evaluate(run)["images"] == 3  # the run remembers it
    shutil.move(moved, tmp_path / "set")
    for key in ("init_from", "distill.teacher"):
        new = [*SMALL, f"dataset.root={tmp_path}/set", f"{key}={run}"]
        assert memexp.run(memexp.compose(new), tmp_path / key)["status"] == "done"


def test_an_estimate_of_a_run_needs_none_of_its_images(moved, tmp_path, capsys):
    assert main(["estimate", str(tmp_path / "run"), "--json"]) == 0
    trained = json.loads((tmp_path / "run" / "results.json").read_text())
    assert json.loads(capsys.readouterr().out)["parameters"] == trained["parameters"]


def test_an_estimate_of_a_run_on_other_data_has_the_classes_of_those(finished, capsys):
    other = ["dataset=synthetic", "dataset.num_classes=20"]
    assert main(["estimate", str(finished), *other, "--json"]) == main(["estimate", *TINY, *other, "--json"]) == 0
    of_run, of_new = map(json.loads, capsys.readouterr().out.splitlines())
    assert of_run["parameters"] == of_new["parameters"]


@pytest.mark.parametrize("command", [["evaluate"], ["resume", "max_steps=2"], ["export"]])
def test_images_that_are_gone_are_told_before_anything_is_made(moved, tmp_path, capsys, command):
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert main([command[0], str(tmp_path / "run"), *command[1:]]) == 2
    assert f"dataset.root: there is no folder '{tmp_path}/set'" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_a_teacher_that_lies_elsewhere_is_named_and_no_other_takes_its_place(finished, tmp_path, unestimated):
    teacher = shutil.copytree(finished, tmp_path / "teacher")
    cfg = memexp.compose([*TINY, "max_steps=1", f"distill.teacher={teacher}"])
    memexp.run(cfg, tmp_path / "student")
    shutil.move(teacher, tmp_path / "moved")
    memexp.run(memexp.compose([*TINY, "max_steps=1", "seed=1"]), tmp_path / "other")
    before = (tmp_path / "student" / "results.json").read_bytes()
    for named, message in (
        ([], r"there is no run in '.*teacher'; name it where it lies now"),
        ([f"distill.teacher={tmp_path}/other"], r"other weights than those that .*train\.pt was taught by"),
        (["distill.teacher=null"], "would make it another run"),
    ):
        with pytest.raises(ConfigError, match=message):
            saved.resume(tmp_path / "student", ["max_steps=2", *named])
    with pytest.raises(ConfigError, match="would make it another run"):
        saved.resume(finished, [f"distill.teacher={tmp_path}/other", "epochs=3"])
    assert (tmp_path / "student" / "results.json").read_bytes() == before
    longer = saved.resume(tmp_path / "student", ["max_steps=2", f"distill.teacher={tmp_path}/moved"])
    assert (longer["steps"], longer["config"]["distill"]["teacher"]) == (2, f"{tmp_path}/moved")
