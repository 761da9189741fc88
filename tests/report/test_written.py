"""What a report writes: documents, exports, figures and names in each format."""

import csv
import io
import json
import sys

import pytest
from report_runs import add

import memexp
from memexp.overriding import quoted
from memexp.report import tables, write_report
from memexp.report.collect import Run, find
from memexp.units import shown_bytes, shown_figure


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
