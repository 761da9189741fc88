"""Bytes and figures as people write them."""

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
    """In MiB of 2^20 bytes, the one unit in which memory is told."""
    return f"{shown_figure(count / 2**20)} MiB"


def shown_figure(value: float, decimals: int = 1) -> str:
    """With so many decimals, and more where that is needed for two significant digits: 0.042, never 0.0."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or float(value).is_integer():
        return f"{value:,.{decimals}f}"
    return f"{value:,.{max(decimals, 1 - math.floor(math.log10(abs(value))))}f}"
