"""RAdam (Liu et al. 2020, arXiv 1908.03265) with decoupled weight decay.

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)
    w = (1 - lr wd) w - lr r_t m^ sqrt(1 - beta2^t) / (sqrt(v) + eps)       once rho_t > 5
    w = (1 - lr wd) w - lr m^                                               before

m^ = m / (1 - beta1^t), rho_inf = 2 / (1 - beta2) - 1. The same numbers as torch.optim.RAdam(decoupled_weight_decay=True)
in one pass over the weights: once rectified, it is a step of Adam with another lr, which PyTorch has a fused kernel for.
"""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from memexp.optim import checks


class RAdam(Optimizer):
    """params: parameters or groups, which may have their own lr, betas, eps and weight_decay.

    Raises ValueError, naming the value, for one out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled_weight_decay": True}
        super().__init__(checks.filled(params), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        checks.in_range(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step over all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            together: dict[tuple[int, torch.dtype, torch.device], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    state["step"] += 1
                    together.setdefault((state["step"], p.dtype, p.device), []).append(p)
            for (t, *_), members in together.items():
                self._update(group, members, t)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], t: int) -> None:
        """Step t of parameters that have had as many."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        states = [self.state[p] for p in params]
        g = [p.grad for p in params if p.grad is not None]
        m, v = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        decay = group["weight_decay"]
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            # Adam's own step, in one pass over the weights, with lr r_t, and with eps and weight decay scaled to come out right
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            step = torch.full((), float(t), device=params[0].device)
            torch._fused_adamw_(
                params,
                g,
                m,
                v,
                [],
                [step] * len(params),
                lr=lr * r,
                beta1=beta1,
                beta2=beta2,
                weight_decay=decay / r,
                eps=group["eps"] / math.sqrt(1 - beta2**t),
                amsgrad=False,
                maximize=False,
            )
            return
        if decay:
            torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, 1 - beta2)
        torch._foreach_add_(params, m, alpha=-lr / (1 - beta1**t))
