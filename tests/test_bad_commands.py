"""Command lines that are wrong, two hundred and more: exit status 2, one screen, no traceback, nothing written."""

import shlex
from pathlib import Path

import pytest

from memexp.cli import main

KEYS = {
    "seed": ["x", "-1", "1.5", "null", "true", "inf", "1e24", "[1]", "{a:1}", "???"],
    "epochs": ["0", "-3", "1.5", "ten", "null", "nan", "''"],
    "max_steps": ["0", "-1", "2.5", "many", "inf"],
    "batch_size": ["0", "-8", "1e2", "null", "8GB"],
    "accumulate": ["0", "none", "1000000000000000"],
    "deterministic": ["3", "maybe", "null"],
    "device": ["3", "null", "[cpu]"],
    "clip_grad": ["0", "-1", "nan", "big"],
    "label_smoothing": ["1", "-0.1", "x", "inf"],
    "ema": ["1", "-0.5", "nan"],
    "mixup": ["-1", "inf", "yes"],
    "scale": ["tiny", "3", "null"],
    "case": ["5", "x", "[1]", "true"],
    "stages": ["[]", "[tune]", "[trian]", "train", "[study]", "3"],
    "init_from": ["nowhere", "3"],
    "name": ["null", "3", "''", f"'{'n' * 300}'", "'a\tb'"],
    "memory": ["3", "null", "[]"],
    "memory.limit": ["lots", "-1GB", "0", "1e400GB", "nan"],
    "memory.steps": ["0", "x"],
    "report.tsne_epochs": ["[0]", "3", "[a]"],
    "tune.epochs": ["0", "x"],
    "tune.lr": ["0", "-1", "inf"],
    "optimizer": ["sdg", "null", "3", "[]", "''"],
    "optimizer.lr": ["inf", "-inf", "nan", "0", "-1", "fast", "1e400", "null", "[0.1]"],
    "optimizer.momentum": ["1", "-0.1", "x"],
    "optimizer.lookahead.k": ["0", "x", "1.5"],
    "optimizer.lookahead": ["3", "null"],
    "schedule": ["cosin", "null", "5"],
    "schedule.warmup": ["-1", "inf", "x", "null"],
    "model": ["revnte", "null", "3", "linear", "[nowhere]", "''"],
    "model.depth": ["33", "0", "-2", "x", "null", "1e9"],
    "backprop": ["storde", "adjoint", "null"],
    "dataset": ["digit", "null", "cifar"],
    "dataset.image_size": ["0", "4", "x", "-32"],
    "dataset.val_fraction": ["1", "-0.1", "half"],
    "dataset.limit": ["0", "-1", "x"],
    "dataset.classes": ["3", "{a:1}"],
    "dataset.mean": ["[0.5]", "0.5", "[0.5,0.5,2]", "[0.5,0.5,0.5]"],
    "dataset.padding": ["-1", "17", "x"],
    "precision": ["fp8", "null"],
    "hydra.launcher.n_jobs": ["0 -m seed=0,1", "x -m seed=0,1"],
}
COMBINED = [
    "schedule.warmup=5 max_steps=3",
    "model=vgg16 backprop=reversible",
    "model=inn compile=true",
    "model=inn cuda_graph=true",
    "cuda_graph=true device=cpu",
    "memory.snapshot=true device=cpu",
    "memory.enforce=true memory.limit=1GB device=cpu",
    "cuda_graph=true memory.enforce=true memory.limit=1GB",
    "model=resnet model.kind=simple init_from=. model.init_from=.",
    "dataset=imagefolder dataset.root=/nowhere",
    "dataset=imagefolder dataset.root=/tmp dataset.resize_size=100",
    "optimizer.nesterov=true optimizer.momentum=0",
    "model=resnet,revnet",
    "seed=1,2",
    "seed=range(3)",
    "optimizer.lr=interval(0.1,0.2)",
    "-m optimizer.lr=interval(0.1,0.2)",
    "-m seed=-1,-2",
    "-m model=glob(zz*)",
    "model=glob(*)",
    "=",
    "=3",
    "seed",
    "seed==3",
    "optimizer.lr=[",
    "optimizer.lr={",
    "'seed=\"1'",
    "+typo=1",
    "++typo=1",
    "~nothing",
    "~seed",
    "~optimizer",
    "sede=3",
    "Seed=3",
    "model.widht=3",
    "optimizer.lookahead.kk=3",
    "hydra.nothing=3",
    "hydra/launcher=nowhere",
    "hydra/sweeper=nowhere",
    "experiment=nowhere",
    "experiment=revnet/tabel3",
    "epochs='${nowhere}'",
    "epochs='${seed'",
    "epochs='${oc.env:NO_SUCH_VARIABLE}'",
    "--config-dir nowhere",
    "--config-dir",
    "-cn nowhere",
    "--no-such-flag",
    "--cfg nothing",
    "model@other=resnet",
    "@=3",
    "model._target_=3",
    "backprop._target_=os.mkdir",
    "prune=l3_norm",
    "prune=l1_norm prune.ratio=2",
    "deploy=fused",
    "prune=null",
    "name=..",
    "name=a/../../b",
    "device=meta",
    "dataset=cifar10",
    "dataset=fashion_mnist",
    "dataset=cifar10 dataset.root=.",
    "dataset.classes=[0,11]",
    "dataset.limit=3",
    "model=inn model.base=torchvision/resnte18",
    "model=inn model.base=resnet20 model.weights=/etc/passwd",
    "hydra.run.dir=",
    "hydra.run.dir='${nowhere}'",
    "-cp conf",
    "--experimental-rerun config.pickle",
    "hydra.job.chdir=true",
    "-m seed=0,1 hydra.job.chdir=true",
    "--resolve",
    "--package model",
]
OTHERS = [
    "",
    "trian",
    "--halp",
    "resume",
    "resume nowhere",
    "resume . seed",
    "evaluate",
    "evaluate .",
    "evaluate . --split all",
    "estimate model=nowhere",
    "estimate nothing=3",
    "estimate --no-such-flag",
    "estimate -m seed=-1,-2",
    "estimate =",
    "estimate --config-dir nowhere",
    "estimate -cn nowhere",
    "estimate batch_size=1000000000000000000",
    "estimate dataset.image_size=1000000000",
    "bench model=nowhere",
    "bench --steps 0",
    "bench --steps x",
    "bench --budgets -1",
    "bench backprop=stored",
    "bench --strategies nothing",
    "bench --config-dir nowhere",
    "report",
    "report nowhere",
    "report . --format pdf",
    "experiments all",
]
LINES = [
    *(
        f"train {key}={shlex.quote(value) if ' -m' not in value else value}"
        for key, values in KEYS.items()
        for value in values
    ),
    *(f"train {text}" for text in COMBINED),
    *OTHERS,
]


def refused(line: str, capfd) -> list[str]:
    """What is wrong with how the command line is refused."""
    status = main(shlex.split(line))
    out, err = capfd.readouterr()
    told = (out + err).splitlines()
    wrong = [f"exit status {status}"] if status != 2 else []
    wrong += ["a traceback"] if "Traceback" in out + err else []
    wrong += [f"{len(told)} lines"] if not 0 < len(told) <= 40 else []
    wrong += [f"written: {path}" for path in Path().rglob("*")]
    return wrong + told[:3] if wrong else []


def test_there_are_two_hundred():
    assert len(set(LINES)) >= 200


@pytest.mark.long
def test_wrong_command_lines_are_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert {line: wrong for line in LINES if (wrong := refused(line, capfd))} == {}


def test_some_wrong_command_lines_are_refused(tmp_path, monkeypatch, capfd):
    """One of ten, as each is composed, and one that is refused by the sweeper alone."""
    monkeypatch.chdir(tmp_path)
    lines = [*LINES[::10], "train -m 'optimizer.lr=interval(0.1,0.2)'"]
    assert {line: wrong for line in lines if (wrong := refused(line, capfd))} == {}
