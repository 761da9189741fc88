"""A figure says which images it is of, and over how many of what."""

import pytest
from report_runs import add, log

from memexp.report import plots, report, write_report
from memexp.report.collect import find, group


def of(key: str, split: str, top1: float, **more) -> dict:
    return {"key": key, "accuracy": {"top1": top1, "split": split}, **more}


def test_accuracy_before_a_stage_that_looks_at_other_images_is_not_known(tmp_path):
    """Validation accuracy stood as what evaluate had changed into test accuracy."""
    pruned = of("prune", "val", 60.0, before={"top1": 90.0}, prune={})
    add(tmp_path, "a", stages=[of("train", "val", 90.0), pruned, of("evaluate", "test", 55.0)])
    text = write_report([tmp_path], tmp_path / "out", form="markdown", plots=False)
    rows = [line.strip("| ").split(" | ")[3:5] for line in text.splitlines() if line.startswith("| resnet | ")][1:]
    assert rows == [["-", "90.00"], ["90.00", "60.00"], ["-", "55.00"]]
    assert "top-1: of val images: train, prune; of test images: evaluate." in text
    assert [row["accuracy.split"] for row in report(tmp_path)["stages"]] == ["val", "val", "test"]


@pytest.mark.parametrize(
    ("splits", "told"),
    [
        (["test", "test"], None),
        (["val", "val"], "top-1 and error: of val images, not of the test split."),
        (["val", "test"], "top-1 and error of run0: of val images, not of the test split."),
    ],
)
def test_accuracy_of_runs_without_the_stage_evaluate_is_said_to_be_of_val_images(tmp_path, splits, told):
    for i, split in enumerate(splits):
        add(tmp_path, f"run{i}", depth=32 + i, accuracy={"top1": 50.0, "split": split})
    lines = write_report([tmp_path], tmp_path / "out", form="markdown", plots=False).splitlines()
    assert [line for line in lines if "images, not of" in line] == ([told] if told else [])
    assert [run["accuracy.split"] for run in report(tmp_path)["runs"]] == splits


def test_curves_of_accuracy_name_the_images(tmp_path):
    for i, split in enumerate(("val", "test")):
        add(tmp_path, f"run{i}", depth=32 + i, stages=[of("train", split, 50.0)])
        log(tmp_path, f"run{i}", *({"split": split, "epoch": e, "top1": 50.0 + e} for e in (1, 2)))
    figure = plots.curves(group(find([tmp_path])[0]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["top-1 accuracy (%; of test and val images)"]


def test_a_curve_takes_the_mean_of_a_seed_that_was_run_several_times(tmp_path):
    """As the table does, which says so."""
    for name, seed, top1 in (("a", 0, 50.0), ("b", 0, 54.0), ("c", 1, 62.0)):
        add(tmp_path, name, seed=seed)
        log(tmp_path, name, *({"split": "test", "epoch": e, "top1": top1 + e} for e in (1, 2)))
    (members,) = group(find([tmp_path])[0])
    assert plots._mean_curve(members, "", "top1")[1] == [58.0, 59.0]
    assert plots._mean_curve(members, "", "top1")[3] == 2


@pytest.mark.parametrize(
    ("noted", "label", "first"), [(120, "", [0.1, 1.0]), (240, " (means over 0.4 epochs)", [0.4, 2.5])]
)
def test_a_curve_that_is_noted_often_is_averaged_and_says_so(tmp_path, noted, label, first):
    """Four jagged lines of loss hid one another."""
    add(tmp_path, "a")
    log(tmp_path, "a", *({"split": "train", "epoch": 0.1 * i, "loss": float(i)} for i in range(1, noted + 1)))
    axes = plots.curves(group(find([tmp_path])[0])).axes[0]
    assert axes.get_ylabel() == "training loss" + label
    xs, ys = (axes.get_lines()[0].get_data()[i] for i in (0, 1))
    assert [xs[0], ys[0]] == pytest.approx(first)
    assert [xs[-1], ys[-1]] == pytest.approx([0.1 * noted, noted - (first[1] - 1)])


def test_accuracy_is_drawn_as_it_was_evaluated_however_often(tmp_path):
    """160 epochs, each evaluated: the last point is the accuracy of the table."""
    add(tmp_path, "a")
    log(tmp_path, "a", *({"split": "test", "epoch": e, "top1": float(e % 7)} for e in range(1, 161)))
    axes = plots.curves(group(find([tmp_path])[0])).axes[0]
    assert axes.get_ylabel() == "top-1 accuracy (%)"
    assert [*axes.get_lines()[0].get_ydata()] == [float(e % 7) for e in range(1, 161)]


def test_bars_of_points_are_in_the_unit_of_the_figure(tmp_path):
    for i, (depth, seed) in enumerate([(32, 0), (32, 1), (110, 0), (110, 1)]):
        add(tmp_path, f"run{i}", depth=depth, seed=seed, memory={"peak": (depth + seed) * 2**20})
    spec = {"x": "parameters", "x_label": "", "y": "memory.peak", "divisor": 2**20, "y_label": ""}
    axes = plots.points(group(find([tmp_path])[0]), spec).axes[0]
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(0.5**0.5)
