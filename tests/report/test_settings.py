"""Which settings set runs apart, and which have no effect."""

import json

import pytest
from report_runs import add

import memexp
from memexp import unread
from memexp.report import tables, write_report
from memexp.report.collect import find, group
from memexp.report.settings import varying


def test_runs_that_differ_by_seed_only_are_one_group(tmp_path):
    for i, (depth, seed) in enumerate([(32, 0), (32, 1), (110, 0)]):
        add(tmp_path, f"r{i}", depth=depth, seed=seed)
    runs, notes = find([tmp_path])
    assert [len(members.runs) for members in group(runs)] == [2, 1]
    assert notes == []


@pytest.mark.parametrize(("starts", "groups"), [(["x/tied-0", "x/tied-1"], [2]), (["x/a", "x/b"], [1, 1])])
def test_seeds_that_start_from_runs_of_their_own_are_one_group(tmp_path, starts, groups):
    for seed, start in enumerate(starts):
        config = {"model": {"name": "resnet", "depth": 32, "init_from": start}}
        overrides = [f"model.init_from='{start}'"]
        add(tmp_path, f"r{seed}", seed=seed, config=config, overrides=overrides)
    assert [len(members.runs) for members in group(find([tmp_path])[0])] == groups


def test_runs_on_other_images_are_no_seeds_of_one(tmp_path):
    for seed, (root, images) in enumerate([("a", "1"), ("a", "1"), ("b", "2"), ("copy of a", "1")]):
        config = {"model": {"name": "resnet", "depth": 32}, "dataset": {"root": root}}
        add(tmp_path, f"r{seed}", seed=seed, config=config, fingerprint=f"2 classes, {images}")
    assert [len(members.runs) for members in group(find([tmp_path])[0])] == [2, 1, 1]


def test_settings_that_are_tables_by_names_of_layers_set_runs_apart(tmp_path):
    for seed, share in enumerate((0.5, 0.5, 0.25)):
        config = {
            "model": {"name": "resnet", "depth": 32},
            "prune": {"name": "l1_norm", "scope": {"body.0.f.0": share}},
        }
        add(tmp_path, f"r{seed}", seed=seed, config=config)
    assert [len(members.runs) for members in group(find([tmp_path])[0])] == [2, 1]


def test_e3_only_settings_that_differ_and_matter_are_columns(tmp_path):
    def config(depth, lr, epochs, **dataset):
        named = {"name": "cifar10", "root": f"/data/{depth}", "epochs": 3, **dataset}
        memory = {"steps": depth, "limit": f"{depth}GB"}
        return {
            "model": {"name": "resnet", "depth": depth},
            "dataset": named,
            "optimizer": {"name": "sgd", "lr": lr},
            "memory": memory,
            "log_every": depth,
            "batch_size": 100,
            "epochs": epochs,
        }

    for depth, lr in ((32, 0.1), (32, 0.2), (110, 0.1)):
        overrides = [f"model.depth={depth}", f"log_every={depth}", f"dataset.root=/data/{depth}", "+flip=true"]
        add(tmp_path, f"{depth}-{lr}", depth=depth, config=config(depth, lr, depth), overrides=overrides)
    lines = write_report([tmp_path], tmp_path / "out", form="markdown").splitlines()
    heading = next(line for line in lines if line.startswith("| "))
    # epochs follow from the depth here, the learning rate was in nobody's command and differs nevertheless
    assert heading.startswith("| model.depth | optimizer.lr | status | n | top-1 (%)")
    assert lines[0].startswith("In all runs: model=resnet, dataset=cifar10, backprop=stored, optimizer=sgd, flip=true")
    assert "batch_size=100" in lines[0]
    assert "log_every" not in "\n".join(lines)


SMALL = {"name": "resnet", "depth": 32, "units": [1, 1], "channels": [4, 4, 8]}


def test_a_refused_job_adds_no_column(tmp_path):
    """What it was told stands as it was typed, and what it was not told is not known."""
    told = ["model.units=[1,1]", "optimizer.lr=1e-1", "device=auto", "tune.lr='${optimizer.lr}'", "model.depth=33"]
    config = {"optimizer": {"name": "sgd", "lr": 0.1}, "tune": {"lr": 0.1}, "device": "auto", "batch_size": 16}
    done = {"config": config | {"model": SMALL}, "overrides": [*told, "batch_size=16"]}
    add(tmp_path, "done", **done, memory={"peak": 1, "device": "cpu"})
    results = {"schema": 2, "status": "failed", "error": "refused", "overrides": told[:-1]}
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused/results.json").write_text(json.dumps(results))
    assert varying(find([tmp_path])[0]) == []
    results["overrides"][1] = "optimizer.lr=2e-1"
    (tmp_path / "refused/results.json").write_text(json.dumps(results))
    assert varying(find([tmp_path])[0]) == ["optimizer.lr"]


def test_what_nothing_reads_sets_no_runs_apart(tmp_path):
    """A sweep over depth beside units was a table, and a curve, of how depth matters."""
    for depth in (20, 32, 56):
        add(tmp_path, str(depth), depth=depth, config={"model": SMALL | {"depth": depth}, "batch_size": 16})
    runs, _ = find([tmp_path])
    assert varying(runs) == []
    table = tables.of_groups(group(runs))
    assert len(table.rows) == 1
    assert "seed 0 was run 3 times with the same settings" in table.notes[-1]


def test_what_an_earlier_version_did_sets_its_runs_apart(tmp_path):
    """Before dataset.draw a run's seed drew its images, and such runs were averaged with those of today."""
    limited = {"model": SMALL, "batch_size": 16, "dataset": {"name": "digits", "limit": 50}}
    for seed in (0, 1):
        add(tmp_path, f"then{seed}", seed=seed, config=limited)
        today = {**limited, "dataset": {**limited["dataset"], "draw": 0}, "precise_batchnorm": True}
        add(tmp_path, f"now{seed}", seed=seed, config=today)
    runs, _ = find([tmp_path])
    assert varying(runs)[0] == "precise_batchnorm"
    assert [len(members.runs) for members in group(runs)] == [2, 2]
    assert {run.setting("dataset.draw") for run in runs} == {"by its seed", 0}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", "model.depth=8"], ["model.depth"]),
        (["model=resnet", "model.depth=8", "epochs=1"], []),
        (["distill.alpha=0.5", "tune.lr=0.1"], ["distill.alpha", "tune.lr"]),
        (["prune=l1_norm", "prune.ratio=0.5", "tune.lr=0.1"], []),
        (
            ["optimizer.lookahead.alpha=0.3", "optimizer.conv_only=true"],
            ["optimizer.lookahead.alpha", "optimizer.conv_only"],
        ),
        (["optimizer=ranger", "optimizer.lookahead.alpha=0.3", "optimizer.conv_only=true"], []),
        (["dataset.draw=3"], ["dataset.draw"]),
        (["dataset.draw=3", "dataset.test_limit=50"], []),
        (["backprop.exact_bits=9"], ["backprop.exact_bits"]),
        (["backprop.exact_bits=9", "backprop.exact=true"], []),
        (["backprop=stored", "monitor_every=1", "monitor_gradient=true"], ["monitor_every", "monitor_gradient"]),
        (["backprop=reversible", "monitor_every=0", "monitor_gradient=true"], ["monitor_gradient"]),
        (["backprop=reversible", "monitor_every=1", "monitor_gradient=true"], []),
        (["report.tsne_epochs=[1]"], ["report.tsne_epochs"]),
        (["report.tsne_epochs=[1]", "report.tsne=true"], []),
    ],
)
def test_what_was_typed_and_nothing_reads_is_told(overrides, told):
    found = unread.typed(memexp.compose(overrides), overrides)
    assert [text.partition(" has no effect: ")[0] for text in found] == told
