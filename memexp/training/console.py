"""What a person sees of a run: a progress bar on a terminal, plain lines where the output is a file or a pipe."""

import logging
import sys
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("memexp")


class Console:
    """Shows progress over `total` steps and carries the log lines of the "memexp" logger while entered."""

    def __init__(self, total: int, done: int = 0, quiet: bool = False) -> None:
        self._interactive = sys.stdout.isatty() and not quiet
        self._quiet = quiet
        self._total, self._done = total, done
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._interactive:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                transient=True,
                console=terminal(),
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=self._total, completed=self._done, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, step: int, figures: str) -> None:
        """Shows where the run stands; on a terminal in place, elsewhere as a line."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=figures)
        if self._progress is None and not self._quiet:
            log.info("step %d/%d  %s", step, self._total, figures)
        else:
            log.debug("step %d/%d  %s", step, self._total, figures)


_TERMINAL: RichConsole | None = None


def terminal() -> RichConsole:
    """The one terminal that the bar and the log lines share, so that neither tears the other."""
    global _TERMINAL
    if _TERMINAL is None:
        _TERMINAL = RichConsole(soft_wrap=True)
    return _TERMINAL


class _Output(logging.StreamHandler[TextIO]):
    """Lines to what is standard output when they come: a notebook or a test may have changed it since."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def start_logging() -> None:
    """Log lines to standard output; without control characters unless that is a terminal."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for old in list(log.handlers):
        if not isinstance(old, logging.FileHandler):
            log.removeHandler(old)
    handler: logging.Handler
    if sys.stdout.isatty():
        handler = RichHandler(console=terminal(), show_time=False, show_level=False, show_path=False, markup=False)
    else:
        handler = _Output()
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
