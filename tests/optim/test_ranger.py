"""Ranger and its parts against the equations, in plain Python, and against the faults of known implementations."""

import copy
import functools
import io
import math

import pytest
import torch
from torch import nn

from memexp.optim import Centralized, Lookahead, Ranger, centralize_gradient
from memexp.optim.centralization import centralized

SHAPES = [(4, 3, 3, 3), (5, 4), (4,)]


def parameters(dtype: torch.dtype, shapes=SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype) / 10) for shape in shapes]


def gradients(step: int, dtype: torch.dtype, shapes=SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def follow(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for p, g in zip(params, gradients(step, params[0].dtype, [tuple(p.shape) for p in params]), strict=True):
            p.grad = g
        optimizer.step()


class Reference:
    """Ranger of one parameter from its equations, element by element, in Python's floats."""

    def __init__(self, p, lr=1e-3, betas=(0.95, 0.999), eps=1e-5, weight_decay=0.0, k=6, alpha=0.5, centralize=True):
        self.w, self.shape = p.detach().double().flatten().tolist(), tuple(p.shape)
        self.lr, self.betas, self.eps, self.decay = lr, betas, eps, weight_decay
        self.k, self.alpha, self.centralize = k, alpha, centralize
        self.m, self.v, self.slow, self.t = [0.0] * len(self.w), [0.0] * len(self.w), list(self.w), 0

    def step(self, gradient: torch.Tensor) -> None:
        g = gradient.double().flatten().tolist()
        if self.centralize and len(self.shape) > 1:
            fan_in = len(g) // self.shape[0]
            for row in range(self.shape[0]):
                mean = sum(g[row * fan_in : (row + 1) * fan_in]) / fan_in
                for i in range(row * fan_in, (row + 1) * fan_in):
                    g[i] -= mean
        self.t += 1
        beta1, beta2 = self.betas
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * self.t * beta2**self.t / (1 - beta2**self.t)
        for i, gi in enumerate(g):
            self.w[i] *= 1 - self.lr * self.decay
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * gi
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * gi * gi
            m_hat = self.m[i] / (1 - beta1**self.t)
            if rho > 5:
                r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
                adapted = math.sqrt(1 - beta2**self.t) / (math.sqrt(self.v[i]) + self.eps)
                self.w[i] -= self.lr * m_hat * r * adapted
            else:
                self.w[i] -= self.lr * m_hat
        if self.t % self.k == 0:
            self.slow = [s + self.alpha * (w - s) for s, w in zip(self.slow, self.w, strict=True)]
            self.w = list(self.slow)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_two_hundred_steps_agree_with_the_equations_group_by_group(dtype, tolerance):
    """Groups of their own lr, betas, weight decay, k, alpha and centralization."""
    first = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1, "k": 4, "alpha": 0.8}
    params = parameters(dtype)
    references = [Reference(params[0], **first), Reference(params[1]), Reference(params[2])]
    references[1].centralize = False
    groups = [
        {"params": params[:1], **first},
        {"params": params[1:2], "gradient_centralization": False},
        {"params": params[2:]},
    ]
    optimizer = Ranger(groups)
    for step in range(200):
        for p, g, reference in zip(params, gradients(step, dtype), references, strict=True):
            p.grad = g
            reference.step(g)
        optimizer.step()
    for p, reference in zip(params, references, strict=True):
        expected = torch.tensor(reference.w, dtype=torch.float64).view(p.shape)
        assert (p.detach().double() - expected).abs().max() < tolerance


def test_without_its_parts_it_is_torchs_radam():
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    follow(Ranger(ours, gradient_centralization=False, k=1, alpha=1.0, weight_decay=0.01), ours, range(50))
    options = {"betas": (0.95, 0.999), "eps": 1e-5, "weight_decay": 0.01, "decoupled_weight_decay": True}
    follow(torch.optim.RAdam(theirs, lr=1e-3, foreach=True, **options), theirs, range(50))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


@pytest.mark.parametrize("step", [1, 5])
def test_steps_that_are_not_rectified_go_downhill(step):
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = Ranger([p], lr=0.1)
    for _ in range(step):
        p.grad = torch.tensor([1.0])
        before = p.item()
        optimizer.step()
        assert p.item() == pytest.approx(before - 0.1, abs=1e-6)


def test_weight_decay_does_not_enter_the_momentum():
    p = nn.Parameter(torch.ones(3))
    optimizer = Ranger([p], lr=0.1, weight_decay=0.5, k=100)
    p.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((3,), 1 - 0.1 * 0.5))
    assert not optimizer.state[p]["exp_avg"].any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_centralized_gradients_have_mean_zero_for_each_output_and_leave_grad_alone(layout):
    p = nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=layout))
    q, bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6))
    seen: list[torch.Tensor] = []
    inner = torch.optim.SGD([p, q, bias], lr=0.1)
    inner.register_step_pre_hook(lambda *_: seen.extend(x.grad for x in (p, q, bias)))
    given = [torch.randn_like(x) for x in (p, q, bias)]
    kept = [g.clone() for g in given]
    p.grad, q.grad, bias.grad = given
    Centralized(inner).step()
    for g, original in zip(seen[:2], kept, strict=False):
        torch.testing.assert_close(g, centralize_gradient(original))
        assert g.flatten(1).mean(1).abs().max() < 1e-6
    assert torch.equal(seen[2], kept[2])
    assert all(x.grad is g for x, g in zip((p, q, bias), given, strict=True))
    assert all(torch.equal(g, original) for g, original in zip(given, kept, strict=True))


@pytest.mark.parametrize("shape", [(1, 5), (1, 2, 2, 2), (1, 1), (5, 1), (1, 3, 2)])
@pytest.mark.parametrize("stride", [1, 2, 100])
def test_a_weight_of_one_output_is_centralized_whatever_its_first_stride(shape, stride):
    """It says nothing there: torch.einsum's gradient of such a weight has 1."""
    gradient = torch.randn(shape)
    if shape[0] == 1:
        gradient = gradient.as_strided(shape, (stride, *gradient.stride()[1:]))
    beside = torch.randn(stride, 3)  # in one matrix with a row of that stride
    for found, given in zip(centralized([gradient, beside]), (gradient, beside), strict=True):
        torch.testing.assert_close(found, centralize_gradient(given))


def test_weights_of_one_shape_and_several_orders_in_memory_are_centralized_in_their_own():
    rows = torch.randn(5, 4, 3, 3)
    given = [rows, rows.contiguous(memory_format=torch.channels_last), rows[:2], torch.ones(5, 0), rows.mT]
    for found, g in zip(centralized(given), given, strict=True):
        torch.testing.assert_close(found, centralize_gradient(g))
        assert found.stride() == g.stride() or g is given[-1]  # whose order is neither NCHW nor NHWC


def test_centralization_can_be_off_or_for_convolutions_only():
    gradient = torch.randn(5, 4)
    assert centralize_gradient(gradient, conv_only=True) is gradient
    for options in ({"gradient_centralization": False}, {"conv_only": True}):
        p, q = (nn.Parameter(torch.ones(5, 4)) for _ in range(2))
        p.grad = q.grad = gradient
        Ranger([p], lr=0.1, k=100, **options).step()
        torch.optim.SGD([q], lr=0.1).step()  # a first step that is not rectified
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_centralized_update_moves_no_output_by_its_mean(optimizer):
    p = nn.Parameter(torch.randn(4, 6))
    before = p.detach().clone()
    centred = Centralized(optimizer([p], lr=0.1, weight_decay=0.0), where="update")
    p.grad = torch.randn(4, 6)
    centred.step()
    assert (p - before).mean(1).abs().max() < 1e-6
    assert (p - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.AdamW,
        torch.optim.Adafactor,
        torch.optim.Muon,
        functools.partial(torch.optim.Adam, decoupled_weight_decay=True),
        functools.partial(torch.optim.NAdam, decoupled_weight_decay=True),
    ],
)
def test_decoupled_weight_decay_is_no_part_of_the_update(optimizer):
    p = nn.Parameter(torch.ones(4, 6))
    p.grad = torch.zeros(4, 6)
    Centralized(optimizer([p], lr=0.1, weight_decay=0.5), where="update").step()
    torch.testing.assert_close(p.detach(), torch.full((4, 6), 0.95))


def test_lookahead_on_any_optimizer_follows_its_equations():
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = Lookahead(torch.optim.SGD([p], lr=0.1), k=3, alpha=0.5)
    found = []
    for _ in range(6):
        p.grad = torch.tensor([1.0])
        optimizer.step()
        found.append(p.item())
    assert found == pytest.approx([0.9, 0.8, 0.85, 0.75, 0.65, 0.7])


@pytest.mark.parametrize(
    ("slow", "evaluated"), [(True, [0.9, 0.8, 0.85, 0.85, 0.85, 0.7]), (False, [0.9, 0.8, 0.85, 0.75, 0.65, 0.7])]
)
def test_the_slow_weights_are_evaluated_from_the_first_synchronisation_on_unless_told_otherwise(slow, evaluated):
    """Before it they are the first weights: a short training was evaluated, and saved, as if nothing had been learnt."""
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = Lookahead(torch.optim.SGD([p], lr=0.1), k=3, alpha=0.5, evaluate_slow=slow)
    for fast, expected in zip([0.9, 0.8, 0.85, 0.75, 0.65, 0.7], evaluated, strict=True):
        p.grad = torch.tensor([1.0])
        optimizer.step()
        with optimizer.evaluation_weights():
            assert p.item() == pytest.approx(expected)
        assert p.item() == pytest.approx(fast)


@pytest.mark.parametrize(("frozen", "fast", "slow"), [(False, 0.85, 0.85), (True, 0.8, 0.8)])
def test_weights_without_a_gradient_when_it_is_synchronised(frozen, fast, slow):
    """They stayed apart, for good where a head is trained in every other step, and were evaluated as they had begun."""
    p, q = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = Lookahead(torch.optim.SGD([p, q], lr=0.1), k=4, alpha=0.75)
    for step in range(4):
        p.grad, q.grad = torch.tensor([1.0]), torch.tensor([1.0]) if step % 2 == 0 else None
        q.requires_grad_(not frozen or step < 3)
        optimizer.step()
    assert q.item() == pytest.approx(fast)
    with optimizer.evaluation_weights():
        assert (p.item(), q.item()) == pytest.approx((0.7, slow))


@pytest.mark.parametrize("stop", range(1, 8))
def test_saved_between_synchronisations_it_goes_on_with_the_same_bits(stop):
    whole, cut = parameters(torch.float32), parameters(torch.float32)
    optimizer = Ranger(whole, k=3)
    follow(optimizer, whole, range(12))
    first = Ranger(cut, k=3)
    follow(first, cut, range(stop))
    file = io.BytesIO()
    torch.save({"optimizer": first.state_dict(), "weights": [p.detach() for p in cut]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = [nn.Parameter(w) for w in saved["weights"]]
    second = Ranger(fresh, k=3)
    second.load_state_dict(saved["optimizer"])
    follow(second, fresh, range(stop, 12))
    assert all(torch.equal(p, q) for p, q in zip(whole, fresh, strict=True))


def test_a_closure_is_called_once_and_its_gradients_are_used():
    p = nn.Parameter(torch.tensor([[2.0, 4.0]]))
    optimizer = Ranger([p], lr=0.1, gradient_centralization=False)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = p.sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer.step(closure).item() == 6.0
    assert calls == [6.0]
    torch.testing.assert_close(p.detach(), torch.tensor([[1.9, 3.9]]))


def test_schedulers_move_the_lr_of_the_optimizer_inside():
    p = nn.Parameter(torch.ones(2))
    optimizer = Ranger([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    p.grad = torch.ones(2)
    optimizer.step()
    scheduler.step()
    assert torch.equal(p.detach(), torch.ones(2))


def test_steps_that_the_scaler_skips_do_not_advance_lookahead():
    p = nn.Parameter(torch.ones(2))
    optimizer = Ranger([p], k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for value in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((p * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.param_groups[0]["fast_steps"] == 2
    assert torch.equal(optimizer.state[p]["slow"], p)


def test_a_parameter_without_gradient_stays_and_one_that_comes_later_starts_slow_there():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Ranger([p, q], lr=0.1, k=2)
    p.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(q.detach(), torch.ones(2))
    q.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(q.detach(), torch.full((2,), 0.95))


def test_groups_added_later_have_the_defaults():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Ranger([p], lr=0.1, k=5)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    optimizer.add_param_group({"params": [q], "alpha": 0.9})
    assert (optimizer.param_groups[1]["k"], optimizer.param_groups[1]["alpha"]) == (5, 0.9)
    q.grad = torch.ones(2)
    optimizer.step()
    assert q.detach()[0] < 1
    with pytest.raises(ValueError, match=r"alpha=7 .*0\.\.1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "alpha": 7})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0 is not allowed: .*at least 0"),
        ({"eps": -1.0}, r"eps=-1\.0"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1"),
        ({"betas": (1.0, 0.999)}, r"betas\[0\]=1\.0 is not allowed: .*below 1"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\]=-0\.1"),
        ({"k": 0}, r"k=0 is not allowed: .*at least 1"),
        ({"k": 2.5}, r"k=2\.5"),
        ({"alpha": 1.5}, r"alpha=1\.5 is not allowed: .*0\.\.1"),
        ({"where": "grad"}, r"where='grad' is not allowed: use gradient or update"),
    ],
)
def test_bad_values_are_refused_in_the_defaults_and_in_a_group(options, message):
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message):
        Ranger([p], **options)
    with pytest.raises(ValueError, match=message):
        Ranger([{"params": [p], **options}])


@pytest.mark.parametrize("around", [Lookahead, Centralized])
def test_an_optimizer_that_evaluates_its_closure_by_itself_is_refused(around):
    with pytest.raises(
        ValueError, match=f"LBFGS evaluates its closure again and again, and {around.__name__} .*another"
    ):
        around(torch.optim.LBFGS([nn.Parameter(torch.ones(2))]))


def test_an_empty_parameter_list_is_refused():
    with pytest.raises(ValueError, match="params is empty: give at least one"):
        Ranger([])
