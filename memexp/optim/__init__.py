"""Optimizers: Ranger, and its parts around any other; learning-rate schedules."""

from memexp.optim.build import build, parameter_groups
from memexp.optim.centralization import Centralized, centralize_gradient
from memexp.optim.lookahead import Lookahead
from memexp.optim.radam import RAdam
from memexp.optim.ranger import Ranger

__all__ = ["Centralized", "Lookahead", "RAdam", "Ranger", "build", "centralize_gradient", "parameter_groups"]
