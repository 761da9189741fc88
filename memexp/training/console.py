"""What a person sees of a run: a progress bar on a terminal, plain lines where the output is a file, a pipe, a notebook or a
terminal on which nothing can be drawn again.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.logging import RichHandler
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from memexp.visible import visible

log = logging.getLogger("memexp")
GAP = 2  # columns between two parts of the line
LEAST_BAR = 8  # columns below which a bar tells nothing


class Console:
    """Shows progress over `total` steps and carries the log lines of the "memexp" logger while entered."""

    def __init__(self, total: int, done: int = 0, quiet: bool = False) -> None:
        self._interactive = _redrawn() and not quiet
        self._quiet = quiet
        self._total, self._done = total, done
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._interactive:
            self._progress = _OneLine(transient=True, console=terminal())
            self._progress.start()
            self._task = self._progress.add_task("", total=self._total, completed=self._done, figures=())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, step: int, figures: Sequence[str]) -> None:
        """Shows where the run stands; on a terminal in place, elsewhere as a line. figures: what matters most first."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=tuple(figures))
        line = f"step {step}/{self._total}  {'  '.join(figures)}"
        log.log(logging.DEBUG if self._progress is not None or self._quiet else logging.INFO, line)


class _OneLine(Progress):
    """Of one task, as much as the width allows."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            seconds = task.time_remaining
            left = "-:--:--" if seconds is None else _clock(int(seconds))
            done, total = int(task.completed), int(task.total or 0)
            parts, bar = fitted(f"step {done}/{total}", task.fields["figures"], left, self.console.width)
            line = Table.grid(padding=(0, GAP, 0, 0))
            cells: list[RenderableType] = [Text(part, no_wrap=True) for part in parts]
            if bar:
                cells.insert(1, ProgressBar(total=total, completed=done, width=bar))
            line.add_row(*cells)
            yield line


def fitted(step: str, figures: Sequence[str], left: str, width: int) -> tuple[list[str], int]:
    """(parts of the line, columns of the bar) for a terminal of this width.

    Step, the first figure and the time left always stay; where it is narrow the bar goes first, and then the last figures.
    """
    parts = [step, *figures, left]
    bar = width - _columns(parts) - GAP
    while len(parts) > 3 and _columns(parts) > width:
        del parts[-2]
    return parts, min(bar, 40) if bar >= LEAST_BAR else 0


def _columns(parts: Sequence[str]) -> int:
    return sum(map(len, parts)) + GAP * len(parts)  # rich pads the last cell, too


def _clock(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


_TERMINAL: RichConsole | None = None


def terminal() -> RichConsole:
    """The one terminal that the bar and the log lines share, so that neither tears the other."""
    global _TERMINAL
    if _TERMINAL is None:
        _TERMINAL = RichConsole(soft_wrap=True)
    return _TERMINAL


def _redrawn() -> bool:
    """Whether a bar can be drawn: not where lines stay as they were written, as with TERM=dumb."""
    return sys.stdout.isatty() and not terminal().is_dumb_terminal


class _Output(logging.StreamHandler[TextIO]):
    """Lines to what is standard output when they come: a notebook or a test may have changed it since."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


class _Lines(logging.Formatter):
    """A message may quote a file."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n")


def start_logging() -> None:
    """Log lines to standard output; without control characters unless that is a terminal."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for old in list(log.handlers):
        if not isinstance(old, logging.FileHandler):
            log.removeHandler(old)
    handler: logging.Handler
    if _redrawn():
        handler = RichHandler(console=terminal(), show_time=False, show_level=False, show_path=False, markup=False)
    else:
        handler = _Output()
    handler.setLevel(logging.INFO)
    handler.setFormatter(_Lines("%(message)s"))
    log.addHandler(handler)


@contextmanager
def spoken() -> Iterator[None]:
    """Log lines to standard output for as long as a function of the package works, unless its caller has seen to them."""
    if log.level != logging.NOTSET or log.handlers or (log.propagate and logging.getLogger().handlers):
        yield
        return
    before = log.level, log.propagate
    start_logging()
    try:
        yield
    finally:
        log.handlers = [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]
        log.setLevel(before[0])
        log.propagate = before[1]
