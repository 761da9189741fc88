"""Weights from elsewhere load, and what was renamed or left out is said (case D8)."""

import logging
import re
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn

from memexp import models
from memexp.backprop import Chain
from memexp.models.weights import load_file


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def prefixed(state, prefix):
    return OrderedDict((prefix + key, value) for key, value in state.items())


def without_counts(state):
    return OrderedDict((key, value) for key, value in state.items() if not key.endswith("num_batches_tracked"))


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, None),
        (lambda s: dict(s), None),
        (lambda s: {"state_dict": s, "epoch": 90}, None),
        (lambda s: {"model": s, "optimizer": {}, "schema": 1}, None),
        (lambda s: prefixed(s, "module."), r"9 names changed, such as module\.0\.weight to 0\.weight"),
        (lambda s: {"model_state_dict": prefixed(s, "module._orig_mod.")}, "names changed"),
        (lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(3)}, r"n_averaged left out \(1 tensors\)"),
        (without_counts, None),
        (lambda s: {key: value.half() if value.is_floating_point() else value for key, value in s.items()}, None),
    ],
)
def test_d8_weights_are_found_in_files_of_other_programs(tmp_path, caplog, wrap, said):
    caplog.set_level(logging.INFO, "memexp")
    trained, network = small(), small()
    with torch.no_grad():
        trained[1].running_mean.copy_(torch.arange(4.0))
        for p in trained.parameters():
            p.copy_(torch.randn(p.shape).half())
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pt")
    load_file(network, tmp_path / "w.pt", head="3")
    for key, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    assert re.search(said or "^$", caplog.text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "hold a list, not a state_dict"),
        ({3: torch.ones(2)}, "hold a dict, not a state_dict"),
        ({}, "of another network"),
        ({"n_averaged": torch.tensor(3)}, "of another network"),
        ({"epoch": 3, "state": {}}, "no state_dict: epoch, state hold no tensor"),
        ({"weight": torch.ones(2)}, r"of another network: .*0\.bias, 0\.weight, 1\.bias and \d more differ"),
        (small().state_dict() | {"0.weight": torch.ones(7)}, r"of another network: 0\.weight differ"),
        (small().state_dict() | {"aux.weight": torch.ones(7)}, r"of another network: aux\.weight differ"),
    ],
)
def test_d8_what_is_no_weights_of_this_network_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt.* {message}"):
        load_file(small(), tmp_path / "w.pt", head="3")


def saved(tmp_path, state):
    """A file of the size of its names and shapes: every tensor is one number, expanded."""
    torch.save(
        OrderedDict(
            (key, torch.tensor(i, dtype=value.dtype).expand(value.shape)) for i, (key, value) in enumerate(state)
        ),
        tmp_path / "w.pt",
    )


@pytest.mark.parametrize(("arch", "heads"), [("googlenet", "aux1, aux2"), ("inception_v3", "AuxLogits")])
def test_d8_heads_for_training_alone_are_left_out(tmp_path, caplog, arch, heads):
    caplog.set_level(logging.INFO, "memexp")
    with torch.device("meta"):
        state = torchvision.models.get_model(arch, weights=None, init_weights=False, aux_logits=True).state_dict()
    saved(tmp_path, state.items())
    settings = {"arch": arch, "weights": str(tmp_path / "w.pt")}
    network = models.create("torchvision", classes=10, shape=(3, 299, 299), chain=Chain, **settings)
    assert f"{heads} left out" in caplog.text
    assert "dataset.mean=[0.5,0.5,0.5]" in caplog.text
    key = "inception4a.branch1.conv.weight" if arch == "googlenet" else "Mixed_5b.branch1x1.conv.weight"
    assert network.state_dict()[key].unique().tolist() == [list(state).index(key)]
    assert network.fc.out_features == 10


def test_d8_densenet_files_have_names_of_another_time(tmp_path, caplog):
    caplog.set_level(logging.INFO, "memexp")
    with torch.device("meta"):
        state = torchvision.models.densenet121().state_dict()
    old = re.compile(r"(denselayer\d+\.)(norm|conv)([12])")
    renamed = {old.sub(r"\1\2.\3", key): value for key, value in without_counts(state).items()}
    saved(tmp_path, renamed.items())
    settings = {"arch": "densenet121", "weights": str(tmp_path / "w.pt")}
    network = models.create("torchvision", classes=10, shape=(3, 224, 224), chain=Chain, **settings)
    assert "names changed, such as features.denseblock1.denselayer1.norm.1.weight to" in caplog.text
    key = "features.denseblock2.denselayer3.conv2.weight"
    old_key = old.sub(r"\1\2.\3", key)
    assert network.state_dict()[key].unique().tolist() == [list(renamed).index(old_key)]


def test_d8_versions_that_torch_keeps_beside_the_weights_stay_with_them(tmp_path):
    """MNASNet refuses weights without one; plain ones of today's names are of today's version."""
    torch.manual_seed(0)
    trained = torchvision.models.mnasnet0_5(num_classes=10)
    settings = {"arch": "mnasnet0_5", "weights": str(tmp_path / "w.pt")}
    for state in (trained.state_dict(), dict(trained.state_dict()), prefixed(trained.state_dict(), "module.")):
        torch.save(state, tmp_path / "w.pt")
        network = models.create("torchvision", classes=10, shape=(3, 64, 64), chain=Chain, **settings)
        assert torch.equal(network.classifier[1].weight, trained.classifier[1].weight)
