"""What memexp's training loop costs over a bare PyTorch loop that does the same steps on the same tensors.

    .venv/bin/python scripts/bench_loop.py [--rounds 5] [--steps 30] [--batch 32] [--depth 20]

Both train the same ResNet on the same synthetic images, turn and turn about in one process; the figure is the ratio of
their step times, medians of a round and of the rounds, the first steps of a round (and those that the memory tracker follows)
left out.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from memexp import compose
from memexp.prepared import prepare
from memexp.record import RunDirectory
from memexp.stages import train
from memexp.stages.handed import Run
from memexp.training.distribution import World
from memexp.training.signals import StopRequest
from memexp.training.step_times import WARM_UP


def prepared(options: argparse.Namespace, directory: RunDirectory, stop: StopRequest) -> Run:
    cfg = compose(
        [
            "model=resnet",
            f"model.depth={options.depth}",
            "dataset=synthetic",
            f"batch_size={options.batch}",
            "epochs=100000",
            f"max_steps={options.steps}",
            "device=cpu",
            "monitor_every=0",
        ]
    )
    return prepare(cfg, directory, World(), stop)


def bare(run: Run, steps: int) -> float:
    """A step of the loop that a person would write: the same data, network, optimizer and reading of the loss."""
    durations: list[float] = []
    model, optimizer = run.network, train.trainer_for(run, run.cfg).recipe.optimizer
    model.train()
    before = time.perf_counter()
    epoch = 0
    while len(durations) < steps:
        for images, labels in run.splits.train.epoch(epoch):
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
            now = time.perf_counter()
            durations.append(now - before)
            before = now
            if len(durations) == steps:
                break
        epoch += 1
    return statistics.median(durations[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--depth", type=int, default=20)
    options = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(options.rounds):
        with (
            tempfile.TemporaryDirectory() as scratch,
            StopRequest() as stop,
            RunDirectory(Path(scratch)) as directory,
        ):
            run = prepared(options, directory, stop)
            theirs.append(bare(run, options.steps))
            run = prepared(options, directory, stop)
            ours.append(train.carry_out(run)["time"]["step_median"])
    mine, bare_step = statistics.median(ours), statistics.median(theirs)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, ResNet-{options.depth}, batch {options.batch}"
    )
    print(f"memexp loop {mine * 1e3:.2f} ms, bare loop {bare_step * 1e3:.2f} ms, medians of {len(ours)} rounds")
    print(f"ratio {mine / bare_step:.3f}")


if __name__ == "__main__":
    main()
