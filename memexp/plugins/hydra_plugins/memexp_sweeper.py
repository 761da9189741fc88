"""Where Hydra looks for the sweeper; see memexp_launcher.py."""

from memexp import sweeper


class CasesSweeper(sweeper.CasesSweeper):
    """hydra/sweeper=cases"""
