"""TensorBoard pages of a run: scalars, hyper-parameters, a sample batch, the confusion matrix."""

from __future__ import annotations

import io
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from memexp.training import pictures
from memexp.unread import unread

EVENTS = "events.out.tfevents"
# Columns of the hparams tab: what a run is, by names and by numbers, and what came of it, by its curves
NAMES = ("model", "kind", "dataset", "backprop", "optimizer", "schedule", "precision", "prune")
NUMBERS = ("depth", "batch_size", "epochs", "max_steps", "lr", "weight_decay", "seed")
METRICS = ("accuracy/test_top1", "loss/test", "memory/peak_MiB", "memory/activations_MiB", "time/step_ms", "parameters")


def opened(path: Path, results: Mapping[str, Any], step: int = 0) -> Board:
    """The board of a run, which tells what the run is: hyper-parameters, configuration and command line, if it was one."""
    board = Board(path, step)
    if board.fresh:
        board.hyper_parameters(_settings(results["config"]))
        board.text("configuration", yaml.safe_dump(results["config"], sort_keys=False))
        if results["overrides"] is not None:
            board.text("command line", shlex.join(["memexp", "train", *results["overrides"]]))
    return board


def _settings(config: Mapping[str, Any]) -> dict[str, float | str | None]:
    """By the names of the columns; what a user's own model or optimizer does not have is None."""
    found: dict[str, float | str | None] = {}
    for name in NAMES:
        option = config.get(name)
        found[name] = (option.get("name") or option.get("_target_")) if isinstance(option, Mapping) else option
    model, optimizer = config["model"], config["optimizer"]
    depth = None if "model.depth" in unread(config) else model.get("depth")
    numbers = {"depth": depth, "lr": optimizer.get("lr"), "weight_decay": optimizer.get("weight_decay")}
    found["kind"] = None if model.get("kind") is None else str(model["kind"])
    for name in NUMBERS:
        value = numbers.get(name, config.get(name))
        found[name] = float(value) if isinstance(value, int | float) else None
    return found


class Board:
    """Writes TensorBoard events to a run directory. Each is on disk when its call returns, so that a checkpoint can note how
    far the file had come; files are named so that a later one sorts behind, whatever the clock says.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        """step: from which on a page that is open is to forget what a killed run had written."""
        before = [
            int(file.name.split(".")[3]) for file in path.glob(f"{EVENTS}.*") if file.name.split(".")[3].isdecimal()
        ]
        self.fresh = not before
        number = max(int(time.time()), max(before, default=0) + 1)
        self._file = open(path / f"{EVENTS}.{number:010d}.{os.getpid()}", "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        if step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(session_log=start, step=step + 1))

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()

    def _add(self, found: summary_pb2.Summary, step: int = 0) -> None:
        self._write(event_pb2.Event(summary=found, step=step))

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """One point per curve; names such as "loss/train" group the curves."""
        for name, value in values.items():
            if value is not None:
                self._add(summary.scalar(name, value), step)

    def hyper_parameters(self, settings: Mapping[str, float | str | None]) -> None:
        """Puts a row into the hparams tab, whose metrics are the last points of the curves METRICS.

        The columns are the same for all runs: a setting that a run does not have is None, and its cell stays empty.
        """
        columns = {name: 0.0 if name in NUMBERS else "" for name in [*NAMES, *NUMBERS]}
        self._add(summary.hparams(columns, dict.fromkeys(METRICS, 0.0))[0])
        self._add(summary.hparams({name: settings.get(name) for name in columns}, {})[1])

    def end(self, status: str) -> None:
        """Tells the hparams tab how the run ended."""
        ended = api_pb2.STATUS_SUCCESS if status == "done" else api_pb2.STATUS_FAILURE
        content = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=ended, end_time_secs=time.time()), version=0
        )
        data = summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
        value = summary_pb2.Summary.Value(tag="_hparams_/session_end_info")
        value.metadata.plugin_data.CopyFrom(data)
        self._add(summary_pb2.Summary(value=[value]))

    def text(self, name: str, text: str) -> None:
        """A page of text, shown as it is."""
        self._add(summary.text(name, "\n".join(f"    {line}" for line in text.splitlines())))

    def sample_batch(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        """The first images of a batch as the network sees them, each under its class."""
        self._picture("sample batch", 0, pictures.batch(images, labels, classes))

    def confusion(self, step: int, counts: Tensor, classes: Sequence[str]) -> None:
        """Counts of (true class, predicted class), coloured by the share of the true class."""
        self._picture("confusion matrix", step, pictures.confusion(counts, classes))

    def figure(self, name: str, step: int, file: Path) -> None:
        """A picture that there is a file of."""
        with Image.open(file) as picture:
            self._picture(name, step, picture)

    def _picture(self, name: str, step: int, picture: Image.Image) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, format="png")
        image = summary_pb2.Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=buffer.getvalue()
        )
        self._add(summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self._file.close()
