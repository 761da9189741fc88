"""Error of the adjoint's gradient on one batch against depth, from a trained network (Sander et al. 2022, figure 3c).

A simple network of few functions is trained with stored activations. Networks of more functions, Euler and Heun, then
take theirs from it by linear interpolation in depth, so that weights are as smooth in depth as the theorems ask, and the
adjoint's gradient on one batch of the training set is compared with the stored one's.
"""

import functools
import logging
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from memexp import data, models, optim
from memexp.backprop import Chain
from memexp.backprop.monitor import compare
from memexp.choices import name_of
from memexp.models.ode import OdeNet
from memexp.optim import schedules
from memexp.report import files
from memexp.studies.slope import depths_of, fitted_slope
from memexp.training.precision import Precision
from memexp.training.step import train_step

log = logging.getLogger("memexp")


def study(cfg: DictConfig, directory: Path) -> dict[str, float]:
    """Settings under `case`: networks (each kind of step and its settings), trained (the kind that is trained), trained_depth,
    depths, double (compare in fp64).
    """
    device = torch.device("cpu") if cfg.device == "auto" else torch.device(cfg.device)
    torch.manual_seed(cfg.seed)
    depths = depths_of(cfg.case)
    splits = data.load(cfg.dataset, batch_size=cfg.batch_size, seed=cfg.seed, device=device)
    kinds = {str(kind): OmegaConf.to_container(settings) for kind, settings in cfg.case.networks.items()}
    trained = _network(kinds[cfg.case.trained], cfg.case.trained_depth, "stored", splits).to(device)
    _train(cfg, trained, splits.train, device)
    images, labels = next(iter(splits.train.epoch(0)))
    dtype = torch.float64 if cfg.case.double else torch.float32
    figures: dict[str, float] = {}
    errors: dict[str, list[float]] = {}
    for kind, settings in kinds.items():
        errors[kind] = []
        for depth in depths:
            network = _network(settings, depth, "adjoint", splits).to(device)
            interpolate(network, trained)
            network.to(dtype)
            loss = functools.partial(_loss, network, images.to(dtype), labels)
            errors[kind].append(compare(network, loss).gradient_error)
            log.info("%s, depth %d: relative gradient error %.3g", kind, depth, errors[kind][-1])
        figures[f"slope, {kind}"] = fitted_slope(depths, errors[kind])
        figures[f"error at depth {depths[-1]}, {kind}"] = errors[kind][-1]
    figure = _draw(depths, errors, figures)
    taken = f"{len(images)} images of {name_of(cfg.dataset)}, {'fp64' if cfg.case.double else 'fp32'}, {device}"
    figure.suptitle(f"The adjoint's gradient against the stored one, simple networks, {taken}", fontsize=10)
    files.save(figure, directory / "plots", "fig3c")
    return figures


def interpolate(network: OdeNet, trained: OdeNet) -> None:
    """Stem and head of `trained`, and functions whose weights are linear between its functions' in depth."""
    network.stem.load_state_dict(trained.stem.state_dict())
    network.head.load_state_dict(trained.head.state_dict())
    for deep, shallow in zip(network.functions, trained.functions, strict=True):
        for i, f in enumerate(deep):
            place = i * (len(shallow) - 1) / max(1, len(deep) - 1)
            low = min(int(place), max(0, len(shallow) - 2))
            high = min(low + 1, len(shallow) - 1)
            ends = (shallow[low].state_dict(), shallow[high].state_dict())
            f.load_state_dict({key: _between(a, ends[1][key], place - low) for key, a in ends[0].items()})


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    return torch.lerp(a, b, share) if a.is_floating_point() else a


def _network(settings: Any, depth: int, backprop: str, splits: data.Splits) -> OdeNet:
    chain = functools.partial(Chain, backprop=backprop)
    made = models.create(classes=len(splits.classes), shape=splits.shape, chain=chain, depth=depth, **settings)
    return cast(OdeNet, made)


def _train(cfg: DictConfig, network: nn.Module, batches: data.Batches, device: torch.device) -> None:
    optimizer = optim.build(cfg.optimizer, network)
    total, step = cfg.epochs * len(batches), 0
    precision = Precision("fp32", device)
    precision.set_up()
    if cfg.max_steps is not None:
        total = min(total, cfg.max_steps)
    for epoch in range(cfg.epochs):
        for batch in batches.epoch(epoch):
            if step == total:
                return
            for group in optimizer.param_groups:
                group["lr"] = cfg.optimizer.lr * schedules.factor(cfg.schedule, step, total)
            loss = train_step(network, functional.cross_entropy, optimizer, [batch], precision)
            step += 1
            if step % cfg.log_every == 0 or step == total:
                log.info("step %d/%d  loss %.4f", step, total, float(loss))


def _loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(network(images), labels)


def _draw(depths: list[int], errors: dict[str, list[float]], figures: dict[str, float]) -> Figure:
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind, line in errors.items():
        axes.loglog(depths, line, "o-", label=f"{kind}, fitted slope {figures[f'slope, {kind}']:.2f}")
    axes.set(xlabel="depth N", ylabel="relative gradient error")
    axes.set_xticks(depths, [str(n) for n in depths])
    axes.minorticks_off()
    axes.legend()
    return figure
