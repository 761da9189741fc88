"""Cases that go together, each with every combination of what is swept."""

import argparse
import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import memexp
from memexp import arguments, cli, config, overriding
from memexp.config import ConfigError
from memexp.sweeper import CasesSweeper, one_run, planned


def jobs(sweeper: CasesSweeper, *overrides: str) -> list[list[str]]:
    return sweeper.jobs(overriding.parser(), overrides)


def test_each_case_is_crossed_with_each_combination_and_the_command_line_wins():
    sweeper = CasesSweeper(cases=[["model=resnet", "model.depth=32"], ["model=revnet"]])
    assert jobs(sweeper, "seed=0,1", "model.depth=8") == [
        ["model=resnet", "seed=0", "model.depth=8"],
        ["model=revnet", "seed=0", "model.depth=8"],
        ["model=resnet", "seed=1", "model.depth=8"],
        ["model=revnet", "seed=1", "model.depth=8"],
    ]


def test_a_cases_own_choices_end_where_another_is_typed():
    """Each job stands there once."""
    assert jobs(CasesSweeper(cases=[["a=1,2", "b=3"], ["c=4"]]), "a=5") == [["b=3", "a=5"], ["c=4", "a=5"]]


@pytest.mark.parametrize(
    ("identifier", "typed", "count"),
    [
        ("inn/table1", "model.base=resnet8", 3),
        ("inn/table1", "model.base=resnet8,resnet14", 6),
    ],
)
def test_a_key_that_an_experiments_cases_bring_is_typed_like_any_other(identifier, typed, count):
    found = list(planned([f"experiment={identifier}", "scale=laptop", typed], "config", []))
    assert all(any(text.startswith(typed.partition(",")[0][:-1]) for text in job) for job in found)
    assert all(any(text.startswith("model=") for text in job) for job in found)
    assert len(found) == count


def test_what_no_option_has_is_found_among_overrides():
    told = ["experiment=inn/table1", "model.base=resnet8", "model.depth=38", "+new=1", "seed=1", "hydra.run.dir=x"]
    assert config.of_no_option(told, "config", []) == ["model.base=resnet8"]
    assert config.of_no_option(["model=inn", "model.base=resnet8"], "config", []) == []


def test_without_cases_it_is_the_basic_sweep():
    assert jobs(CasesSweeper(), "a=1,2", "b=3") == [["a=1", "b=3"], ["a=2", "b=3"]]


def test_what_comes_later_replaces_an_experiments_own_choice():
    assert jobs(CasesSweeper(), "a=1,2", "b=0", "a=3") == [["a=3", "b=0"]]


@pytest.mark.parametrize(
    "cases", [[], ["model=resnet"], [[]], 1, "model=resnet", [["model=resnet"], 2], {}, {"A": None}]
)
def test_cases_that_are_no_lists_of_overrides_are_refused(cases):
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.cases"):
        CasesSweeper(cases=cases)


def test_a_case_may_sweep_and_have_a_name():
    sweeper = CasesSweeper(
        cases={
            "it's whole": ["stages=[train]"],
            "pruned": ["prune=l1_norm,std", "prune.ratio=0.2,0.4", "tune.lr=%{prune.ratio}"],
        }
    )
    assert jobs(sweeper, "seed=7") == [
        [r"arm='it\'s whole'", "stages=[train]", "seed=7"],
        *(
            ["arm='pruned'", f"prune={criterion}", f"prune.ratio={ratio}", "tune.lr=${prune.ratio}", "seed=7"]
            for criterion in ("l1_norm", "std")
            for ratio in ("0.2", "0.4")
        ),
    ]
    assert memexp.compose(jobs(sweeper)[0]).arm == "it's whole"


@pytest.mark.parametrize(
    "settings",
    [{"params": {"optimizer": "glob(s*)"}}, {"cases": [["optimizer=glob(s*)"]]}],
    ids=["params", "cases"],
)
def test_a_glob_finds_the_options_of_its_group_before_the_sweep_and_in_it(settings, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n" + OmegaConf.to_yaml({"hydra": {"sweeper": settings}})
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert jobs(CasesSweeper(**settings)) == [["optimizer=sgd"]]
    assert list(planned(["experiment=mine"], "config", [tmp_path])) == [["optimizer=sgd", "experiment=mine"]]


@pytest.mark.parametrize(
    "settings", [{"params": {"seed": "interval(1, 2)"}}, {"cases": [["seed=interval(1, 2)"]]}], ids=["params", "cases"]
)
def test_an_interval_is_not_swept_in_full(settings):
    with pytest.raises(ConfigError, match=r"seed: an interval cannot be swept in full.*hydra/sweeper=optuna"):
        jobs(CasesSweeper(**settings))


def test_params_that_are_no_choices_are_refused():
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params: \['seed'\] is not allowed"):
        CasesSweeper(params=["seed"])
    (job,) = jobs(CasesSweeper(params={"seed": "1,[2"}))
    with pytest.raises(ConfigError, match=r"'seed=1,\[2' is not an override"):
        memexp.compose(job)


@pytest.mark.parametrize("sweeper", ["basic", "optuna", "cases"])
def test_an_experiments_own_keys_are_in_the_jobs_whichever_sweeper_is_chosen(tmp_path, sweeper):
    (tmp_path / "experiment").mkdir()
    own = {"hydra": {"sweeper": {"params": {"model.depth": "choice(56, 104)"}}}}
    text = "# @package _global_\n" + OmegaConf.to_yaml(own)
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    typed = ["experiment=mine", "model=revnet", "dataset=imagenet", f"hydra/sweeper={sweeper}"]
    first, second = planned(typed, "config", [tmp_path])
    assert (first, second) == (["model.depth=56", *typed], ["model.depth=104", *typed])
    assert config.first_valid([first], "config", [tmp_path]).model.depth == 56


@pytest.mark.parametrize("name", ["a b=c, d", "it's", "it\\'s", "a\\b", "end\\", 'the "best"', "[x]{y}", "$x: é", ""])
def test_what_is_quoted_is_read_as_it_was(name):
    override = overriding.parser().parse_override(f"key={overriding.quoted(name)}")
    assert override.value() == name
    folder = f"sweeps/{name}/x"
    typed = ["experiment=prune/netadapt", "scale=laptop", f"hydra.sweep.dir={overriding.quoted(folder)}"]
    starts = [config.compose_unchecked(job).init_from for job in planned(typed, "config", ())]
    assert set(starts) == {None, f"{folder}/resnet-laptop-0"}


ODD = ["~/data", "bilder/März", "/k=v/x", "/data (1)/x[2]", "it's", "=3", "a#b;c&d", "日本"]


@pytest.mark.parametrize("value", ODD)
def test_one_value_is_typed_without_quotes_whatever_is_in_it(value):
    override = OverridesParser.create().parse_override(overriding.readable(f"key={value}"))
    assert override.value() == value


@pytest.mark.parametrize(
    "text",
    [
        "key=3",
        "key=a b",
        "key=a,b",
        "key=é,b",
        "key=[é]",
        "key={a:é}",
        "key='é",
        "key=choice(é",
        "key=${é}",
        "é=3",
        "é",
    ],
)
def test_what_is_no_single_value_or_none_at_all_stays_as_it_was_typed(text):
    assert overriding.readable(text) == text


def test_commands_and_programs_take_such_a_value(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = "name=~a=b"
    assert memexp.compose(typed).name == "~a=b"
    assert cli.main(["train", "-cn", "config", typed, "--cfg", "job"]) == 0
    assert "name: ~a=b\n" in capsys.readouterr().out
    parser = argparse.ArgumentParser()
    arguments.overrides(parser)
    (tmp_path / "run=é").mkdir()
    assert parser.parse_args(["run=é", typed]).overrides == ["run=é", "name='~a=b'"]


TABLE = ["experiment=revnet/table3", "scale=laptop"]


@pytest.mark.parametrize("typed", ["RevNet-38, stored", "'RevNet-38, stored'"])
def test_an_arm_of_an_experiment_is_one_run_with_what_makes_it_that(typed):
    """Without its overrides it was the experiment's default network under another's name."""
    cfg = memexp.compose([*TABLE, f"arm={typed}"])
    assert (cfg.arm, cfg.model.name, cfg.model.depth, cfg.backprop.name) == (
        "RevNet-38, stored",
        "revnet",
        38,
        "stored",
    )
    assert memexp.compose([*TABLE, f"arm={typed}", "model.depth=56"]).model.depth == 56


def test_a_sweep_takes_the_arms_that_are_named():
    chosen = [
        memexp.compose(job) for job in planned([*TABLE, "arm=ResNet-32,'RevNet-38, exact'", "seed=0"], "config", ())
    ]
    assert [(cfg.arm, cfg.model.name) for cfg in chosen] == [("ResNet-32", "resnet"), ("RevNet-38, exact", "revnet")]
    with pytest.raises(ConfigError, match=r"arm: 'ResNet-3' is not one of ResNet-32; .* Did you mean 'ResNet-32'\?"):
        list(planned([*TABLE, "arm=ResNet-3"], "config", ()))


def test_an_arm_of_several_runs_is_refused_as_one(tmp_path):
    (tmp_path / "experiment").mkdir()
    cases = {"deep": ["model=revnet", "model.depth=56,110"], "own": ["model=resnet"]}
    text = "# @package _global_\n" + OmegaConf.to_yaml({"hydra": {"sweeper": {"cases": cases}}})
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"arm: 'deep' is several runs \(model\.depth=56,110\); -m runs them"):
        memexp.compose(["experiment=mine", "arm=deep"], tmp_path)
    assert memexp.compose(["experiment=mine", "arm=deep", "model.depth=110"], tmp_path).model.depth == 110
    with pytest.raises(ConfigError, match=r"arm: 'dep' is not one of .*Did you mean 'deep'"):
        memexp.compose(["experiment=mine", "arm=dep"], tmp_path)


def test_a_run_that_is_none_of_an_experiments_arms_is_told_of_them():
    told = one_run(TABLE, "config", ())[1]
    assert told is not None
    assert "has 4 arms, and this run is none of them" in told
    assert told.endswith("arm=NAME one: ResNet-32; RevNet-38; RevNet-38, stored; RevNet-38, exact")
    assert one_run([*TABLE, "arm=ResNet-32"], "config", ())[1] is None
    with pytest.raises(ConfigError, match="arm: 'RevNet-110' is not one of ResNet-32; RevNet-38; "):  # of this scale
        one_run([*TABLE, "arm=RevNet-110"], "config", ())
    assert one_run(["experiment=node/fig2"], "config", ())[1] is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("n_trials=0", "hydra.sweeper.n_trials: 0 is not allowed; it takes a whole number at least 1"),
        ("n_trials=x", "n_trials=x: Value 'x' of type 'str' could not be converted"),
        ("n_jobs=0", "hydra.sweeper.n_jobs: 0 is not allowed"),
        ("direction=up", "hydra.sweeper.direction: 'up' is not allowed; it takes minimize | maximize"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_its_study_is_made(typed, message):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    overrides = ["hydra/sweeper=search", f"hydra.sweeper.{typed}"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.first_valid(planned(overrides, "config", ()), "config", ())


@pytest.mark.parametrize(
    ("experiment", "typed", "told"),
    [
        ("prune/netadapt", ["prune.step=0.1"], "prune.step: unknown key"),
        ("reducenet/distill", ["model.expansionn=2"], "model.expansionn: unknown key"),
        ("prune/netadapt", ["arm=NetAdapt"], "init_from: there is no run in"),
        ("prune/netadapt", ["init_from=nowhere"], "init_from: there is no run in 'nowhere'"),
    ],
)
def test_runs_that_a_sweep_makes_itself_are_not_said_to_be_missing(experiment, typed, told, tmp_path):
    jobs = planned([f"experiment={experiment}", "scale=laptop", *typed, f"hydra.sweep.dir={tmp_path}"], "config", ())
    with pytest.raises(ConfigError) as caught:
        config.first_valid(jobs, "config", ())
    assert [problem[: len(told)] for problem in caught.value.problems] == [told]
