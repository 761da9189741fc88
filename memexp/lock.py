"""The lock of a run directory: a file that one process holds, and that is free again once it has ended, however it did."""

import fcntl
import os
from pathlib import Path
from typing import ClassVar


class Lock:
    """Of this process alone: those that it forks, to decode images, outlive it by seconds where it is killed."""

    _taken: ClassVar[set["Lock"]] = set()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def take(self) -> None:
        """Raises BlockingIOError where another holds it, and OSError for a file that cannot be written."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        self._taken.add(self)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """A lock that is not held is left as it is."""
        if self in self._taken:
            self._taken.remove(self)
            os.close(self._file)

    @classmethod
    def leave(cls) -> None:
        """What a fork does with those of the process before it, which keeps them."""
        for lock in list(cls._taken):
            lock.release()


os.register_at_fork(after_in_child=Lock.leave)


def in_use(path: Path) -> bool:
    """Whether a run holds the lock of the directory `path`, which may be another person's, to be read alone."""
    try:
        file = os.open(path / ".lock", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # beside others that ask
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, where no run can be
        return False
    finally:
        os.close(file)
    return False
