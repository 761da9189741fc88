"""Asks a run to stop: the first signal lets it finish its step and save, a second one ends it at once.

SIGUSR2 is a notice, as SLURM gives it ahead of the end of a job and a sweep to its jobs. It may come several times, from each
of them, and before or after a signal of the other kind: it never ends a run that is saving.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name))
NOTICE = getattr(signal, "SIGUSR2", None)
_NO_HANDLER = object()


class Interrupted(Exception):
    """The run was asked to stop and has saved what it had."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process that this signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum


class StopRequest:
    """While entered, remembers a signal that asks the process to stop; it heeds it at its next step (distribution.heed)."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        # Python gives signals to the main thread alone: a run in another one is not stopped by them
        for signum in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self, but: int | None = None) -> None:
        # one at a time, as a second signal may come between two of them and restore the others
        for signum in SIGNALS:
            handler = self._before.pop(signum, _NO_HANDLER) if signum != but else _NO_HANDLER
            if handler is not _NO_HANDLER:
                signal.signal(signum, handler)  # type: ignore[arg-type]

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None or signum != NOTICE:
            self.signum = signum
        if signum != NOTICE:
            self._restore(but=NOTICE)
