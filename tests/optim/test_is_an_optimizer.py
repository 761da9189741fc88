"""Ranger and its parts behave as a torch.optim.Optimizer does: copies, hooks, formats, layouts, loading (case D9)."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from memexp.optim import Centralized, Lookahead, RAdam, Ranger, kernels

MAKE = {
    "ranger": lambda params: Ranger(params, lr=0.01, k=3),
    "radam": lambda params: RAdam(params, lr=0.01),
    "lookahead sgd": lambda params: Lookahead(_sgd(params), k=3, evaluate_slow=False),
    "centralized adamw": lambda params: Centralized(kernels.AdamW(params, **kernels.chosen(params)), where="update"),
    "sgd": lambda params: _sgd(params),
}
SHAPES = [(8, 4, 3, 3), (5, 4), (4,)]
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def _sgd(params):
    return kernels.SGD(params, lr=0.1, momentum=0.9, **kernels.chosen(params))


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def follow(optimizer, params, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step + 1)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.complex64 if p.is_complex() else None).to(
                p.dtype
            )
        optimizer.step()


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
@every
def test_d9_a_copy_goes_on_with_the_same_bits_and_apart(make, again):
    params = parameters()
    optimizer = make(params)
    follow(optimizer, params, range(7))
    others, other = again((params, optimizer))
    kept = [p.detach().clone() for p in params]
    follow(other, others, range(7, 14))
    assert all(torch.equal(p, q) for p, q in zip(params, kept, strict=True))
    follow(optimizer, params, range(7, 14))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(params, kept, strict=True))
    assert str(other) == str(optimizer)
    if isinstance(other, Lookahead):
        assert other.evaluate_slow == optimizer.evaluate_slow
        other.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        assert len(other.optimizer.param_groups) == 2


@every
def test_d9_step_hooks_fire_once(make):
    params = parameters()
    optimizer = make(params)
    torch.optim.SGD(params)  # patches the class that ours inherits from
    seen = []
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
        optimizer.register_step_post_hook(lambda *_: seen.append("post")),
    ]
    try:
        follow(optimizer, params, range(1))
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == ["global pre", "pre", "post", "global post"]


def test_d9_sparse_gradients_are_refused_in_the_first_step_or_right():
    embedding, dense = (nn.Embedding(6, 3, sparse=sparse) for sparse in (True, False))
    dense.load_state_dict(embedding.state_dict())
    tokens = torch.tensor([1, 4, 4])
    for make, message in [
        (lambda p: Ranger([p]), r"\(6, 3\) is sparse, which centralization"),
        (lambda p: Ranger([p], gradient_centralization=False), r"\(6, 3\) is sparse, which RAdam cannot"),
        (lambda p: kernels.AdamW([p], fused=True, foreach=False), "sparse"),
    ]:
        optimizer = make(embedding.weight)
        embedding(tokens).sum().backward()
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
    ours, theirs = (Lookahead(_sgd([e.weight]), k=2) for e in (embedding, dense))
    for _ in range(3):
        for e, optimizer in ((embedding, ours), (dense, theirs)):
            optimizer.zero_grad()
            e(tokens).square().sum().backward()
            optimizer.step()
    assert torch.equal(embedding.weight, dense.weight)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16, torch.float16])
def test_d9_complex_and_half_weights_are_those_of_torchs_radam(dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 1e-3}
    follow(RAdam(ours, **options), ours, range(12))
    follow(torch.optim.RAdam(theirs, foreach=True, decoupled_weight_decay=True, **options), theirs, range(12))
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.complex64 else {"rtol": 2e-2, "atol": 2e-2}
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **close)
        assert p.dtype is dtype


def test_d9_ranger_of_complex_weights_moves_each_part():
    (p,) = parameters(torch.complex64, [(5, 4)])
    before = p.detach().clone()
    follow(Ranger([p], lr=0.1), [p], range(7))
    moved = torch.view_as_real(p.detach() - before)
    assert moved.abs().min() > 0
    assert moved.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool])
def test_d9_formats_without_arithmetic_are_refused_where_they_are_given(dtype):
    p = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=rf"shape \(3,\) is {dtype}: use one of float32"):
        Ranger([p])
    optimizer = Ranger([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=str(dtype)):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == len(optimizer.optimizer.param_groups) == 1


@every
@pytest.mark.parametrize("case", ["gradient NCHW, weight NHWC", "expanded gradient", "state NCHW", "weight with gaps"])
def test_d9_elements_that_lie_otherwise_in_memory_change_nothing(make, case):
    """torch's fused kernels on a CPU take memory as it lies, and write beyond a weight that has gaps."""
    plain = parameters(shapes=[(8, 4, 3, 3)])
    (p,) = parameters(shapes=[(8, 4, 3, 3)])
    around = torch.zeros(8, 4, 3, 6)
    if case == "weight with gaps":
        around[..., :3] = p.detach()
        p = nn.Parameter(around[..., :3])
    elif case != "state NCHW":
        p = nn.Parameter(p.detach().contiguous(memory_format=torch.channels_last))
    ours, theirs = make([p]), make(plain)
    for step in range(12):
        g = torch.randn(8, 1 if case == "expanded gradient" else 4, 3, 3).expand(8, 4, 3, 3)
        p.grad, plain[0].grad = g, g.contiguous().clone()
        ours.step(), theirs.step()
        if case == "state NCHW" and step == 6:
            state = ours.state_dict()
            p = nn.Parameter(p.detach().contiguous(memory_format=torch.channels_last))
            ours = make([p])
            ours.load_state_dict(state)
    torch.testing.assert_close(p.detach(), plain[0].detach(), rtol=1e-5, atol=1e-6)
    assert not around[..., 3:].any()


@every
def test_d9_a_state_of_another_format_is_loaded_into_that_of_the_weights(make):
    double, single = parameters(torch.float64), parameters(torch.float32)
    first, second = make(double), make(single)
    follow(first, double, range(7))
    with torch.no_grad():
        for p, q in zip(double, single, strict=True):
            q.copy_(p)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for p in single:
        assert all(t.dtype is torch.float32 for t in second.state[p].values() if torch.is_tensor(t) and t.ndim)
    for optimizer, params in ((first, double), (second, single)):
        follow(optimizer, params, range(7, 14))
    for p, q in zip(double, single, strict=True):
        torch.testing.assert_close(p.float(), q, rtol=1e-4, atol=1e-5)


def test_d9_radam_goes_on_from_a_state_of_torchs():
    params, others = parameters(), parameters()
    theirs, ours = torch.optim.RAdam(params, lr=0.01, decoupled_weight_decay=True), RAdam(others, lr=0.01)
    follow(theirs, params, range(7))
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for optimizer, weights in ((theirs, params), (ours, others)):
        follow(optimizer, weights, range(7, 14))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("inside", [RAdam, functools.partial(torch.optim.RAdam, decoupled_weight_decay=True)])
def test_a_wrapper_goes_on_from_a_state_of_the_optimizer_inside_alone(inside):
    params, others = parameters(), parameters()
    alone, around = inside(params, lr=0.01), Lookahead(Centralized(RAdam(others, lr=0.01)), k=100)
    around.param_groups[0]["gradient_centralization"] = False
    follow(alone, params, range(7))
    follow(around, others, range(7))
    around.load_state_dict(copy.deepcopy(alone.state_dict()))
    assert around.param_groups[0]["gradient_centralization"]  # the default: the state says nothing of it
    around.param_groups[0]["gradient_centralization"] = False
    for optimizer, weights in ((alone, params), (around, others)):
        follow(optimizer, weights, range(7, 14))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"maximize": True, "decoupled_weight_decay": True},
            "maximize=True is not allowed: give the loss another sign",
        ),
        (
            {"weight_decay": 0.1},
            "decoupled_weight_decay=False is not allowed with weight_decay=0.1: use True, or weight",
        ),
    ],
)
def test_what_only_torchs_radam_does_is_refused_in_a_group_and_in_a_state(options, said):
    params = parameters()
    group = {"params": params, "decoupled_weight_decay": False} | options
    with pytest.raises(ValueError, match=said):
        RAdam([group])
    ours, theirs = RAdam(params, lr=0.01), torch.optim.RAdam(params, **options)
    with pytest.raises(ValueError, match=said):
        ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.01


@every
def test_d9_frozen_weights_stay_and_gradients_that_come_later_start_there(make):
    early, late, frozen = parameters(shapes=[(5, 4)] * 3)
    start, (alone,) = frozen.detach().clone(), parameters(shapes=[(5, 4)])
    alone.data.copy_(late.detach())
    optimizer, other = make([early, late, frozen]), make([alone])
    follow(optimizer, [early], range(3))
    for p in (late, alone):
        p.grad = torch.full((5, 4), 0.5).triu()
    optimizer.step(), other.step()
    assert torch.equal(frozen, start)
    torch.testing.assert_close(late, alone) if make is not MAKE["lookahead sgd"] else None
    assert not torch.equal(late, start)


@pytest.mark.parametrize("cls", [kernels.SGD, kernels.AdamW])
def test_d13_kernels_are_chosen_by_name_and_a_loaded_state_does_not_change_them(cls):
    params = parameters()
    optimizer = cls(params, lr=0.1, **kernels.chosen(params))
    assert optimizer.param_groups[0]["fused"] is True
    saved = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[cls.__name__.lower()](parameters(), lr=0.1)
    follow(saved, saved.param_groups[0]["params"], range(2))
    optimizer.load_state_dict(saved.state_dict())
    assert (optimizer.param_groups[0]["fused"], optimizer.param_groups[0]["foreach"]) == (True, False)
    follow(optimizer, params, range(2))
    assert kernels.chosen([*params, nn.Parameter(torch.ones(2, dtype=torch.complex64))]) == {
        "fused": False,
        "foreach": True,
    }
    assert kernels.chosen(parameters(torch.bfloat16)) == {"fused": False, "foreach": True}


@pytest.mark.parametrize("wrapped", [False, True])
def test_d13_steps_that_the_scaler_skips_leave_fused_kernels_where_they_were(wrapped):
    (p,) = parameters(shapes=[(4, 3)])
    optimizer = _sgd([p])
    outer = Lookahead(optimizer, k=100) if wrapped else optimizer
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = p.detach().clone()
    for value in (1.0, float("inf"), 1.0):
        outer.zero_grad()
        scaler.scale((p * value).sum()).backward()
        scaler.step(outer)
        scaler.update()
    torch.testing.assert_close(p.detach(), before - 0.1 * (1 + 1.9))


def test_groups_of_named_parameters_and_one_that_fails_to_be_added():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = Ranger(network.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in network.named_parameters()]
    for bad in ({"alpha": 7}, {"lr": -1.0}, {"lr": float("inf")}, {"where": "grad"}):
        with pytest.raises(ValueError, match="is not allowed"):
            optimizer.add_param_group({"params": [("p", nn.Parameter(torch.ones(1)))], **bad})
    assert len(optimizer.param_groups) == len(optimizer.optimizer.param_groups) == 1


@every
def test_no_gradient_is_copied_where_weights_and_gradients_lie_in_nhwc_order(make):
    params = [nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)) for _ in range(3)]
    optimizer = make(params)
    for p in params:
        p.grad = torch.randn_like(p)
    for _ in range(8):  # RAdam has no fused kernel for its first five
        optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    copies = {"aten::clone", "aten::contiguous"}
    assert not copies & {event.key for event in profile.key_averages()}
