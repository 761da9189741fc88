"""Which of many files cannot be decoded: each is read once, and that it was sound is remembered while it stays as it is."""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch.distributed as dist

from memexp.data import cache, images
from memexp.data.batches import Share
from memexp.data.errors import DataError

log = logging.getLogger("memexp")
AT_ONCE = 10_000  # files between two saves of what was found


def broken(root: str, files: Sequence[str], share: Share, notes: list[str]) -> list[int]:
    """Positions in `files` of those that cannot be decoded.

    Processes that have joined divide the files among them. Only sound files are remembered, by name, size and time of
    change: a broken one is looked at each time, as someone may have mended it.
    """
    name = f"sound-{cache.key(os.path.realpath(root))}"
    kept = (cache.load(name, notes) or {}).get("stamps", np.empty(0))
    if kept.dtype != np.uint64 or kept.ndim != 1:
        kept = np.empty(0, np.uint64)
    stamps = np.array([_stamp(root, file) for file in files], np.uint64)
    unknown = np.flatnonzero(~np.isin(stamps, kept) | (stamps == 0))
    together = share.size > 1 and dist.is_available() and dist.is_initialized()
    mine = unknown[share.rank :: share.size] if together else unknown
    if len(unknown) > AT_ONCE:
        log.info("data: reading %d images once, to find those that are broken", len(unknown))
    bad: list[int] = []
    unsaved: list[str] = []
    for start in range(0, len(mine), AT_ONCE):
        part = mine[start : start + AT_ONCE]
        with ThreadPoolExecutor() as pool:
            sound = np.fromiter(pool.map(_decodes, (files[i] for i in part)), bool, len(part))
        bad += part[~sound].tolist()
        kept = np.union1d(kept, stamps[part[sound]])
        if not together and sound.any():
            cache.save(name, {"stamps": kept}, unsaved)
    if together:
        every: list[tuple[list[int], np.ndarray]] = [([], kept)] * share.size
        dist.all_gather_object(every, (bad, kept))
        bad = sorted(position for found, _ in every for position in found)
        if share.rank == 0 and len(unknown):
            cache.save(name, {"stamps": np.unique(np.concatenate([stamps for _, stamps in every]))}, unsaved)
    notes += unsaved[:1]
    return bad


def _stamp(root: str, file: str) -> int:
    """Stands for a file as it is now; 0 for one that cannot be looked at."""
    try:
        status = os.stat(file)
    except OSError:
        return 0
    text = f"{status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(file.removeprefix(root))
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _decodes(path: str) -> bool:
    try:
        images.read(path)
    except DataError:
        return False
    return True
