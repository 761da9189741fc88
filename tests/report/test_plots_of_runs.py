"""Plots of runs: panels, lines, legends."""

import io
import itertools

import pytest
from report_runs import add, log

from memexp.report import files, looks, plots, scores
from memexp.report.collect import find, group
from memexp.report.experiments import shown


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


@pytest.mark.parametrize(
    ("count", "name"), [(2, "short"), (2, "one long name, of many parts, " * 5), (2, "n" * 70), (30, "n" * 70)]
)
def test_a_legend_hides_neither_points_nor_itself(tmp_path, count, name):
    for i in range(count):
        add(tmp_path, f"r{i:02}", config={"model": {"name": "resnet"}, "arm": f"{name} {i}"})
    figure = plots.accuracy_against_memory(group(find([tmp_path])[0]))
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    drawn = axes.get_legend() or figure.legends[0]
    box, place = drawn.get_window_extent(), axes.get_window_extent()
    assert place.width > 2.5 * figure.dpi
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    assert drawn is axes.get_legend() or box.x0 >= place.x1
    assert box.width < place.width / 2 or drawn is not axes.get_legend()


@pytest.mark.parametrize("name", ["resnet", "somebody.networks.residual.make_network", "n" * 90])
def test_a_title_stands_inside_of_its_picture(tmp_path, name):
    for i in range(2):
        add(tmp_path, f"r{i}", model=name, dataset=name, config={"arm": f"arm {i}"})
    groups = group(find([tmp_path])[0])
    figure = plots.accuracy_against_memory(groups)
    looks.entitle(figure, "Accuracy", [run for members in groups for run in members.runs])
    figure.savefig(io.BytesIO())
    box = figure._suptitle.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert figure.get_suptitle().startswith(f"Accuracy\n{name[:60]}")


def test_nor_does_a_layer_s_name_reach_into_the_panel_beside_it():
    layers = [[f"backbone.stages.3.blocks.{i}.token_mixers.spatial.mlp.fc1", "b"] for i in range(4)]
    figure = scores.draw([{"layers": names, "scores": [1.0, 2.0], "kept": [1]} for names in layers], "l1_norm")
    figure.savefig(io.BytesIO())
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert figure.axes[0].get_title().replace("\n", "") == f"{layers[0][0]} and 1 more"


def test_removed_channels_are_named_where_the_first_layer_has_kept_all():
    layers = [{"layers": [name], "scores": [1.0, 2.0], "kept": kept} for name, kept in (("a", [0, 1]), ("b", [1]))]
    legend = scores.draw(layers, "l1_norm").axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["kept", "removed"]


def test_letters_that_the_font_lacks_are_said_once(tmp_path, caplog, recwarn):
    figure, axes = looks.new_figure("x", "y")
    axes.set_title("日本 日")
    caplog.set_level("WARNING", "memexp")
    files.save(figure, tmp_path, "a")
    assert caplog.messages == ["warning: a.png: its font has no letters for 日本, and boxes stand for them"]
    assert not recwarn.list


def test_a_legend_names_settings_outside_of_groups(tmp_path):
    for i, batch in enumerate((50, 100)):
        config = {"model": {"name": "resnet", "depth": 32}, "batch_size": batch}
        overrides = ["model=resnet", "model.depth=32", f"batch_size={batch}"]
        add(tmp_path, f"r{i}", config=config, overrides=overrides)
    axes = plots.accuracy_against_memory(group(find([tmp_path])[0])).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["batch_size 50", "batch_size 100"]
    assert axes.get_xlabel() == "peak memory (MiB; tracked)"


@pytest.mark.parametrize(
    ("setting", "told"), [({"prune": {"name": "l1_norm", "ratio": 0.5}}, "prune"), ({"clip_grad": 1.0}, "clip_grad")]
)
def test_a_legend_names_what_lacks_that_which_sets_the_others_apart(tmp_path, setting, told):
    (key,) = setting
    for folder, value, typed in (("a", None, "null"), ("b", setting[key], "1.0")):
        config = {"model": {"name": "resnet", "depth": 32}, key: value}
        add(tmp_path, folder, config=config, overrides=[f"{key}={typed}"])
    axes = plots.accuracy_against_memory(group(find([tmp_path])[0])).axes[0]
    assert axes.get_legend().get_texts()[0].get_text() == f"without {told}"
