"""Runs that are fused, grown back, taught and exported."""

import json
import shutil

import pytest
from stage_runs import DATA, RESNET, run, same_network

from memexp import saved
from memexp.cli import main
from memexp.config import ConfigError
from memexp.report import collect
from memexp.report.changes import changes

pytestmark = pytest.mark.usefixtures("unrendered", "untimed")


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
