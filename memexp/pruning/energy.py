"""Estimated energy of a layer: its multiplications and additions, and its traffic with memory.

E = MACs * (multiply + add) + (weights + inputs + outputs) * DRAM, for one sample and 32-bit words, each of which crosses to
DRAM once. The constants are those of Horowitz 2014 ("Computing's energy problem", ISSCC, 45 nm, 0.9 V); the idea of pruning
layers in the order of their energy is that of Yang, Chen, Sze 2017 (arXiv 1611.05128), whose model has more levels of memory.
"""

from collections.abc import Iterable

from memexp.memory.tracker import track
from memexp.pruning.counting import Use

MULTIPLY = 3.7  # pJ, 32-bit floating point
ADD = 0.9
DRAM = 640.0  # pJ for each 32-bit word


def by_layer(uses: Iterable[Use], samples: int) -> dict[str, float]:
    """Picojoules of each layer for one of the `samples` that went through the network, whatever rows a layer takes of it (words
    of a text, windows of an image); a layer that is called twice costs twice."""
    energy: dict[str, float] = {}
    for use in uses:
        words = sum(p.numel() for p in use.module.parameters())
        traffic = words + sum(t.numel() for t in (*use.inputs, *use.outputs)) / samples
        spent = _macs(use) / samples * (MULTIPLY + ADD) + traffic * DRAM
        energy[use.name] = energy.get(use.name, 0.0) + spent
    return energy


def _macs(use: Use) -> int:
    return track(lambda: use.module(*use.args, **use.kwargs)).macs_forward
