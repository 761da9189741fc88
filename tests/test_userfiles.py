"""A user's own YAML that is none: the file and the line are named, wherever the file is read, and nothing is made."""

import json
import shutil
from pathlib import Path

import pytest

import memexp
from memexp.cli import main

BROKEN = {
    "a list": (b"# mine\n- a\n- b\n", "line 2: it holds a list"),
    "a value": (b"just text\n", "line 1: it holds a single value"),
    "an open interpolation": (b"name: x\nwidth: ${oops\n", "line 2: '${oops' is no interpolation"),
    "one in a list": (b"units:\n- 1\n- a${b\n", "line 3: 'a${b' is no interpolation"),
    "Latin 1": (b"name: x\n# caf\xe9\n", "line 2: byte 0xe9 is no UTF-8"),
    "UTF-16": ("name: x\n".encode("utf-16"), "line 1: byte 0xff is no UTF-8"),
    "an open bracket": (b"a: [1,\nb: 2\n", "line 3: no YAML"),
    "a zero byte": (b"a: 1\nb: \x00\n", "line 2: no YAML: the character #x0000"),
    "a tag": (b"a: 1\nb: !!python/object/apply:os.system [x]\n", "no YAML: could not determine a constructor"),
}
PLACES = {
    "a group": ("model/mine.yaml", ["train", "model=mine"]),
    "a folder of experiments": ("experiment/my/mine.yaml", ["train", "experiment=my/mine"]),
    "the configuration to begin with": ("mine.yaml", ["estimate", "--config-name", "mine"]),
    "behind a defaults list": ("model/mine.yaml", ["train", "experiment=via"]),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(name: str, content: bytes) -> Path:
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    make("experiment/via.yaml", b"# @package _global_\ndefaults:\n- override /model: mine\n")
    return make


def told(capsys, *command: str) -> str:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert main([*command, "--config-dir", "own"]) == 2
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    text = capsys.readouterr().err
    assert text.startswith("memexp: the configuration has a problem:\n")
    assert len(text.splitlines()) == 2
    return text


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_configuration_is_told_by_file_and_line(place, capsys, kind):
    content, message = BROKEN[kind]
    place("model/mine.yaml", content)
    assert f"own/model/mine.yaml, {message}" in told(capsys, "train", "model=mine") or kind == "a tag"


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", ["a list", "Latin 1", "an open interpolation"])
def test_wherever_it_is_read(place, capsys, where, kind):
    name, command = PLACES[where]
    content, message = BROKEN[kind]
    place(name, content)
    assert f"own/{name}, {message}" in told(capsys, *command)


@pytest.mark.parametrize("command", [["evaluate"], ["resume"], ["export"], ["estimate"]])
def test_for_a_run_that_is_there_too(place, capsys, command, tmp_path):
    shutil.copytree(Path(__file__).parent / "runs/schema-1", tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    (tmp_path / "run/results.json").write_text(json.dumps(results | {"status": "interrupted"}))
    place("dataset/mine.yaml", b"- a\n")
    assert "own/dataset/mine.yaml, line 1: it holds a list" in told(capsys, *command, "run", "dataset=mine")


def test_a_sound_file_of_the_same_directory_is_used(place):
    place("model/other.yaml", b"- a\n")
    place("model/mine.yaml", "# caf\u00e9\ndefaults: [resnet]\ndepth: 20\n".encode())
    assert memexp.compose(["model=mine"], config_dir="own").model.depth == 20


NOWHERE = {
    "a key": (
        "model/mine.yaml",
        "# x\ndepth: ${nowhere}\n",
        ["model=mine"],
        2,
        "model.depth: Interpolation key 'nowhere'",
    ),
    "one in a list": (
        "model/mine.yaml",
        "defaults: [resnet]\nunits:\n- 1\n- ${oc.env:NO_SUCH}\n",
        ["model=mine"],
        4,
        "model.units",
    ),
    "one of all keys": (
        "experiment/mine.yaml",
        "# @package _global_\ntune:\n  lr: ${nowhere.x}\n",
        ["experiment=mine"],
        3,
        "tune.lr: Interpolation key 'nowhere.x'",
    ),
    "a resolver": (
        "mine.yaml",
        "defaults: [config, _self_]\nseed: ${no:1}\n",
        ["-cn", "mine"],
        2,
        "Unsupported interpolation",
    ),
    "a config": ("mine.yaml", "defaults:\n- config\n- override model: nosuch\n", ["-cn", "mine"], 3, "'model/nosuch'"),
    "a part": ("model/mine.yaml", "defaults:\n- resnet\n- nosuch\n", ["model=mine"], 3, "'model/nosuch'"),
    "a group": ("mine.yaml", "defaults:\n- config\n- override modl: resnet\n", ["-cn", "mine"], 3, "'modl'"),
}


@pytest.mark.parametrize("kind", NOWHERE)
def test_what_leads_nowhere_is_told_by_file_and_line(place, capsys, kind):
    name, content, command, line, message = NOWHERE[kind]
    place(name, content.encode())
    text = told(capsys, "train", *command)
    assert f"own/{name}, line {line}: " in text
    assert message in text
    assert "search path" not in text
