"""The kernel against torch's bicubic interpolation, and the banded product against the dense one."""

import pytest
import torch
from torch.nn import functional

from memexp.integral import kernel
from memexp.integral.quadrature import uniform


@pytest.mark.parametrize(("n", "m"), [(2, 5), (3, 2), (7, 7), (16, 10), (33, 64), (512, 307)])
def test_sampling_is_torchs_bicubic(n: int, m: int) -> None:
    F = torch.randn(1, 1, 1, n, dtype=torch.float64)
    S = kernel.matrix(uniform(m), n)
    right = functional.interpolate(F, (1, m), mode="bicubic", align_corners=True)
    torch.testing.assert_close(S @ F.flatten(), right.flatten(), rtol=0, atol=1e-12)


def test_keys_values() -> None:
    x = torch.tensor([-2.5, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2], dtype=torch.float64)
    # by hand with a = -0.75: u(1/2) = (1.25/8 - 2.25/4 + 1), u(3/2) = a (27/8 - 45/4 + 12 - 4)
    right = torch.tensor([0, 0, 0, 0.59375, 1, 0.59375, 0, -0.09375, 0], dtype=torch.float64)
    torch.testing.assert_close(kernel.u(x), right, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 40), (64, 38), (100, 100), (512, 40)])
def test_banded_product_is_the_dense_one_with_its_gradients(n: int, m: int) -> None:
    P = uniform(m)
    P = P * P  # not evenly spaced
    S = kernel.matrix(P, n).requires_grad_()
    x = torch.randn(n, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(m, 3, dtype=torch.float64)
    band = kernel.blocks(P.tolist(), n)
    y = kernel.banded(S, x, band)
    of_S, of_x = torch.autograd.grad(y, [S, x], g)
    dense = S.detach().requires_grad_()
    right_S, right_x = torch.autograd.grad(dense @ x, [dense, x], g)
    torch.testing.assert_close(y, S @ x)
    torch.testing.assert_close(of_x, right_x)
    inside = S.detach() != 0
    torch.testing.assert_close(of_S[inside], right_S[inside])


def test_blocks_hold_a_small_part_of_a_wide_matrix() -> None:
    held = sum((r.stop - r.start) * (c.stop - c.start) for r, c in kernel.blocks(uniform(307).tolist(), 512))
    assert held < 307 * 512 / 8


def test_matrix_passes_gradcheck_in_the_positions() -> None:
    P = torch.tensor([0.0, 0.13, 0.4, 0.77, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda P: kernel.matrix(P, 9)[1:-1], P)
