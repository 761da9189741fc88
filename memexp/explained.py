"""What a command raises, as one message and an exit status."""

import os
import sys
from collections.abc import Callable
from pathlib import Path


def guarded(action: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Turns what an action raises into one message and an exit status."""
    try:
        os.getcwd()
    except OSError as error:
        return fail(
            f"the directory that this was started in is not there any more: {error.strerror}; change to another", 2
        )
    try:
        return action(arguments)
    except KeyboardInterrupt:
        return fail("stopped", 130)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    from memexp.config import ConfigError
    from memexp.record import NotWritten, RunDirectoryError

    if isinstance(error.__cause__, ConfigError) and type(error).__module__.startswith(
        "hydra."
    ):  # of a sweeper, a launcher
        error = error.__cause__
    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = "the configuration has a problem:" if count == 1 else f"the configuration has {count} problems:"
        return fail("\n  ".join([head, *error.problems]), 2)
    if isinstance(error, RunDirectoryError | NotWritten):
        return fail(str(error), 2 if isinstance(error, NotWritten) else 1)
    if "torch" in sys.modules:
        from memexp.ended import EXPLAINED
        from memexp.memory import advice
        from memexp.training.signals import Interrupted

        if isinstance(error, Interrupted):
            return fail("; ".join([str(error), *getattr(error, "__notes__", ())]), error.exit_status)
        if isinstance(error, EXPLAINED):
            return fail(str(error), 1)
    import traceback

    if os.environ.get("HYDRA_FULL_ERROR"):
        traceback.print_exc()
    text = (advice.brief(error) if "torch" in sys.modules else str(error)).strip().splitlines()
    where = traceback.extract_tb(error.__traceback__)[-1]
    notes = getattr(error, "__notes__", None) or ["HYDRA_FULL_ERROR=1 shows the traceback"]
    return fail(
        f"{type(error).__name__}: {text[0] if text else ''} (at {Path(where.filename).name}:{where.lineno}; {notes[0]})",
        1,
    )


def fail(message: str, status: int) -> int:
    sys.stdout.flush()
    from memexp.visible import visible  # a message may quote a file

    print(f"memexp: {visible(message, keep=chr(10))}", file=sys.stderr)
    return status
