"""The directory of a run: its lock, results.json, metrics.jsonl, environment.json and train.log.

Every file is either appended to a line at a time or written aside and renamed, so that a run killed at any moment
leaves nothing half written.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memexp.environment import environment
from memexp.lock import Lock
from memexp.sequence import STAGES
from memexp.units import shown_figure
from memexp.visible import visible

SCHEMA = 2
READABLE = (1, 2)  # schemas of results.json that are still read
FINISHED = "results.finished.json"  # the record of a finished run that is made longer
GROWING = ("metrics.jsonl", "events.out.tfevents.*")  # files that a run appends to
OPENED = (".lock", "train.log", *GROWING, ".hydra", "checkpoints", "plots")  # of a run, which are not replaced whole
_OF_STAGE = rf"(?:{'|'.join(STAGES)})(?:-\d+)?-"
MADE = re.compile(  # what else a run leaves of its own, by place and name; a person's files lie beside it
    rf"checkpoints/.+\.pt(\.aside)?|plots/(({_OF_STAGE})?(timeline|tsne-\d+)|{_OF_STAGE}(scores|weights)|fig2|fig3c)\.(png|svg|pdf)"
    rf"|{_OF_STAGE}\d+\.pt\.trace\.json|({_OF_STAGE})?(memory|oom)-snapshot-\d+\.pickle"
)
STATUSES = ("running", "done", "failed", "oom", "nan", "interrupted")
log = logging.getLogger("memexp")


class RunDirectoryError(Exception):
    """A run directory that cannot be used. The message names it."""


class NotWritten(Exception):
    """What a command makes has no place where it was to go. told: what there is to print nevertheless."""

    told = ""


@contextmanager
def writing(place: Path, instead: str = "choose another with --output") -> Iterator[None]:
    """Inside, what `place` refuses (rights, a full disk, a file where a folder is wanted) is raised as NotWritten."""
    try:
        yield
    except (OSError, RunDirectoryError) as error:
        why = getattr(error, "strerror", None) or error
        raise NotWritten(f"{place} cannot be written: {why}; {instead}") from error


def write_json(path: Path, data: Any) -> None:
    """Writes JSON aside and renames it over `path`. Numbers that are not finite become null, as JSON has none."""
    aside = path.with_name(path.name + ".aside")
    try:
        aside.unlink(missing_ok=True)  # a link there would be followed
        with open(aside, "x", encoding="utf-8") as file:
            json.dump(as_json(data), file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"{path} could not be written: {error.strerror}. What it held before is intact."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes `text` aside and renames it over `path`, so that a link there is replaced, not followed."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """The same of bytes."""
    aside = path.with_name(path.name + ".aside")
    aside.unlink(missing_ok=True)
    try:
        with open(aside, "xb") as file:
            file.write(data)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def folder(path: Path) -> Path:
    """A folder of a run or a report, made if it is not there. Raises RunDirectoryError for a link, which may lead anywhere."""
    _refuse_link(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise RunDirectoryError(f"{path} is a symbolic link, and nothing is written through one; remove it.")


def read_json(path: Path) -> dict[str, Any] | None:
    """What `path` holds, or None where there is no readable JSON object. Numbers that are not finite are null, as written."""
    try:
        data = as_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


class RunDirectory:
    """One run's directory, held by a lock while it is entered: a second run there is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock = Lock(path / ".lock")
        self._handler: logging.Handler | None = None

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in sorted(os.listdir(self.path)):
                if any(fnmatchcase(name, pattern) for pattern in OPENED):
                    _refuse_link(self.path / name)
            self._lock.take()
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"the run directory {self.path} is in use by another run; wait for it, or choose another directory."
            ) from error
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {self.path} cannot be written: {error.strerror}. "
                "Choose another with hydra.run.dir=DIR, or run from a directory that you may write."
            ) from error
        try:
            self._handler = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        except OSError as error:
            self._lock.release()
            raise RunDirectoryError(f"{self.path}/train.log cannot be written: {error.strerror}.") from error
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            log.removeHandler(self._handler)
            self._handler.close()
        self._lock.release()

    @property
    def results(self) -> dict[str, Any] | None:
        return read_json(self.path / "results.json")

    @property
    def plots(self) -> Path:
        """The folder of pictures, made if it is not there."""
        return folder(self.path / "plots")

    def write_results(self, results: dict[str, Any]) -> None:
        write_json(self.path / "results.json", results)

    def append_metrics(self, **values: Any) -> None:
        """Adds one line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(as_json(values)) + "\n")

    def appended(self) -> dict[str, int]:
        """Bytes of each file that grows."""
        return {path.name: path.stat().st_size for path in self._growing()}

    def rewind(self, appended: dict[str, int] | None, step: int) -> None:
        """Takes back what was appended after a checkpoint, as a resumed run writes it again.

        appended: what `appended()` gave when it was saved; None for one of schema 1, by whose `step` lines are dropped.
        """
        if appended is None:
            self._drop_lines(step)
            return
        for path in self._growing():
            if path.name not in appended:
                path.unlink()
            elif path.stat().st_size > appended[path.name]:
                os.truncate(path, appended[path.name])

    def clear(self) -> None:
        """Removes what an earlier run left here, so that a fresh one does not mix with it; of train.log both are told."""
        for path in self.left():
            path.unlink()

    def left(self) -> list[Path]:
        """The files that `clear` removes."""
        places = [path for folder in (self.checkpoints, self.path / "plots", self.path) for path in folder.glob("*")]
        made = [path for path in sorted(places) if MADE.fullmatch(path.relative_to(self.path).as_posix())]
        return [*self._growing(), *(path for path in made if not path.is_dir()), *self.path.glob(FINISHED)]

    def _growing(self) -> list[Path]:
        return [path for pattern in GROWING for path in sorted(self.path.glob(pattern))]

    def _drop_lines(self, step: int) -> None:
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the line that a kill cut short
        write_text(path, "".join(kept))

    def write_hydra(self, config: str, overrides: Sequence[str], hydra: str | None) -> None:
        """The YAML of .hydra/, as Hydra itself lays it out; of it memexp reads what JSON does not tell (memexp.recorded)."""
        folder = self.path / ".hydra"
        folder.mkdir(exist_ok=True)
        texts = {"config": config, "overrides": "".join(f"- {json.dumps(text)}\n" for text in overrides) or "[]\n"}
        for name, text in (texts | ({"hydra": hydra} if hydra is not None else {})).items():
            write_text(folder / f"{name}.yaml", text)

    def write_environment(self, **more: Any) -> None:
        write_json(self.path / "environment.json", {**environment(), **more})


def as_json(data: Any) -> Any:
    """`data` as JSON has it: keys are texts, and numbers that are not finite null."""
    if isinstance(data, dict):
        return {str(key): as_json(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [as_json(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def summary(results: dict[str, Any], directory: Path) -> str:
    """What a person wants to read at the end of a run."""
    lines = [f"run directory      {directory}", f"status             {results['status']}"]
    if results.get("error"):
        lines.append(f"error              {results['error']}")
    if accuracy := results.get("accuracy"):
        lines.append(
            f"accuracy           top-1 {accuracy['top1']:.2f} %, top-5 {accuracy['top5']:.2f} % "
            f"on {accuracy['images']} {accuracy.get('split', 'test')} images"
        )
    if (memory := results.get("memory")) and memory.get("peak"):
        lines.append(
            f"peak memory        {shown_figure(memory['peak'] / 2**20)} MiB ({memory['how']}), "
            f"activations {shown_figure((memory['activations'] or 0) / 2**20)} MiB"
        )
    if told := (results.get("strategy") or {}).get("warning"):
        lines.append(f"warning            {told}")
    if (timing := results["time"]).get("step_median"):
        note = "median" if timing["warm_up_excluded"] else "warm-up included: the run was too short to leave it out"
        lines.append(
            f"speed              {shown_figure(timing['images_per_second'])} images/s, "
            f"step {shown_figure(timing['step_median'] * 1e3)} ms "
            f"({note}, {timing['steps_measured']} steps)"
        )
        if timing.get("compile_seconds"):
            lines[-1] += f"; compiling took {shown_figure(timing['compile_seconds'])} s beside"
    lines += [f"{name:<18} {figure:,.6g}" for name, figure in (results.get("study") or {}).items()]
    lines.append(f"wall time          {timing['wall']:.1f} s")
    return visible("\n".join(lines), keep="\n")
