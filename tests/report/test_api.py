"""The command line's abilities as functions of the package."""

import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

import memexp
from memexp.config import ConfigError
from memexp.recorded import as_config

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


@pytest.mark.parametrize(("overrides", "command"), [(None, "# memexp.run(cfg), of a"), (RESNET, "memexp train model=")])
def test_a_programs_run_is_said_to_be_of_no_command(tmp_path, overrides, command):
    """It was said to be of `memexp train`, which is the default run."""
    memexp.run(memexp.compose(RESNET), tmp_path / "run", overrides)
    results = memexp.resume(tmp_path / "run", "max_steps=3")
    assert results["overrides"] == (None if overrides is None else [*overrides, "max_steps=3"])
    memexp.report(tmp_path / "run", tmp_path / "out", plots=False)
    assert f"\n    {command}" in (tmp_path / "out/report.md").read_text()
    events = b"".join(path.read_bytes() for path in (tmp_path / "run").glob("events.*"))
    assert (b"memexp train" in events) is (overrides is not None)


def test_e6_dicts_are_checked_like_a_command_line():
    assert memexp.estimate({"model": "resnet", "model.depth": 20, "batch_size": 8})["peak"] > 0
    assert memexp.build_model(dict(PLAIN)).training
    with pytest.raises(ConfigError, match=r"batch_siez: unknown key.*Did you mean 'batch_size'"):
        memexp.run({"model": "resnet", "batch_siez": 3})
    for wrong in ("model=resnet", ["model=resnet"], None):
        with pytest.raises(ConfigError, match=r"is what memexp\.compose gives or a dict, and not"):
            memexp.run(wrong)


WRONG = {
    "overrides: None": lambda: memexp.compose(None),
    "overrides: {'model': 'resnet'}": lambda: memexp.compose({"model": "resnet"}),
    "overrides: [3]": lambda: memexp.compose([3]),
    "whose quotes are closed": lambda: memexp.compose("name='x"),
    "config_dir: 3": lambda: memexp.compose([], config_dir=3),
    "config_name: None": lambda: memexp.compose([], config_name=None),
    "split: 'bad' is not one of train, val, test": lambda: memexp.evaluate("nowhere", split="bad"),
    "run: None": lambda: memexp.evaluate(None),
    "run: {'model': 'resnet'}": lambda: memexp.resume({"model": "resnet"}),
    "overrides: 3": lambda: memexp.resume("nowhere", 3),
    "directory: 3": lambda: memexp.run(PLAIN, 3),
    "seed is given as 3 already": lambda: memexp.build_model({"seed": 3, "seed.x": 1}),
    "no paths were given": lambda: memexp.report([]),
    "there is no such path": lambda: memexp.report("nowhere"),
    "paths: None": lambda: memexp.report(None),
    "output: 3": lambda: memexp.report(".", 3),
    "strategies: 3": lambda: memexp.bench(strategies=3),
    "backprop: 'adjiont' is not one of": lambda: memexp.bench(strategies="stored,adjiont"),
    "steps: 0": lambda: memexp.bench(steps=0),
    "budgets: -1": lambda: memexp.bench(budgets=-1),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_of_another_kind_is_one_sentence(message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as found:
        WRONG[message]()
    assert message in str(found.value)
    assert len(found.value.problems) == 1
    assert not list(tmp_path.iterdir())


def test_paths_and_numpys_numbers_are_taken_and_an_own_option_has_the_defaults_of_all(tmp_path):
    """A dict that named a data set or a model of one's own had to spell out every key of the runner's."""
    given = {"init_from": tmp_path, "optimizer.lr": np.float64(0.5), "batch_size": np.int64(4)}
    cfg = as_config({**given, "model": {"_target_": "mine.network"}, "dataset": {"_target_": "mine.images", "size": 8}})
    assert (cfg.init_from, cfg.optimizer.lr, cfg.batch_size) == (str(tmp_path), 0.5, 4)
    assert (cfg.backprop.name, cfg.dataset.epochs, cfg.dataset.size) == ("stored", 10, 8)
    with pytest.raises(ConfigError, match=r"optimizer\.lr: has no value"):
        as_config({"optimizer": {"_target_": "mine.Signed"}})


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
for name in ("backprop.apply", "memory.fit", "optim.Ranger", "integral.convert", "pruning.prune", "fusing.fuse"):
    package, function = name.split(".")
    assert callable(getattr(getattr(memexp, package), function)), name
for name in memexp.__all__:
    assert callable(getattr(memexp, name)), name
import memexp.run, memexp.report, memexp.bench
from memexp import bench, report, run
assert callable(memexp.run) and memexp.run.join and bench.cases and report.write_report
try:
    memexp.report("nowhere")
except memexp.config.ConfigError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "nowhere: there is no such path\n"


def test_e6_progress_is_printed_where_there_is_no_terminal(tmp_path):
    code = f"import memexp; memexp.run({PLAIN!r}, {str(tmp_path / 'run')!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "step 2/2  loss" in found.stdout
