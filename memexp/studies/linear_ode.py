"""A linear ResNet trained by gradient descent stays close to a Neural ODE (Sander et al. 2022, figure 2).

For several depths N the network prod (I + A_n / N) is fitted to B = I + randn from A = 0. Its weights come out smooth in
n: N |A_{n+1} - A_n| is bounded; and its trajectory x_n differs from that of the Neural ODE x' = A(t) x, with A(t)
interpolated between the A_n, by O(1/N).
"""

import functools
from pathlib import Path

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from memexp.backprop import Chain
from memexp.config import ConfigError
from memexp.models.linear import LinearResNet
from memexp.report import files
from memexp.studies.slope import depths_of, fitted_slope

SUBSTEPS = 8  # of the fourth-order Runge-Kutta method, which stands for the exact solution, in each 1/N
MOST_STEPS = 5000


def study(cfg: DictConfig, directory: Path) -> dict[str, float]:
    """Settings under `case`: depths, lr_per_layer (lr is this times N: 1 is the paper's 100 at N = 100), tolerance."""
    case = cfg.case
    torch.manual_seed(cfg.seed)
    target = torch.eye(cfg.model.d, dtype=torch.float64)
    target += torch.randn_like(target)
    if torch.linalg.det(target) <= 0:
        raise ConfigError(
            [f"seed: {cfg.seed} draws a target of negative determinant, which no network that starts at I can reach"]
        )
    chain = functools.partial(Chain, backprop=cfg.backprop.name)
    depths, roughness, distances, steps = depths_of(case), [], [], []
    weights: dict[int, Tensor] = {}
    for n in depths:
        network = LinearResNet(cfg.model.d, n, chain).double()
        steps.append(_fit(network, target, case.lr_per_layer * n, case.tolerance))
        weights[n] = torch.stack([layer.weight.detach() for layer in network.matrices])
        roughness.append(float(n * weights[n].diff(dim=0).abs().amax()))
        distances.append(_distance(weights[n]))
    slope = fitted_slope(depths, distances)
    figure = _draw(weights, depths, roughness, distances, slope)
    figure.suptitle(
        f"Linear ResNet, d = {cfg.model.d}, fitted to I + randn of seed {cfg.seed} by gradient descent, fp64, CPU"
    )
    files.save(figure, directory / "plots", "fig2")
    return {
        "slope of the distance to the ODE": slope,
        "largest N|A_n+1 - A_n|": max(roughness),
        "smallest N|A_n+1 - A_n|": min(roughness),
        "gradient steps": max(steps),
    }


def _fit(network: LinearResNet, target: Tensor, lr: float, tolerance: float) -> int:
    """Gradient descent on the mean squared error until it is below `tolerance`; the number of steps."""
    eye = torch.eye(len(target), dtype=target.dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    for step in range(MOST_STEPS):
        loss = (network(eye).T - target).square().mean()
        if loss < tolerance:
            return step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise ConfigError(
        [
            f"case.lr_per_layer: with {lr / len(network.matrices):g} the loss of depth {len(network.matrices)} is still "
            f"{float(loss):.2g} after {MOST_STEPS} steps; use a smaller one, or another seed (of the target)"
        ]
    )


def _distance(weights: Tensor) -> float:
    """max_n |x_n - x(n/N)| over the trajectories of the unit vectors, x(t) by Runge-Kutta steps of 1 / (N SUBSTEPS)."""
    n, d = len(weights), weights.shape[1]
    network = ode = torch.eye(d, dtype=weights.dtype)
    farthest = 0.0

    def a(t: float) -> Tensor:
        place = min(t * n, n - 1.0)  # A(n/N) = A_n; constant behind the last
        low = min(int(place), n - 2)
        return torch.lerp(weights[low], weights[low + 1], place - low)

    h = 1 / (n * SUBSTEPS)
    for i in range(n):
        network = network + weights[i] @ network / n
        for j in range(SUBSTEPS):
            t = (i * SUBSTEPS + j) * h
            k1 = a(t) @ ode
            k2 = a(t + h / 2) @ (ode + h / 2 * k1)
            k3 = a(t + h / 2) @ (ode + h / 2 * k2)
            k4 = a(t + h) @ (ode + h * k3)
            ode = ode + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        farthest = max(farthest, float((network - ode).norm()))
    return farthest


def _draw(
    weights: dict[int, Tensor], depths: list[int], roughness: list[float], distances: list[float], slope: float
) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for n, matrices in weights.items():
        left.plot([i / n for i in range(n)], matrices[:, 0, 0].tolist(), label=f"N = {n}")
    left.set(xlabel="n / N", ylabel="first entry of A_n", title="weights after training")
    middle.plot(depths, roughness, "o-")
    middle.set(xlabel="N", ylabel="max N |A_{n+1} - A_n|", title="smoothness in depth", ylim=(0, None))
    right.loglog(depths, distances, "o-", label=f"fitted slope {slope:.2f}")
    right.set(xlabel="N", ylabel="max |x_n - x(n/N)|", title="distance to the Neural ODE")
    right.set_xticks(depths, [str(n) for n in depths])
    right.minorticks_off()
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure
