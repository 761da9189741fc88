"""Two threads that train one network at the same time are told, not left to disturb each other's recomputation."""

import copy
from threading import Thread

import pytest
import torch
from torch import nn

from memexp.backprop import Chain


@pytest.mark.parametrize("own", [False, True])
def test_a_network_that_is_recomputed_is_not_evaluated_in_another_thread(own):
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    network = Chain([block], "checkpointed")
    other = copy.deepcopy(network) if own else network
    said = []

    def train():
        try:
            other(torch.randn(5, 4)).sum().backward()
            said.append("")
        except RuntimeError as error:
            said.append(str(error))

    y = network(torch.randn(5, 4)).sum()

    def meanwhile(*_):
        thread = Thread(target=train)
        thread.start()
        thread.join()

    hook = block[2].register_forward_hook(meanwhile)
    y.backward()
    hook.remove()
    assert said == [""] if own else "recomputed in one thread and evaluated in another" in said[0]
    train()  # afterwards it is free again
    assert said[1:] == [""]
    assert block[1].track_running_stats
    assert block[1].num_batches_tracked == (1 if own else 2)
