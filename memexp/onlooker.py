"""How far a sweep has come whose jobs another launcher carries out, in processes or on machines of its own: by their record."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from memexp.jobs import Job, Sweep, progress, say

EVERY = 10.0  # seconds between looks


class Onlooker:
    """Knows what the jobs of `batch` have written since it was made."""

    def __init__(self, batch: Sequence[Job], sweep: Sweep) -> None:
        self._batch, self._sweep = batch, sweep
        self._before = {job.number: _written(job) for job in batch}
        self._started, self._latest = time.monotonic(), ""

    def news(self) -> str | None:
        """How far the whole sweep has come, where a job has begun or ended since this was asked before; else None."""
        earlier = [job.status for job in self._sweep.jobs if job.status is not None]  # of batches before this one
        fresh: list[str] = []
        for job in self._batch:
            found = job.results
            if _written(job) != self._before[job.number]:
                fresh.append(str(found.get("status", "running")))
            elif found.get("status") == "done" and found.get("config_hash") == job.hash:
                earlier.append("done")
        statuses, ended = [*earlier, *fresh], len(fresh) - fresh.count("running")
        left = self._sweep.total - len(earlier) - ended
        counts = progress(statuses, self._sweep.total, None)
        if not fresh or counts == self._latest:
            return None
        self._latest = counts
        seconds = (time.monotonic() - self._started) * left / ended if ended and left > 0 else None
        return progress(statuses, self._sweep.total, seconds)


def _written(job: Job) -> int:
    """When its record was written; 0 where there is none."""
    try:
        return (job.directory / "results.json").stat().st_mtime_ns
    except OSError:
        return 0


@contextmanager
def telling(batch: Sequence[Job], sweep: Sweep) -> Iterator[None]:
    """Around the work of another launcher: a line for what is new, every few seconds."""
    onlooker, over = Onlooker(batch, sweep), threading.Event()

    def look() -> None:
        while not over.wait(EVERY):
            if (news := onlooker.news()) is not None:
                say(f"sweep: {news}")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
