"""What a data set can be refused for, and how names of files are shown."""

import os
import unicodedata


class DataError(Exception):
    """Data that is not there, is damaged or does not fit. The message names the file or folder and what to do.

    file: the one file at fault, where it is one.
    """

    def __init__(self, message: str, file: str | None = None) -> None:
        super().__init__(message)
        self.file = file


def shown(name: str | os.PathLike[str]) -> str:
    """A name for people: bytes that are not UTF-8 and characters that a terminal would obey are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)
    return "".join(kept)


def reason(error: Exception) -> str:
    """Why, in one line and without the path that the message names already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
