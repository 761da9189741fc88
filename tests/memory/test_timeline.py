"""The plot of live memory over one training step."""

from pathlib import Path

import pytest
import torch
from memory_networks import tracked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import memexp
from memexp.memory.tracker import CATEGORIES, Tracker
from memexp.report.collect import Run
from memexp.report.timeline import draw


def test_the_tracker_says_where_each_step_begins():
    tracker = Tracker()
    for size in (128, 256):
        with tracker:
            torch.zeros(size)
    report = tracker.report()
    assert report.entered == [0, 2]
    assert [sum(held.values()) for _, held in report.timeline[report.entered[-1] :]] == [1024, 0]


def test_it_shows_the_last_step_stacked_to_the_trackers_peak():
    with tracked("revnet", "reversible") as tracker:
        report = tracker.report()
    axes = draw(report, Run(Path(), {})).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(CATEGORIES)
    highest = max(area.get_paths()[0].vertices[:, 1].max() for area in axes.collections)
    assert highest == pytest.approx(report.peak / 2**20)  # the second step has the optimizer's state, so the peak
    assert axes.get_xlim()[1] < len(report.timeline) / 1.5  # the first is left out


def test_a_run_writes_it_as_a_file_and_to_tensorboard(tmp_path):
    overrides = ["model=resnet", "model.depth=8", "dataset=digits", "dataset.limit=64", "dataset.test_limit=10"]
    overrides += ["batch_size=8", "device=cpu", "max_steps=2", "memory.steps=2", "memory.timeline=true"]
    memexp.run(memexp.compose(overrides), tmp_path)
    assert (tmp_path / "plots" / "timeline.png").stat().st_size > 10_000
    assert "resnet, digits, stored, batch_size 8, device cpu" in (tmp_path / "plots/timeline.svg").read_text()
    pages = EventAccumulator(str(tmp_path)).Reload()
    assert "memory over a training step" in pages.Tags()["images"]
