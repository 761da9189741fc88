"""Every experiment, at both scales: each of its jobs is a valid configuration, and its file says what to expect."""

import re

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from memexp.cli import main
from memexp.config import compose, first_valid, parser
from memexp.paths import CONF
from memexp.report.experiments import listing
from memexp.sweeper import CasesSweeper, planned

EXPERIMENTS = listing(CONF)


@pytest.mark.parametrize("scale", ["paper", "laptop"])
@pytest.mark.parametrize("identifier", [name for name, _ in EXPERIMENTS])
def test_the_jobs_of_the_sweep_are_valid(identifier, scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [f"experiment={identifier}", f"scale={scale}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sweeper = hydra_compose("config", overrides, return_hydra_config=True).hydra.sweeper
    options = OmegaConf.to_container(sweeper, resolve=True)
    options.pop("_target_")
    jobs = CasesSweeper(**options).jobs(parser())
    assert len({tuple(job) for job in jobs}) == len(jobs) >= 1
    plain = {
        tuple(text for text in job if not text.startswith(("hydra.", "seed=")))
        for job in _of_each_case(jobs, 0 if scale == "paper" else -1)
    }
    plain = {tuple(_filled(job, scale)) for job in plain}
    made = {f"outputs/{identifier}/{name}" for name in _names(jobs, scale)}
    for job in plain:
        for text in job:
            if text.startswith(("init_from=", "model.init_from=", "distill.teacher=")):  # what an earlier job leaves
                start = text.partition("=")[2].strip("'")
                assert start in made
                (tmp_path / start).mkdir(parents=True, exist_ok=True)
                (tmp_path / start / "results.json").write_text("{}")
        cfg = compose([*overrides, *job])  # as a sweep's jobs are, which have what their arm says
        assert cfg.case.id == cfg.name == identifier


@pytest.mark.parametrize("identifier", [name for name, _ in EXPERIMENTS])
def test_its_command_is_not_refused(identifier):
    """What a sweep begins with is a job of the sweep: the experiment's own settings alone need not be a run."""
    overrides = [f"experiment={identifier}", "scale=laptop"]
    assert first_valid(planned(overrides, "config", ())).name == identifier


@pytest.mark.parametrize(("identifier", "line"), EXPERIMENTS)
def test_its_file_opens_with_what_it_shows_the_commands_and_the_hardware(identifier, line):
    text = (CONF / "experiment" / f"{identifier}.yaml").read_text()
    assert len(line) > 20
    assert f"memexp train -m experiment={identifier}" in text
    assert any(word in text.split("defaults:")[0] for word in ("GPU", "CPU", "core"))


def test_memory_against_depth_is_that_of_every_strategy():
    jobs = planned(["experiment=revnet/memory", "scale=laptop"], "config", ())
    found = {(text.partition("=")[2], job[1]) for job in jobs for text in job if text.startswith("backprop=")}
    deep = [f"model.depth={depth}" for depth in (38, 110, 164)]
    assert found >= {(name, depth) for name in ("stored", "checkpointed", "reversible", "budget") for depth in deep}


def _of_each_case(jobs, which):
    """One job of each case, the jobs with the same arm, family and names of settings; one takes 0.1 s to compose."""
    cases = {}
    for job in jobs:
        named = [text if text.startswith(("arm=", "model=")) else text.partition("=")[0] for text in job]
        cases.setdefault(tuple(named), []).append(job)
    return [case[which] for case in cases.values()]


def _filled(job, scale):
    """The overrides, with what they take from one another."""
    told = {"scale": scale, "seed": "0"} | dict(text.split("=", 1) for text in job)
    taken = r"\$\{(model\.base|case\.width|scale|seed)\}"
    return [re.sub(taken, lambda found: told[found[1]], text) for text in job]


def _names(jobs, scale):
    folder = "hydra.sweep.subdir="
    return [text.removeprefix(folder) for job in jobs for text in _filled(job, scale) if text.startswith(folder)]


def test_train_lists_them_too(capsys):
    assert main(["train", "experiment=list"]) == 0
    assert "reducenet/audit" in capsys.readouterr().out
