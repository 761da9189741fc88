"""t-SNE (van der Maaten and Hinton 2008): the last layer's features of test images in two dimensions."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor, nn

from memexp.backprop.compiled import uncompiled
from memexp.data import Batches
from memexp.modes import evaluating
from memexp.report.collect import Run
from memexp.report.files import as_it_is
from memexp.report.looks import entitle

IMAGES = 500


def last_linear(network: nn.Module) -> nn.Module:
    """Raises ValueError for a network that has no linear layer."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            "report.tsne: the network has no linear layer whose input could be shown; use report.tsne=false"
        )
    return linear[-1]


@torch.no_grad()
def features(network: nn.Module, batches: Batches, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """What enters the last linear layer, (n, width), and the labels (n,), of images spread evenly over a split.

    Raises ValueError as `last_linear`.
    """
    chosen = torch.zeros(batches.images, dtype=torch.bool)
    chosen[torch.linspace(0, batches.images - 1, min(images, batches.images)).long()] = True
    found: list[Tensor] = []
    labels: list[Tensor] = []
    hook = last_linear(network).register_forward_pre_hook(lambda _, xs: found.append(xs[0].flatten(1).float().cpu()))
    try:
        start = 0
        with evaluating(network), uncompiled(network):  # whose layers can be listened to
            for pictures, classes in batches.epoch(0):
                wanted, start = chosen[start : start + len(classes)].to(classes.device), start + len(classes)
                if wanted.any():
                    network(pictures[wanted])
                    labels.append(classes[wanted].cpu())
    finally:
        hook.remove()
    return torch.cat(found), torch.cat(labels)


def draw(points: Tensor, labels: Tensor, classes: tuple[str, ...], run: Run, seed: int = 0) -> Figure:
    """The features of the network of `run` in two dimensions, coloured by class."""
    plane = _plane(points, seed)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for number in labels.unique().tolist():
        x, y = plane[(labels == number).numpy()].T
        axes.scatter(x, y, s=14, color=colours(number % colours.N), label=as_it_is(classes[number]))
    if len(classes) <= 20:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xticks=[], yticks=[])
    entitle(figure, f"Last layer's features of {len(points)} test images, t-SNE", [run])
    return figure


def _plane(points: Tensor, seed: int) -> np.ndarray:
    """(n, 2). A dead network gives all images the same features, of which no principal components can be taken: scikit-learn
    would divide by their deviation of 0, and crash.
    """
    if len(points) < 2:
        return np.zeros((len(points), 2), np.float32)
    spread = points - points.mean(0)
    largest = spread.abs().max()
    init = "pca" if largest > 0 and points.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(points) - 1) / 3)
    scaled = (spread / largest if largest > 0 else spread).numpy()
    found: np.ndarray = TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(scaled)
    return found
