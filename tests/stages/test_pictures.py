"""The pictures of a removal, as they are rendered: the other tests of stages leave that out, which takes longest. And those of
features, after the epochs asked for.
"""

import json
import signal

import pytest
import torch
from stage_runs import DATA, RESNET, run

import memexp
from memexp.config import ConfigError
from memexp.report import files, tsne
from memexp.training import board, loop
from memexp.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("untimed")
TINY = ["model=resnet", "model.units=[1]", "model.channels=[4,4]", "dataset=digits", "dataset.limit=32", "device=cpu"]
TINY += ["dataset.test_limit=10", "max_steps=1", "monitor_every=0", "stages=[train,prune]"]


def test_each_removal_leaves_its_scores_and_weights_as_pictures(tmp_path):
    memexp.run(memexp.compose([*TINY, "prune=l1_norm", "prune.ratio=0.5"]), tmp_path)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for name in ("prune-scores", "prune-weights"):
        for suffix, start in starts.items():
            assert (tmp_path / f"plots/{name}.{suffix}").read_bytes().startswith(start)


def test_pictures_are_drawn_after_the_epochs_asked_for_and_tuning_draws_its_own(tmp_path, caplog, monkeypatch):
    features, seen = tsne.features, []
    monkeypatch.setattr(
        tsne, "features", lambda model, batches: seen.append(model.state_dict()) or features(model, batches)
    )
    asked = [
        "report.tsne=true",
        "report.tsne_epochs=[1,3]",
        "evaluate_every=2",
        "max_steps=null",
    ]
    run(tmp_path, *RESNET, *DATA, *asked, "epochs=3", "tune.epochs=1", "tune.max_steps=null", "stages=[train,tune]")
    names = {path.name for path in tmp_path.glob("plots/*.png")}
    assert names == {"tsne-1.png", "tsne-3.png", "tune-tsne-1.png"}
    assert [text for text in caplog.messages if "tsne" in text] == [
        "warning: report.tsne_epochs: the stage tune ends with epoch 1, and nothing is drawn after 3"
    ]
    # of the network as it is evaluated, with statistics of its own after so few steps
    best = torch.load(tmp_path / "checkpoints/tune.pt", weights_only=True)
    found = [name for name in seen[-1] if name.endswith("running_mean")]
    assert len(seen) == 3
    assert found
    assert all(torch.equal(seen[-1][name], best["deployed"][name]) for name in found)


@pytest.mark.parametrize(
    "features",
    [torch.randn(5, 1), torch.randn(1, 8), torch.full((5, 8), 0.5), torch.randn(5, 8) * 1e-30],
    ids=["one feature", "one image", "all the same", "nearly"],
)
def test_features_that_have_no_principal_components_are_drawn(features, monkeypatch):
    """Those of a dead network ended the process in scikit-learn, behind its training and before it was saved."""
    monkeypatch.setattr(tsne, "entitle", lambda *_: None)
    figure = tsne.draw(features, torch.arange(len(features)) % 2, ("a", "b"), run)
    found = torch.cat([torch.tensor(drawn.get_offsets().data) for drawn in figure.axes[0].collections])
    assert found.shape == (len(features), 2)
    assert torch.isfinite(found).all()


def test_a_picture_of_features_that_there_are_not_is_refused_before_training(tmp_path):
    network = ["model=torchvision", "model.arch=squeezenet1_1", "dataset.image_size=64", *DATA]
    with pytest.raises(ConfigError, match=r"report\.tsne: the network has no linear layer"):
        run(tmp_path, *network, "report.tsne=true", "max_steps=1")
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_picture_that_a_signal_comes_before_is_drawn_and_its_evaluation_not_done_again(tmp_path, monkeypatch):
    drawn, evaluate, asked = (
        [],
        loop.evaluate,
        ["epochs=2", "max_steps=null", "stages=[train]", "report.tsne=true", "report.tsne_epochs=[1,2]"],
    )
    monkeypatch.setattr(tsne, "features", lambda *arguments: ([], []))
    monkeypatch.setattr(tsne, "draw", lambda *arguments: None)
    monkeypatch.setattr(files, "save", lambda figure, folder, name: drawn.append(name))
    monkeypatch.setattr(board.Board, "figure", lambda *arguments: None)

    def stopped(*arguments):
        found = evaluate(*arguments)
        arguments[-1].signum = signal.SIGTERM
        return found

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", stopped)
        for go_on in (lambda: run(tmp_path, *TINY, *asked), lambda: memexp.resume(tmp_path)):
            with pytest.raises(Interrupted):
                go_on()
    memexp.resume(tmp_path)
    assert drawn == ["tsne-1", "tsne-2"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["split"] == "test"] == [1, 2]
