"""Rows of layers, and gradients of a network that holds them."""

import torch
from torch import nn


def row(width=16):
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())


def gradients(network, x):
    torch.manual_seed(3)
    network.zero_grad()
    network(x).square().sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]
