"""Tables and plots of runs, from results.json on."""

import csv
import io
import json
import sys

import pytest
from report_runs import add, log

import memexp
from memexp import unread
from memexp.overriding import quoted
from memexp.report import looks, plots, published, report, tables, write_report
from memexp.report.collect import Run, find, group
from memexp.report.experiments import shown
from memexp.report.settings import varying
from memexp.units import shown_bytes, shown_figure


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


def test_latex_escapes_and_markdown_is_written_with_its_plots(tmp_path):
    for depth in (32, 110):
        add(tmp_path, f"a{depth}", depth=depth, top1=70 + depth / 100)
    text = write_report([tmp_path], tmp_path / "out", form="latex")
    assert r"top-1 (\%)" in text
    assert text.splitlines()[1].startswith(r"\begin{tabular}")
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


@pytest.mark.parametrize(("starts", "groups"), [(["x/tied-0", "x/tied-1"], [2]), (["x/a", "x/b"], [1, 1])])
def test_seeds_that_start_from_runs_of_their_own_are_one_group(tmp_path, starts, groups):
    for seed, start in enumerate(starts):
        config = {"model": {"name": "resnet", "depth": 32, "init_from": start}}
        overrides = [f"model.init_from='{start}'"]
        add(tmp_path, f"r{seed}", seed=seed, config=config, overrides=overrides)
    assert [len(members.runs) for members in group(find([tmp_path])[0])] == groups


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


def test_runs_that_did_not_end_are_shown_but_not_averaged(tmp_path):
    add(tmp_path, "a", top1=70.0, seed=0)
    add(tmp_path, "b", top1=5.0, seed=1, status="interrupted", error="stopped by SIGTERM")
    add(tmp_path, "c", top1=5.0, seed=2, status="running")
    text = write_report([tmp_path], tmp_path, form="markdown", plots=False)
    assert "| 1 done, 1 interrupted, 1 running | 1 | 70.00 |" in text
    assert "b: interrupted: stopped by SIGTERM" in write_report([tmp_path], tmp_path, form="markdown", plots=False)
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
    styles = [(style["color"], style["marker"], style["linestyle"]) for style in map(looks.style_of, range(24))]
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


def test_a_line_against_a_setting_that_is_a_list_has_its_mean(tmp_path):
    for units in ([2, 2, 2, 2], [4, 4, 5, 3]):
        told = [f"model.units={units}"]
        add(tmp_path, f"{units}", config={"model": {"name": "resnet", "units": units}}, overrides=told)
    (picture,) = [spec for spec in shown("node/fig3a")["pictures"] if not isinstance(spec, str)]
    (line,) = plots.lines(group(find([tmp_path])[0]), picture).axes[0].containers
    assert line.lines[0].get_xdata().tolist() == [2, 4]


def test_a_legend_names_the_lines_of_every_panel(tmp_path):
    for dataset, model in (("cifar10", "resnet"), ("digits", "resnet"), ("digits", "revnet")):
        for depth in (8, 14):
            add(tmp_path, f"{dataset}-{model}-{depth}", model=model, depth=depth, dataset=dataset)
    spec = {"x": "model.depth", "x_label": "depth", "y": "accuracy.top1", "y_label": "%", "panels": "dataset"}
    (legend,) = plots.lines(group(find([tmp_path])[0]), spec).legends
    assert [text.get_text() for text in legend.get_texts()] == ["resnet", "revnet"]


def test_a_legend_names_settings_outside_of_groups(tmp_path):
    for i, batch in enumerate((50, 100)):
        config = {"model": {"name": "resnet", "depth": 32}, "batch_size": batch}
        overrides = ["model=resnet", "model.depth=32", f"batch_size={batch}"]
        add(tmp_path, f"r{i}", config=config, overrides=overrides)
    axes = plots.accuracy_against_memory(group(find([tmp_path])[0])).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["batch_size 50", "batch_size 100"]
    assert axes.get_xlabel() == "peak memory (MiB; tracked)"


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


def test_e2_exports_are_long_with_plain_numbers_and_a_file_a_table(tmp_path):
    for seed in (0, 1):
        add(tmp_path, f"a{seed}", depth=1001, seed=seed, top1=70.0 + seed)
    add(tmp_path, "b", depth=110, status="oom", error="out of memory\ntry less, and again", memory=None, accuracy=None)
    text = write_report([tmp_path], tmp_path / "out", form="csv", paper="revnet/table3")
    files = {path.stem: list(csv.DictReader(path.open())) for path in (tmp_path / "out").glob("*.csv")}
    assert sorted(files) == ["published", "runs"]
    assert text == (tmp_path / "out" / "published.csv").read_text().rstrip("\n")
    first, second, failed = files["runs"]
    assert (first["seed"], second["seed"], first["model.depth"]) == ("0", "1", "1001")
    assert float(first["memory.peak"]) == 1001 * 2**20
    assert float(second["accuracy.top1"]) == 71
    assert float(first["time.step_median"]) == pytest.approx(1.001)
    assert (failed["status"], failed["memory.peak"], failed["error"]) == (
        "oom",
        "",
        "out of memory\ntry less, and again",
    )
    told = json.loads(write_report([tmp_path], tmp_path / "out", form="json", plots=False))
    assert told == json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["memory.peak"] for row in told["runs"]] == [1001 * 2**20, 1001 * 2**20, None]


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


@pytest.mark.parametrize(("done", "title"), [(["done"], "# Runs of net"), ([], "# Runs of runs")])
def test_a_run_that_was_refused_before_it_had_a_name_is_in_no_title(tmp_path, done, title):
    for folder in done:
        add(tmp_path / "runs", folder, name="net")
    add(tmp_path / "runs", "refused", status="failed", error="model: depth=8 is no RevNet")
    write_report([tmp_path / "runs"], tmp_path / "out", plots=False)
    assert (tmp_path / "out" / "report.md").read_text().splitlines()[0] == title


def test_b16_a_report_is_understood_alone(tmp_path):
    for depth in (32, 110):
        add(tmp_path / "runs", f"d{depth}", depth=depth, name="resnet-cifar10")
        environment = {
            "git": {"commit": "0123abcd", "dirty": True},
            "processor": "A CPU",
            "started": "2026-01-31T12:00",
        }
        environment |= {"versions": {"memexp": "0.1.0", "torch": "2.14.1"}, "python": "3.12.1"}
        (tmp_path / "runs" / f"d{depth}" / "environment.json").write_text(json.dumps(environment))
    write_report([tmp_path / "runs"], tmp_path / "out")
    document = (tmp_path / "out" / "report.md").read_text()
    assert document.startswith("# Runs of resnet-cifar10\n")
    for told in (
        f"by `memexp report {tmp_path / 'runs'}`",
        "2 runs, 2 done, started 2026-01-31.",
        "Device: A CPU.",
        "Code: commit 0123abcd with changes. memexp 0.1.0, torch 2.14.1",
        "    memexp train model=resnet model.depth=110 seed=0",
        "In all runs: model=resnet, dataset=cifar10",
        "![time-depth](plots/time-depth.png)",
    ):
        assert told in document
    assert "Step time against depth" in (tmp_path / "out" / "plots" / "time-depth.svg").read_text()


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.0423, 1, "0.042"),
        (0.96, 1, "0.96"),
        (12345.678, 1, "12,345.7"),
        (3.0, 1, "3.0"),
        (1000, 0, "1,000"),
        (0, 1, "0.0"),
        (0.000123, 2, "0.00012"),
        (float("nan"), 1, "nan"),
    ],
)
def test_b16_a_figure_has_two_significant_digits_at_least(value, decimals, text):
    assert shown_figure(value, decimals) == text


def test_b16_memory_is_told_in_one_unit():
    assert [shown_bytes(count) for count in (1, 2**20, 11e9)] == ["0.00000095 MiB", "1.0 MiB", "10,490.4 MiB"]


def test_e6_reports_are_records_for_programs_and_write_only_where_they_are_told(tmp_path):
    add(tmp_path, "a")
    found = memexp.report(tmp_path, paper="revnet/table3", plots=False)
    assert [row["run"] for row in found["runs"]] == [str(tmp_path / "a")]
    assert found["published"][0]["difference"] == pytest.approx(found["published"][0]["measured"] - 7.14)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    memexp.report([str(tmp_path)], output=str(tmp_path / "out"))
    assert (tmp_path / "out" / "report.md").exists()


def test_a_table_on_a_terminal_of_few_characters_is_drawn_with_those(monkeypatch):
    table = tables.Table(["model", "top-1"], [["resnet", "92.1"]])
    for encoding, drawn in (("utf-8", "┏"), ("ascii", "+"), ("latin-1", "+")):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert tables.terminal(table).startswith(drawn)
        tables.terminal(table).encode(encoding)


@pytest.mark.parametrize("text", ["it's", "a\\b", "it\\'s", "end\\", "two\\\\", 'the "best"', "", "plain"])
def test_an_override_is_told_as_hydra_reads_it(tmp_path, text):
    results = {"schema": 2, "status": "failed", "overrides": [f"arm={quoted(text)}", r"name=a\,b"]}
    assert Run(tmp_path, results).overrides == {"arm": text, "name": "a,b"}


def test_what_a_job_without_a_configuration_was_told_stands_without_quotes(tmp_path):
    told = ["arm='it\\'s 5, \\'a\\''", "prune.target=latency\\:0.7", 'model.width="2"', "seed=1"]
    results = {"schema": 2, "status": "failed", "error": "refused", "overrides": told}
    (tmp_path / "results.json").write_text(json.dumps(results))
    (run,), _ = find([tmp_path])
    asked = ("arm", "prune.target", "model.width", "seed")
    assert [run.setting(key) for key in asked] == ["it's 5, 'a'", "latency:0.7", "2", "1"]


def test_figures_stand_to_the_right_in_latex_whatever_their_heading():
    rows = [["ResNet-32", "done", "2", "93.1 ± 0.2", "464,154"], ["[4, 8]", "oom", "0", "-", "1.7e+06"]]
    text = tables.latex(tables.Table(["model", "status", "n", "top-1 (%)", "parameters"], rows))
    assert r"\begin{tabular}{llrrr}" in text


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
    ],
)
def test_what_was_typed_and_nothing_reads_is_told(overrides, told):
    found = unread.typed(memexp.compose(overrides), overrides)
    assert [text.partition(" has no effect: ")[0] for text in found] == told
