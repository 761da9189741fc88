"""Studies: the laws that their experiments are to show, on small cases."""

import json

import pytest
import torch

import memexp
from memexp.backprop import Chain
from memexp.config import ConfigError
from memexp.models.ode import simple
from memexp.report import write_report
from memexp.studies.gradient_error import interpolate
from memexp.studies.slope import fitted_slope


def run(tmp_path, *overrides):
    return memexp.run(memexp.compose([*overrides, "device=cpu"]), tmp_path)["study"]


def test_a_power_law_has_its_exponent_as_slope():
    assert fitted_slope([1, 2, 4, 8], [3, 0.75, 0.1875, 0.046875]) == pytest.approx(-2)


def test_linear_weights_are_smooth_and_the_distance_to_the_ode_falls_as_1_over_n(tmp_path):
    found = run(tmp_path, "experiment=node/fig2", "case.depths=[12,24,48]")
    assert found["slope of the distance to the ODE"] == pytest.approx(-1, abs=0.1)
    assert found["largest N|A_n+1 - A_n|"] < 2 * found["smallest N|A_n+1 - A_n|"]
    assert (tmp_path / "plots" / "fig2.png").stat().st_size > 1000
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


def test_parameters_are_counted_without_data(tmp_path):
    found = run(tmp_path, "experiment=revnet/parameters", "model=resnet", "model.depth=101", "dataset=imagenet")
    assert found == {"parameters": 44_541_480}


def test_only_studies_of_the_package_are_run():
    with pytest.raises(ConfigError, match=r"case\.study: 'os' is not one of gradient_error, linear_ode, parameters"):
        memexp.compose(["experiment=node/fig2", "case.study=os"])
    with pytest.raises(ConfigError, match="use experiment=node/fig2"):
        memexp.compose(["model=linear"])
