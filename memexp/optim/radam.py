"""RAdam (Liu et al. 2020, arXiv 1908.03265) with decoupled weight decay.

    m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)
    w = (1 - lr wd) w - lr r_t m^ sqrt(1 - beta2^t) / (sqrt(v) + eps)       once rho_t > 5
    w = (1 - lr wd) w - lr m^                                               before

m^ = m / (1 - beta1^t), rho_inf = 2 / (1 - beta2) - 1. The same numbers as torch.optim.RAdam(decoupled_weight_decay=True)
in one pass over the weights: once rectified, it is a step of Adam with another lr, which PyTorch has a fused kernel for.
Where it has none (`kernels.has_fused`), the same by foreach. Complex weights count as pairs of real ones, as in PyTorch.
"""

import math
from collections.abc import Callable
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from memexp.optim import checks, kernels

_GRADIENT, _DTYPE, _DEVICE, _STEP = attrgetter("grad"), attrgetter("dtype"), attrgetter("device"), itemgetter("step")


class RAdam(Optimizer):
    """params: parameters or groups, which may have their own lr, betas, eps and weight_decay.

    Raises ValueError, naming the value, for one out of range, and RuntimeError in a step for a gradient that is sparse.
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
        checks.in_range(self.defaults | param_group)
        super().add_param_group(param_group)
        try:
            checks.formats(param_group["params"])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            checks.in_range(group)
        super().__setstate__(state)
        for own in self.state.values():  # torch.optim.RAdam's are tensors
            if "step" in own:
                own["step"] = int(own["step"])

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
            params = [p for p in group["params"] if p.grad is not None]
            gradients = [*map(_GRADIENT, params)]
            _check_strided(gradients)
            states = [*map(self.state.__getitem__, params)]
            for p, state in zip(params, states, strict=True):
                if "exp_avg" not in state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state["step"] += 1
            alike: dict[tuple[Any, ...], list[int]] = {}
            kinds = map(_STEP, states), map(_DTYPE, params), map(_DEVICE, params), map(kernels.order, params)
            for i, kind in enumerate(zip(*kinds, strict=True)):
                alike.setdefault(kind, []).append(i)
            for (t, *_), members in alike.items():
                own = [states[i] for i in members]
                self._update(group, t, [params[i] for i in members], [gradients[i] for i in members], own)
        return loss

    def _update(
        self, group: dict[str, Any], t: int, params: list[Tensor], g: list[Tensor], states: list[dict[str, Any]]
    ) -> None:
        """Step t of parameters that have had as many and are of one kind."""
        order = kernels.order(params[0])
        m, v = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        if order is None or not all(map(order, chain(g, m, v))):  # in memory as the parameters are; the moments stay so
            g, m, v = ([*map(kernels.laid_out_as, params, column)] for column in (g, m, v))
            for state, first, second in zip(states, m, v, strict=True):
                state["exp_avg"], state["exp_avg_sq"] = first, second
        lr, (beta1, beta2), eps, decay = float(group["lr"]), group["betas"], group["eps"], group["weight_decay"]
        fused = kernels.has_fused(params[0])
        if params[0].is_complex():
            params, g, m, v = ([torch.view_as_real(x.resolve_conj()) for x in column] for column in (params, g, m, v))
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) if rho > 5 else 0.0
        if rho > 5 and fused:
            # Adam's own step, in one pass over the weights, with lr r_t, and with eps and weight decay scaled to come out right
            step = torch.full((), float(t), device=params[0].device)
            torch._fused_adamw_(
                params,
                kernels.in_memory_order(g),
                m,
                v,
                [],
                [step] * len(params),
                lr=lr * r,
                beta1=beta1,
                beta2=beta2,
                weight_decay=decay / r,
                eps=eps / math.sqrt(1 - beta2**t),
                amsgrad=False,
                maximize=False,
            )
            return
        if decay:
            torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, 1 - beta2)
        if rho > 5:
            root = torch._foreach_sqrt(v)
            torch._foreach_add_(root, eps)
            torch._foreach_addcdiv_(params, m, root, -lr * r * math.sqrt(1 - beta2**t) / (1 - beta1**t))
        else:
            torch._foreach_add_(params, m, alpha=-lr / (1 - beta1**t))


def _check_strided(gradients: list[Tensor]) -> None:
    for g in gradients:
        if g.layout is not torch.strided:
            raise RuntimeError(
                f"the gradient of a parameter of shape {tuple(g.shape)} is sparse, which RAdam cannot use: make it dense, or "
                "train it with torch.optim.SGD or SparseAdam"
            )
