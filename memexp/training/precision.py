"""Number formats of a run: float32, or autocast to bfloat16 or float16 (the latter with a gradient scaler)."""

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and, for float16, the scaler that keeps small gradients from vanishing (Micikevicius et al. 2018)."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        self.dtype = DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
