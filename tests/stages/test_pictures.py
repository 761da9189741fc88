"""The pictures of a removal, as they are rendered: the other tests of stages leave that out, which takes longest."""

import memexp

TINY = ["model=resnet", "model.units=[1]", "model.channels=[4,4]", "dataset=digits", "dataset.limit=32", "device=cpu"]
TINY += ["dataset.test_limit=10", "max_steps=1", "monitor_every=0", "stages=[train,prune]"]


def test_each_removal_leaves_its_scores_and_weights_as_pictures(tmp_path):
    memexp.run(memexp.compose([*TINY, "prune=l1_norm", "prune.ratio=0.5"]), tmp_path)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for name in ("prune-scores", "prune-weights"):
        for suffix, start in starts.items():
            assert (tmp_path / f"plots/{name}.{suffix}").read_bytes().startswith(start)
