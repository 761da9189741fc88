"""Whether what is launched now is recorded, as a part of a CUDA graph, and carried out again and again without Python."""

import torch
from torch import Tensor


def is_captured(x: Tensor) -> bool:
    """Whether what is done with `x` now is recorded: Python's numbers and decisions stay what they are now."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
