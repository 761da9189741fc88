"""Bytes as people write them."""

import math
import re

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str | int | float) -> int:
    """11GB -> 11,000,000,000; 900MiB -> 943,718,400; a number is bytes.

    Raises ValueError for anything else.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", str(text), re.IGNORECASE)
    count = float(found[1]) * UNITS.get(found[2].upper(), math.nan) if found else math.nan
    if not math.isfinite(count):
        raise ValueError(f"{text!r} is not a number of bytes; write it as 11GB (10^9), 900MiB (2^20) or plain bytes")
    return int(count)


def shown_bytes(count: float) -> str:
    """In MB of 10^6 and GB of 10^9 bytes."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"
