"""Whole sweeps in one process: what is swept, by which sweeper and launcher, and where; in place of the jobs' own processes,
one that writes a record."""

import json
import os
import pickle
import signal
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from memexp import jobs, launcher
from memexp.cli import main
from memexp.record import SCHEMA, write_json

BASE = ["train", "-m", "dataset=synthetic", "model=resnet", "max_steps=1", "device=cpu", "name=s"]


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Carries a command line out; gives the jobs' directories below outputs/, the folders reported to, and the exit status."""
    monkeypatch.chdir(tmp_path)
    reports: list[tuple[str, int]] = []
    processes: list[jobs.Job] = []

    def process(job: jobs.Job, sweep: jobs.Sweep, go_on: bool, own_session: bool, gpu: str | None) -> int:
        processes.append(job)
        failing = any(text in job.overrides for text in ("seed=13", "optimizer.momentum=0.5"))
        lr = next((float(text.split("=")[1]) for text in job.overrides if text.startswith("optimizer.lr=")), 1.0)
        results = {"status": "failed" if failing else "done", "accuracy": {"error": 100 * lr, "top1": 1.0}}
        write_json(job.directory / "results.json", {"schema": SCHEMA, "config_hash": job.hash, **results})
        return int(failing)

    def wrapped(job: jobs.Job, *arguments, **named) -> int:
        job.directory.mkdir(parents=True, exist_ok=True)
        return process(job, *arguments, **named)

    monkeypatch.setattr(jobs, "run_process", wrapped)
    monkeypatch.setattr(
        launcher, "_print_report", lambda folder, directories, *_: reports.append((str(folder), len(directories)))
    )

    def carry_out(*arguments: str, base=BASE) -> tuple[list[str], list[tuple[str, int]], int]:
        reports.clear()
        processes.clear()
        status = main([*base, *arguments])
        return (
            [str(job.directory.absolute().relative_to(tmp_path / "outputs")) for job in processes],
            list(reports),
            status,
        )

    return carry_out


def test_b12_swept_keys_come_first_and_constants_are_in_the_hash(sweep, tmp_path, capsys):
    names, reports, status = sweep("seed=1,2", "batch_size=16", "clip_grad=1.0")
    assert [name.rpartition("-")[0] for name in names] == ["s/seed=1", "s/seed=2"]
    assert (status, [count for _, count in reports]) == (0, [2])
    others, more, _ = sweep("seed=1,2", "batch_size=8", "clip_grad=1.0")
    assert not set(names) & set(others)
    assert more[0][0] != reports[0][0]  # its report does not overwrite the first one's
    assert Path(reports[0][0]).name.startswith("sweep-seed-")
    assert (Path(reports[0][0]) / "multirun.yaml").is_file()
    (Path(reports[0][0]) / "multirun.yaml").unlink()
    (Path(reports[0][0]) / "multirun.yaml").symlink_to(tmp_path / "elsewhere")
    capsys.readouterr()
    again, same, _ = sweep("seed=1,2", "batch_size=16", "clip_grad=1.0", "overwrite=true")
    assert (again, same) == ([], reports)  # all are done
    assert capsys.readouterr().out.count("overwrite=true does no job of a sweep again") == 2
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("base", "arguments", "count"),
    [
        (["train", "-m"], ["experiment=vgg16/summary,node/fig3b", "scale=laptop"], None),
        (BASE[:-1], ["name=a,b"], 2),
        (BASE, ["dataset=cifar10", "dataset.root=/tmp,/var"], 2),
        (BASE, ["model.units=[1],[1,1]", "model.channels=[4,8]"], None),
        (BASE, ["+dataset.limit='3',3"], None),
        (BASE, ["seed=1,1"], 1),
        (BASE, ["dataset.classes=[1,2],['1',2]"], 2),
        (BASE, [f"dataset.classes=[{'a' * 150},b],[{'a' * 150},c]"], 2),
        (BASE, [f"dataset.classes=['{'é' * 150}',b],['{'é' * 150}',c]"], 2),
        (BASE, ["model=glob(re*)", "backprop=stored"], 3),
        (BASE, ["seed=range(1,4)"], 3),
        (BASE, ["seed=choice(1,2)", "batch_size=shuffle(8,16)"], 4),
        (BASE, ["hydra/sweeper=basic", "seed=1,2", "hydra.sweeper.max_batch_size=1"], 2),
        (BASE, ["hydra/launcher=basic", "seed=1,2"], 2),
        (BASE, ["hydra.sweep.subdir=${hydra.job.num}", "seed=1,2"], 2),
        (BASE, ["hydra/launcher=basic", "hydra.sweep.subdir=${hydra.job.num}", "seed=1,2"], 2),
        (BASE, ["hydra.launcher.n_jobs=2", "seed=1,2,3"], 3),
    ],
)
def test_b19_two_values_never_share_a_folder_and_hydras_own_sweeps_work(sweep, base, arguments, count):
    names, reports, _ = sweep(*arguments, base=base)
    assert len(set(names)) == len(names)
    assert count is None or len(names) == count
    assert len(reports) == 1


@pytest.mark.parametrize("sweeper", ["cases", "basic"])
def test_a_folder_of_two_jobs_is_refused_before_anything_is_made(sweep, sweeper, tmp_path, capsys):
    names, reports, status = sweep(f"hydra/sweeper={sweeper}", "hydra.sweep.subdir=x", "seed=1,2")
    assert (names, reports, status) == ([], [], 2)
    assert "nothing in its name tells seed=2 from the other" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists() or sweeper == "basic"  # which writes down what it sweeps first


@pytest.mark.parametrize(
    ("experiment", "arm"),
    [("revnet/table3", "RevNet-38, stored"), ("reducenet/audit", "vanish=all, in place (as published)")],
)
def test_the_name_of_an_arm_may_be_typed_as_it_is(sweep, experiment, arm, capsys):
    base = ["train", "-m", f"experiment={experiment}", "scale=laptop", "dataset=digits", "seed=0"]
    names, _, status = sweep(f"arm={arm}", base=base)
    assert (len(names), status) == (1, 0)
    assert f"arm='{arm}'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("swept", "others", "counts"),
    [
        ("experiment=vgg16/summary,node/table2", [], [2, 2]),
        ("scale=paper,laptop", ["experiment=node/fig4", "arm='Heun, stored'", "model.depth=8"], [4, 1]),  # by its seeds
    ],
)
def test_experiments_and_scales_side_by_side_have_their_own_jobs_each(sweep, swept, others, counts, capsys):
    """They had those of none, and of the first."""
    names, _, status = sweep(base=["train", "-m", swept, *others, "dataset=digits"])
    told = [line.split() for line in capsys.readouterr().out.splitlines() if f"/{sum(counts)}: " in line]
    key, _, choices = swept.partition("=")
    assert (len(names), status) == (sum(counts), 0)
    assert [sum(f"{key}={choice}" in line for line in told) for choice in choices.split(",")] == counts


def test_each_seed_of_an_experiment_starts_from_a_run_of_its_own(sweep, capsys):
    names, _, status = sweep(
        base=["train", "-m", "experiment=node/table2", "scale=laptop", "dataset=digits", "seed=1,2"]
    )
    told = capsys.readouterr().out
    assert (status, told.count(" done in ")) == (0, 4)
    assert names == [f"node/table2/{arm}-laptop-{seed}" for seed in (1, 2) for arm in ("tied", "untied")]
    assert told.count("model.init_from='outputs/node/table2/tied-${scale}-${seed}'") == 2


@pytest.mark.parametrize("where", ["local", "basic"])
def test_a_failing_job_is_recorded_and_the_others_go_on_whatever_the_launcher(sweep, where, capsys):
    names, reports, status = sweep("seed=12,13,14", f"hydra/launcher={where}")
    assert (len(names), status, [count for _, count in reports]) == (3, 1, [3])
    out = capsys.readouterr().out
    assert "job 2/3 failed in" in out or where == "basic"
    names, _, status = sweep("seed=12,13,14", f"hydra/launcher={where}")
    assert ([name.split("-")[0] for name in names], status) == (["s/seed=13"], 1)  # what is done is not done again
    assert "done before" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["local", "basic"])
@pytest.mark.parametrize(
    "swept",
    [
        ["seed=1,2,3", "hydra.sweeper.max_batch_size=1"],
        [
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=3",
            "hydra.sweeper.n_jobs=1",
            "optimizer.lr=interval(0.01,0.1)",
        ],
    ],
)
def test_a_signal_ends_the_batches_that_are_left_too(sweep, swept, where, monkeypatch):
    """A search still composed the trials that were left, a third of a second each."""
    if "hydra/sweeper=optuna" in swept:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    process, composed = jobs.run_process, []
    whole = launcher._Recorded._job
    monkeypatch.setattr(launcher._Recorded, "_job", lambda *of: composed.append(of) or whole(*of))

    def stopped(*arguments):
        process(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    monkeypatch.setattr(jobs, "run_process", stopped)
    names, reports, status = sweep(*swept, f"hydra/launcher={where}")
    assert (len(names), len(composed), status) == (1, 1, 130)
    assert [count for _, count in reports] == [1]


def test_b23_a_study_goes_on_past_a_failing_trial_and_reports_once(sweep, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    study = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.sampler.seed=0",
    ]
    names, reports, status = sweep(*study, "optimizer.lr=interval(0.01,0.1)", "optimizer.momentum=choice(0.5,0.9)")
    assert len(set(names)) == len(names) == 4
    results = [json.loads(Path(f"outputs/{name}/results.json").read_text()) for name in names]
    assert {result["status"] for result in results} == {"done", "failed"}
    assert (status, [count for _, count in reports]) == (1, [4])
    assert "job 2/4" in capsys.readouterr().out
    names, reports, status = sweep(*study, "seed=13", "optimizer.lr=interval(0.01,0.1)")  # none succeeds
    assert (len(names), status, [count for _, count in reports]) == (4, 1, [4])


def test_a_search_over_the_space_in_conf(sweep):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    names, reports, status = sweep("hydra/sweeper=search", "hydra.sweeper.n_trials=3")
    assert (len(names), status, [count for _, count in reports]) == (3, 0, [3])
    rates = [float(name.split("optimizer.lr=")[1].split(",")[0]) for name in names]
    assert len(set(rates)) == 3
    assert all(1e-3 <= rate <= 1 for rate in rates)
    best = OmegaConf.load("outputs/s/optimization_results.yaml")
    assert best.best_params["optimizer.lr"] == pytest.approx(min(rates))  # the job's error is 100 lr here
    # with more trials it drew all of them anew, and laid its report over the first one's
    names, reports, status = sweep("hydra/sweeper=search", "hydra.sweeper.n_trials=4")
    assert (len(names), status, [count for _, count in reports]) == (1, 0, [4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=interval(0.01,0.1)"], "optimizer.lr: an interval cannot be swept in full"),
        (["seed=1,2", "hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size: 0 is not allowed"),
        (["seed=-1,-2"], "seed: -1 is not allowed"),
        (["model=glob(x*)"], "model: nothing fits 'model=glob(x*)'"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_made(sweep, arguments, message, capsys):
    names, reports, status = sweep(*arguments)
    assert (names, reports, status) == ([], [], 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "batches", [["hydra/sweeper=basic"], ["hydra.sweeper.max_batch_size=1", "optimizer.momentum=0.5"]]
)
def test_an_option_that_is_not_there_is_told_in_our_words_though_others_are(sweep, batches, capsys):
    """Hydra's were those of a fault; and after a failing job none at all, as of a study without a best trial."""
    _, _, status = sweep(*batches, "model=resnet,resnt")
    assert status == 2
    assert "model: 'resnt' is not one of" in capsys.readouterr().err


def test_a_later_batch_that_is_refused_says_so_after_a_failing_job(sweep, capsys):
    subdir = "hydra.sweep.subdir=${optimizer.momentum}"
    names, _, status = sweep("hydra.sweeper.max_batch_size=1", subdir, "optimizer.momentum=0.5", "seed=1,2")
    assert (len(names), status) == (1, 2)
    assert "is the folder of two jobs of this sweep" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["joblib", "submitit_local"])
def test_the_task_of_a_job_can_be_sent_to_another_process(sweep, monkeypatch, where):
    pytest.importorskip(f"hydra_plugins.hydra_{where.split('_')[0]}_launcher")
    sent = []

    def send(self, batch, of):
        assert len(of.jobs) == 2
        sent.append(pickle.loads(pickle.dumps(self.inner.task_function)))
        for job in batch:
            job.status = "failed"

    monkeypatch.setattr(launcher.OtherLauncher, "carry_out", send)
    sweep(f"hydra/launcher={where}", "seed=1,2")
    (task,) = sent
    assert task.__self__.sweep.config_name == "config"


@pytest.mark.long
@pytest.mark.parametrize("where", ["joblib", "submitit_local"])
def test_launchers_with_processes_of_their_own(tmp_path, monkeypatch, where, capsys):
    pytest.importorskip(f"hydra_plugins.hydra_{where.split('_')[0]}_launcher")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(launcher.__file__).parent.parent))
    tiny = [
        "model.units=[1]",
        "model.channels=[4,8]",
        "dataset.image_size=8",
        "dataset.limit=64",
        "dataset.test_limit=32",
    ]
    arguments = [*BASE, *tiny, "model.depth=8", f"hydra/launcher={where}", "seed=1,-2"]
    assert main(arguments) == 1
    found = {
        path.parent.name.split("-")[0]: json.loads(path.read_text()) for path in Path("outputs").rglob("results.json")
    }
    assert {name: result["status"] for name, result in found.items()} == {"seed=1": "done", "seed=": "failed"}
    assert "seed: -2 is not allowed" in capsys.readouterr().out
    assert "hydra_plugins" in sys.modules
