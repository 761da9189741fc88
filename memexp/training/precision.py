"""Number formats of a run: float32 (IEEE, or TF32 where it is asked for), or autocast to bfloat16 or float16.

Left to itself PyTorch computes convolutions of float32 in TF32 on Ampere and later GPUs: 10 bits of mantissa for 23.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
AMPERE = (8, 0)  # compute capability of the first GPUs with TF32


class Precision:
    """Autocast and, for float16, the scaler that keeps small gradients from vanishing (Micikevicius et al. 2018)."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.dtype = DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def check(self) -> None:
        """Raises ValueError for `tf32` on a device that has none."""
        if self.name == "tf32" and (
            self.device.type != "cuda" or torch.cuda.get_device_capability(self.device) < AMPERE
        ):
            raise ValueError(f"precision: 'tf32' needs an NVIDIA GPU of Ampere or later, not {self.device}; use fp32")

    def set_up(self) -> None:
        """Sets how this process computes with float32 from now on, whatever was set before: TF32 for `tf32`, else IEEE.

        Raises ValueError as `check` does.
        """
        self.check()
        tf32 = self.name == "tf32"
        backends: Any = torch.backends
        for level in (backends, backends.cudnn, backends.mkldnn, backends.mkldnn.conv, backends.mkldnn.rnn):
            level.fp32_precision = "none"  # what stands at a wider level holds where a narrower one says nothing
        backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")

    def record(self) -> dict[str, Any]:
        """What decides how numbers are rounded, for a run's record: formats, GPU, CUDA and cuDNN."""
        backends: Any = torch.backends
        found: dict[str, Any] = {
            "precision": self.name,
            "float32": {
                "matmul": "tf32" if backends.cuda.matmul.allow_tf32 else "ieee",
                "convolution": "tf32" if backends.cudnn.allow_tf32 else "ieee",
            },
        }
        if self.device.type == "cuda":
            found |= {
                "gpu": torch.cuda.get_device_name(self.device),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(self.device))),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        return found
