"""TensorBoard pages of a run: scalars, hyper-parameters, a sample batch, the confusion matrix."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from memexp.training import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVENTS = "events.out.tfevents"


class Board:
    """Writes TensorBoard events to a run directory. Each is on disk when its call returns, so that a checkpoint can note how
    far the file had come; files are named so that a later one sorts behind, whatever the clock says.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        """step: from which on a page that is open is to forget what a killed run had written."""
        before = [
            int(file.name.split(".")[3]) for file in path.glob(f"{EVENTS}.*") if file.name.split(".")[3].isdecimal()
        ]
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

    def hyper_parameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Fills the hparams tab from the run's own directory, so that a sweep's jobs stand in one table."""
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()
        }
        for found in summary.hparams(plain, dict.fromkeys(metrics, 0.0)):
            self._add(found)
        for name, value in metrics.items():
            self._add(summary.scalar(name, value))

    def sample_batch(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        """The first images of a batch as the network sees them, each under its class."""
        self._picture("sample batch", 0, pictures.batch(images, labels, classes))

    def confusion(self, step: int, counts: Tensor, classes: Sequence[str]) -> None:
        """Counts of (true class, predicted class), coloured by the share of the true class."""
        self._picture("confusion matrix", step, pictures.confusion(counts, classes))

    def figure(self, name: str, step: int, figure: Figure) -> None:
        """A picture of a matplotlib figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        self._picture(name, step, Image.open(buffer))

    def _picture(self, name: str, step: int, picture: Image.Image) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, format="png")
        image = summary_pb2.Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=buffer.getvalue()
        )
        self._add(summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self._file.close()
