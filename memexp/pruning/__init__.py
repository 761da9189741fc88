"""Pruning: channels are really removed, by a criterion, in a scope, to a ratio or a target.

    pruned, edit = prune(network, images, criterion="l1_norm", target="macs:0.5")

The groups of memexp.channels say which channels go together, a criterion scores them (memexp.pruning.criteria), a selection
turns scores into a choice (selection, netadapt), and the edit `narrow` carries it out; then the narrowed network is checked
against the masked one.
"""

from memexp.pruning.criteria import CRITERIA, Criterion
from memexp.pruning.removal import Removal, prune, remove
from memexp.pruning.settings import Settings
from memexp.pruning.unstructured import Masks, mask_weights

__all__ = ["CRITERIA", "Criterion", "Masks", "Removal", "Settings", "mask_weights", "prune", "remove"]
