"""Ranger: RAdam (Liu et al. 2020, arXiv 1908.03265) with Lookahead and gradient centralization.

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)
    w = (1 - lr wd) w - lr m^ r_t / (sqrt(v^) + eps)   once rho_t > 5, and   w = (1 - lr wd) w - lr m^   before

with m^ and v^ corrected for bias, eps scaled as torch.optim.RAdam does, and rho_inf = 2 / (1 - beta2) - 1.
"""

from typing import Any, Literal

import torch
from torch.optim.optimizer import ParamsT

from memexp.optim import checks
from memexp.optim.centralization import Centralized
from memexp.optim.lookahead import Lookahead


class Ranger(Lookahead):
    """Ranger with the defaults of the original. Its recipe: lr flat for 75 % of the run, then half a cosine to 0.

    params: parameters or groups, which may have their own lr, betas, eps, weight_decay (decoupled), k, alpha,
    gradient_centralization, where and conv_only. Raises ValueError, naming the value, for one out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        k: int = 6,
        alpha: float = 0.5,
        gradient_centralization: bool = True,
        where: Literal["gradient", "update"] = "gradient",
        conv_only: bool = False,
        evaluate_slow: bool = True,
    ) -> None:
        checks.in_range({"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        inner = torch.optim.RAdam(
            checks.filled(params), lr, betas, eps, weight_decay, decoupled_weight_decay=True, foreach=True
        )
        super().__init__(Centralized(inner, gradient_centralization, where, conv_only), k, alpha, evaluate_slow)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        checks.in_range(group)
