"""Hydra takes plugins only from the namespace package hydra_plugins, so the launcher is named there; see memexp/config.py."""

from memexp import launcher


class LocalLauncher(launcher.LocalLauncher):
    """hydra/launcher=local"""


class OtherLauncher(launcher.OtherLauncher):
    """Around the launcher of hydra/launcher=..., where that is not local"""
