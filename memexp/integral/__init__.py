"""Integral Neural Networks (Solodskikh et al., CVPR 2023): a weight is a function, a network is that function sampled.

integral = convert(network, example_input)      # the same outputs, groups found without naming layers
integral.discretize(0.6)(x)                     # a plain network of 60 % of the channels
"""

from memexp.integral.conversion import convert
from memexp.integral.network import IntegralNetwork

__all__ = ["IntegralNetwork", "convert"]
