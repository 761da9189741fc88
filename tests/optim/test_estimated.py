"""What an optimizer allocates in a step is the same with data and without (case D13)."""

from contextlib import nullcontext

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import memexp
from memexp import optim
from memexp.memory.fake import without_data
from memexp.memory.tracked import Report
from memexp.memory.tracker import Tracker
from memexp.optim import kernels
from memexp.training.precision import Precision


def tracked(settings, precision: str, data: bool) -> Report:
    """Seven steps (RAdam's kernel is another one from its sixth on), without their forward and backward."""
    with nullcontext() if data else without_data():
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))
        optimizer = optim.build(settings, network)
        scaler = Precision(precision, torch.device("cpu")).scaler
        tracker = Tracker(network, optimizer)
        for _ in range(7):
            scaler.scale(network(torch.ones(4, 3, 8, 8)).sum()).backward()
            with tracker:
                scaler.unscale_(optimizer)
                kernels.clip(network.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad(set_to_none=False)
    return tracker.report()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "overrides", [["sgd"], ["sgd", "lookahead.k=2", "gradient_centralization=true"], ["adamw"], ["ranger"]]
)
def test_d13_a_step_takes_the_same_bytes_with_and_without_data(overrides, precision):
    name, *more = overrides
    cfg = memexp.compose([f"optimizer={name}", *(f"optimizer.{option}" for option in more)])
    settings = OmegaConf.create(OmegaConf.to_container(cfg.optimizer, resolve=True))
    real, fake = (tracked(settings, precision, data) for data in (True, False))
    assert (real.peak, real.at_peak) == (fake.peak, fake.at_peak)
    assert len(real.timeline) == len(fake.timeline)


@pytest.mark.parametrize(
    ("name", "whole"),
    [("sgd", ["lr=1", "momentum=0"]), ("adamw", ["betas=[0,0.99]", "eps=1"]), ("ranger", ["betas=[0,0]", "eps=1"])],
)
def test_numbers_may_be_whole_ones(name, whole):
    """As a person writes beta1=0: AdamW refused it in torch's words, once the run had its directory."""
    cfg = memexp.compose([f"optimizer={name}", "optimizer.lookahead.k=1", *(f"optimizer.{option}" for option in whole)])
    network = nn.Linear(3, 3)
    optimizer = optim.build(cfg.optimizer, network)
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in network.parameters())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_d13_the_fused_kernel_takes_no_memory_of_its_own(name):
    """foreach, which torch takes on CUDA, makes a copy of all gradients."""
    cfg = memexp.compose([f"optimizer={name}"])
    network = nn.Linear(300, 300)
    optimizer = optim.build(cfg.optimizer, network)
    largest = []
    for _ in range(3):
        network(torch.ones(2, 300)).sum().backward()
        with Tracker(network, optimizer) as tracker:
            optimizer.step()
        report = tracker.report()
        largest.append(report.peak - sum(report.timeline[report.entered[0] - 1][1].values()))
    assert largest[-1] <= 4096  # numbers of steps, not weights
