"""Estimated energy of a layer: its multiplications and additions, and its traffic with memory.

E = MACs * (multiply + add) + (weights + inputs + outputs) * DRAM, for one sample and 32-bit words, each of which crosses to
DRAM once. The constants are those of Horowitz 2014 ("Computing's energy problem", ISSCC, 45 nm, 0.9 V); the idea of pruning
layers in the order of their energy is that of Yang, Chen, Sze 2017 (arXiv 1611.05128), whose model has more levels of memory.
"""

from collections.abc import Iterable

from torch import nn

from memexp.memory.tracker import track
from memexp.pruning.counting import Use

MULTIPLY = 3.7  # pJ, 32-bit floating point
ADD = 0.9
DRAM = 640.0  # pJ for each 32-bit word


def by_layer(uses: Iterable[Use], samples: int) -> dict[str, float]:
    """Picojoules of each layer for one of the `samples` that went through the network, whatever rows a layer takes of it (words
    of a text, windows of an image); a layer that is called twice costs twice. What attention of torch's spends in its out_proj,
    which makes channels of its own, is that one's."""
    energy: dict[str, float] = {}
    for use in uses:
        spent = {use.name: _spent(use, samples)}
        if isinstance(use.module, nn.MultiheadAttention):
            last = _projection(use, use.module.out_proj)
            spent[last.name] = _spent(last, samples)
            spent[use.name] -= spent[last.name]
        for name, own in spent.items():
            energy[name] = energy.get(name, 0.0) + own
    return energy


def _projection(attention: Use, layer: nn.Linear) -> Use:
    """The last layer of an attention, as if it had been called by itself."""
    y = attention.outputs[0]
    return Use(f"{attention.name}.out_proj", layer, (y.new_zeros(*y.shape[:-1], layer.in_features),), {}, y)


def _spent(use: Use, samples: int) -> float:
    words = sum(p.numel() for p in use.module.parameters())
    traffic = words + sum(t.numel() for t in (*use.inputs, *use.outputs)) / samples
    return _macs(use) / samples * (MULTIPLY + ADD) + traffic * DRAM


def _macs(use: Use) -> int:
    return track(lambda: use.module(*use.args, **use.kwargs)).macs_forward
