"""An operation that a dispatch mode follows, with the result that it has where none does.

Inside a mode torch has autocast off, as what arrives is cast already. But a few kernels are themselves made of products, which
autocast casts where no mode is: followed, they would compute in, and give, another type.
"""

from typing import Any

import torch

aten = torch.ops.aten
OF_PRODUCTS = {aten._trilinear, aten.affine_grid_generator, aten.linalg_pinv}
KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}


def done(func: Any, args: Any, kwargs: Any) -> Any:
    """`func(*args, **kwargs)`, called by a mode's `__torch_dispatch__`."""
    if func._overloadpacket not in OF_PRODUCTS:
        return func(*args, **kwargs)
    with torch._C._RestorePythonTLSSnapshot():  # type: ignore[attr-defined]  # as it was where the operation was called
        keys = [key for kind, key in KEYS.items() if torch.is_autocast_enabled(kind)]
    exclude = torch._C._dispatch_tls_set_dispatch_key_excluded
    try:
        for key in keys:
            exclude(key, False)
        return func(*args, **kwargs)
    finally:
        for key in keys:
            exclude(key, True)
