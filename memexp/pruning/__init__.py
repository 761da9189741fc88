"""Pruning: channels are really removed, by a criterion, in a scope, to a ratio or a target.

    pruned, edit = prune(network, images, criterion="l1_norm", target="macs:0.5")

The groups of memexp.channels say which channels go together, a criterion scores them (memexp.pruning.criteria), a selection
turns scores into a choice (selection, netadapt), and the edit `narrow` carries it out; then the narrowed network is checked
against the masked one.

What is asked of a pruning (settings) is checked with the rest of a configuration, without torch, so names come when asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memexp.pruning.criteria import CRITERIA, Criterion
    from memexp.pruning.removal import Removal, prune, remove
    from memexp.pruning.settings import Settings
    from memexp.pruning.unstructured import Masks, mask_weights

__all__ = ["CRITERIA", "Criterion", "Masks", "Removal", "Settings", "mask_weights", "prune", "remove"]
_PLACES = {"criteria": ("CRITERIA", "Criterion"), "removal": ("Removal", "prune", "remove"), "settings": ("Settings",)}
_PLACES |= {"unstructured": ("Masks", "mask_weights")}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"memexp.pruning.{module}"), name)
    raise AttributeError(f"module 'memexp.pruning' has no attribute {name!r}")
