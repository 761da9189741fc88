"""Every model with every strategy that is valid for it: the estimate is what a run takes, to the byte."""

import itertools

import pytest

import memexp
from memexp.models.families import FAMILIES

SMALL = ["dataset=digits", "dataset.limit=64", "dataset.test_limit=10", "batch_size=4", "device=cpu", "monitor_every=0"]
MODELS = {
    "resnet": ["model=resnet", "model.depth=14"],
    "resnet simple": ["model=resnet", "model.kind=simple", "model.depth=3"],
    "resnet ode": ["model=resnet", "model.kind=ode", "model.units=[2,3]", "model.channels=[8,4,8]"],
    "revnet": ["model=revnet", "model.units=[3,3]", "model.channels=[8,8,16]"],
    "revnet bottleneck": ["model=revnet", "model.units=[2,2]", "model.channels=[8,8,16]", "model.bottleneck=true"],
    "heunnet": ["model=heunnet", "model.depth=4"],
    "vgg16": ["model=vgg16"],
    "reducenet": ["model=reducenet", "model.depth=8"],
    "discrete": ["model=discrete", "model.base=revnet14"],
    "torchvision": ["model=torchvision", "model.arch=squeezenet1_1", "dataset.image_size=64"],
}
PAIRS = [(name, backprop) for name in MODELS for backprop in FAMILIES[name.split()[0]].strategies]
SETTINGS = list(itertools.product(("fp32", "bf16"), ("sgd", "ranger"), (1, 2)))


def agrees(tmp_path, name, backprop, precision, optimizer, accumulate):
    overrides = [*SMALL, *MODELS[name], f"backprop={backprop}", f"precision={precision}", f"optimizer={optimizer}"]
    # the steps that are followed are not the last, in which activations that vanish are gone
    overrides += [f"accumulate={accumulate}", "max_steps=3", "memory.steps=2"]
    memory = memexp.run(memexp.compose(overrides), tmp_path)["memory"]
    assert memory["estimate"] == memory["peak"] > 0


def test_every_family_and_strategy_is_in_it():
    assert {name.split()[0] for name in MODELS} == {
        name
        for name, family in FAMILIES.items()
        if family.images and not family.integral  # whose steps draw sizes
    }


@pytest.mark.parametrize(("name", "backprop"), PAIRS[::7])
def test_some(tmp_path, name, backprop):
    agrees(tmp_path, name, backprop, "bf16", "sgd", 2)


@pytest.mark.long
@pytest.mark.parametrize(("precision", "optimizer", "accumulate"), SETTINGS)
@pytest.mark.parametrize(("name", "backprop"), PAIRS)
def test_all(tmp_path, name, backprop, precision, optimizer, accumulate):
    agrees(tmp_path, name, backprop, precision, optimizer, accumulate)
