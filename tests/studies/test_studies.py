"""Studies: the laws that their experiments are to show, on small cases."""

import json
import os
import signal

import pytest
import torch

import memexp
from memexp import data
from memexp.backprop import Chain
from memexp.config import ConfigError
from memexp.models.ode import simple
from memexp.report import write_report
from memexp.studies import parameters
from memexp.studies.gradient_error import interpolate
from memexp.studies.slope import fitted_slope
from memexp.training.signals import Interrupted


def run(tmp_path, *overrides):
    return memexp.run(memexp.compose([*overrides, "device=cpu"]), tmp_path)["study"]


def test_a_power_law_has_its_exponent_as_slope():
    assert fitted_slope([1, 2, 4, 8], [3, 0.75, 0.1875, 0.046875]) == pytest.approx(-2)


def test_linear_weights_are_smooth_and_the_distance_to_the_ode_falls_as_1_over_n(tmp_path):
    found = run(tmp_path, "experiment=node/fig2", "case.depths=[12,24,48]")
    assert found["slope of the distance to the ODE"] == pytest.approx(-1, abs=0.1)
    assert found["largest N|A_n+1 - A_n|"] < 2 * found["smallest N|A_n+1 - A_n|"]
    assert {path.suffix for path in (tmp_path / "plots").glob("fig2.*")} == {".png", ".svg", ".pdf"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["status"], results["accuracy"]) == ("done", None)
    text = write_report([tmp_path], tmp_path, form="markdown")
    assert "slope of the distance to the ODE" in text
    assert "plots/fig2.png" in (tmp_path / "report.md").read_text()


def test_a_target_that_cannot_be_reached_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="negative determinant"):
        run(tmp_path, "experiment=node/fig2", "seed=2")


def test_interpolated_functions_begin_and_end_as_the_trained_ones():
    shallow, deep = (simple(classes=3, shape=(3, 32, 32), chain=Chain, depth=n) for n in (2, 5))
    interpolate(deep, shallow)
    first, last = shallow.functions[0]
    weights = [f[0].weight for f in deep.functions[0]]
    assert torch.equal(weights[0], first[0].weight)
    assert torch.equal(weights[4], last[0].weight)
    torch.testing.assert_close(weights[1], 0.75 * first[0].weight + 0.25 * last[0].weight)


def test_the_gradient_error_falls_with_depth_and_faster_for_heun(tmp_path):
    small = ["dataset=digits", "dataset.limit=320", "epochs=3", "batch_size=32", "case.depths=[8,16,32]"]
    found = run(tmp_path, "experiment=node/fig3c", *small)
    assert found["slope, Heun"] < found["slope, Euler"] < -0.7
    assert found["error at depth 32, Heun"] < found["error at depth 32, Euler"]
    svg = (tmp_path / "plots" / "fig3c.svg").read_text()
    assert "32 images of digits, fp64, cpu" in svg


def test_parameters_are_counted_without_data(tmp_path):
    found = run(tmp_path, "experiment=revnet/parameters", "model=resnet", "model.depth=101", "dataset=imagenet")
    assert found == {"parameters": 44_541_480}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_study_is_stopped_at_once_and_one_that_is_resumed_is_recorded(tmp_path, monkeypatch, signum):
    study = parameters.study

    def stopped(cfg, directory):
        os.kill(os.getpid(), signum)
        return study(cfg, directory)

    monkeypatch.setattr(parameters, "study", stopped)
    with pytest.raises(Interrupted) as told:
        run(tmp_path, "experiment=revnet/parameters", "model.depth=38")
    assert told.value.exit_status == 128 + signum
    assert memexp.report(tmp_path)["runs"][0]["status"] == "interrupted"
    monkeypatch.undo()
    assert memexp.resume(tmp_path)["status"] == "done"
    found = memexp.report(tmp_path)["runs"][0]
    assert (found["status"], found["parameters"]) == ("done", 464_890)


def test_only_studies_of_the_package_are_run():
    with pytest.raises(ConfigError, match=r"case\.study: 'os' is not one of affine, gradient_error, linear_ode"):
        memexp.compose(["experiment=node/fig2", "case.study=os"])
    with pytest.raises(ConfigError, match="use experiment=node/fig2"):
        memexp.compose(["model=linear"])


@pytest.mark.parametrize("experiment", ["node/fig2", "node/fig3c"])
@pytest.mark.parametrize("depths", ["[8]", "[8,8]", "[1,8]", "[]", "8"])
def test_a_slope_takes_two_depths(experiment, depths, tmp_path):
    """It was a division by zero, once all was trained."""
    told = [f"experiment={experiment}", f"case.depths={depths}", *(["dataset=digits"] if "3c" in experiment else [])]
    with pytest.raises(ConfigError, match=r"case\.depths: .* takes at least two depths, each at least 2"):
        memexp.run(memexp.compose(told), tmp_path)


def test_too_few_batches_to_choose_a_penalty_on_are_refused(tmp_path):
    """None was held out, and the strongest penalty stood for the best."""
    small = ["dataset=digits", "dataset.limit=90", "dataset.image_size=8", "batch_size=10", "+case.study=affine"]
    with pytest.raises(ConfigError, match=r"batch_size: 10 makes 9 batches of 90 images, .* set at most 9"):
        memexp.run(memexp.compose(["experiment=reducenet/audit", *small, "device=cpu"]), tmp_path)


def test_the_best_affine_map_is_the_optimum_of_softmax_regression(tmp_path):
    """scikit-learn's, on the same images with the same penalty: its C is 1 / (lambda n)."""
    from sklearn.linear_model import LogisticRegression

    small = ["dataset=digits", "dataset.limit=400", "dataset.test_limit=100", "dataset.image_size=8", "batch_size=40"]
    told = ["+case.study=affine", "case.penalties=[0.03]", "case.iterations=200"]
    cfg = memexp.compose(["experiment=reducenet/audit", *small, *told, "device=cpu"])
    results = memexp.run(cfg, tmp_path)
    splits = data.load(cfg.dataset, batch_size=40, seed=0, device=torch.device("cpu"))
    batches = [batch for number, batch in enumerate(splits.plain_train.epoch(0)) if number % 10 != 9]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    peer = LogisticRegression(C=1 / (0.03 * len(labels)), max_iter=1000).fit(images.flatten(1).numpy(), labels.numpy())
    tests, wanted = next(iter(splits.test.epoch(0)))
    assert len(wanted) < results["accuracy"]["images"] == 100
    tests, wanted = (torch.cat(parts) for parts in zip(*splits.test.epoch(0), strict=True))
    assert results["accuracy"]["top1"] == pytest.approx(
        100 * peer.score(tests.flatten(1).numpy(), wanted.numpy()), abs=1
    )
    assert results["study"] == {"parameters": 1930, "penalty": 0.03}
    assert results["parameters"] == 1930
