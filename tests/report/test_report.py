"""Tables and plots of runs, from results.json on."""

import pytest
from report_runs import add

from memexp.record import RunDirectory
from memexp.report import plots, published, report, tables, write_report
from memexp.report.collect import find, group


def test_seeds_become_mean_and_sample_deviation_with_n(tmp_path):
    for seed, top1 in enumerate((70.0, 72.0, 77.0)):
        add(tmp_path, f"a{seed}", top1=top1, seed=seed)
    add(tmp_path, "b", model="revnet", depth=38, top1=80.0)
    text = write_report([tmp_path], tmp_path, form="markdown")
    lines = text.splitlines()
    assert lines[0] == "In all runs: dataset=cifar10, backprop=stored, batch_size=100"
    assert lines[2].startswith("| model | model.depth | status | n | top-1 (%) |")
    assert lines[4].startswith("| resnet | 32 | 3 done | 3 | 73.00 ± 3.61 |")
    assert lines[5].startswith("| revnet | 38 | done | 1 | 80.00 |")


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
    text = write_report([tmp_path], tmp_path, form="markdown", paper="revnet/table3")
    assert "| resnet-32 cifar10 | accuracy.error | % | 7.14 | 8.00 | 1 | +0.86 |" in text
    assert "| revnet-38 cifar10 | accuracy.error | % | 7.24 | not measured | 0 | - |" in text
    with pytest.raises(ValueError, match="Did you mean 'revnet/table3'"):
        write_report([tmp_path], tmp_path, paper="revnet/tabel3")


def test_a_small_run_is_said_to_be_small(tmp_path):
    add(tmp_path, "a", depth=32, scale="laptop", name="revnet/table3")
    text = write_report([tmp_path], tmp_path, form="markdown", paper="revnet/table3")
    assert text.count("the small version (scale=laptop), not the published recipe") == 2


def test_every_published_file_is_sound():
    assert {"revnet/table3", "revnet/parameters", "revnet/memory"} <= set(published.identifiers())
    for identifier in published.identifiers():
        data = published.load(identifier)
        assert data["source"]
        for row in data["rows"]:
            assert {"label", "match", "quantity", "unit", "value"} <= row.keys()
            assert "dataset" in row["match"]  # of other images it says nothing


@pytest.mark.parametrize(
    ("dataset", "depth", "n"), [("cifar10", 20, "1"), ("cifar100", 20, "0"), ("digits", 20, "0"), ("cifar10", 8, "0")]
)
def test_a_published_number_stands_beside_runs_of_its_data_and_network_alone(dataset, depth, n, tmp_path):
    arm = "vanish=all, in place (as published)"
    config = {"model": {"name": "reducenet", "depth": depth}, "arm": arm}
    add(tmp_path, "a", config=config, dataset=dataset)
    table = published.compare("reducenet/audit", group(find([tmp_path])[0]))
    assert [row[5] for row in table.rows] == [n]


def test_the_scales_of_an_experiment_stand_side_by_side(tmp_path):
    for i, (scale, seed) in enumerate([("laptop", 0), ("laptop", 1), ("paper", 0)]):
        config = {"model": {"name": "resnet", "depth": 32}, "arm": "A", "scale": scale, "epochs": 3 + i // 2}
        add(tmp_path, f"r{i}", seed=seed, config=config, scale=scale, experiment="x")
    table = tables.of_groups(group(find([tmp_path])[0]))
    assert table.headings[0] == "scale"
    assert [row[:3] for row in table.rows] == [["laptop", "2 done", "2"], ["paper", "done", "1"]]


@pytest.mark.parametrize(("without", "told"), [("time", "MiB is 2^20 bytes."), ("memory", "step: median")])
def test_a_note_tells_of_what_the_table_has_alone(tmp_path, without, told):
    add(tmp_path, "r", **{without: {}})
    notes = tables.of_groups(group(find([tmp_path])[0])).notes
    assert [told in note for note in notes] == [True]
    assert len([word for word in ("peak", "step") if word in notes[0]]) == 1


def test_runs_that_did_not_end_are_shown_but_not_averaged(tmp_path):
    add(tmp_path, "a", top1=70.0, seed=0)
    add(tmp_path, "b", top1=5.0, seed=1, status="interrupted", error="stopped by SIGTERM")
    add(tmp_path, "c", top1=5.0, seed=2, status="running")
    text = write_report([tmp_path], tmp_path, form="markdown", plots=False)
    assert "| 1 done, 1 interrupted, 1 running | 1 | 70.00 |" in text
    assert "b: interrupted: stopped by SIGTERM" in write_report([tmp_path], tmp_path, form="markdown", plots=False)
    assert "c: running by its record, but not on this machine" in text
    with RunDirectory(tmp_path / "c"):
        assert "by its record" not in write_report([tmp_path], tmp_path, form="markdown", plots=False)
    for run in ("b", "c"):
        for form in ("markdown", "latex", "terminal"):
            only = write_report([tmp_path / run], tmp_path / "out", form=form)
            assert "5.00" not in only
    assert not (tmp_path / "out" / "plots").exists()


def test_every_group_a_published_number_speaks_of_is_compared(tmp_path):
    add(tmp_path, "a", model="revnet", depth=38, top1=92.0, backprop="stored")
    add(tmp_path, "b", model="revnet", depth=38, top1=93.0, backprop="reversible")
    text = write_report([tmp_path], tmp_path, form="markdown", paper="revnet/table3", plots=False)
    assert "| revnet-38 cifar10, backprop=stored | accuracy.error | % | 7.24 | 8.00 | 1 | +0.76 |" in text
    assert "| revnet-38 cifar10, backprop=reversible | accuracy.error | % | 7.24 | 7.00 | 1 | -0.24 |" in text


def test_an_unknown_format_and_a_folder_without_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.json there"):
        write_report([tmp_path], tmp_path)
    with pytest.raises(ValueError, match=r"--format: 'html' is not one of terminal, markdown, latex, csv, json"):
        write_report([tmp_path], tmp_path, form="html")


def test_e1_n_counts_distinct_seeds_and_a_repeat_is_said(tmp_path):
    add(tmp_path, "first", top1=70.0, seed=0)
    add(tmp_path, "again", top1=71.0, seed=0)
    text = write_report([tmp_path], tmp_path, form="markdown", plots=False)
    assert "| 2 done | 1 | 70.50 |" in text
    assert "±" not in text
    assert "seed 0 was run 2 times with the same settings and counts once, with the mean: again, first" in text
    add(tmp_path, "other", top1=74.5, seed=1)
    text = write_report([tmp_path], tmp_path, form="markdown", plots=False)
    assert "| 3 done | 2 | 72.50 ± 2.83 |" in text


def test_e1_a_run_is_counted_once_however_it_is_named(tmp_path):
    add(tmp_path / "runs", "a")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    paths = [tmp_path / "runs", tmp_path / "runs" / "a", tmp_path / "runs" / "a" / "results.json", tmp_path / "link"]
    assert len(report(paths)["runs"]) == 1
    add(tmp_path / "runs", "refused", status="failed", error="refused", config=None, accuracy=None)
    text = write_report([tmp_path / "runs"], tmp_path / "out", form="markdown", plots=False)
    assert "| 1 done, 1 failed | 1 | 70.00 |" in text


def test_e1_a_run_behind_a_link_is_found_and_a_link_around_itself_ends(tmp_path):
    add(tmp_path / "elsewhere", "a")
    (tmp_path / "links").mkdir()
    for name, place in (
        ("a", tmp_path / "elsewhere" / "a"),
        ("around", tmp_path / "links"),
        ("nowhere", tmp_path / "no"),
    ):
        (tmp_path / "links" / name).symlink_to(place)
    assert [run["run"] for run in report(tmp_path / "links")["runs"]] == [str(tmp_path / "links" / "a")]


def test_what_a_stage_found_and_left_stands_in_a_table_of_its_own(tmp_path):
    stages = [
        {"key": "train", "accuracy": {"top1": 90.0}, "parameters": 1000, "seconds": 9},
        {
            "key": "prune",
            "accuracy": {"top1": 60.0},
            "before": {"top1": 90.0},
            "parameters": 400,
            "prune": {"macs": {"before": 5000, "after": 2000}},
        },
        {"key": "tune", "accuracy": {"top1": 88.0}},
        {"key": "evaluate", "accuracy": {"top1": 87.5}},
    ]
    add(tmp_path, "a", stages=stages)
    add(tmp_path, "b", seed=1, stages=stages)
    add(tmp_path, "plain", depth=110, stages=[stages[0], stages[3]])
    text = write_report([tmp_path], tmp_path / "out", form="markdown", plots=False)
    table = text[text.index("**Before and after each stage**") :].splitlines()[2:]
    assert table[0].startswith("| model.depth | stage | n | top-1 (%) before | top-1 (%) after | parameters before |")
    assert table[2] == "| 32 | train | 2 | - | 90.00 | - | 1,000 | - | - |"
    assert table[3] == "| 32 | prune | 2 | 90.00 | 60.00 | 1,000 | 400 | 5,000 | 2,000 |"
    assert table[4] == "| 32 | tune | 2 | 60.00 | 88.00 | 400 | 400 | 2,000 | 2,000 |"
    assert table[5] == "| 32 | evaluate | 2 | 88.00 | 87.50 | 400 | 400 | 2,000 | 2,000 |"
    assert len(table[: table.index("")] if "" in table else table) <= 7
    rows = report(tmp_path)["stages"]
    assert len(rows) == 10
    assert rows[1] | {"run": ""} == {
        "run": "",
        "stage": "prune",
        "accuracy.top1.before": 90.0,
        "accuracy.top1.after": 60.0,
        "parameters.before": 1000.0,
        "parameters.after": 400.0,
        "macs.before": 5000.0,
        "macs.after": 2000.0,
    }
    compression = plots.accuracy_against_compression(group(find([tmp_path])[0]))
    assert compression.axes[0].lines[0].get_xdata().tolist() == [40]


def test_what_inference_costs_draws_and_sizes_stand_in_the_report(tmp_path):
    before = {"parameters": 9, "bytes": 2**20, "macs": 7, "latency_1": 0.002, "peak_1": 2**20, "latency_64": 0.05}
    after = {**before, "bytes": 2**19, "latency_1": 0.001}
    sizes = [
        {"size": 0.6, "accuracy": {"top1": 70.0}, "parameters": 5, "macs": 4, "latency_1": 0.003, "peak_1": 3 * 2**20}
    ]
    stages = [
        {"key": "prune", "accuracy": {"top1": 60.0}, "prune": {"costs": {"before": before, "after": after}}},
        {"key": "discretise", "sizes": sizes},
    ]
    stages[0]["prune"]["sparsity"] = {"masked": 0.5}
    stages[0]["prune"]["draws"] = [{"top1": 50.0, "seed": 1}, {"top1": 40.0, "seed": 2}]
    add(tmp_path, "a", stages=stages)
    lines = write_report([tmp_path], tmp_path / "out", form="markdown", plots=False).splitlines()
    rows = [line for line in lines if line.startswith("| resnet | ")]
    assert "| resnet | prune | 1 | 1.00 | 0.50 | 2.00 | 1.00 | 1.0 | 1.0 | 50.00 | 50.00 |" in rows
    assert "| resnet | 0.6 | 1 | 70.00 | 5 | 4 | 3.00 | 3.0 |" in rows
    heading = next(line for line in lines if "latency of 64" in line)
    assert "| saved weights (MiB) before | saved weights (MiB) after | latency of 1 image (ms) before |" in heading
    assert "a, prune: top-1 of 3 random draws 50.00 ± 10.00 (40.00 to 60.00) %; the first went on." in lines
    zero = "of the weights of convolutions and linear layers are zero, in tensors as large as before"
    assert f"a, prune: 50.0 % {zero}." in lines
    found = report(tmp_path)
    assert found["sizes"][0]["size"] == 0.6
    assert found["sizes"][0]["accuracy.top1"] == 70.0
    assert found["stages"][0]["latency_1.after"] == 0.001


def test_what_is_deployed_stands_beside_what_was_trained(tmp_path):
    def deployed(seconds: float, **more) -> dict:
        costs = {
            "parameters": 1000,
            "macs": 5000,
            "latency_1": seconds,
            "latency_256": 0.5,
            "peak_1": 2**20,
            "peak_256": 3 * 2**20,
        }
        fused = costs | {"parameters": 600, "latency_1": seconds / 2} | more
        return {"key": "deploy", "deploy": {"costs": {"trained": costs, "auto": fused}}}

    for seed in (0, 1):
        add(tmp_path, f"a{seed}", seed=seed, stages=[{"key": "train"}, deployed(0.004 + 0.002 * seed, predicted=0.003)])
    add(tmp_path, "plain", depth=110, stages=[{"key": "train"}, {"key": "deploy", "deploy": {"costs": None}}])
    text = write_report([tmp_path], tmp_path / "out", form="markdown", plots=False)
    table = text[text.index("**Deployed, beside what was trained**") :].splitlines()[2:]
    assert table[0] == (
        "| model.depth | stage | network | n | parameters | MACs | latency of 1 image (ms) | latency of 256 images (ms) | "
        "inference peak of 1 image (MiB) | inference peak of 256 images (MiB) | predicted latency (ms) |"
    )
    assert table[2] == "| 32 | deploy | trained | 2 | 1,000 | 5,000 | 5.00 ± 1.41 | 500.00 | 1.0 | 3.0 | - |"
    assert table[3].startswith("| 32 | deploy | auto | 2 | 600 | 5,000 | 2.50 ± 0.71 | 500.00 | 1.0 | 3.0 | 3.00 |")
    assert table[4] == ""
