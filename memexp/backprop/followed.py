"""An operation that a dispatch mode follows, with the result that it has where none does.

Inside a mode torch has autocast off, as what arrives is cast already. But a few kernels are themselves made of products, which
autocast casts where no mode is: followed, they would compute in, and give, another type.
"""

from typing import Any

import torch

aten = torch.ops.aten
# by what each is called; some devices' autocast knows that, and has cast, for all that it is made of
OF_PRODUCTS = {
    aten._trilinear: "aten::bilinear",
    aten.affine_grid_generator: "aten::affine_grid_generator",
    aten.linalg_pinv: "aten::linalg_pinv",
}


def done(func: Any, args: Any, kwargs: Any) -> Any:
    """`func(*args, **kwargs)`, called by a mode's `__torch_dispatch__`."""
    called = OF_PRODUCTS.get(func._overloadpacket)
    if called is None:
        return func(*args, **kwargs)
    kind = args[0].device.type
    with torch._C._RestorePythonTLSSnapshot():  # type: ignore[attr-defined]  # as it was where the operation was called
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    name = f"Autocast{torch._C._dispatch_key_for_device(kind)}"
    if not cast or torch._C._dispatch_has_kernel_for_dispatch_key(called, name):
        return func(*args, **kwargs)
    key = torch._C._dispatch_key_parse(name)
    exclude, off = (
        torch._C._dispatch_tls_set_dispatch_key_excluded,
        torch._C._dispatch_tls_is_dispatch_key_excluded(key),
    )
    exclude(key, False)
    try:
        return func(*args, **kwargs)
    finally:
        exclude(key, off)
