"""Memory that kernels take for themselves: cuDNN's workspaces while a convolution runs, cuBLAS's for good.

No tensor holds it, so that neither the tracker nor an estimate sees it; it depends on the device, its libraries and the
layers' sizes. On a GPU of NVIDIA's the allocator tells: it is measured there, operation by operation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Scratch(TorchDispatchMode):
    """Follows the operations inside, those of backward too; `most` is the most bytes that one took beside tensors.

    counters: torch.cuda, or a stand-in.
    """

    def __init__(self, device: torch.device, counters: Any = torch.cuda) -> None:
        super().__init__()
        self.device, self.most, self._counters = device, 0, counters

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counters = self._counters
        before = counters.memory_allocated(self.device)
        counters.reset_peak_memory_stats(self.device)
        result = func(*args, **(kwargs or {}))
        stands = max(before, counters.memory_allocated(self.device))
        self.most = max(self.most, counters.max_memory_allocated(self.device) - stands)
        return result


def scratch(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that kernels of `step()` take beside tensors: at most at once, and those that cuBLAS holds on to.

    step: called once, having been called before. 0 on other devices than NVIDIA's, whose allocators do not tell.
    """
    if device.type != "cuda":
        return 0
    with Scratch(device) as found:
        step()
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device)
    torch._C._cuda_clearCublasWorkspaces()
    return found.most + held - torch.cuda.memory_allocated(device)
