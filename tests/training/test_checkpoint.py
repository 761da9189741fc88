import pickle

import pytest
import torch
from torch import nn

from memexp.training import checkpoint
from memexp.training.checkpoint import CheckpointError

SOUND = {"schema": 2, "model": {}, "config": None, "classes": None, "edits": [], "stage": "train", "stages": []}
SOUND |= {"training": None, "random": None, "appended": None}


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, SOUND | {"model": {"w": torch.arange(3)}, "step": 7})
    state = checkpoint.load(path)
    assert state["step"] == 7
    assert torch.equal(state["model"]["w"], torch.arange(3))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, SOUND | {"step": 1})

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"last\.pt.*No space left"):
        checkpoint.save(path, SOUND | {"step": 2})
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": {"w": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        checkpoint.load(path)


class Intruder:
    def __reduce__(self):
        return (open, ("intruder-was-here", "w"))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Intruder()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": Intruder()}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "intruder-was-here").exists()


def test_weights_of_another_network_are_described(tmp_path):
    with pytest.raises(CheckpointError, match=r"of another network: .*weight is \(3, 2\), not \(4, 2\)"):
        checkpoint.load_weights(nn.Linear(2, 4), nn.Linear(2, 3).state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="bias is missing"):
        checkpoint.load_weights(nn.Linear(2, 3), nn.Linear(2, 3, bias=False).state_dict(), tmp_path / "x.pt")
