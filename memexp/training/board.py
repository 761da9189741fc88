"""TensorBoard pages of a run: scalars, hyper-parameters, a sample batch, the confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Board:
    """Writes TensorBoard events to a run directory; a resumed run hides what a killed one wrote after `step`."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self._writer = SummaryWriter(str(path), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """One point per curve; names such as "loss/train" group the curves."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def hyper_parameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Fills the hparams tab from the run's own directory, so that a sweep's jobs stand in one table."""
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()
        }
        for summary in hparams(plain, dict.fromkeys(metrics, 0.0)):
            assert self._writer.file_writer is not None
            self._writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value)

    def sample_batch(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        """The first images of a batch as the network sees them, each under its class."""
        shown = images[:32].float().cpu()
        low, high = shown.amin(), shown.amax()
        pictures = ((shown - low) / (high - low).clamp_min(1e-12)).permute(0, 2, 3, 1).numpy()
        figure = Figure(figsize=(12, 7), layout="constrained")
        for axes in (grid := figure.subplots(4, 8)).flat:
            axes.axis("off")
        for axes, image, label in zip(grid.flat, pictures, labels.tolist(), strict=False):
            axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray")
            axes.set_title(_short(classes[label]), fontsize=8)
        self._writer.add_figure("sample batch", figure)

    def confusion(self, step: int, counts: Tensor, classes: Sequence[str]) -> None:
        """Counts of (true class, predicted class), coloured by the share of the true class."""
        share = counts / counts.sum(1, keepdim=True).clamp_min(1)
        figure = Figure(figsize=(7, 6), layout="constrained")
        axes = figure.subplots()
        figure.colorbar(axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues"), label="share of the true class")
        axes.set(xlabel="predicted class", ylabel="true class")
        if len(classes) <= 20:
            names = [_short(name) for name in classes]
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
            axes.set_yticks(range(len(names)), names)
            for row, column in torch.nonzero(counts).tolist():
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(int(counts[row, column])), ha="center", va="center", fontsize=7, color=colour
                )
        self._writer.add_figure("confusion matrix", figure, step)

    def figure(self, name: str, step: int, figure: Figure) -> None:
        self._writer.add_figure(name, figure, step)

    def close(self) -> None:
        self._writer.close()


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
