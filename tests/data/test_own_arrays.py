"""What a user's own data set may hold as labels and as names of classes."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import memexp
from memexp.data import DataError, own

IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


class Given(list):
    """Pairs of an image and a label, and perhaps names."""


def made(monkeypatch, label, classes=None):
    split = Given((image, label(i)) for i, image in enumerate(IMAGES))
    if classes is not None:
        split.classes = classes
    monkeypatch.setattr(own.own, "bound", lambda *_: (lambda: (split, split), {}))
    return own.load({"_target_": "mine.images"})


@pytest.mark.parametrize(
    "label", [lambda i: i % 2, lambda i: float(i % 2), lambda i: np.int32(i % 2), lambda i: torch.tensor([i % 2]), bool]
)
def test_a_whole_number_is_a_label_whatever_holds_it(monkeypatch, label):
    assert made(monkeypatch, label).train.labels.tolist() == [int(label(i)) for i in range(4)]


@pytest.mark.parametrize("label", [0.5, "cat", None, float("nan"), float("inf"), np.eye(2)[0], torch.eye(2)[0], 2**70])
def test_what_is_no_whole_number_is_told_and_not_cut_off(monkeypatch, label):
    with pytest.raises(DataError, match=r"mine\.images: the train split has a label .*; labels must be whole numbers"):
        made(monkeypatch, lambda i: label)


@pytest.mark.parametrize("names", [["a", "b"], ("a", "b"), np.array(["a", "b"]), "ab", []])
def test_classes_are_named_by_a_list_or_an_array(monkeypatch, names):
    assert made(monkeypatch, lambda i: i % 2, names).classes == (("a", "b") if len(names) else ("0", "1"))


@pytest.mark.parametrize("names", [2, {"b": 0, "a": 1}, {"a", "b"}, {0: "a", 1: "b"}, lambda: ["a", "b"]])
def test_names_that_are_in_no_order_of_labels_are_told(monkeypatch, names):
    with pytest.raises(DataError, match=r"mine\.images: the train split has classes=.*; they must be a list of names"):
        made(monkeypatch, lambda i: i % 2, names)


def test_one_class_is_none(monkeypatch):
    with pytest.raises(DataError, match="one class only, 0; a classifier needs two classes at least"):
        made(monkeypatch, lambda i: 0)


@pytest.mark.parametrize("first", ["described", "loaded"])
def test_a_data_set_is_made_once_and_of_values_also_where_a_network_is_followed_without(monkeypatch, first):
    """A network of a run that is on disk is estimated before anybody has asked for its data."""
    calls = []

    def tensors():
        calls.append(torch.randint(0, 200, (6, 1, 7, 9), dtype=torch.uint8))
        return [(calls[-1], torch.arange(6) % 3)] * 2

    bound = own.own.bound
    monkeypatch.setattr(own.own, "bound", lambda path, *a: (tensors, {}) if path == "mine.images" else bound(path, *a))
    monkeypatch.setattr(own, "_described", {})
    cfg = memexp.compose("model=resnet model.depth=8 device=cpu")
    OmegaConf.update(cfg, "dataset._target_", "mine.images", force_add=True)
    found = own.load(cfg.dataset) if first == "loaded" else None
    assert memexp.estimate(cfg)["parameters"] > 0
    found = found or own.load(cfg.dataset)
    assert torch.equal(torch.from_numpy(found.train.images)[..., 0], calls[0][:, 0])
    assert len(calls) == 1
