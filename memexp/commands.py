"""What each command takes, and does: a parser, and the function of the library behind it.

Nothing here imports torch before a command needs it.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memexp.arguments import TRUST, composed, directories, overrides, own_names, parser_of, whole
from memexp.explained import fail
from memexp.paths import CONF
from memexp.train_help import train_help

HYDRA_ONLY = ("--hydra-help", "--info", "-i", "--shell-completion", "-sc", "--version")


def follows() -> bool:
    """Whether torchrun has started this process as another one than its first, which composes and writes."""
    return int(os.environ.get("RANK", "0")) > 0


def _train(arguments: list[str]) -> int:
    if follows():
        return _join()
    if "-h" in arguments or "--help" in arguments:
        print(train_help())
        return 0
    if "experiment=list" in arguments:
        return _experiments([])
    from memexp import hydra_app

    return hydra_app.train(arguments, hydra_only=any(a.split("=")[0] in HYDRA_ONLY for a in arguments))


def _join() -> int:
    from memexp.ended import AGREED
    from memexp.run import join
    from memexp.training.distribution import World

    try:
        join(World.from_environment())
    except AGREED as error:  # the first process says so
        return getattr(error, "exit_status", 1)
    return 0


def _resume(arguments: list[str]) -> int:
    if follows():
        return _join()
    parser = parser_of(
        "resume",
        "Goes on with a stopped or killed run from its last checkpoint, in its own directory.",
        "memexp resume outputs/revnet-digits/2026-01-31_12-00-00-0123abcd\n"
        "  memexp resume RUN epochs=20        a finished run, trained longer",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    overrides(parser)
    own_names(parser)
    options = parser.parse_intermixed_args(arguments)
    from memexp import saved
    from memexp.record import summary
    from memexp.training.console import start_logging

    start_logging()
    results = saved.resume(options.run, options.overrides, saved.Own(options.config_dir, options.trust))
    print(summary(results, options.run))
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = parser_of(
        "evaluate",
        "Accuracy of a run's checkpoint, on any split and any data set of the same classes.",
        "memexp evaluate RUN\n  memexp evaluate RUN --split val --checkpoint best dataset.root=DIR",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    overrides(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--checkpoint", default="last", help="last, best, or the key of a stage, such as train")
    own_names(parser)
    options = parser.parse_intermixed_args(arguments)
    from memexp import saved

    result = saved.evaluate(
        options.run, options.overrides, options.split, options.checkpoint, saved.Own(options.config_dir, options.trust)
    )
    print(
        f"{options.split}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, loss {result['loss']:.4f} "
        f"on {result['images']} images ({result['checkpoint']}"
        + ("; classes matched by name with those of its training)" if result["classes_matched_by_name"] else ")")
    )
    return 0


def _export(arguments: list[str]) -> int:
    parser = parser_of(
        "export",
        "The trained, pruned, fused or discretised network of a run as ONNX and torch.export files, for any batch size,\n"
        "checked against it on real images. Class names and preprocessing are in their metadata.\n"
        "ONNX needs pip install 'memexp[export]'.",
        "memexp export RUN\n  memexp export RUN --output network.onnx --merge none\n"
        "  memexp export RUN prune=integral prune.keep=0.6                                   an integral network, smaller",
    )
    parser.add_argument("run", type=Path, help="the run directory")
    overrides(parser, "key=value, such as dataset.root=DIR")
    parser.add_argument("--checkpoint", default="last", help="last, best, or the key of a stage, such as train")
    parser.add_argument("--output", type=Path, help="with suffix .onnx or .pt2, or without for both; RUN/network")
    parser.add_argument(
        "--merge", choices=("none", "block", "all", "no"), default="block", help="no: nothing is fused first"
    )
    own_names(parser)
    options = parser.parse_intermixed_args(arguments)
    from memexp import saved

    merge = None if options.merge == "no" else options.merge
    own = saved.Own(options.config_dir, options.trust)
    try:
        found = saved.export(options.run, options.output, options.checkpoint, merge, options.overrides, own)
    except ImportError as error:
        return fail(str(error), 2)
    for suffix, file in found["files"].items():
        print(f"{file}: outputs differ by {found['error'][suffix]:.1e} of the largest, at batches of 1, 3 and 64")
    return 0


def _estimate(arguments: list[str]) -> int:
    parser = parser_of(
        "estimate",
        "Peak memory and compute of a training step, without training it, without a GPU and without data.",
        "memexp estimate model=revnet model.depth=104 dataset=imagenet batch_size=256\n"
        "  memexp estimate model=resnet model.depth=101 dataset=imagenet memory.limit=11GB   what fits\n"
        "  memexp estimate -m model=revnet model.depth=38,74,110 backprop=stored,reversible  a table and plots\n"
        "  memexp estimate model=vgg16 dataset=imagenet --summary                            the layer table\n"
        "  memexp estimate RUN                                                               a run's network as it stands",
    )
    overrides(parser, "key=value, behind a run directory or alone")
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="every combination of comma-separated values; one that is refused is named, and makes the exit status 1",
    )
    parser.add_argument("--summary", action="store_true", help="layers, their output shapes and parameters")
    parser.add_argument("--json", action="store_true", help="for programs")
    composed(parser)
    parser.add_argument("--trust", action="store_true", help=TRUST)
    options = parser.parse_intermixed_args(arguments)
    if options.overrides and Path(options.overrides[0]).is_dir():
        if options.multirun:
            parser.error(f"-m: {options.overrides[0]} is one run; estimate it with one value of each key at a time")
        return _estimate_run(Path(options.overrides[0]), options)
    from memexp.config import compose
    from memexp.sweeper import planned, with_arm

    named = options.config_name, options.config_dir
    if not options.multirun:
        options.overrides = with_arm(options.overrides, *named)
        compose(options.overrides, *named)  # wrong input is told before torch is imported
    from memexp.report import estimates

    if options.multirun:
        jobs = planned(options.overrides, *named)
        shown, status = estimates.sweep(jobs, *named, options.summary, options.json)
        print(shown)
        return status
    print(estimates.one(options.overrides, *named, options.summary, options.json))
    return 0


def _estimate_run(run: Path, options: argparse.Namespace) -> int:
    """The network of a run as it stands, pruned or fused: no data are needed."""
    from memexp import saved
    from memexp.report import estimates

    own = saved.Own(options.config_dir, options.trust)
    cfg, edits = saved.changed(run, options.overrides[1:], own)
    print(estimates.shown(cfg, options.summary, options.json, edits))
    return 0


def _bench(arguments: list[str]) -> int:
    parser = parser_of(
        "bench",
        "Step time and peak memory of several strategies and budgets side by side, each in a process of its own, on random "
        "images.\nA table, bench.json, and a plot of peak memory against step time are written to outputs/bench/.",
        "memexp bench model=revnet model.depth=110 dataset=cifar10 batch_size=100\n"
        "  memexp bench model=revnet --budgets 10 --steps 20            the curve of memory against time\n"
        "  memexp bench model=resnet --strategies stored,checkpointed precision=bf16",
    )
    overrides(parser, "key=value, backprop left out")
    parser.add_argument("--strategies", type=lambda text: text.split(","), help="by default all that fit the model")
    parser.add_argument("--budgets", type=whole, default=0, metavar="N", help="budgets between least and stored peak")
    parser.add_argument("--steps", type=whole, default=10, metavar="N", help="timed training steps of a case (10)")
    parser.add_argument("--output", type=Path, help="by default outputs/bench/<time>")
    composed(parser)
    options = parser.parse_intermixed_args(arguments)
    if options.steps < 1:
        parser.error("--steps: at least 1")
    import importlib
    import time

    from memexp.record import writing
    from memexp.report import tables

    bench = importlib.import_module("memexp.bench")  # whose name in the package is its function's

    named = options.config_name, options.config_dir
    cases = bench.cases(options.overrides, options.strategies, options.budgets, *named)
    directory = options.output or Path("outputs") / "bench" / time.strftime("%Y-%m-%d_%H-%M-%S")
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)  # before the work begins
    bench.measure(cases, options.steps, lambda text: print(text, flush=True), *named)
    shown = bench.table(cases)
    print(tables.terminal(shown))
    with writing(directory):
        print(*bench.write(cases, directory, tables.markdown(shown)), sep="\n")
    return int(any(case.error for case in cases))


def _report(arguments: list[str]) -> int:
    parser = parser_of(
        "report",
        "Tables and plots of finished runs; report.md and plots/ are written beside them.",
        "memexp report outputs/resnet-digits\n"
        "  memexp report outputs --format csv     a row a run with plain numbers, also written to runs.csv; json likewise\n"
        "  memexp report outputs/revnet/table3 --paper revnet/table3   measured beside published",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run, a sweep, or a folder of them")
    parser.add_argument("--paper", metavar="ID", help="an experiment with published numbers")
    parser.add_argument("--format", default="terminal", help="terminal, markdown or latex; csv, json for programs")
    parser.add_argument("--output", type=Path, help="where report.md, exports and plots/ go; by default the first PATH")
    parser.add_argument("--no-plots", action="store_true", help="the table only")
    directories(parser, "your own configs, whose published/ID.yaml --paper may name")
    options = parser.parse_args(arguments)
    from memexp.record import NotWritten
    from memexp.report import write_report

    first = options.paths[0] if options.paths[0].is_dir() else options.paths[0].parent
    try:
        text = write_report(
            options.paths,
            options.output or first,
            form=options.format,
            paper=options.paper,
            plots=not options.no_plots,
            config_dirs=options.config_dir,
        )
    except (ValueError, FileNotFoundError) as error:
        return fail(str(error), 2)
    except NotWritten as error:
        print(error.told)
        return fail(str(error), 2 if options.output else 0)  # runs that are another's may be looked at
    print(text)
    return 0


def _experiments(arguments: list[str]) -> int:
    parser = parser_of(
        "experiments",
        "Lists the published results that are one command each.",
        "memexp experiments\n  memexp experiments --config-dir DIR      your own among them",
    )
    directories(parser, "your own configs")
    options = parser.parse_args(arguments)
    from memexp.report.experiments import SCALES, expected, listing
    from memexp.report.tables import Table, terminal
    from memexp.sweeper import count

    rows = []
    places = [CONF, *map(Path, options.config_dir)]
    listed = [(root, *entry) for root in places for entry in listing(root)]
    for place, name, text in listed:
        told = expected(place, name, count)
        runs, times = zip(*(told[scale] for scale in SCALES), strict=True)
        rows.append([name, text, " / ".join(map(str, runs)), *times])
    print(terminal(Table(["id", "shows", "runs (paper / laptop)", *(f"time, {scale}" for scale in SCALES)], rows)))
    print("\nmemexp train -m experiment=ID [scale=laptop]; the file conf/experiment/ID.yaml says what to expect")
    return 0


COMMANDS: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "train": ("one run, or with -m a sweep", _train),
    "estimate": ("peak memory and compute of a run, without training and without a GPU", _estimate),
    "resume": ("go on with a stopped run, in its own directory", _resume),
    "evaluate": ("accuracy of a run's checkpoint, on any split", _evaluate),
    "export": ("a run's network as ONNX and torch.export files", _export),
    "report": ("tables and plots of finished runs", _report),
    "bench": ("step time and peak memory of several strategies side by side", _bench),
    "experiments": ("list the published results that are one command each", _experiments),
}
