"""Kills runs at random, resumes them, and compares their end with that of runs that were never stopped.

    python scripts/fuzz_kills.py [--n 200] [--seed 0] [--keep DIR]

A trial is one of the runs below, ended by SIGKILL, SIGTERM or SIGINT: at a moment of time, or at the very operation on a file
(sync, rename, append) that a random number picks, in the run or in one that resumes it. It is resumed until it ends. Its final
weights must be those of the undisturbed run in every bit, its stages done once, and metrics.jsonl and the TensorBoard events
must have each step and each evaluation once, in order. Exit status 1 if one of them is not.

Runs are forked from one process that has imported memexp, so that a trial costs what the run costs; a tenth is started anew.
"""

import argparse
import builtins
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401  so that no fork has to
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from memexp import cli

COMMON = ["dataset=digits", "dataset.limit=96", "dataset.test_limit=40", "device=cpu", "epochs=2", "log_every=1"]
COMMON += ["tune.epochs=1", "monitor_every=2", "memory.steps=1"]
TUNED = ["stages=[train,tune,evaluate]"]
MODELS = {
    "resnet": ["model=resnet", "model.units=[1,1]", "model.channels=[8,8,8]", *TUNED],
    "resnet pruned and fused": [
        *("model=resnet", "model.units=[1,1]", "model.channels=[8,8,8]"),
        *("prune=taylor_weight", "prune.ratio=0.4", "prune.batches=1", "deploy=fuse"),
    ],
    "revnet exact": [
        *("model=revnet", "model.units=[2,1]", "model.channels=[8,8,16]"),
        *("backprop=reversible", "backprop.exact=true", *TUNED),
    ],
    "heunnet adjoint": ["model=heunnet", "model.depth=3", "backprop=adjoint", *TUNED],
}
EXTRAS = {
    "sgd": ["optimizer=sgd"],
    "ranger": ["optimizer=ranger"],
    "sgd, often saved": ["optimizer=sgd", "checkpoint_every=2", "ema=0.9", "dataset.val_fraction=0.2"],
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST = 12  # resumptions of one trial


class Moments:
    """Counts operations on files in this process, and sends it a signal at one of them."""

    def __init__(self, at: int | None, signum: int) -> None:
        self.count, self.at, self.signum = 0, at, signum

    def install(self) -> None:
        for name in ("fsync", "replace", "truncate"):
            setattr(os, name, self._counted(getattr(os, name)))
        opened = builtins.open

        def counted(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if any(letter in mode for letter in "awx"):
                self._tick()
            return opened(file, mode, *arguments, **named)

        builtins.open = counted

    def _counted(self, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._tick()  # before it is done; the next one is after
            return function(*arguments, **named)

        return call

    def _tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.signum)


def carry_out(arguments: Sequence[str], output: Path, at: int | None, signum: int, seconds: float | None) -> int:
    """`memexp ARGUMENTS` in a fork, to be sent a signal at operation `at`, or after `seconds`. Its wait status."""
    child = os.fork()
    if child == 0:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        moments = Moments(at, signum)
        moments.install()
        status = 70
        try:
            status = cli.main(list(arguments))
        finally:
            sys.stdout.flush()
            (output.parent / "operations").write_text(str(moments.count))
            os._exit(status)
    return _waited(child, signum, seconds)


def start_anew(arguments: Sequence[str], output: Path, signum: int, seconds: float) -> int:
    with open(output, "a") as file:
        child = subprocess.Popen([sys.executable, "-m", "memexp", *arguments], stdout=file, stderr=file)
    status = _waited(child.pid, signum, seconds)
    child.returncode = 0  # it has been waited for
    return status


def _waited(child: int, signum: int, seconds: float | None) -> int:
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            deadline = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signum)
        time.sleep(0.005)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(directory / "checkpoints/last.pt", weights_only=True)["model"]
    return found


def lines(directory: Path) -> list[tuple[Any, ...]]:
    """What metrics.jsonl tells, without what is measured in time."""
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [tuple((key, entry[key]) for key in sorted(entry) if key != "images_per_second") for entry in found]


def events(directory: Path) -> list[tuple[str, int]]:
    """(curve or picture, step) of every event, in the order in which TensorBoard reads them."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            found += [(value.tag, event.step) for value in event.summary.value]
    return found


def compare(directory: Path, whole: Path) -> list[str]:
    """How the run in `directory` differs from the undisturbed one."""
    problems = []
    results = json.loads((directory / "results.json").read_text())
    if results["status"] != "done":
        problems.append(f"status {results['status']}: {results['error']}")
        return problems
    mine, theirs = weights(directory), weights(whole)
    if mine.keys() != theirs.keys() or not all(torch.equal(mine[key], theirs[key]) for key in mine):
        problems.append("other weights")
    if lines(directory) != lines(whole):
        problems.append("other lines in metrics.jsonl")
    expected = json.loads((whole / "results.json").read_text())
    if [stage["key"] for stage in results["stages"]] != [stage["key"] for stage in expected["stages"]]:
        problems.append("other stages")
    if results["accuracy"] != expected["accuracy"]:
        problems.append("another accuracy")
    ours, others = events(directory), events(whole)
    if collections.Counter(ours) != collections.Counter(others):
        extra = collections.Counter(ours) - collections.Counter(others)
        missing = collections.Counter(others) - collections.Counter(ours)
        problems.append(f"other events: more {dict(extra)}, missing {dict(missing)}")
    last: dict[str, int] = {}
    if any(last.get(tag, 0) > step or last.update({tag: step}) for tag, step in ours):
        problems.append("events out of order")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="leave the runs that differ here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    failures = kills = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole: dict[tuple[str, str], tuple[Path, int, float]] = {}
        for number in range(options.n):
            model, extra = draw.choice(list(MODELS)), draw.choice(list(EXTRAS))
            arguments = ["train", *MODELS[model], *COMMON, *EXTRAS[extra]]
            if (model, extra) not in whole:
                place = folder / f"whole-{len(whole)}"
                place.mkdir()
                began = time.monotonic()
                code = carry_out([*arguments, f"hydra.run.dir='{place}/run'"], place / "output", None, 0, None)
                if code != 0:
                    print((place / "output").read_text())
                    return 1
                operations = int((place / "operations").read_text())
                whole[model, extra] = place / "run", operations, time.monotonic() - began
            expected, operations, seconds = whole[model, extra]
            place = folder / f"trial-{number}"
            place.mkdir()
            told = [f"{number:4} {model}, {extra}:"]
            command = [*arguments, f"hydra.run.dir='{place}/run'"]
            for _ in range(MOST):
                signum = draw.choice(SIGNALS)
                moment = draw.random()
                if draw.random() < 0.1:
                    code = start_anew(command, place / "output", signum, moment * (seconds + 6))
                elif draw.random() < 0.7:
                    code = carry_out(command, place / "output", 1 + int(moment * operations), signum, None)
                else:
                    code = carry_out(command, place / "output", None, signum, moment * seconds)
                if code == 0:
                    break
                kills += 1
                told.append(signal.Signals(-code).name if code < 0 else f"exit {code}")
                if code > 0 and code not in (130, 143):
                    break
                if (place / "run/results.json").exists():
                    command = ["resume", f"{place}/run"]
            problems = (
                compare(place / "run", expected) if (place / "run/results.json").exists() else ["no results.json"]
            )
            if code != 0:
                problems.append(f"the last process ended with {code}")
            failures += bool(problems)
            print(*told, "; ".join(problems) or "same", flush=True)
            if problems:
                print("     ", *(place / "output").read_text().splitlines()[-3:], sep="\n      ", flush=True)
                if options.keep:
                    shutil.copytree(place, options.keep / place.name)
            shutil.rmtree(place)
    print(f"{options.n} trials, {kills} kills, {failures} with another end")
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
