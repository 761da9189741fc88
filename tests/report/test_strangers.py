"""Texts of a run that steer a terminal, carry markup or lead elsewhere, in every form of a report."""

import json

import pytest
from markdown_it import MarkdownIt
from report_runs import add, log

from memexp.record import NotWritten
from memexp.report import report, write_report
from memexp.report.tables import in_markdown
from memexp.visible import all_visible, visible

EVIL = "\x1b]0;owned\x07<script>alert(1)</script> [b](http://x) `c` $\\frac$ | _d_ \u202e%\n# x"


@pytest.fixture
def evil(tmp_path):
    for depth in (32, 110):
        more = {"name": EVIL, "backprop": EVIL + str(depth), "error": EVIL, "memory": {"peak": depth, "how": EVIL}}
        add(tmp_path, f"a\x1b[2J{depth}", depth=depth, **more, overrides=[f"backprop={EVIL}{depth}"])
        log(tmp_path, f"a\x1b[2J{depth}", *({"split": "train", "epoch": e, "loss": 1.0} for e in (1, 2)))
    add(tmp_path, "failed", status="failed", error=EVIL, overrides=[f"model.depth={EVIL}"], config=EVIL)
    return tmp_path


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "csv", "json"])
def test_b7_control_sequences_are_shown_escaped_and_run_nothing(evil, form):
    text = write_report([evil], evil / "out", form=form)
    shown = text + (evil / "out" / "report.md").read_text()
    assert "\\x1b]0;owned\\x07" in text.replace("\\\\", "\\").replace("\\textbackslash{}", "\\").replace("\\]", "]")
    assert not [character for character in shown if character in "\x1b\x07\u202e"]


def test_b7_html_and_markup_are_text_in_markdown(evil):
    text = write_report([evil], evil / "out", form="markdown")
    document = (evil / "out" / "report.md").read_text()
    for shown in (text, document):
        assert "&lt;script&gt;alert(1)&lt;/script&gt; \\[b\\](http://x)" in shown
        assert "\n# x" not in shown
    commands = [line for line in document.splitlines() if "<script>" in line]
    assert all(line.startswith("    memexp train") for line in commands)  # a block of code, in which there is no markup
    assert in_markdown("# a") == "\\# a"
    assert in_markdown("-") == "-"


@pytest.mark.parametrize(
    "text", ["_d_", "__init__", "model._target_=mine.network", "x _y_", "a_b", "a__b_", "batch_size=3"]
)
def test_underscores_are_no_emphasis(text):
    """model._target_ was shown without its underscores."""
    assert MarkdownIt().render(in_markdown(text)) == f"<p>{text}</p>\n"
    assert in_markdown("batch_size") == "batch_size"


def test_b7_latex_has_no_line_that_leaves_its_comment(evil):
    text = write_report([evil], evil / "out", form="latex", plots=False)
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    assert r"\textless{}script\textgreater{}" in body
    outside = text.replace(body, "").splitlines()
    assert all(line.startswith(("%", r"\end")) for line in outside)


def test_b7_plots_show_formulas_and_names_as_they_are(evil):
    write_report([evil], evil / "out")
    assert "alert(1)" in (evil / "out" / "plots" / "curves.svg").read_text()
    assert "<script>alert" not in (evil / "out" / "plots" / "curves.svg").read_text()


def test_visible_text_is_left_as_it_is():
    for text in ("résumé 図", "a\\b", "plain"):
        assert visible(text) == text
    assert all_visible({"a\x1b": ["\x07", {"b": "\u2028"}, 3, None]}) == {
        "a\\x1b": ["\\x07", {"b": "\\u2028"}, 3, None]
    }


@pytest.mark.parametrize("key", ["config", "stages", "memory", "time", "overrides", "study", "accuracy", "numbers"])
def test_b6_a_field_of_another_kind_leaves_the_other_runs_in_the_report(tmp_path, key):
    add(tmp_path, "good", depth=32)
    for number, value in enumerate((3, "text", [1, "a"], {"key": {"name": [3]}})):
        add(tmp_path, f"odd{number}", **{"depth": 110, key: value})
    assert "| 32 |" in write_report([tmp_path], tmp_path, form="markdown") or key == "config"
    assert len(report(tmp_path)["runs"]) == 5


@pytest.mark.parametrize(
    "told",
    [
        {"prune": 3},
        {"prune": {"costs": 3, "draws": 3, "sparsity": [1]}},
        {
            "prune": {
                "costs": {"before": 3, "after": {"bytes": 1}},
                "draws": [3, {"top1": "x"}],
                "sparsity": {"masked": {}},
            }
        },
        {"deploy": {"costs": {"trained": {"bytes": "x", "latency": 1}, "all": 3}, "merge": {}}},
        {"key": "discretise", "sizes": [3, {"size": "x"}, {"size": 0.5, "accuracy": 3, "bytes": []}]},
    ],
)
def test_b6_figures_of_another_kind_in_a_stage_leave_the_report(tmp_path, told):
    add(tmp_path, "odd", stages=[{"key": "prune", **told}])
    assert "resnet" in write_report([tmp_path], tmp_path, form="markdown", plots=False)
    assert len(report(tmp_path)["runs"]) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"config": {"model": {"units": 3}}},
        {"config": {"prune": {"name": "l1_norm", "rounds": 1e999}}},
        {"config": {"stages": [1, "train"]}},
        {"stages": [{"key": "train", "accuracy": 5}]},
        {"steps": 1e999, "accuracy": {"loss": float("nan")}},
    ],
    ids=["units", "rounds", "stages", "accuracy", "no numbers"],
)
def test_b6_a_value_of_another_kind_deep_inside_leaves_the_report(tmp_path, more):
    add(tmp_path, "odd", **more)
    add(tmp_path, "good", depth=110)
    lines = [{"split": "train", "epoch": e, "loss": e} for e in (1, float("nan"), 1e999, 10**400, "x", [2], 3)]
    log(tmp_path, "good", *lines * 40)
    assert write_report([tmp_path], tmp_path, form="markdown").count("| done |") == 2

    def refused(constant: str) -> None:
        raise ValueError(f"JSON has no {constant}")

    json.loads(write_report([tmp_path], tmp_path, form="json", plots=False), parse_constant=refused)


def test_a_report_is_not_written_through_links(tmp_path):
    add(tmp_path / "runs", "a")
    add(tmp_path / "runs", "b", depth=110)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "plots").mkdir(parents=True)
    (elsewhere / "victim").write_text("mine")
    for name in ("report.md", "report.json", "runs.csv"):
        (tmp_path / "runs" / name).symlink_to(elsewhere / "victim")
    for form in ("csv", "json"):
        write_report([tmp_path / "runs"], tmp_path / "runs", form=form)
        assert (elsewhere / "victim").read_text() == "mine"
    assert not (tmp_path / "runs" / "report.md").is_symlink()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "plots").symlink_to(elsewhere / "plots")
    with pytest.raises(NotWritten, match="plots is a symbolic link") as refused:
        write_report([tmp_path / "runs"], tmp_path / "linked", form="json")
    assert len(json.loads(refused.value.told)["runs"]) == 2
    assert list((elsewhere / "plots").iterdir()) == []
