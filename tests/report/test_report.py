"""Tables and plots of runs, from results.json on."""

import json
from pathlib import Path

import pytest

from memexp.record import SCHEMA
from memexp.report import plots, published, write_report
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


def test_runs_that_did_not_end_are_shown_but_not_averaged(tmp_path):
    add(tmp_path, "a", top1=70.0, seed=0)
    add(tmp_path, "b", top1=5.0, seed=1, status="interrupted", error="stopped by SIGTERM")
    add(tmp_path, "c", top1=5.0, seed=2, status="running")
    text = write_report([tmp_path], tmp_path, form="csv", plots=False)
    assert '"1 done, 1 interrupted, 1 running",1,70.00,' in text.splitlines()[1]
    assert "b: interrupted: stopped by SIGTERM" in write_report([tmp_path], tmp_path, form="markdown", plots=False)
    for run in ("b", "c"):
        for form in ("markdown", "csv", "latex", "terminal"):
            only = write_report([tmp_path / run], tmp_path / "out", form=form)
            assert "5.00" not in only
    assert not (tmp_path / "out" / "plots").exists()


def test_every_group_a_published_number_speaks_of_is_compared(tmp_path):
    add(tmp_path, "a", model="revnet", depth=38, top1=92.0, backprop="stored")
    add(tmp_path, "b", model="revnet", depth=38, top1=93.0, backprop="reversible")
    text = write_report([tmp_path], tmp_path, form="csv", paper="revnet/table3", plots=False)
    assert '"revnet-38 cifar10, backprop=stored",accuracy.error,%,7.24,8.00,1,+0.76' in text
    assert '"revnet-38 cifar10, backprop=reversible",accuracy.error,%,7.24,7.00,1,-0.24' in text


def test_an_unknown_format_and_a_folder_without_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.json there"):
        write_report([tmp_path], tmp_path)
    with pytest.raises(ValueError, match=r"--format: 'html' is not one of terminal, markdown, csv, latex"):
        write_report([tmp_path], tmp_path, form="html")


def log(root: Path, folder: str, *entries: dict) -> None:
    (root / folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_curves_leave_out_a_panel_that_would_be_empty(tmp_path):
    for folder, seed in (("a", 0), ("b", 1)):
        add(tmp_path, folder, depth=32 + seed)
    losses = [{"split": "train", "epoch": e, "loss": 2.0 - e / 2} for e in (1, 2)]
    log(tmp_path, "a", *losses)
    groups = group(find([tmp_path])[0])
    figure = plots.curves(groups)
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss"]
    assert len(figure.axes[0].lines) == 1
    log(tmp_path, "b", *losses, *({"split": "test", "epoch": e, "top1": 50.0 + e} for e in (1, 2)))
    figure = plots.curves(groups)
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "top-1 accuracy (%)"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]


def test_points_of_many_groups_can_be_told_apart():
    styles = [(style["color"], style["marker"], style["linestyle"]) for style in map(plots._style, range(24))]
    assert len({style[:2] for style in styles}) == 24
    assert len({(colour, line) for colour, _, line in styles}) == 24


def test_a_line_against_depth_has_the_deviation_over_seeds_and_says_so(tmp_path):
    for depth in (32, 110):
        for seed, time in enumerate((1.0, 3.0)):
            more = {"time": {"step_median": time * depth / 1000}}
            add(tmp_path, f"{depth}-{seed}", depth=depth, seed=seed, **more)
    axes = plots.time_against_depth(group(find([tmp_path])[0])).axes[0]
    (line,) = axes.containers
    assert line.lines[0].get_ydata().tolist() == pytest.approx([64.0, 220.0])  # ms
    low, high = line.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(32 * 2**0.5)
    assert axes.get_legend().get_title().get_text() == "mean, ± deviation over 2 seeds"


def test_a_legend_names_settings_outside_of_groups(tmp_path):
    for i, batch in enumerate((50, 100)):
        config = {"model": {"name": "resnet", "depth": 32}, "batch_size": batch}
        overrides = ["model=resnet", "model.depth=32", f"batch_size={batch}"]
        add(tmp_path, f"r{i}", config=config, overrides=overrides)
    axes = plots.accuracy_against_memory(group(find([tmp_path])[0])).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["batch_size 50", "batch_size 100"]
    assert axes.get_xlabel() == "peak memory (MiB; tracked)"
