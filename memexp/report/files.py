"""Pictures and their folder. What is written takes the place of a symbolic link, and a folder that is one is refused: a run
may be a stranger's, and a report of it must write nowhere else.
"""

import io
import logging
import re
import warnings
from pathlib import Path

from matplotlib.figure import Figure

from memexp.record import folder, write_bytes

log = logging.getLogger("memexp")


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Writes `directory`/`name`.png, .svg and .pdf; returns the PNG file. Raises RunDirectoryError."""
    folder(directory)
    with warnings.catch_warnings(record=True) as told:
        for suffix in ("png", "svg", "pdf"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150)
            figure.set_layout_engine("none")  # it stands as it was laid out for the first
            write_bytes(directory / f"{name}.{suffix}", buffer.getvalue())
    lacking = {
        text: re.match(r"Glyph (\d+) .* missing", text) for text in dict.fromkeys(str(one.message) for one in told)
    }
    letters = [chr(int(found[1])) for found in lacking.values() if found]
    if letters:
        shown = "".join(letters[:20]) + ("..." if len(letters) > 20 else "")
        log.warning("warning: %s: its font has no letters for %s, and boxes stand for them", f"{name}.png", shown)
    for text in (text for text, found in lacking.items() if not found):
        log.warning("warning: %s: %s", f"{name}.png", text)
    return directory / f"{name}.png"


def as_it_is(text: str) -> str:
    """As it is: matplotlib reads formulas between dollars, and leaves a name with an underscore in front out of legends."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
