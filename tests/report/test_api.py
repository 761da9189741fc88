"""The command line's abilities as functions of the package."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

import memexp
from memexp.config import ConfigError

TINY = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=32", "batch_size=16", "max_steps=2", "device=cpu"]
RESNET = ["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", *TINY]
PLAIN = {
    "model": "resnet",
    "model.units": [1, 1],
    "model.channels": [4, 4, 8],
    "dataset": {"name": "digits", "limit": 64},
    "dataset.test_limit": 32,
    "batch_size": 16,
    "max_steps": 2,
    "device": "cpu",
}


def test_e6_a_run_from_a_dict_into_a_string_evaluated_resumed_and_reported(tmp_path):
    results = memexp.run(PLAIN, str(tmp_path / "run"))
    assert results["config"] == OmegaConf.to_container(memexp.compose(RESNET), resolve=True)
    assert results["steps"] == 2
    found = memexp.evaluate(str(tmp_path / "run"))
    assert found["top1"] == results["accuracy"]["top1"]
    assert memexp.evaluate(tmp_path / "run", "dataset.test_limit=16")["images"] == 16
    longer = memexp.resume(str(tmp_path / "run"), "max_steps=3")
    assert longer["steps"] == 3
    assert [row["steps"] for row in memexp.report(tmp_path)["runs"]] == [3]


def test_e6_dicts_are_checked_like_a_command_line():
    assert memexp.estimate({"model": "resnet", "model.depth": 20, "batch_size": 8})["peak"] > 0
    assert memexp.build_model(dict(PLAIN)).training
    with pytest.raises(ConfigError, match=r"batch_siez: unknown key.*Did you mean 'batch_size'"):
        memexp.run({"model": "resnet", "batch_siez": 3})
    for wrong in ("model=resnet", ["model=resnet"], None):
        with pytest.raises(ConfigError, match=r"is what memexp\.compose gives or a dict, and not"):
            memexp.run(wrong)


def test_e6_compose_takes_directories_of_ones_own_and_words_as_typed(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: torch.nn.Identity\n")
    for directory in (tmp_path, str(tmp_path), [tmp_path]):
        assert memexp.compose("model=mine batch_size=3", config_dir=directory).batch_size == 3
    with pytest.raises(ConfigError):
        memexp.compose(["model=mine"])


def test_e6_experiments_and_version():
    assert "RevNet" in memexp.experiments()["revnet/table3"]
    assert memexp.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="there are bench, build_model, compose"):
        memexp.trian  # noqa: B018


def test_e6_names_are_functions_and_modules_in_a_fresh_interpreter():
    code = """
import sys, memexp
assert "torch" not in sys.modules
for name in memexp.__all__:
    assert callable(getattr(memexp, name)), name
import memexp.run, memexp.report, memexp.bench
from memexp import bench, report, run
assert callable(memexp.run) and memexp.run.join and bench.cases and report.write_report
try:
    memexp.report("nowhere")
except FileNotFoundError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "nowhere: there is no such path\n"


def test_e6_progress_is_printed_where_there_is_no_terminal(tmp_path):
    code = f"import memexp; memexp.run({PLAIN!r}, {str(tmp_path / 'run')!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "step 2/2  loss" in found.stdout
