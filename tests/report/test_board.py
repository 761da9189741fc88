"""TensorBoard's pages, read with its own reader."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

import memexp
from memexp.config import run_name
from memexp.data import DataError
from memexp.training import pictures
from memexp.training.board import METRICS

TINY = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=32", "batch_size=16", "max_steps=4", "log_every=2"]
PLAIN = ["model=torchvision", "model.arch=squeezenet1_1"]  # has no depth
RESNET = ["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", *TINY, "device=cpu"]


def read(directory):
    found = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def hyper_parameters(directory):
    content = read(directory).summary_metadata
    parse = {name: metadata.parse_session_start_info_plugin_data for name in (metadata.SESSION_START_INFO_TAG,)}
    parse[metadata.SESSION_END_INFO_TAG] = metadata.parse_session_end_info_plugin_data
    parse[metadata.EXPERIMENT_TAG] = metadata.parse_experiment_plugin_data
    return {name: parse[name](content[name].plugin_data.content) for name in parse}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    memexp.run(memexp.compose(RESNET), root / "resnet", RESNET)
    memexp.run(memexp.compose([*PLAIN, *TINY, "device=cpu", "dataset.val_fraction=0.2"]), root / "plain")
    return root


def test_e5_hyper_parameters_stand_in_their_tab_alone_with_the_same_columns(runs):
    experiments = []
    for name in ("resnet", "plain"):
        found = hyper_parameters(runs / name)
        experiments.append(found[metadata.EXPERIMENT_TAG].SerializeToString())
        assert found[metadata.SESSION_END_INFO_TAG].status == api_pb2.STATUS_SUCCESS
        curves = read(runs / name).scalars
        assert [tag for tag in curves.Keys() if tag.startswith("hparam")] == []
        assert set(METRICS) <= set(curves.Keys())
        assert all(event.step > 0 for tag in curves.Keys() for event in curves.Items(tag))
    assert experiments[0] == experiments[1]
    settings = hyper_parameters(runs / "resnet")[metadata.SESSION_START_INFO_TAG].hparams
    assert settings["model"].string_value == "resnet"
    assert settings["max_steps"].number_value == 4
    columns = [info.name for info in hyper_parameters(runs / "plain")[metadata.EXPERIMENT_TAG].hparam_infos]
    assert {"depth", "backprop", "lr", "batch_size", "seed"} <= set(columns)


def test_e5_each_evaluation_is_a_point_once(runs):
    for name in ("resnet", "plain"):
        points = [event.step for event in read(runs / name).Scalars("accuracy/test_top1")]
        assert len(set(points)) == len(points) > 0


def test_e5_configuration_and_command_line_are_pages_of_text(runs):
    tensors = read(runs / "resnet").Tensors("configuration/text_summary")
    assert "    max_steps: 4" in tensors[0].tensor_proto.string_val[0].decode()
    line = read(runs / "resnet").Tensors("command line/text_summary")[0].tensor_proto.string_val[0].decode()
    assert line.startswith("    memexp train")
    assert "command line/text_summary" not in read(runs / "plain").Tags()["tensors"]  # a program's run


def test_e5_a_failed_run_is_there_too(tmp_path, monkeypatch):
    def broken(*arguments, **named):
        raise DataError("no images")

    monkeypatch.setattr("memexp.data.load", broken)
    with pytest.raises(DataError):
        memexp.run(memexp.compose(RESNET), tmp_path / "run")
    found = hyper_parameters(tmp_path / "run")
    assert found[metadata.SESSION_END_INFO_TAG].status == api_pb2.STATUS_FAILURE
    assert found[metadata.SESSION_START_INFO_TAG].hparams["model"].string_value == "resnet"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model=revnet", "model.depth=110", "backprop=reversible"], "-revnet-110-reversible-"),
        (["model=vgg16"], "-vgg16-stored-"),
    ],
)
def test_e5_a_runs_name_says_model_depth_and_strategy(overrides, told):
    assert told in run_name(memexp.compose(overrides))


@pytest.mark.parametrize(("classes", "side", "cells"), [(4, 44, 4), (40, 16, 40), (2400, 2, 800)])
def test_a_cell_of_the_confusion_matrix_has_the_colour_of_its_share(classes, side, cells):
    """Of more classes than a picture has room for, several share a cell; none is drawn by itself, which took minutes."""
    counts = torch.eye(classes, dtype=torch.int64) * 3
    counts[0, -1] = 3 * classes // cells  # half of the first row
    picture = pictures.confusion(counts, [str(number) for number in range(classes)])
    margin = picture.width - 10 - cells * side

    def colour(row, column):
        return picture.getpixel((margin + column * side + side - 1, margin + row * side))

    half = tuple(round((a + b) / 2) for a, b in zip(pictures.PAPER, pictures.BLUE, strict=True))
    assert [colour(0, 0), colour(0, cells - 1)] == [half, half]
    assert [colour(1, 1), colour(cells - 1, 0)] == [pictures.BLUE, pictures.PAPER]
