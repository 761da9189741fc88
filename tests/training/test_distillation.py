"""The distillation loss by hand, and a student that learns from its teacher what no label says."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from memexp import models
from memexp.backprop import Chain
from memexp.models.reducenet import student
from memexp.training.distillation import Distillation, Taught, taught


def test_the_loss_is_the_papers_by_hand():
    distillation = Distillation(alpha=0.7, temperature=5)
    z, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]])
    p = 1 / (1 + math.exp(-5 / 5))  # the teacher's first class at T = 5
    q = 1 / (1 + math.exp(1 / 5))
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    entropy = -math.log(1 / (1 + math.exp(2.0 - 1.0)))  # the label is the first class
    expected = 0.3 * entropy + 0.7 * 25 * divergence
    assert float(distillation(z, Taught(torch.tensor([0]), teacher))) == pytest.approx(expected, rel=1e-5)


def test_at_its_ends_it_is_the_plain_loss_and_the_teacher_alone():
    z, teacher, labels = torch.randn(8, 5), torch.randn(8, 5), torch.randint(5, (8,))
    loss = partial(functional.cross_entropy, label_smoothing=0.1)
    plain = Distillation(alpha=0, loss=loss)(z, Taught(labels, teacher))
    torch.testing.assert_close(plain, loss(z, labels))
    assert float(Distillation(alpha=1)(teacher, Taught(labels, teacher))) == pytest.approx(0, abs=1e-6)


def test_a_student_learns_what_only_its_teacher_knows():
    torch.manual_seed(0)
    teacher, pupil, images = nn.Linear(6, 4).eval(), nn.Linear(6, 4), torch.randn(64, 6)
    distillation = Distillation(alpha=1.0)
    optimizer = torch.optim.Adam(pupil.parameters(), 0.05)
    for _ in range(200):
        batch, target = taught(teacher, images, torch.zeros(64, dtype=torch.long))
        optimizer.zero_grad()
        distillation(pupil(batch), target).backward()
        optimizer.step()
    assert (pupil(images).argmax(1) == teacher(images).argmax(1)).float().mean() > 0.95
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("settings", "message"), [({"alpha": 1.5}, "alpha=1.5"), ({"temperature": 0}, "temperature=0")]
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**settings)


def build(**settings) -> nn.Module:
    return models.create("reducenet", classes=10, shape=(3, 32, 32), chain=Chain, plain=True, **settings)


def test_a_student_starts_as_its_teacher_without_the_wide_branches():
    torch.manual_seed(0)
    teacher, pupil = build(depth=11, wide=2).eval(), build(depth=11).eval()
    x = torch.randn(2, 3, 32, 32)
    student(pupil, teacher)
    assert not torch.allclose(pupil(x), teacher(x))
    for block in teacher.body:
        block.wide = None
    torch.testing.assert_close(pupil(x), teacher(x))


@pytest.mark.parametrize(
    ("pupil", "teacher", "message"),
    [({"depth": 11}, {"depth": 11}, "no wide branches"), ({"depth": 11}, {"depth": 14, "wide": 1}, "another depth")],
)
def test_a_teacher_that_is_none_is_refused(pupil, teacher, message):
    with pytest.raises(ValueError, match=message):
        student(build(**pupil), build(**teacher))
