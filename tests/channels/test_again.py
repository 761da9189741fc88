"""A narrowed network is narrowed again, down to numbers of channels that are one and none."""

import pytest
import torch

import memexp
from memexp import build, channels, edits


@pytest.mark.parametrize("kept", [(0, 1), (1, 0)])
def test_zeros_around_a_shortcut_come_down_to_one_and_to_none(kept):
    """counts of padded channels before and after: (2, 2), then (1, 1), and then one of them is gone."""
    torch.manual_seed(0)
    cfg = memexp.compose(["model=resnet", "model.units=[1,1]", "model.channels=[4,4,8]", "dataset=digits"])
    network, x = build.network(cfg).eval(), torch.randn(2, 3, 16, 16)
    for counts in ((1, 1), kept):
        graph = channels.trace(network, x)
        of_pads = {number.name: number.channels for number in graph.numbers if number.module == "body.1.s"}
        assert len(of_pads) == 2
        stay = {number: list(range(group.size)) for number, group in enumerate(graph.groups)}
        for name, count in zip(("before", "after"), counts, strict=True):
            for group, channel in of_pads[name][count:]:
                stay[group].remove(channel)
        stay = {number: own for number, own in stay.items() if own}
        changed = {n: own for n, own in stay.items() if len(own) < graph.groups[n].size}
        masked = channels.masked(network, graph, changed)(x)
        network = edits.apply(network, channels.narrow_edit(graph, changed))
        assert (network.body[1].s.before, network.body[1].s.after) == counts
        torch.testing.assert_close(network(x), masked)
