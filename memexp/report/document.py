"""report.md: what was run, with which code, where and how, above what came of it, so that it is understood alone."""

import os
import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import yaml

from memexp.report.collect import Run
from memexp.report.tables import Table, in_markdown, markdown
from memexp.version import version
from memexp.visible import visible

MOST_RUNS = 200


def document(
    paths: Sequence[Path], runs: Sequence[Run], tables: Sequence[Table], plots: Sequence[Path], at: Path
) -> str:
    """The text. plots: those of the report; a study's own are found. at: the folder that report.md is for."""
    own = [path for run in runs if run.studied for path in sorted((run.path / "plots").glob("*.png"))]
    pictures = [
        f"![{in_markdown(visible(path.stem))}]({quote(Path(os.path.relpath(path, at)).as_posix())})"
        for path in [*plots, *own]
    ]
    names = list(dict.fromkeys(str(name) for run in runs if (name := run.get("name"))))
    title = "Runs of " + (", ".join(names) if 0 < len(names) < 4 else ", ".join(path.resolve().name for path in paths))
    return (
        "\n\n".join(
            [
                f"# {in_markdown(visible(title))}",
                *_about(paths, runs, at),
                *map(markdown, tables),
                *pictures,
                *_runs(runs, at),
            ]
        )
        + "\n"
    )


def _runs(runs: Sequence[Run], at: Path) -> list[str]:
    """Where each run is, and the commands that they were."""
    links = []
    for run in runs[:MOST_RUNS]:
        place = quote(Path(os.path.relpath(run.path, at)).as_posix())
        arm = run.setting("arm")
        told = ", ".join([*([str(arm)] if arm else []), run.status])
        links.append(f"- [{in_markdown(run.name)}]({place}/results.json): {in_markdown(told)}")
    commands = list(dict.fromkeys(_command(run) for run in runs))
    shown = [f"    {text}" for text in commands[:MOST_RUNS]]
    for lines, every, mark in ((links, runs, "- "), (shown, commands, "    # ")):
        if len(every) > MOST_RUNS:
            lines.append(f"{mark}and {len(every) - MOST_RUNS} more")
    return ["## Runs", "\n".join(links), "Commands (each run's whole configuration stands there):", "\n".join(shown)]


def _swept(at: Path) -> str | None:
    """The command of the sweep whose folder the report is for."""
    try:
        told = yaml.safe_load((at / "multirun.yaml").read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return shlex.join(["memexp", "train", "-m", *map(str, told)]) if isinstance(told, list) else None


def _about(paths: Sequence[Path], runs: Sequence[Run], at: Path) -> list[str]:
    """Lines about where the runs took place; figures that differ between them stand side by side."""
    command = _swept(at) or shlex.join(["memexp", "report", *map(str, paths)])
    found = [run.environment for run in runs]
    code, machines, versions, started = set(), set(), set(), set()
    for run, environment in zip(runs, found, strict=True):
        git = environment.get("git")
        if isinstance(git, dict):
            code.add(f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}")
        device = run.get("memory.device") or environment.get("device")
        numbers = run.results.get("numbers")
        gpu = numbers.get("gpu") if isinstance(numbers, dict) else None
        machines.add(", ".join(str(text) for text in (device, gpu, environment.get("processor")) if text))
        known = environment.get("versions")
        if isinstance(known, dict):
            names = ("memexp", "torch", "torchvision")
            versions.add(
                ", ".join([f"{name} {known.get(name)}" for name in names] + [f"Python {environment.get('python')}"])
            )
        started.add(str(environment.get("started") or "")[:10])
    days = sorted(started - {""})
    done = sum(run.status == "done" for run in runs)
    lines = [
        f"Written {time.strftime('%Y-%m-%d')} by `{_code(command)}` (memexp {version()}).",
        f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {done} done"
        + (f", started {' to '.join(dict.fromkeys((days[0], days[-1])))}." if days else "."),
        f"Device: {_listed(machines)}.",
        f"Code: commit {_listed(code)}. {_listed(versions)}." if code else f"Code: {_listed(versions)}.",
    ]
    return lines


def _command(run: Run) -> str:
    told = run.results.get("overrides")
    if not isinstance(told, list):
        return "# memexp.run(cfg), of a Python program"
    return " ".join(shlex.join(["memexp", "train", *map(str, told)]).split("\n"))


def _code(text: str) -> str:
    """Inside backticks."""
    return visible(text).replace("`", "'")


def _listed(texts: Iterable[str]) -> str:
    found = sorted(text for text in texts if text)
    return in_markdown("; ".join(found)) if found else "not recorded"
