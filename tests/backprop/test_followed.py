"""An operation that a mode follows has the type and the bits that it has where none does."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from memexp.backprop.followed import done

KEY = torch._C.DispatchKey.AutocastCPU
SQUARE = torch.linspace(-1, 1, 36).view(6, 6) + torch.eye(6)
OPERATIONS = {
    "bilinear": lambda: functional.bilinear(SQUARE, SQUARE, torch.linspace(-1, 1, 72).view(2, 6, 6)),
    "affine_grid": lambda: functional.affine_grid(SQUARE.view(6, 2, 3), (6, 3, 4, 4), align_corners=False),
    "pinv": lambda: torch.linalg.pinv(SQUARE),
    "matmul": lambda: SQUARE @ SQUARE,
}


class Following(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return done(func, args, kwargs or {})


@pytest.fixture(params=[False, True])
def autocast_knows_bilinear(request):
    """As that of CUDA does, which is off for all that bilinear is made of."""
    library = torch.library.Library("aten", "IMPL")

    def bilinear(*args):
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(KEY)):
            return torch.ops.aten.bilinear(*args)

    if request.param:
        library.impl("bilinear", bilinear, "AutocastCPU")
    yield
    library._destroy()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [None, False, True])
def test_it_is_cast_as_where_no_mode_is(name, outer, inner, autocast_knows_bilinear):
    def values(follow):
        with torch.autocast("cpu", torch.bfloat16, enabled=outer), follow(), follow():
            if inner is None:
                return OPERATIONS[name]()
            with torch.autocast("cpu", torch.bfloat16, enabled=inner):
                return OPERATIONS[name]()

    class Nobody(Following):
        __enter__ = __exit__ = lambda self, *_: None

    expected, found = values(Nobody), values(Following)
    assert found.dtype is expected.dtype
    assert torch.equal(found, expected)


def test_a_device_that_has_no_autocast_is_followed():
    with Following():
        assert functional.affine_grid(SQUARE.view(6, 2, 3).to("meta"), (6, 3, 4, 4), align_corners=False).is_meta
