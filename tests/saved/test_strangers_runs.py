"""A run that somebody else has made executes nothing, and what is wrong with it is told by name."""

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from saved_runs import TINY, edit, flipped_bit

import memexp
from memexp import build, config, saved
from memexp.cli import main
from memexp.config import ConfigError
from memexp.training import checkpoint, form
from memexp.training.checkpoint import CheckpointError


class Intruder:
    def __reduce__(self):
        return os.mkdir, (f"{os.environ['MEMEXP_TEST_TRAP']}/executed",)


def intrusion() -> dict[str, str]:
    return {"_target_": "os.mkdir", "path": f"{os.environ['MEMEXP_TEST_TRAP']}/executed"}


def bad_target(run: Path) -> None:
    config = json.loads((run / "results.json").read_text())["config"]
    edit(
        run / "results.json",
        config=config | {"model": {"_target_": "os.mkdir", "path": os.environ["MEMEXP_TEST_TRAP"]}},
    )


def bad_target_in_checkpoint(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    state["config"]["model"] = intrusion()
    torch.save(state, run / "checkpoints/last.pt")


def nested_target(run: Path) -> None:
    config = json.loads((run / "results.json").read_text())["config"]
    config["schedule"]["more"] = [intrusion()]
    edit(run / "results.json", config=config)


def interpolation(run: Path) -> None:
    config = json.loads((run / "results.json").read_text())["config"]
    edit(run / "results.json", config=config | {"name": "${oc.env:HOME}"})


def pickled_checkpoint(run: Path) -> None:
    (run / "checkpoints/last.pt").write_bytes(pickle.dumps({"model": Intruder()}))


def zipped_checkpoint(run: Path) -> None:
    torch.save({"schema": 2, "model": Intruder()}, run / "checkpoints/last.pt")


def hydra_overrides(run: Path) -> None:
    folder = run / ".hydra"
    (folder / "overrides.yaml").write_text("- +model._target_=os.mkdir\n- !!python/object/apply:os.mkdir [x]\n")
    edit(run / "results.json", config=None)


def number_for_a_list(run: Path) -> None:
    edit(run / "results.json", config=7)


def not_json(run: Path) -> None:
    (run / "results.json").write_text("{")


def unknown_schema(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    torch.save(state | {"schema": 99}, run / "checkpoints/last.pt")


def foreign_edit(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    del state["checksums"]
    torch.save(state | {"edits": [{"kind": "os.system", "command": "x"}]}, run / "checkpoints/last.pt")


STRANGERS = {
    bad_target: "names 'os.mkdir', which would be imported",
    bad_target_in_checkpoint: "names 'os.mkdir', which would be imported",
    nested_target: "names 'os.mkdir', which would be imported",
    interpolation: "the configuration of a run has values only",
    pickled_checkpoint: "last.pt cannot be read: ",
    zipped_checkpoint: "last.pt cannot be read: ",
    hydra_overrides: "it holds no configuration",
    number_for_a_list: "it holds no configuration",
    not_json: "results.json cannot be read",
    unknown_schema: "has schema 99",
    foreign_edit: "kind 'os.system' is not one of",
    flipped_bit: "is damaged: model.stem.0.weight",
}


@pytest.mark.parametrize("spoil", STRANGERS)
def test_b1_b6_a_strangers_run_executes_nothing_and_gets_one_message(run, tmp_path, monkeypatch, capsys, spoil):
    trap = tmp_path / "trap"
    trap.mkdir()
    monkeypatch.setenv("MEMEXP_TEST_TRAP", str(trap))
    monkeypatch.chdir(tmp_path)
    for other in ("train", "evaluate", "best"):
        (run / f"checkpoints/{other}.pt").unlink()
    spoil(run)
    refused: list[bool] = []
    edit(run / "results.json", status="interrupted") if spoil is not not_json else None
    for command in (
        ["evaluate", str(run)],
        ["resume", str(shutil.copytree(run, tmp_path / "again")), "epochs=3"],
        ["train", *TINY, f"init_from='{run}'", f"hydra.run.dir='{tmp_path}/new'", "overwrite=true", "max_steps=1"],
    ):
        status, told = main(command), capsys.readouterr()
        refused.append(status != 0)
        assert STRANGERS[spoil] in told.err or "where it ended, is not there any more" in told.err or not refused[-1]
        assert "Traceback" not in told.err + told.out
        assert "weights_only" not in told.err  # torch's advice is to load it unsafely
    assert refused[-1]
    assert all(refused) or spoil in (
        bad_target_in_checkpoint,
        foreign_edit,
    )  # the record, or train.pt, is asked instead
    assert list(trap.iterdir()) == []


def test_b1_what_the_user_names_again_is_imported(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\ndef network(classes, shape, chain, width=4):\n"
        "    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))\n"
    )
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("_target_: own_net.network\nwidth: 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = ["dataset=digits", "dataset.limit=96", "dataset.test_limit=40", "device=cpu", "max_steps=2"]
    cfg = config.compose(["model=own", *data], config_dirs=[tmp_path / "conf"])
    memexp.run(cfg, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"'own_net\.network', which would be imported.*--config-dir DIR"):
        saved.evaluate(tmp_path / "run")
    named = saved.evaluate(tmp_path / "run", own=saved.Own([str(tmp_path / "conf")]))
    assert named == saved.evaluate(tmp_path / "run", own=saved.Own(trust=True))


NOWHERE = {"step": 0, "epoch": 0, "position": 0}
FOREIGN = {
    "model": [None, 5, {"stem.0.weight": 3}],
    "deployed": [5, {"stem.0.weight": "x"}],
    "config": [5, "x"],
    "classes": [5, "abc", [1, 2], [None]],
    "shape": ["x", [3], [3, -1, 32], [3.5, 32, 32]],
    "mean": ["x", [math.nan], [[0.1]]],
    "std": [[0.0], [-1.0], 5],
    "edits": [5, "x", [5]],
    "stage": [5, None],
    "stages": [5, [{}], [{"key": 3}], [{"key": "train", "steps": "x"}], [{"key": "train", "strategy": 5}]],
    "training": [5, {}, *({"progress": value} for value in (5, NOWHERE | {"step": "x"}, NOWHERE | {"time": "x"}))],
    "random": [5, [], [{}], [{"cpu": torch.zeros(3)}], [5]],
    "appended": [5, {"metrics.jsonl": -5}, {"metrics.jsonl": "x"}],
    "checksums": [5, {"model": "x"}],
}


@pytest.mark.parametrize("field", FOREIGN)
def test_a_field_that_memexp_does_not_write_is_told_by_name_as_is_one_that_is_missing(finished, tmp_path, field):
    path = tmp_path / "last.pt"
    state = torch.load(finished / "checkpoints/last.pt", weights_only=True)
    del state["checksums"]
    for value in FOREIGN[field]:
        torch.save(state | {field: value}, path)
        with pytest.raises(CheckpointError, match=f"field '{field}' is not one that memexp writes") as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)
    if field in form.REQUIRED and field != "model":
        torch.save({key: value for key, value in state.items() if key != field}, path)
        with pytest.raises(CheckpointError, match=f"field '{field}' is not one that memexp writes"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("edits", [{"kind": "narrow", "kept": 5}], "edit narrow: what it holds is no such edit"),
        ("edits", [{"kind": "fold", "pairs": [5]}], r"edit fold: pairs=\[5\] is not a list"),
        ("edits", [{"kind": "discretise"}], "edit discretise: "),
        ("dtype", torch.complex64, r"is torch\.complex64, not torch\.float32"),
        ("dtype", torch.float16, r"is torch\.float16, not torch\.float32"),
    ],
)
def test_a_checkpoint_whose_network_cannot_be_is_told_with_its_name(run, field, value, message):
    path = run / "checkpoints/best.pt"
    state = torch.load(path, weights_only=True)
    del state["checksums"]
    if field == "dtype":
        field, value = "model", {k: w.to(value) if w.is_floating_point() else w for k, w in state["model"].items()}
    torch.save(state | {field: value}, path)
    with pytest.raises(CheckpointError, match=rf"checkpoint \S*best\.pt.*{message}"):
        build.from_run(run, "best")


def test_progress_of_another_program_is_told_with_the_checkpoints_name(run):
    path = run / "checkpoints/train.pt"
    state = torch.load(path, weights_only=True)
    del state["checksums"]
    state["training"]["progress"]["steps_done"] = 3
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"train\.pt is of another optimizer: .*steps_done"):
        saved.resume(run, ["epochs=3"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_a_record_nested_without_end_is_one_that_cannot_be_read(run, capsys, text):
    (run / "results.json").write_text(text)
    for command in ("evaluate", "report"):
        assert main([command, str(run)]) == 2
        assert "recursion" in capsys.readouterr().err or command == "report"
