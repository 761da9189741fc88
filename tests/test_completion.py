"""What TAB offers (B13)."""

import re

import pytest

from memexp import completion
from memexp.cli import COMMANDS, main


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/run").mkdir(parents=True)
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/own.yaml").write_text("_target_: some.where\n")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("memexp ", list(COMMANDS)),
        ("memexp tr", ["train"]),
        ("memexp zz", []),
        ("memexp resume ./out", ["./outputs/"]),
        ("memexp resume outputs/", ["outputs/run/"]),
        ("memexp report outputs/r", ["outputs/run/"]),
        ("memexp resume nowhere/", []),
        ("memexp evaluate outputs/run --sp", ["--split"]),
        ("memexp estimate model=rev", ["model=revnet"]),
        ("memexp export outputs/run dataset.im", ["dataset.image_size="]),
        ("memexp bench -cd mine model=o", ["model=own"]),
        ("memexp train model=resnet,rev", ["model=resnet,revnet"]),
        ("memexp train experiment=revnet/t", ["experiment=revnet/table3"]),
        ("memexp train backprop.exact=", ["backprop.exact=true", "backprop.exact=false"]),
        ("memexp train scale=", ["scale=paper", "scale=laptop"]),
        ("memexp train optimizer.lo", ["optimizer.lookahead.", "optimizer.lookahead="]),
        ("memexp train seed=", []),
        ("memexp train nothing=", []),
        ("memexp train zz", []),
        ("memexp experiments x", []),
    ],
)
def test_b13_what_may_follow(line, found):
    assert completion.words(line, COMMANDS) == found


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_b13_the_flags_of_a_command_are_those_of_its_help(command, capsys):
    assert main([command, "--help"]) == 0
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out.partition("examples:")[0]))
    assert set(completion.words(f"memexp {command} --", COMMANDS)) == told


def test_b13_keys_and_groups():
    found = completion.words("memexp train mo", COMMANDS)
    assert {"model=", "model.", "monitor_every="} <= set(found)


def test_b13_the_shell_is_told_words_or_nothing_at_all(monkeypatch, capfd):
    monkeypatch.setenv("COMP_LINE", "memexp es more behind")
    monkeypatch.setenv("COMP_POINT", "9")
    assert main(["-sc", "query=bash"]) == 0
    assert capfd.readouterr() == ("estimate\n", "")
    monkeypatch.setattr(completion, "words", lambda *_: 1 / 0)
    main(["-sc", "query=bash"])
    assert capfd.readouterr() == ("", "")
