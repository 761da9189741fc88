"""Pictures and their folder. What is written takes the place of a symbolic link, and a folder that is one is refused: a run
may be a stranger's, and a report of it must write nowhere else.
"""

import io
from pathlib import Path

from matplotlib.figure import Figure

from memexp.record import folder, write_bytes


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Writes `directory`/`name`.png, .svg and .pdf; returns the PNG file. Raises RunDirectoryError."""
    folder(directory)
    for suffix in ("png", "svg", "pdf"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=150)
        figure.set_layout_engine("none")  # it stands as it was laid out for the first
        write_bytes(directory / f"{name}.{suffix}", buffer.getvalue())
    return directory / f"{name}.png"


def as_it_is(text: str) -> str:
    """As it is: matplotlib reads formulas between dollars, and leaves a name with an underscore in front out of legends."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
