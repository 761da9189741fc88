"""What an experiment's report says of its claim, and the figures and pictures that it names."""

import pytest
import yaml
from report_runs import add, log

from memexp.paths import CONF
from memexp.report import claims, experiments, plots, published, report, write_report
from memexp.report.collect import find, group
from memexp.report.tables import COLUMNS
from memexp.sweeper import count

HEADINGS = [column[0] for column in COLUMNS]
IDS = [name for name, _ in experiments.listing(CONF)]


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Declares what is to be shown of the experiment x, and gives its runs back as groups."""
    monkeypatch.setattr(experiments, "DATA", tmp_path / "shown")
    experiments.shown.cache_clear()

    def declared(runs: list[dict], **about):
        (tmp_path / "shown").mkdir(exist_ok=True)
        (tmp_path / "shown" / "x.yaml").write_text(yaml.safe_dump(about))
        for i, run in enumerate(runs):
            arm, depth = run.pop("arm"), run.pop("depth", 32)
            config = {"arm": arm, "model": {"name": "resnet", "depth": depth}, "batch_size": 100}
            add(tmp_path / "runs", f"r{i}", depth=depth, experiment="x", config=config, **run)
        return group(find([tmp_path / "runs"])[0])

    yield declared
    experiments.shown.cache_clear()


def check(**more):
    return {"figure": "accuracy.top1", "of": {"arm": "A"}, "than": {"arm": "B"}, **more}


@pytest.mark.parametrize(
    ("checks", "says"),
    [
        (
            [check(least=-3)],
            "These runs show it: the comparison holds (top-1 (%) of A against B: 70.00 against 72.00 (at least -3)).",
        ),
        (
            [check(least=0)],
            "These runs do not show it: 0 of 1 comparisons hold; not top-1 (%) of A against B: 70.00 against 72.00 "
            "(at least +0).",
        ),
        ([check(least=0), check(most=0)], "These runs show it in part: 1 of 2"),
        ([check(than=70.0, least=0, most=0)], "the comparison holds"),
        ([check(ratio=True, least=0.97, most=0.98)], "the comparison holds"),
        ([check(than={"figure": "accuracy.error"}, least=39, most=41)], "the comparison holds"),
        ([check(than={"arm": "C"}, least=0)], "These runs cannot say"),
        (
            [check(least=-3), check(than={"arm": "C"})],
            "show it in part: the comparison that could be made holds (top-1 (%) of A against B: 70.00 against 72.00 "
            "(at least -3)). 1 more could not be made.",
        ),
        (
            [check(than=70.0, above=0)],
            "do not show it: 0 of 1 comparisons hold; not top-1 (%) of A",
        ),  # a tie is no gain
        ([check(than=70.0, least=0, most=0)], "(just +0)"),
        (
            [check(figure="memory.activations", ratio=True, most=1)],
            "activations (MiB) of A against B: 16.00 against 16.00",
        ),
        ([check(over="model.depth", than=None, least=0)], "These runs cannot say"),  # of one depth
        ([check(over="model.depth", than=None, ratio=True, most=1.1)], "These runs cannot say"),
    ],
)
def test_a_verdict_is_that_of_its_comparisons(experiment, checks, says):
    groups = experiment(
        [{"arm": "A", "top1": 70.0}, {"arm": "B", "top1": 72.0}], claim="A is as good as B.", checks=checks
    )
    first, second = claims.verdict(groups)
    assert first == "Claimed: A is as good as B."
    assert says in second


def test_runs_are_compared_with_those_of_their_scale_and_length(experiment):
    at = [("laptop", 1, 40.0, 30.0), ("laptop", 3, 50.0, 45.0), ("paper", 160, 90.0, 92.0)]
    runs = [
        {"arm": arm, "top1": top1, "scale": scale, "overrides": [f"epochs={epochs}"]}
        for scale, epochs, *both in at
        for arm, top1 in zip("AB", both, strict=True)
    ]
    refused = {"arm": "B", "status": "failed", "accuracy": None, "overrides": ["scale=laptop"]}
    groups = experiment([*runs, refused], claim="c", checks=[check(above=0)])
    _, small, full = claims.verdict(groups)
    assert "at the small scale, show it: all 2 comparisons hold" in small
    assert "of A, 1 against B: 40.00 against 30.00" in small.replace("epochs ", "")
    assert "at scale=paper, do not show it" in full
    assert "90.00 against 92.00" in full


@pytest.mark.parametrize(
    ("status", "diverged", "says"),
    [
        (
            "nan",
            True,
            "show it: the comparison holds (top-1 (%) of A against B: ended in nan against 60.00 (at most -5))",
        ),
        ("nan", False, "cannot say"),
        ("failed", True, "cannot say"),
    ],
)
def test_a_run_that_diverged_shows_what_does_not_train(experiment, status, diverged, says):
    runs = [{"arm": "A", "status": status, "accuracy": None}, {"arm": "B", "top1": 60.0}]
    groups = experiment(runs, claim="A does not train.", checks=[check(most=-5, diverged=diverged)])
    assert says in claims.verdict(groups)[1]


def test_comparisons_are_made_for_each_value_and_over_a_setting(experiment):
    runs = [
        {"arm": arm, "depth": depth, "top1": top1}
        for arm, depth, top1 in (("A", 8, 60.0), ("A", 32, 70.0), ("B", 8, 50.0))
    ]
    runs.append({"arm": "B", "depth": 32, "top1": 75.0})
    groups = experiment(runs, claim="c")
    each = list(claims.compared(groups, check(least=0, each=["model.depth"])))
    assert [(one.left, one.right, one.holds) for one in each] == [(60, 50, True), (70, 75, False)]
    (over,) = claims.compared(
        groups, {"figure": "accuracy.top1", "of": {"arm": "A"}, "over": "model.depth", "least": 5}
    )
    assert (over.left, over.right, over.holds) == (70, 60, True)


def test_an_experiments_own_figures_are_its_columns_and_its_first_picture(experiment, tmp_path):
    stages = [{"key": "prune", "accuracy": {"top1": 33.0}, "prune": {"parameters": {"before": 100, "after": 60}}}]
    runs = [{"arm": name, "depth": depth, "stages": stages} for name in "AB" for depth in (8, 14)]
    own = {"heading": "before tuning (%)", "key": "stages.prune.accuracy.top1"}
    left = {"heading": "left (%)", "key": "kept", "divisor": 0.01, "decimals": 0}
    picture = {"name": "own", "title": "T", "kind": "lines", "x": "model.depth", "x_label": "depth", "y": own["key"]}
    experiment(runs, columns=[own, left, "parameters"], pictures=[picture | {"y_label": "y (%)"}, "accuracy-depth"])
    text = write_report([tmp_path / "runs"], tmp_path / "out", form="markdown")
    assert "| arm | model.depth | status | n | before tuning (%) | left (%) | parameters |" in text
    assert "| B | 14 | done | 1 | 33.00 | 60 | 14,000 |" in text
    document = (tmp_path / "out" / "report.md").read_text()
    assert document.index("plots/own.png") < document.index("plots/accuracy-depth.png")
    assert "memory-depth" not in document
    record = report(tmp_path / "runs")["runs"][0]
    assert (record["arm"], record[own["key"]], record["kept"]) == ("A", 33.0, 0.6)
    assert (tmp_path / "out" / "plots" / "own.pdf").read_bytes().startswith(b"%PDF")


def test_seeds_are_a_band_around_their_mean(experiment, tmp_path):
    groups = experiment([{"arm": "A", "seed": seed} for seed in (0, 1)] + [{"arm": "B"}])
    for folder, losses in (("r0", (2.0, 1.0)), ("r1", (3.0, 2.0)), ("r2", (1.0, 0.5))):
        log(tmp_path / "runs", folder, *({"split": "train", "epoch": e + 1, "loss": y} for e, y in enumerate(losses)))
    axes = plots.curves(groups).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2.5, 1.5], [1.0, 0.5]]
    (band,) = axes.collections
    (alone,) = plots.curves(groups[:1]).axes[0].get_legend().get_texts()
    assert alone.get_text() == "A"
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (pytest.approx(1.5 - 0.5**0.5), pytest.approx(2.5 + 0.5**0.5))


def test_a_report_of_a_sweep_is_understood_alone(experiment, tmp_path):
    experiment([{"arm": "A"}, {"arm": "B", "depth": 14}], claim="c", checks=[])
    (tmp_path / "sweep").mkdir()
    told = {"hydra": {"overrides": {"task": ["experiment=x", "scale=laptop"]}}}
    (tmp_path / "sweep" / "multirun.yaml").write_text(yaml.safe_dump(told))
    write_report([tmp_path / "runs"], tmp_path / "sweep", form="markdown", plots=False)
    document = (tmp_path / "sweep" / "report.md").read_text()
    assert "by `memexp train -m experiment=x scale=laptop`" in document
    assert "- [r0](../runs/r0/results.json): A, done" in document
    assert "Claimed: c" in document


def test_what_only_some_runs_have_is_not_said_of_all(tmp_path):
    add(tmp_path, "a", deploy="fuse")
    add(tmp_path, "b", depth=14)
    text = write_report([tmp_path], tmp_path, form="markdown", plots=False)
    assert "deploy=" not in text.splitlines()[0]


def test_a_table_says_which_groups_of_channels_are_continuous(tmp_path):
    stage = {
        "key": "discretise",
        "continuous": {"stem.0": 16},
        "not_continuous": {"head.4.weight[0]": "the network's output"},
    }
    add(tmp_path, "a", config={"model": {"name": "inn", "base": "resnet20"}}, stages=[stage])
    text = write_report([tmp_path], tmp_path, form="terminal", plots=False)
    assert "continuous groups of channels of resnet20: stem.0; discrete: head.4.weight[0]." in text


@pytest.mark.parametrize("identifier", IDS)
def test_every_experiment_says_what_was_claimed_in_terms_that_a_report_knows(identifier):
    about = experiments.shown(identifier)
    assert about["claim"].endswith(".")
    for one in about["checks"]:
        known = {"figure", "name", "of", "than", "over", "least", "most", "above", "ratio", "each", "diverged"}
        assert {"figure"} <= one.keys() <= known
        assert {"least", "most", "above"} & one.keys()
        assert {"than", "over"} & one.keys()
    for column in about.get("columns", ()):
        assert (
            column in HEADINGS
            if isinstance(column, str)
            else column.keys() <= {"heading", "key", "divisor", "decimals"}
        )
    for picture in about["pictures"]:
        if isinstance(picture, str):
            assert picture in plots.PLOTS
        else:
            assert {"name", "title", "x_label", "y_label"} <= picture.keys()
            assert picture["kind"] in plots.KINDS
    arms = _arms(identifier)
    told = [side["arm"] for one in about["checks"] for side in (one.get("of"), one.get("than")) if _has_arm(side)]
    if identifier in published.identifiers():
        told += [row["match"]["arm"] for row in published.load(identifier)["rows"] if "arm" in row["match"]]
    assert set(told) <= arms


def _has_arm(side):
    return isinstance(side, dict) and "arm" in side


def _arms(identifier):
    """Those that its sweep names, at either scale."""
    text = (CONF / "experiment" / f"{identifier}.yaml").read_text()
    node = yaml.safe_load(text.replace("# @package _global_", ""))
    cases = node.get("hydra", {}).get("sweeper", {}).get("cases", {})
    scales = [node["case"].get(scale, {}).get("cases", {}) for scale in experiments.SCALES]
    return {name for found in (cases, *scales) if isinstance(found, dict) for name in found}


def test_the_table_of_experiments_has_runs_and_time_at_both_scales(capsys):
    from memexp.cli import main

    assert experiments.expected(CONF, "revnet/table3", count) == {
        "paper": (12, "50 GPU-hours"),
        "laptop": (8, "30 core-minutes"),
    }
    assert all(time != "-" for name in IDS for _, time in experiments.expected(CONF, name, count).values())
    assert main(["experiments"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "prune/criteria" in line)
    assert "110 / 110" in row
