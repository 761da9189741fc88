"""Which of torch's kernels an optimizer runs: chosen by name, so that an estimate on one device is true of a run on another.

`fused` (one pass over the weights, no temporary memory) where torch has it, `foreach` otherwise. Left to itself torch takes
neither on a CPU and foreach, which makes a copy of all gradients, on CUDA. Its fused kernels on a CPU read memory in the
order in which it lies and check nothing, so what they are given is laid out alike here.
"""

from collections.abc import Callable, Iterable
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
# half precision is left out: fused SGD on a CPU leaves most of such weights as they were (pytorch#191763)
FUSED_DTYPES = (torch.float32, torch.float64)
FOREACH_DEVICES = ("cpu", "cuda", "xpu")


def has_fused(p: Tensor) -> bool:
    """Whether torch's fused kernels are right for this parameter: its device, its format, and no gaps in its memory."""
    return p.device.type in FUSED_DEVICES and p.dtype in FUSED_DTYPES and order(p) is not None


Order = Callable[[Tensor], bool]  # tells of a tensor whether its elements lie side by side in this order
_NCHW, _NHWC = Tensor.is_contiguous, methodcaller("is_contiguous", memory_format=torch.channels_last)


def order(p: Tensor) -> Order | None:
    """The order in which the elements lie side by side; None where they do not."""
    if _NCHW(p):
        return _NCHW
    return _NHWC if p.ndim == 4 and _NHWC(p) else None


def chosen(parameters: Iterable[Tensor]) -> dict[str, bool]:
    """The arguments `fused` and `foreach` of a torch optimizer over `parameters`."""
    fused = all(map(has_fused, parameters))
    return {"fused": fused, "foreach": not fused}


def in_memory_order(gradients: Iterable[Tensor]) -> list[Tensor]:
    """Dense gradients for torch's fused kernels, which on a CPU copy those in NHWC order: there their elements in a row."""
    return [g.as_strided((g.numel(),), (1,)) if g.is_cpu and not g.is_contiguous() else g for g in gradients]


def laid_out_as(p: Tensor, t: Tensor) -> Tensor:
    """`t`, or a copy of it where its elements do not lie in memory as those of `p` do."""
    if t.layout is torch.strided and (t.stride() == p.stride() or _same_order(p, t)):
        return t
    return torch.empty_like(p, dtype=t.dtype).copy_(t.to_dense() if t.layout is not torch.strided else t)


def clip(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scales all gradients so that their common norm is at most `largest`; returns what it was."""
    listed = list(parameters)
    foreach = all(p.device.type in FOREACH_DEVICES for p in listed)
    return nn.utils.clip_grad_norm_(listed, largest, foreach=foreach)


class _ByName(Optimizer):
    """A torch optimizer that runs the kernel of `kernels.chosen`, whatever a state that it loads was saved with."""

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        """torch calls it in each step before its kernel; the first two lists become parameters and gradients."""
        for p in group["params"]:
            if p.grad is not None:
                self._prepare(p, group)
        found = super()._init_group(group, *lists)  # type: ignore[misc]
        if group["fused"]:
            lists[1][:] = in_memory_order(lists[1])
        return found

    def _prepare(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        if p.grad.layout is torch.strided:
            p.grad = laid_out_as(p, p.grad)
        state = self.state.get(p, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[name] = laid_out_as(p, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group |= {name: self.defaults[name] for name in ("fused", "foreach")}
            for p in group["params"]:
                step = self.state.get(p, {}).get("step")
                if isinstance(step, Tensor) and group["fused"]:
                    self.state[p]["step"] = step.to(p.device)


class SGD(_ByName, torch.optim.SGD):
    """torch.optim.SGD without dampening. Sparse gradients are made dense.

    A parameter whose gradient comes later than others' starts its momentum there, where torch's fused kernel fails.
    """

    def _prepare(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        p.grad = laid_out_as(p, p.grad)
        if group["momentum"] and self.state[p].get("momentum_buffer") is None:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        super()._prepare(p, group)


class AdamW(_ByName, torch.optim.AdamW):
    """torch.optim.AdamW."""


def _same_order(p: Tensor, t: Tensor) -> bool:
    """The stride of a dimension of one element says nothing."""
    return all(n == 1 or a == b for n, a, b in zip(p.shape, p.stride(), t.stride(), strict=True))
