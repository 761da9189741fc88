"""Tables and plots of runs, from results.json on."""

import json
from pathlib import Path

import pytest

from memexp.record import SCHEMA
from memexp.report import published, write_report
from memexp.report.collect import find, group


def add(
    root: Path, folder: str, model: str = "resnet", depth: int = 32, top1: float = 70.0, seed: int = 0, **more
) -> None:
    results = {
        "schema": SCHEMA,
        "status": "done",
        "seed": seed,
        "model": model,
        "dataset": "cifar10",
        "backprop": "stored",
        "overrides": [f"model={model}", f"model.depth={depth}", f"seed={seed}"],
        "config": {"model": {"name": model, "depth": depth}, "batch_size": 100},
        "parameters": 1000 * depth,
        "accuracy": {"top1": top1, "error": 100 - top1},
        "memory": {"peak": depth * 2**20, "activations": depth * 2**19, "how": "tracked"},
        "time": {"step_median": depth / 1000, "images_per_second": 10.0},
    }
    (root / folder).mkdir(parents=True)
    (root / folder / "results.json").write_text(json.dumps(results | more))


def test_seeds_become_mean_and_sample_deviation_with_n(tmp_path):
    for seed, top1 in enumerate((70.0, 72.0, 77.0)):
        add(tmp_path, f"a{seed}", top1=top1, seed=seed)
    add(tmp_path, "b", model="revnet", depth=38, top1=80.0)
    text = write_report([tmp_path], tmp_path, form="csv")
    lines = text.splitlines()
    assert lines[0].startswith("model,model.depth,status,n,top-1 (%)")
    assert "resnet,32,3 done,3,73.00 ± 3.61" in lines[1]
    assert "revnet,38,done,1,80.00" in lines[2]


def test_failed_and_damaged_runs_are_named_and_not_averaged(tmp_path):
    add(tmp_path, "good", depth=32)
    add(tmp_path, "bad", depth=110, status="oom", error="out of memory: try less", accuracy=None, memory=None)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "results.json").write_text('{"schema": ')
    text = write_report([tmp_path], tmp_path, form="markdown")
    assert "| 110 | oom | 0 | - |" in text
    assert "bad: oom: out of memory: try less" in text
    assert "cut/results.json: damaged, left out" in text


def test_measured_stands_beside_published_with_the_difference(tmp_path):
    add(tmp_path, "a", depth=32, top1=92.0)
    text = write_report([tmp_path], tmp_path, form="csv", paper="revnet/table3")
    assert "resnet-32 cifar10,accuracy.error,%,7.14,8.00,1,+0.86" in text
    assert "revnet-38 cifar10,accuracy.error,%,7.24,not measured,0,-" in text
    with pytest.raises(ValueError, match="Did you mean 'revnet/table3'"):
        write_report([tmp_path], tmp_path, paper="revnet/tabel3")


def test_a_small_run_is_said_to_be_small(tmp_path):
    add(tmp_path, "a", depth=32, scale="laptop", name="revnet/table3")
    text = write_report([tmp_path], tmp_path, form="markdown", paper="revnet/table3")
    assert text.count("the small version (scale=laptop), not the published recipe") == 2


def test_latex_escapes_and_markdown_is_written_with_its_plots(tmp_path):
    for depth in (32, 110):
        add(tmp_path, f"a{depth}", depth=depth, top1=70 + depth / 100)
    text = write_report([tmp_path], tmp_path / "out", form="latex")
    assert r"top-1 (\%)" in text
    assert text.startswith(r"\begin{tabular}")
    document = (tmp_path / "out" / "report.md").read_text()
    for name in ("accuracy-memory", "memory-depth", "time-depth"):
        assert f"plots/{name}.png" in document
        for suffix in ("png", "svg"):
            assert (tmp_path / "out" / "plots" / f"{name}.{suffix}").stat().st_size > 1000


def test_every_published_file_is_sound():
    assert {"revnet/table3", "revnet/parameters", "revnet/memory"} <= set(published.identifiers())
    for identifier in published.identifiers():
        data = published.load(identifier)
        assert data["source"]
        for row in data["rows"]:
            assert {"label", "match", "quantity", "unit", "value"} <= row.keys()


def test_runs_that_differ_by_seed_only_are_one_group(tmp_path):
    for i, (depth, seed) in enumerate([(32, 0), (32, 1), (110, 0)]):
        add(tmp_path, f"r{i}", depth=depth, seed=seed)
    runs, notes = find([tmp_path])
    assert [len(members.runs) for members in group(runs)] == [2, 1]
    assert notes == []
