"""Ranger: RAdam (arXiv 1908.03265) with Lookahead (arXiv 1907.08610) and gradient centralization (arXiv 2004.01461)."""

from typing import Literal

from torch.optim.optimizer import ParamsT

from memexp.optim.centralization import Centralized
from memexp.optim.lookahead import Lookahead
from memexp.optim.radam import RAdam


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
        inner = RAdam(params, lr, betas, eps, weight_decay)
        super().__init__(Centralized(inner, gradient_centralization, where, conv_only), k, alpha, evaluate_slow)
