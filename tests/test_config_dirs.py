"""Directories of a user's own configs: several, anywhere on the line, and those that are not there."""

import json
from pathlib import Path

import pytest

import memexp
from memexp import jobs
from memexp.cli import main
from memexp.config import ConfigError


@pytest.fixture
def two(tmp_path, monkeypatch) -> list[str]:
    """Two directories of configs, the flags that name them, and overrides that need both."""
    for place, text in {
        "my a/model/mini.yaml": "defaults: [resnet]\nunits: [1,1]\nchannels: [4,4,8]\n",
        "b/dataset/few.yaml": "defaults: [digits]\nlimit: 40\ntest_limit: 20\n",
    }.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return ["device=cpu", "max_steps=1", "--config-dir", "b", "dataset=few", "hydra.run.dir=run", "-cd", "my a"]


def test_several_directories_of_configs_and_flags_anywhere_on_the_line(two, capsys):
    assert main(["train", "model=mini", *two]) == 0
    assert json.loads(Path("run/results.json").read_text())["config"]["dataset"]["limit"] == 40
    assert main(["train", "model=mini", *two, "--cfg", "job"]) == 0
    assert "limit: 40" in capsys.readouterr().out
    assert main(["train", "model=mini", *two[:-2]]) == 2
    assert "'mini' is not one of" in capsys.readouterr().err


def test_a_sweep_whose_flag_stands_in_the_middle_reads_all_directories(two, monkeypatch):
    ran = []
    monkeypatch.setattr(jobs, "run_process", lambda job, sweep, *_: ran.append((job.overrides, sweep.config_dirs)) or 0)
    main(["train", "model=mini", "-m", "seed=0,1", *two])
    assert [overrides[1] for overrides, _ in ran] == ["seed=0", "seed=1"]
    assert [Path(path).name for path in ran[0][1]] == ["b", "my a"]


@pytest.mark.parametrize(
    "command", ["experiments", "report", "evaluate", "resume", "export", "estimate", "bench", "train"]
)
def test_a_directory_of_configs_that_is_not_there_is_told_by_every_command(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = [] if command in ("experiments", "bench", "train") else ["run"]
    try:
        status = main([command, *own, "--config-dir", "nowhere"])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert "--config-dir: there is no directory nowhere" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_from_python_too():
    for call in (memexp.compose, memexp.bench, memexp.experiments):
        with pytest.raises(ConfigError, match=r"config_dir: 'nowhere' is not allowed; it takes directories"):
            call(config_dir="nowhere")
    for call in (memexp.resume, memexp.evaluate, memexp.report):
        with pytest.raises(ConfigError, match=r"config_dir: 'nowhere' is not allowed; it takes directories"):
            call("run", config_dir="nowhere")
